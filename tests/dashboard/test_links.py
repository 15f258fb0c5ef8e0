"""Links and the browser's history: what was on show is on show again."""

from collections.abc import Callable
from urllib.parse import parse_qs, urlparse

import pytest

from dashboards.parts.links import FIELDS
from tests.dashboard.app import healthy, opened
from tests.dashboard.browser import Watched

GRID = ".st-key-grid canvas"


def fields(watched: Watched) -> dict[str, str]:
    """What the link says, but for the weights."""
    found = parse_qs(urlparse(watched.page.url).query)
    return {name: values[-1] for name, values in found.items() if name != "fp"}


def holds(watched: Watched, label: str, value: str) -> None:
    """The field comes to hold this value."""
    found = '([label, value]) => document.querySelector(`[data-testid="stMain"] input[aria-label="${label}"]`)?.value'
    watched.page.wait_for_function(f"{found} === value", arg=[label, value])
    watched.idle()


def pick(watched: Watched, layer: int, head: int) -> None:
    box = watched.page.locator(GRID).first.bounding_box()
    watched.page.mouse.click(box["x"] + box["width"] * (head + 0.5) / 8, box["y"] + box["height"] * (layer + 0.5) / 4)
    holds(watched, "Layer", str(layer))
    holds(watched, "Head", str(head))


@pytest.mark.browser
def test_going_back_to_a_page_brings_back_the_head_that_was_on_show(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page()
    page = watched.open(dashboard)
    page.wait_for_selector(GRID)
    pick(watched, 2, 3)
    assert fields(watched) == {"layer": "2", "head": "3"}
    watched.turn_to("Lens")
    page.go_back()
    holds(watched, "Head", "3")
    holds(watched, "Layer", "2")
    assert urlparse(page.url).path == "/"
    page.go_back()
    holds(watched, "Head", "")
    page.go_forward()
    holds(watched, "Layer", "2")
    page.go_forward()
    holds(watched, "Position", "")
    assert urlparse(page.url).path == "/lens"
    watched.turn_to("Heads")
    holds(watched, "Head", "3")
    page.go_back()
    holds(watched, "Position", "")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("first", "link", "second", "held"),
    [
        ("/", "neuron=5&mlp_layer=2", "Memories", {"Layer": "2", "Neuron": "5"}),
        ("/lens", "layer=2&head=3", "Heads", {"Layer": "2", "Head": "3"}),
        ("/", "lens_row=before+layer+2&lens_pos=4", "Lens", {"Position": "4"}),
    ],
)
def test_what_a_link_says_of_another_page_waits_for_it(
    dashboard: str, new_page: Callable[..., Watched], first: str, link: str, second: str, held: dict[str, str]
) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}{first}?{link}")
    watched.turn_to("Attribution")
    watched.turn_to(second)
    for label, value in held.items():
        holds(watched, label, value)
    assert fields(watched) == {name: values[-1] for name, values in parse_qs(link).items()}
    page.reload()
    for label, value in held.items():
        holds(watched, label, value)


def test_fields_of_other_pages_wait_and_those_that_are_none_do_not() -> None:
    at = opened(
        neuron="5", mlp_layer="2", lens_row="before layer 2", seed="x", step="-3", temperature="nan", nothing="1"
    )
    waiting = {name: at.session_state[name] for name in (*FIELDS, "nothing") if name in at.session_state}
    assert waiting.items() >= {"neuron": 5, "mlp_layer": 2, "lens_row": "before layer 2"}.items()
    assert not {"seed", "step", "temperature", "nothing"} & waiting.keys()
    at.switch_page("views/lens.py").run()
    assert healthy(at).selectbox(key="lens_row").value == 2
    at.switch_page("views/memories.py").run()
    assert healthy(at).number_input(key="neuron").value == 5


def test_fields_beyond_a_page_give_way() -> None:
    at = opened(
        neuron="99999", mlp_layer="70", lens_row="before layer 99", lens_pos="999", norm="x", row="9", new="999"
    )
    for page in ("memories", "lens", "attribution", "generate"):
        at.switch_page(f"views/{page}.py").run()
        healthy(at)
    assert at.number_input(key="new").value == 200
