import base64
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from xarray import DataArray

from interp import plots
from tests.variants import some_tokens, variant

AXES = ("layer", "head", "query_pos", "key_pos")


def some_patterns(n_layers: int = 2, n_heads: int = 3, n: int = 7, seed: int = 0) -> np.ndarray:
    scores = torch.randn(n_layers, n_heads, n, n, generator=torch.Generator().manual_seed(seed)) * 3
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1).numpy()


def picture(figure: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's number, and the colours by number."""
    png = base64.b64decode(figure.data[0].source.removeprefix("data:image/png;base64,"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        found[kind] = png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + found[kind])
        at += 12 + size
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, width + 1)
    return lines[:, 1:], np.frombuffer(found[b"PLTE"], np.uint8).reshape(-1, 3)


def tile_of(figure: Any, layer: int, head: int) -> np.ndarray:
    """The pixels whose middle is in the square of side 1 around a head's place, without the gaps."""
    image, (pixels, _) = figure.data[0], picture(figure)
    x, y = image.x0 + image.dx * np.arange(pixels.shape[1]), image.y0 + image.dy * np.arange(pixels.shape[0])
    inside = pixels[abs(y - layer) < 0.5][:, abs(x - head) < 0.5]
    assert (inside == 255).any(), "no gap between tiles"
    return inside[(inside != 255).any(1)][:, (inside != 255).any(0)]


def test_a_tile_is_its_heads_pattern_the_largest_of_each_square_by_its_root() -> None:
    patterns = some_patterns(n=11)
    for side, by in ((11, 1), (4, 3), (3, 4), (1, 11)):
        figure = plots.head_mosaic(patterns, tile=side)
        for layer, head in np.ndindex(2, 3):
            starts = range(0, 11, by)
            pattern = patterns[layer, head]
            largest = [[pattern[i : i + by, j : j + by].max() for j in starts] for i in starts]
            np.testing.assert_array_equal(tile_of(figure, layer, head), np.rint(np.sqrt(largest) * 253))
    assert "the largest of 3 × 3" in plots.head_mosaic(patterns, tile=4).layout.title.subtitle.text.replace("<br>", " ")
    np.testing.assert_array_equal(
        tile_of(plots.head_mosaic(patterns, tile=24), 1, 2)[::2, ::2],
        tile_of(plots.head_mosaic(patterns, tile=11), 1, 2),
    )


class Made:
    """Patterns that are made when asked for."""

    def __init__(self, *of_prompts: np.ndarray, layers: list[int] | None = None) -> None:
        self.all = torch.from_numpy(np.stack(of_prompts))
        self.layers, self.heads = layers or list(range(self.all.shape[1])), list(range(self.all.shape[2]))
        self.asked: list[tuple[int, int]] = []
        self.attention_mask: Tensor | None = None

    def __getitem__(self, at: tuple[int, int]) -> Tensor:
        self.asked.append(at)
        return self.all[:, self.layers.index(at[0]), at[1]]


def test_wherever_patterns_are_kept_the_picture_is_the_same() -> None:
    patterns = some_patterns()
    labelled = DataArray(np.stack([patterns / 2, patterns]), dims=("prompt", *AXES)).transpose("key_pos", "head", ...)
    expected = plots.head_mosaic(patterns)
    np.testing.assert_array_equal(picture(plots.head_mosaic(labelled, prompt=1))[0], picture(expected)[0])
    made = Made(patterns)
    for same in (torch.from_numpy(patterns), made):
        assert plots.head_mosaic(same).to_json() == expected.to_json()
    assert made.asked[1:] == [(i, j) for i in range(2) for j in range(3)]
    second = plots.head_mosaic(Made(patterns / 2, patterns), prompt=1)
    np.testing.assert_array_equal(picture(second)[0], picture(expected)[0])


def test_a_caches_patterns_are_those_of_its_prompt_without_padding() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    figure = plots.head_mosaic(cache, prompt=1, tile=5)
    made = Made(*torch.stack([cache["pattern", layer].detach() for layer in range(model.cfg.n_layers)], 1).numpy())
    made.attention_mask = mask
    np.testing.assert_array_equal(picture(plots.head_mosaic(made, prompt=1, tile=5))[0], picture(figure)[0])
    n_layers = model.cfg.n_layers
    for layer, head in np.ndindex(n_layers, model.cfg.n_heads):
        pattern = cache["pattern", layer][1, head, 2:, 2:].detach()
        np.testing.assert_array_equal(tile_of(figure, layer, head), (pattern.sqrt() * 253).round())
    assert "prompt 1 of 3" in figure.layout.title.subtitle.text.replace("<br>", " ")
    _, some = model.run_with_cache(tokens, names_filter=f"blocks.{n_layers - 1}.*hook_pattern")
    assert plots.head_mosaic(some).layout.yaxis.ticktext == (str(n_layers - 1),)
    _, none = model.run_with_cache(tokens, names_filter="*hook_z")
    with pytest.raises(ValueError, match="no patterns"):
        plots.head_mosaic(none)


def test_hovering_says_which_head_it_is_and_where_it_looks() -> None:
    patterns = np.zeros((2, 3, 4, 4), np.float32)
    patterns[..., 0] = 1
    patterns[1, 2] = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.75, 0.25, 0], [0, 0.75, 0, 0.25]]
    figure = plots.head_mosaic(patterns, tokens=["a", "<b>$x$\n", "a", "c"])
    points = figure.data[1]
    place = list(zip(points.y, points.x, strict=True)).index((1, 2))
    assert points.hovertext[place] == (
        "L1H2<br>most at 1 &lt;b&gt;&#36;x&#36;⏎: 0.5 on average<br>a query's largest: 0.75 on average"
    )
    assert len(points.x) == 6
    assert figure.layout.hoverdistance == -1  # anywhere in a tile its own point is the nearest
    assert plots.head_mosaic(patterns).data[1].hovertext[0].startswith("L0H0<br>most at 0: 1 on")


