import sys
from collections.abc import Generator, Iterator

import jaxtyping
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What is slow runs the code as users do; types are checked at run time in all other tests, which call the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", bool({"slow", "long"} & set(item.keywords)))
        return (yield)


@pytest.fixture(autouse=True)
def own_main() -> Iterator[None]:
    """A page that is run in this process takes the place of its main module, which processes begun later would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
