"""The page on attribution: its parts are dot products taken by hand, and sum to what the model says."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from pandas import DataFrame
from streamlit.testing.v1 import AppTest
from torch import Tensor

from dashboards.parts.attribution import measured
from interp import HookedGPT
from tests.dashboard.app import array, figure_of, healthy, opened, shown
from tests.dashboard.browser import Watched

PAGE = "views/attribution.py"
PROMPT = "def area(width, height):\n    return width *"


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l").eval()


@torch.no_grad()
def run(model: HookedGPT, tokens: Tensor) -> tuple[Tensor, Any]:
    return model.run_with_cache(tokens)


def frame(at: AppTest, column: str = "") -> DataFrame:
    """The table with this column; the first one if none is named."""
    return next(each.value for each in at.dataframe if not column or column in each.value.columns)


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.text, *at.caption, *at.warning, *at.info, *at.markdown))


def direction(model: HookedGPT, cache: Any, q: int, target: int, foil: int) -> Tensor:
    """The logit difference as a direction at the end of the stream, the scale of the final norm frozen."""
    toward = (model.W_U[:, target] - model.W_U[:, foil]).detach()
    toward = toward if model.ln_final.w is None else toward * model.ln_final.w.detach()  # type: ignore[union-attr]
    toward = toward - toward.mean() if model.cfg.normalization_type == "LN" else toward
    return toward / cache["ln_final.hook_scale"][0, q]


def bars_of(at: AppTest, i: int = 0) -> dict[str, float]:
    spec = figure_of(at, i)
    names = spec["layout"]["yaxis"]["ticktext"]
    found = {}
    for trace in spec["data"]:
        for x, y in zip(array(trace["x"]), array(trace["y"]), strict=True):
            found[names[int(y)]] = float(x)
    return found


@pytest.mark.parametrize("q", [12, 7])
def test_each_part_is_a_dot_product(model: HookedGPT, q: int) -> None:
    at = opened(PAGE, q=str(q))
    now = shown(at)
    logits, cache = run(model, model.to_tokens(PROMPT))
    toward = direction(model, cache, q, now.target, now.foil)
    found = bars_of(at)
    wanted = {"embed": cache["hook_embed"]}
    for layer in range(4):
        wanted |= {f"L{layer} attn": cache["attn_out", layer], f"L{layer} mlp": cache["mlp_out", layer]}
    for name, written in wanted.items():
        assert found[name] == pytest.approx(float(written[0, q] @ toward), abs=2e-5), name
    own = float(logits[0, q, now.target] - logits[0, q, now.foil])
    assert sum(found.values()) == pytest.approx(own, abs=1e-4)
    said = texts(at)
    assert f"= logit difference {own:.4g}"[:22] in said
    mlps = sum(float(cache["mlp_out", layer][0, q] @ toward) for layer in range(4))
    assert f"MLPs {mlps:.3g}"[:9] in said
    assert said.count("✓") == 2
    assert "The final norm's scale is frozen." in said


def test_each_head_and_where_it_took_it_from(model: HookedGPT) -> None:
    at, q = opened(PAGE), 12
    at.toggle(key="attribution_heads_table").set_value(True)
    healthy(at.run())
    now = shown(at)
    _, cache = run(model, model.to_tokens(PROMPT))
    toward = direction(model, cache, q, now.target, now.foil)
    heads, from_where = np.zeros((4, 8)), np.zeros((4, 8, 13))
    for layer in range(4):
        for head in range(8):
            write = model.blocks[layer].attn.W_O[head].detach() @ toward
            heads[layer, head] = float(cache["z", layer][0, q, head] @ write)
            values = cache["v", layer][0, :, head * cache["v", layer].shape[2] // 8] @ write
            from_where[layer, head] = (cache["pattern", layer][0, head, q] * values).numpy()
    np.testing.assert_allclose(frame(at, "H0").to_numpy(), heads, atol=2e-5)
    np.testing.assert_allclose(from_where.sum(-1), heads, atol=2e-5)
    by_source = from_where.sum((0, 1))
    at_most = int(np.abs(by_source).argmax())
    said = texts(at).split(f"From position {at_most} ")[1]
    assert float(said.split(": ")[1].split()[0]) == pytest.approx(by_source[at_most], abs=1e-4)
    table = frame(at, "head")
    order = np.argsort(-np.abs(from_where[..., at_most]), axis=None)[:8]
    assert table["head"].tolist() == [f"L{i // 8}H{i % 8}" for i in order]
    assert table["adds"].tolist() == pytest.approx(from_where[..., at_most].flatten()[order].tolist(), abs=2e-5)


def test_the_neurons_at_each_end(model: HookedGPT) -> None:
    at, q = opened(PAGE), 12
    now = shown(at)
    _, cache = run(model, model.to_tokens(PROMPT))
    toward = direction(model, cache, q, now.target, now.foil)
    each = [cache["post", layer][0, q] * (model.blocks[layer].mlp.W_out.detach() @ toward) for layer in range(4)]
    flat = torch.stack(each).flatten()
    order = flat.argsort(descending=True)
    width = model.cfg.d_mlp
    names = [f"L{int(i) // width}N{int(i) % width}" for i in torch.cat((order[:20], order[-20:]))]
    found = bars_of(at, 1)
    assert list(found) == names
    wanted = torch.cat((flat[order[:20]], flat[order[-20:]])).tolist()
    assert list(found.values()) == pytest.approx(wanted, abs=2e-5)


def test_without_the_norm_the_stream_itself_is_read(model: HookedGPT) -> None:
    at, q = opened(PAGE, norm="left out"), 12
    now = shown(at)
    _, cache = run(model, model.to_tokens(PROMPT))
    toward = (model.W_U[:, now.target] - model.W_U[:, now.foil]).detach()
    assert bars_of(at)["L1 attn"] == pytest.approx(float(cache["attn_out", 1][0, q] @ toward), abs=2e-5)
    assert f"{float(cache['resid_post', 3][0, q] @ toward):.4g}" in texts(at)
    assert "the final norm is left out" in texts(at)


@pytest.mark.parametrize("norm", ["scale frozen", "left out"])
def test_the_code_makes_the_same_figures(norm: str) -> None:
    at = opened(PAGE, norm=norm)
    at.toggle(key="attribution_heads_table").set_value(True)
    healthy(at.run())
    bars, heads, neurons = (made_by(code.value) for code in at.code)
    for i, theirs in enumerate((bars, neurons)):
        for mine, other in zip(figure_of(at, i)["data"], theirs["data"], strict=True):
            np.testing.assert_allclose(array(mine["x"]), array(other["x"]).astype(float), atol=1e-5)
        assert list(figure_of(at, i)["layout"]["yaxis"]["ticktext"]) == list(theirs["layout"]["yaxis"]["ticktext"])
    np.testing.assert_allclose(array(heads["data"][0]["z"]), frame(at, "H0").to_numpy(), atol=1e-5)


def made_by(code: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    exec(code, made)
    return made["fig"].to_plotly_json()


def test_parts_that_do_not_sum_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = measured.direct_logit_attribution

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        found.values[3] += 0.5
        return found

    monkeypatch.setattr(measured, "direct_logit_attribution", wrong)
    assert "(error 0.5) ✗" in texts(opened(PAGE))


def test_every_widget_may_be_moved() -> None:
    at = opened(PAGE)
    for norm in ("none", "frozen"):
        at.segmented_control(key="norm").set_value(norm)
        healthy(at.run())
    for key in ("attribution_heads_table", "attribution_bars_table", "attribution_neurons_table"):
        at.toggle(key=key).set_value(True)
        healthy(at.run())
    at.text_input(key="target").set_value("width")
    at.text_input(key="foil").set_value("width")
    healthy(at.run())
    assert "= logit difference 0 " in texts(at)
    at.number_input(key="q").set_value(0)
    healthy(at.run())


@pytest.mark.parametrize("bos", ["true", "false"])
def test_one_token_and_a_long_prompt(bos: str) -> None:
    for prompt, n in (("def", 1 + (bos == "true")), ("def f(x): return x + 1\n" * 40, 256)):
        at = opened(PAGE, prompt=prompt, bos=bos)
        assert len(shown(at).labels) == n
        assert "✗" not in texts(at)
        assert ("begins with the token that begins every text" in texts(at)) == (bos == "true")


def test_models_set_by_hand_are_taken_apart() -> None:
    at = opened(PAGE, model="planted/induction")
    assert "This model has no final norm" in texts(at)
    assert "This model has no MLPs." in texts(at)
    assert "✗" not in texts(at)


def test_patterns_that_take_too_much_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LARGEST_PATTERNS", 100)
    assert "take too much memory" in texts(opened(PAGE))


def test_tokens_are_no_markup() -> None:
    at = opened(PAGE, prompt="<img src=x onerror=alert(1)> $x^2$ :red[a] **b** \u202e\U0001f600", q="4", target="$")
    said = texts(at)
    assert not any(bad in said for bad in ("<img", "$x", " :red[a", "\u202e"))


@pytest.mark.browser
@pytest.mark.slow
def test_a_click_on_a_head_opens_it(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/attribution?q=7&prompt={quote('def f(x): return x')}")
    grid = page.locator(".st-key-attribution_heads_box .grid[data-ready='1']")
    grid.wait_for()
    side, left, top = (float(grid.get_attribute(f"data-{name}")) for name in ("side", "left", "top"))
    grid.locator("canvas").click(position={"x": left + 5.5 * side, "y": top + 2.5 * side})
    page.get_by_text("L2H5: ").first.wait_for()
    watched.idle()
    for name, value in (("Layer", "2"), ("Head", "5"), ("Read position", "7")):
        assert page.locator(f'input[aria-label="{name}"]').input_value() == value
    for part in ("layer=2", "head=5", "q=7", "prompt=def+f"):
        assert part in page.url
    page.get_by_role("link", name="Attribution").click()
    grid.wait_for()
    watched.idle()
    grid.locator("canvas").click(position={"x": left + 0.5 * side, "y": top + 1.5 * side})
    page.get_by_text("L1H0: ").first.wait_for()
    watched.idle()
    for part in ("layer=1", "q=7", "prompt=def+f"):
        assert part in page.url


@pytest.mark.browser
@pytest.mark.slow
def test_a_click_on_a_neuron_opens_its_memory(dashboard: str, new_page: Callable[..., Watched]) -> None:
    at = opened(PAGE, q="7")
    name = frame(at, "neuron")["neuron"].to_list()[1]
    layer, neuron = name.removeprefix("L").split("N")
    watched = new_page(height=1600)
    page = watched.open(f"{dashboard}/attribution?q=7")
    table = page.locator(".st-key-neurons .dvn-scroller")
    table.wait_for()
    table.click(position={"x": 60, "y": 35 + 35 + 17})
    page.wait_for_url("**/memories*")
    page.locator('input[aria-label="Neuron"]').wait_for()
    watched.idle()
    assert page.locator('input[aria-label="Neuron"]').input_value() == neuron
    for part in (f"mlp_layer={layer}", f"neuron={neuron}", "q=7"):
        assert (part in page.url) == (part not in ("mlp_layer=0", "neuron=0"))