def test_scales_are_shared_unless_each_head_has_its_own() -> None:
    patterns = some_patterns(n=20)
    patterns[0, 1] *= 0.01
    shared, own = (plots.head_mosaic(patterns, relative=relative, tile=20) for relative in (False, True))
    assert tile_of(shared, 0, 1).max() < 30
    assert tile_of(own, 0, 1).max() == 253
    faint, plain = (plots.head_mosaic(patterns * x, relative=True, tile=20) for x in (0.1, 1))
    np.testing.assert_allclose(tile_of(faint, 1, 1), tile_of(plain, 1, 1), atol=1)
    assert "own scale" in own.layout.title.subtitle.text
    assert "one scale" in shared.layout.title.subtitle.text
    assert [figure.data[2].marker.cmax for figure in (shared, plots.head_mosaic(patterns * 4))] == [1, 4]


def test_a_frame_is_drawn_around_the_head_named() -> None:
    figure = plots.head_mosaic(Made(some_patterns(), layers=[3, 5]), highlight=(5, 1))
    for shape in figure.layout.shapes:
        assert (shape.y0, shape.y1, shape.x0, shape.x1) == (0.5, 1.5, 0.5, 1.5)
    assert figure.layout.yaxis.ticktext == ("3", "5")
    assert figure.data[1].hovertext[4].startswith("L5H1")
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "layers go down"
    with pytest.raises(ValueError, match=r"highlight=\(1, 1\); layers are \[3, 5\]"):
        plots.head_mosaic(Made(some_patterns(), layers=[3, 5]), highlight=(1, 1))


def test_what_is_not_finite_is_grey_and_says_so() -> None:
    patterns = some_patterns()
    patterns[0, 0, 3, 1], patterns[1, 1] = np.nan, np.inf
    for theme, grey in (("light", 0xB4), ("dark", 0x66)):
        figure = plots.head_mosaic(patterns, theme=theme, tile=7)
        assert (tile_of(figure, 0, 0) == 254).sum() == 1
        assert tile_of(figure, 0, 0)[3, 1] == 254
        assert (tile_of(figure, 1, 1) == 254).all()
        assert picture(figure)[1][254].tolist() == [grey] * 3
        assert "grey: not finite" in figure.layout.title.subtitle.text.replace("<br>", " ")
        assert figure.data[1].hovertext[4] == "L1H1<br>not finite"


def test_little_fades_into_the_background_in_either_theme() -> None:
    for theme, is_light in (("light", True), ("dark", False)):
        shades = picture(plots.head_mosaic(some_patterns(), theme=theme))[1][:254].sum(1, dtype=int)
        assert (np.diff(shades) <= 0).all() if is_light else (np.diff(shades) >= 0).all()


@pytest.mark.slow
def test_a_thousand_heads_weigh_less_than_three_megabytes() -> None:
    one = [some_patterns(1, 32, 96, seed) for seed in range(4)]
    figure = plots.head_mosaic(Made(np.concatenate(one * 8)), tokens=[" the"] * 96)
    assert picture(figure)[0].shape == (32 * 50 + 2, 32 * 50 + 2)
    assert len(figure.to_json()) < 3e6
    assert len(figure.layout.xaxis.tickvals) == 16
    assert figure.layout.title.text == "Attention of 1,024 heads"


def test_what_is_no_set_of_patterns_is_refused() -> None:
    patterns = some_patterns()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (patterns[0], {}, r"\[3, 7, 7\].*\[layer head query_pos key_pos\]"),
        (DataArray(patterns, dims=("layer", "head", "pos", "key_pos")), {}, r"\[layer head pos key_pos\]"),
        (patterns[:0], {}, r"\[0, 3, 7, 7\]"),
        (patterns - 0.5, {}, "L0H0 has negative numbers"),
        (patterns * np.nan, {}, "finite"),
        (patterns, {"tokens": ["a"]}, "7 places, and 1 tokens"),
        (patterns, {"tile": 0}, "tile=0"),
        (Made(patterns), {"prompt": 1}, "prompt=1; there are 1"),
        (patterns, {"prompt": 1}, "prompt=1; there are 1"),
    ]
    for given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            plots.head_mosaic(given, **options)
