"""The page on patching: its maps are those of a loop of runs with hooks, and two prompts may be anything."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from streamlit.testing.v1 import AppTest

from dashboards.parts.jobs import QUEUE
from dashboards.parts.patching import map as maps
from dashboards.parts.patching import measured, traced
from dashboards.parts.patching.measured import DIRECTIONS, ESTIMATES, METRICS
from interp import HookedGPT, metrics, patching, zoo
from tests.dashboard.app import healthy, opened, shown
from tests.dashboard.browser import Watched

PAGE = "views/patching.py"
ASKED = {"target": " height", "foil": " width"}
OTHER = "def area(width, length):\n    return width *"


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l")


def texts(at: AppTest) -> str:
    kinds = (at.caption, at.info, at.warning, at.markdown, at.text, at.error)
    return "\n".join(each.value for kind in kinds for each in kind).replace("\\", "")


def table(at: AppTest, key: str = "patch_exact") -> np.ndarray:
    """The numbers of a map."""
    before = [each.value for each in at.dataframe]
    at.toggle(key=f"{key}_map_table").set_value(True)
    healthy(at.run())
    new = [each.value for each in at.dataframe if not any(each.value.equals(other) for other in before)]
    at.toggle(key=f"{key}_map_table").set_value(False)
    healthy(at.run())
    return new[0].to_numpy()


def told(at: AppTest, column: str) -> DataFrame:
    """The table that has this column."""
    return next(each.value for each in at.dataframe if column in each.value)


def by_hand(
    model: HookedGPT,
    own: torch.Tensor,
    other: torch.Tensor,
    site: str,
    pick: Callable[[torch.Tensor, int], Any],
    n: int,
    metric: Callable[[torch.Tensor], float],
) -> np.ndarray:
    """What each patch changes: a whole run with a hook for each."""
    found = np.zeros((model.cfg.n_layers, n))
    with torch.no_grad():
        _, cache = model.run_with_cache(other)
        base = metric(model(own)[0])
        for layer in range(model.cfg.n_layers):
            for i in range(n):
                name = next(each for each in cache if each.startswith(f"blocks.{layer}.") and each.endswith(site))

                def put(x: torch.Tensor, hook: Any, i: int = i) -> torch.Tensor:
                    pick(x, i)[:] = pick(cache[hook.name], i)
                    return x

                found[layer, i] = metric(model.run_with_hooks(own, fwd_hooks=[(name, put)])[0]) - base
    return found


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("place", "site"), [("Residual stream", "hook_resid_pre"), ("MLP out", "hook_mlp_out"), ("Heads", "hook_z")]
)
def test_maps_are_those_of_a_loop_of_runs(model: HookedGPT, place: str, site: str, direction: str) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, patch_place=place, patch_direction=DIRECTIONS[direction])
    now = shown(at)
    corrupted = model.to_tokens(OTHER, prepend_bos=True)

    def difference(logits: torch.Tensor) -> float:
        return float(logits[now.q, now.target] - logits[now.q, now.foil])

    ends = [difference(model(each)[0].detach()) for each in (corrupted, now.tokens)]
    own, other = (corrupted, now.tokens) if direction == "denoise" else (now.tokens, corrupted)
    if place == "Heads":
        n, pick = model.cfg.n_heads, lambda x, i: x[:, :, i]
    else:
        n, pick = now.tokens.shape[1], lambda x, i: x[:, i]
    wanted = by_hand(model, own, other, site, pick, n, difference) / (ends[1] - ends[0])
    found = table(at)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(wanted).max() > 0.1
    estimated = table(at, "patch_gradient")
    said = f"Correlation with the exact changes: {np.corrcoef(estimated.ravel(), wanted.ravel())[0, 1]:.3f}"
    assert said in texts(at)
    assert "as the map says ✓" in texts(at)


@pytest.mark.parametrize("metric", ["log_prob", "kl"])
def test_other_metrics_are_measured_against_the_run_that_is_stayed_in(model: HookedGPT, metric: str) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, patch_metric=METRICS[metric])
    now = shown(at)
    corrupted = model.to_tokens(OTHER, prepend_bos=True)
    clean = model(now.tokens)[0, now.q].detach().log_softmax(-1)

    def measured(logits: torch.Tensor) -> float:
        here = logits[now.q].log_softmax(-1)
        return float(here[now.target]) if metric == "log_prob" else float((clean.exp() * (clean - here)).sum())

    n = now.tokens.shape[1]
    wanted = by_hand(model, corrupted, now.tokens, "hook_resid_pre", lambda x, i: x[:, i], n, measured)
    np.testing.assert_allclose(table(at), wanted, atol=2e-5)


def test_a_patch_is_told_by_what_would_be_said_next(model: HookedGPT) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, patch_place="Heads by position", patch_layer="1")
    now, found = shown(at), table(at)
    head, pos = divmod(int(np.abs(found).argmax()), found.shape[1])
    assert f"layer 1, head {head}, position {pos}" in texts(at)
    corrupted = model.to_tokens(OTHER, prepend_bos=True)
    _, cache = model.run_with_cache(now.tokens)

    def put(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x[:, pos, head] = cache[hook.name][:, pos, head]
        return x

    logits = model.run_with_hooks(corrupted, fwd_hooks=[("blocks.1.attn.hook_z", put)])[0, now.q].detach()
    found = told(at, "patched")
    np.testing.assert_allclose(found.patched, logits.softmax(-1).topk(10).values.numpy(), atol=1e-5)
    clean = model(now.tokens)[0, now.q].detach().softmax(-1)[logits.topk(10).indices]
    np.testing.assert_allclose(found.clean, clean.numpy(), atol=1e-5)


def test_the_code_makes_the_numbers_again() -> None:
    at = opened(PAGE, **ASKED, patch_place="Heads", path_from="L1H7", path_to="L3H2")
    found, paths = table(at), told(at, "heard by").change.to_numpy()
    made = []
    for each in at.code[:5]:
        names: dict[str, Any] = {}
        exec(each.value, names)
        made.append(names)
    exact, gradient, patch, path = (made[i] for i in (0, 1, 2, 4))
    np.testing.assert_allclose((exact["found"] - exact["found"].base)[..., 0], found, atol=1e-5)
    np.testing.assert_allclose(gradient["found"][..., 0], table(at, "patch_gradient"), atol=1e-5)
    np.testing.assert_allclose(patch["table"].values.detach(), told(at, "patched").patched, atol=1e-5)
    np.testing.assert_allclose((path["table"] - path["table"].base).values.ravel(), paths, atol=1e-5)
    assert np.abs(paths).max() > 1e-4


def test_what_takes_long_is_a_job_and_its_layers_are_drawn_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened(PAGE, **ASKED, other=OTHER)
    wanted = table(at)
    monkeypatch.setattr(maps, "AT_ONCE", 0.0)
    at = opened(PAGE, **ASKED, other=OTHER)
    assert f"{wanted.size} patches: about" in texts(at)
    assert "estimated" in texts(at)
    at.button(key="job_patching_residual_stream_start").click()
    healthy(at.run())
    while len(QUEUE):
        time.sleep(0.05)
    healthy(at.run())
    np.testing.assert_allclose(table(at), wanted, atol=1e-6)
    assert "as the map says ✓" in texts(at)


def test_queries_are_estimated_with_their_softmax_computed_anew(model: HookedGPT) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, patch_place="Queries", patch_estimate=ESTIMATES["atp*"])
    now, corrupted = shown(at), model.to_tokens(OTHER, prepend_bos=True)
    metric = metrics.logit_diff(model, now.target, now.foil, pos=now.q, clean=now.tokens, corrupted=corrupted)
    runs: Any = (model, now.tokens, corrupted, "q", metric)
    anew = patching.attribution_patching(*runs, method="atp*", progress=False)[..., 0]
    np.testing.assert_allclose(table(at, "patch_gradient"), anew, atol=1e-6)
    slope = patching.attribution_patching(*runs, progress=False)[..., 0]
    assert np.abs(anew - slope).max() > 1e-4
    assert "2 passes forward, 5 passes back" in texts(at)
    code = next(each.value for each in at.code if "attribution_patching" in each.value)
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_allclose(names["found"][..., 0], anew, atol=1e-6)


def test_states_put_back_under_noise_are_those_of_a_trace(model: HookedGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "AT_ONCE", 0.0)
    for module in (measured, traced):
        monkeypatch.setattr(module, "DRAWS", 2)
    at = opened(PAGE, **ASKED, other=OTHER, trace_site="Attention", patch_metric=METRICS["log_prob"])
    assert "48 runs: about" in texts(at)
    at.button(key="job_tracing_attention_start").click()
    healthy(at.run())
    while len(QUEUE):
        time.sleep(0.05)
    healthy(at.run())
    now = shown(at)
    corrupted = model.to_tokens(OTHER, prepend_bos=True)
    lost = (now.tokens != corrupted)[0].nonzero().flatten().tolist()
    metric = metrics.log_prob(model, now.target, pos=now.q)
    wanted = patching.causal_tracing(model, now.tokens, lost, metric, site="attn_out", samples=2, progress=False)
    np.testing.assert_allclose(table(at, "trace"), (wanted - wanted.base)[..., 0], atol=1e-6)
    assert np.abs(wanted - wanted.base).max() > 1e-2
    assert f"{float(wanted.base[0]):.4g} with it and nothing put back" in texts(at)
    names: dict[str, Any] = {}
    exec(next(each.value for each in at.code if "causal_tracing" in each.value), names)
    np.testing.assert_allclose(names["found"], wanted, atol=1e-6)
    assert "48 runs." in texts(at)
    monkeypatch.setattr(traced, "AT_ONCE", torch.inf)
    at.text_input(key="trace_subject").set_value("area")
    healthy(at.run())
    found = patching.causal_tracing(model, now.tokens, "area", metric, site="attn_out", samples=2, progress=False)
    assert f"{float(found.base[0]):.4g} with it and nothing put back" in texts(at)
    at.text_input(key="trace_subject").set_value("<b>nowhere")
    healthy(at.run())
    assert "subject='<b>nowhere' is not in prompts" in texts(at)


def test_a_part_of_a_patch_is_told_beside_all_of_it(model: HookedGPT) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, patch_place="Heads", patch_fit="true")
    parts = told(at, "from the other run").set_index("from the other run")
    head = np.abs(table(at)).argmax()
    assert parts.change["all of it"] == pytest.approx(table(at).ravel()[head], abs=1e-5)
    assert abs(parts.change["a random direction"]) < 0.5 * abs(parts.change["all of it"])
    assert parts.change["a fitted direction"] > parts.change["all of it"]
    assert parts.along["toward the target"] == pytest.approx(1)
    assert parts.along["all but that"] == pytest.approx(0, abs=1e-4)
    names: dict[str, Any] = {}
    exec(next(each.value for each in at.code if "patching.interchange" in each.value), names)
    change = float((names["table"] - names["table"].base)[0])
    assert change == pytest.approx(parts.change["toward the target"], abs=1e-5)


def test_examples_have_counterparts_that_fit() -> None:
    for name in ("stdlib-4l", "stdlib-attn-2l", "modular-addition", "planted/induction", "planted/greater_than"):
        at = opened(PAGE, model=name)
        now = shown(at)
        known = [each for each in zoo.examples(now.planted or now.name, now.model) if each.counterpart]
        assert known, name
        for example in known:
            if now.model.tokenizer is not None:
                one, other = (now.model.to_tokens(text) for text in (example.prompt, example.counterpart))
                assert one.shape == other.shape, example
                assert (one != other).any()
        assert told(at, "patched").size, name


def test_an_example_is_asked_for_its_own_answers() -> None:
    at = opened(PAGE)
    assert (shown(at).target, shown(at).foil) != tuple(map(shown(at).model.to_single_token, ASKED.values()))
    at.button(key="_answers").click()
    healthy(at.run())
    healthy(at.run())
    assert (shown(at).target, shown(at).foil) == tuple(map(shown(at).model.to_single_token, ASKED.values()))
    assert not [each for each in at.button if each.key == "_answers"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"prompt": "x = ["}, "a second prompt is needed"),
        ({"other": "def area(w, h):\n    return"}, "The prompt has 13 tokens, the corrupted one"),
        ({"other": "def area(width, height):\n    return width *"}, "Both prompts are the same"),
        ({"other": OTHER, "path_from": "L9H9"}, "'L9H9' is no head of this model"),
        ({"other": OTHER, "path_from": "<b>"}, "'<b>' is no head of this model"),
        ({"other": OTHER, "path_from": "L2H1", "path_to": "L1H0"}, "L1H0 does not come after L2H1"),
        ({"other": OTHER, "target": "="}, "Change of the logit of"),
        ({"other": OTHER, "patch_place": "nothing", "patch_metric": "nothing", "patch_layer": "99"}, "Exact"),
        ({"model": "planted/induction", "other": "1 2 x"}, "what is not: x"),
    ],
)  # fmt: skip
def test_what_cannot_be_patched_is_told(query: dict[str, str], said: str) -> None:
    assert said in texts(opened(PAGE, **query))


def test_a_second_prompt_begins_with_the_first() -> None:
    at = opened(PAGE, prompt="x = [1, 2,")
    at.button(key="_patching_offer_0").click()
    healthy(at.run())
    assert at.text_area(key="other").value == "x = [1, 2,"
    at.text_area(key="other").set_value("x = [1, 3,")
    healthy(at.run())
    assert "1 of" in texts(at)
    assert table(at).shape[0] == 4


def test_every_widget_may_be_moved_on_a_model_without_mlps() -> None:
    at = opened(PAGE, model="stdlib-attn-2l")
    assert "MLP out" not in at.segmented_control(key="patch_place").options
    for place in at.segmented_control(key="patch_place").options:
        at.segmented_control(key="patch_place").set_value(place)
        healthy(at.run())
    for metric in ("kl", "log_prob"):
        at.selectbox(key="patch_metric").set_value(metric)
        at.segmented_control(key="patch_direction").set_value("noise")
        healthy(at.run())


def test_in_a_browser_a_click_on_the_map_tells_that_patch(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/patching?target=%20height&foil=%20width&patch_place=Heads")
    page.wait_for_selector(".st-key-patch_exact_box .grid[data-ready='1']")
    watched.idle()
    box = page.locator(".st-key-patch_exact_box canvas").bounding_box()
    grid = page.locator(".st-key-patch_exact_box .grid")
    side, left, top = (float(grid.get_attribute(f"data-{name}")) for name in ("side", "left", "top"))
    page.mouse.click(box["x"] + left + 2.5 * side, box["y"] + top + 0.5 * side)
    page.get_by_text("layer 0, head 2").wait_for()
    watched.idle()
    page.locator(".st-key-patch_gradient_box .grid[data-selected='0,2']").wait_for()
