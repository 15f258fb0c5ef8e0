"""Results made ready to be drawn: effects rather than metrics where asked, and means over prompts."""

from collections.abc import Hashable

import numpy as np
from xarray import DataArray

from interp.plots.theme import in_words, plain, tick_texts

_SIGNED = ("effect", "contribution", "interaction")


def prepared(result: DataArray, effect: bool, n_axes: tuple[int, ...]) -> tuple[DataArray, int]:
    """The mean over prompts, and how many prompts; raise if there is nothing in it, or it has too many axes."""
    if effect and "base" not in result.coords:
        raise ValueError(
            f"effect=True is result - result.base, and this result has {in_words(list(result.coords))}, no `base`"
        )
    axes = [axis for axis in result.dims if axis != "prompt"]
    if len(axes) not in n_axes:
        wanted = " or ".join(map(str, n_axes))
        raise ValueError(f"the result has the axes {in_words(axes)} beside prompts; {wanted} can be drawn: select some")
    if result.size == 0:
        raise ValueError(f"the result is empty: {dict(result.sizes)}")
    if not np.issubdtype(result.dtype, np.number) and result.dtype != bool:
        raise ValueError(f"the result holds {result.dtype}, not numbers")
    numbers = result.astype(float)
    found = numbers - result.base if effect else numbers
    found.attrs, found.name = result.attrs, result.name
    if not np.isfinite(found.to_numpy()).any():
        raise ValueError("no number of the result is finite: there is nothing to draw")
    n_prompts = result.sizes.get("prompt", 0)
    return (found.mean("prompt", keep_attrs=True) if n_prompts else found), n_prompts


def labels(result: DataArray, axis: Hashable, longest: int = 12) -> list[str]:
    """What the places along an axis are called; `token`, a coordinate along it, adds its texts."""
    own = result[axis].values.tolist() if axis in result.coords else range(result.sizes[axis])
    has_tokens = "token" in result.coords and result["token"].dims == (axis,)
    return tick_texts(str(axis), list(own), result["token"].values.tolist() if has_tokens else None, longest)


def quantity(result: DataArray, effect: bool) -> str:
    """What the numbers are, in a few words."""
    name = str(result.name or "value")
    name = str(result.attrs.get("metric", name)) if name == "metric" else name
    return plain(f"change in {name}" if effect else name, 36)


def is_signed(result: DataArray, mean: DataArray, effect: bool) -> bool:
    """Whether 0 is the middle: of effects it is, and of metrics that are 0 where nothing is changed."""
    values = mean.to_numpy()[np.isfinite(mean.to_numpy())]
    is_base_zero = "base" in result.coords and abs(float(result.base.mean())) < 0.05 * np.abs(values).max()
    return bool(effect or result.name in _SIGNED or (values < 0).any() or is_base_zero)


def of_prompts(n: int) -> str:
    """Words for how many prompts a mean is over."""
    return f"mean of {n} prompts" if n > 1 else ""
