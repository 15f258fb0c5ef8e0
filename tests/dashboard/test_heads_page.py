"""The page on heads: its numbers are the library's, and its widgets may be moved anywhere."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboards.parts.heads import measured
from interp import HookedGPT, heads, lens, metrics, patching, weights
from interp.passages import rows_like
from tests.dashboard.app import array, healthy, opened

PROMPT = "def area(width, height):\n    return width *"


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l").eval()


@pytest.fixture(autouse=True)
def _quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "AT_ONCE", float("inf"))


def metric(at: AppTest, label: str) -> float:
    """The last one of this label: the edge's come after the head's."""
    return float([each.value for each in at.metric if each.label == label][-1])


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.text, *at.caption, *at.info))


def drawn(at: AppTest, title: str) -> Any:
    """The figure with this title."""
    specs = [json.loads(each.proto.spec) for each in at.get("plotly_chart")]
    return next(spec for spec in specs if spec["layout"]["title"]["text"].startswith(title))


def table_with(at: AppTest, column: str) -> Any:
    """The table that has this column."""
    return next(each.value for each in at.dataframe if column in each.value)


def answers(model: HookedGPT, tokens: torch.Tensor, q: int) -> tuple[int, int]:
    with torch.no_grad():
        target, foil = model(tokens)[0, q].topk(2).indices.tolist()
    return target, foil


def test_it_opens_on_the_head_that_adds_most(model: HookedGPT) -> None:
    at, tokens = opened(), model.to_tokens(PROMPT)
    target, foil = answers(model, tokens, -1)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    parts = lens.direct_logit_attribution(model, cache, target, foil, by="head")[:, 0]
    best = str(abs(parts[parts.kind == "head"]).idxmax().item())
    layer, head = map(int, best.removeprefix("L").split("H"))
    assert [at.number_input(key=key).placeholder for key in ("layer", "head")] == [str(layer), str(head)]
    assert f"{best}: role not measured yet" in texts(at)


@pytest.mark.parametrize(("layer", "head", "q"), [(1, 2, 12), (0, 4, 7), (3, 7, 5)])
def test_the_numbers_of_a_head_are_the_librarys(model: HookedGPT, layer: int, head: int, q: int) -> None:
    at, tokens = opened(layer=str(layer), head=str(head), q=str(q)), model.to_tokens(PROMPT)
    target, foil = answers(model, tokens, q)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    parts = lens.direct_logit_attribution(model, cache, target, foil, by="head", pos=q)
    said = [each.value for each in at.metric]
    assert said[0] == f"{float(parts.sel(component=f'L{layer}H{head}', prompt=0)):+.3f}"
    of = metrics.logit_diff(model, target, foil, pos=q)
    for place, kind in ((1, "zero"), (2, "mean")):
        without = patching.ablation(model, tokens, "z", of, kind=kind, progress=False)  # type: ignore[arg-type]
        assert said[place] == f"{float((without - without.base).sel(layer=layer, head=head, prompt=0)):+.3f}"
    pattern = cache["pattern", layer][0, head].numpy()
    shown = array(drawn(at, f"L{layer}H{head}")["data"][0]["z"])
    np.testing.assert_allclose(shown, np.where(np.triu(np.ones_like(pattern), 1) > 0, np.nan, pattern), atol=1e-6)
    key = int(pattern[q].argmax())
    assert metric(at, "Weight") == pytest.approx(pattern[q, key], abs=6e-4)
    assert metric(at, "Score") == pytest.approx(float(cache["attn_scores", layer][0, head, q, key]), abs=6e-4)
    by_key = lens.direct_logit_attribution(model, cache, target, foil, by="source_position", pos=q)
    direct = float(by_key.sel(component=f"L{layer}H{head}", key_pos=key, prompt=0))
    assert metric(at, "Adds directly") == pytest.approx(direct, abs=6e-4)

    def cut(x: torch.Tensor, hook: object) -> None:
        x[:, head, q, key] = 0

    with torch.no_grad():
        after = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", cut)])
        before = model(tokens)
    change = (after - before)[0, q]
    assert metric(at, "Lost: zeroed") == pytest.approx(float(change[foil] - change[target]), abs=2e-3)
    written, source = table_with(at, "here"), int(tokens[0, key])
    ov = weights.ov_top_tokens(model, [source], 8, layers=[layer], heads=[head])[0, 0, 0]
    np.testing.assert_allclose(written["by weights"], ov, rtol=1e-4)
    of_first = lens.direct_logit_attribution(model, cache, int(ov.token[0]), by="source_position", pos=q)
    assert written["here"][0] == pytest.approx(
        float(of_first.sel(component=f"L{layer}H{head}", key_pos=key, prompt=0)), abs=1e-4
    )
    table = table_with(at, "weight")
    order = np.argsort(-pattern, axis=None)[:3]
    assert table["query_pos"].tolist()[:3] == (order // len(pattern)).tolist()
    assert table["weight"].tolist()[:3] == pytest.approx(pattern.flatten()[order].tolist(), abs=1e-6)


def test_an_edge_that_is_not_there_is_told(model: HookedGPT) -> None:
    at = opened(layer="1", head="2", q="4", k="9")
    assert "query 4 does not see key 9. Click a key that it looks at." in texts(at)
    at.number_input(key="k").set_value(2)
    healthy(at.run())
    pattern = heads.patterns(model, model.to_tokens(PROMPT))[1, 2][0]
    assert metric(at, "Weight") == pytest.approx(float(pattern[4, 2]), abs=6e-4)


def test_every_widget_may_be_moved(model: HookedGPT) -> None:
    at = opened(layer="1", head="2")
    for key in ("relative", "hide_first", "linear", "moved", "pattern_table", "edge_table"):
        at.toggle(key=key).set_value(True)
        healthy(at.run())
    shown = array(drawn(at, "L1H2")["data"][0]["z"])
    moved = heads.patterns(model, model.to_tokens(PROMPT)).weighted(1, 2)[0].detach().numpy()
    np.testing.assert_allclose(shown[5, 1:6], moved[5, 1:6], atol=1e-6)
    assert shown[5, 0] == 0
    for show in ("Score", "Effect", "Pattern", "Score"):
        at.get("button_group")[0].set_value([show]) if hasattr(at.get("button_group")[0], "set_value") else None
        healthy(at.run())
    for _ in range(3):
        at.number_input(key="layer").increment()
        healthy(at.run())
    assert at.number_input(key="layer").value == 3


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"show": "Score", "score": "previous here", "q": "7", "k": "3"},
        {"show": "Score", "score": "focus here", "model": "planted/induction"},
        {"show": "Effect", "effect": "direct effect"},
        {"show": "Effect", "effect": "its mean instead", "q": "9"},
        {"show": "Effect", "effect": "as in another text"},
    ],
)
def test_the_code_makes_what_is_shown_again(query: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened(layer="1", head="0", **query)
    for key in ("moved", "hide_first"):
        at.toggle(key=key).set_value(True)
    if "show" not in query:
        at.toggle(key="relative").set_value(True)
    healthy(at.run())
    snippets = [each.value for each in at.code if "interp" in each.value]
    assert len(snippets) == 5  # grid, pattern, edge, what it writes, pairs
    made: list[dict[str, Any]] = []
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(snippet, names)
        made.append(names)
    for place, title in ((1, "L1H0"), (2, "L1H0: ")):
        wanted, found = drawn(at, title)["data"], made[place]["fig"].to_plotly_json()["data"]
        assert len(wanted) == len(found)
        numbers = "z" if place == 1 else "y"
        np.testing.assert_allclose(array(wanted[0][numbers]), array(found[0][numbers]), atol=1e-6)
    written = table_with(at, "here")
    assert made[3]["table"]["here"].tolist() == pytest.approx(written["here"].tolist(), abs=1e-5)
    pairs = table_with(at, "weight")
    assert made[4]["table"]["weight"].tolist() == pytest.approx(pairs["weight"].tolist(), abs=1e-6)
    if query.get("show") in ("Score", "Effect"):
        at.toggle(key="grid_table").set_value(True)
        healthy(at.run())
        table = at.dataframe(key="grid_numbers").value.to_numpy()
        np.testing.assert_allclose(array(made[0]["fig"].data[0].z), table, atol=1e-5)


def test_each_score_and_effect_has_its_numbers_in_the_table(model: HookedGPT) -> None:
    tokens = model.to_tokens(PROMPT)
    here = heads.corpus_statistics(model, tokens, progress=False)
    for name, wanted in (
        ("focus here", 1 - here.relative_entropy),
        ("previous here", here.previous),
        ("itself here", here.itself),
    ):
        at = opened(show="Score", score=name)
        at.toggle(key="grid_table").set_value(True)
        healthy(at.run())
        np.testing.assert_allclose(at.dataframe(key="grid_numbers").value.to_numpy(), wanted, atol=1e-9)
    target, foil = answers(model, tokens, -1)
    of = metrics.logit_diff(model, target, foil)
    without = patching.ablation(model, tokens, "z", of, kind="mean", progress=False)
    at = opened(show="Effect", effect="its mean instead")
    at.toggle(key="grid_table").set_value(True)
    healthy(at.run())
    found = at.dataframe(key="grid_numbers").value.to_numpy()
    np.testing.assert_allclose(found, (without - without.base)[..., 0], atol=1e-5)


def test_a_head_as_in_another_text_is_a_mean_over_rows_like_the_prompt(model: HookedGPT) -> None:
    tokens = model.to_tokens(PROMPT)
    others, of = rows_like(model, tokens, 8), metrics.logit_diff(model, *answers(model, tokens, -1))
    at = opened(show="Effect", effect="as in another text", layer="1", head="2")
    at.toggle(key="grid_table").set_value(True)
    found = healthy(at.run()).dataframe(key="grid_numbers").value.to_numpy()
    without = patching.ablation(model, tokens.expand(8, -1), "z", of, kind="resample", reference=others, progress=False)
    np.testing.assert_allclose(found, (without - without.base).mean("prompt"), atol=1e-5)
    assert f"{found[1, 2]:+.3f}" == next(each.value for each in at.metric if each.label == "Other text")
    said = "what it is at the same place in other rows as long (Python's standard library, seed 0), a mean of n = 8"
    assert said in texts(at)


def test_what_takes_long_is_offered_first_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "AT_ONCE", 0.0)
    at = opened(show="Effect", effect="zeroed")
    assert "32 heads × one pass" in texts(at)
    assert [each.label for each in at.metric][:2] == ["Adds directly", "Score"]
    at.button(key="ablate_grid_zero").click()
    healthy(at.run())
    assert [each.label for each in at.metric][:3] == ["Adds directly", "Zeroed", "Score"]
    assert "32 heads × 8 passes" in texts(opened(show="Effect", effect="as in another text"))


@pytest.mark.long
def test_roles_are_measured_when_asked_for_and_say_their_null(model: HookedGPT) -> None:
    below = "Score against effect"
    at = opened(show="Score", score="induction", layer="1", head="2", below=below)
    assert "it is measured once for a model" in texts(at)
    at.button(key="detect_head").click()
    healthy(at.run())
    found = heads.detect(model, progress=False)
    assert f"L1H2: {found.role.sel(layer=1, head=2).item()}" in texts(at)
    one = found.sel(score="induction")
    assert f"Null: {float(one.null):.3f}; threshold {float(one.threshold):.3f}" in texts(at)
    own = one.sel(layer=1, head=2)
    assert f"**induction {float(own.value):.3f}**, interval {float(own.low):.3f} to {float(own.high):.3f}" in texts(at)
    _, cache = model.run_with_cache(PROMPT)
    direct = heads.direct_effects(model, cache, *answers(model, model.to_tokens(PROMPT), -1))
    apart = heads.disagreement(found.value.sel(score="induction"), direct)
    assert "a high score and next to no effect, or a large effect and a low score" in texts(at)
    table = at.dataframe(key="parting").value
    assert table["apart"].abs().is_monotonic_decreasing
    for name, x in zip(table["head"], table["apart"], strict=True):
        layer, head = map(int, name.removeprefix("L").split("H"))
        assert x == pytest.approx(float(apart.sel(layer=layer, head=head)))
    at = opened(layer="1", head="2", below="Head card")
    at.button(key="draw_card").click()
    healthy(at.run())
    assert drawn(at, "L1H2: induction")


@pytest.mark.parametrize(
    "prompt",
    [
        "x",
        "<img src=x onerror=alert(1)>$x$ :red[hi] **b**",
        "a\u202eb\u200f 🙂",
        "word " * 300,
        "\n\n\n",
        "`a` | [b](c)",
    ],
)
def test_hostile_and_odd_prompts_leave_it_standing(prompt: str) -> None:
    at = opened(prompt=prompt)
    assert drawn(at, "L")["data"]
    for show in ("Score", "Effect"):
        opened(prompt=prompt, show=show)


def test_no_prompt_is_told_and_a_larger_model_gives_way_to_a_smaller() -> None:
    at = opened(layer="3", head="7", k="11")
    at.text_area(key="prompt").set_value("x")
    healthy(at.run())
    assert at.number_input(key="k").value is None
    at.text_area(key="prompt").set_value("")
    healthy(at.run())
    assert not at.metric
    at.text_area(key="prompt").set_value(PROMPT)
    healthy(at.run())
    at.selectbox(key="model").set_value("planted/induction")
    healthy(at.run())
    assert at.number_input(key="layer").value == 1
    assert at.metric


@pytest.mark.parametrize("query", [{"layer": "99"}, {"layer": "x", "head": "-1"}, {"k": "99"}, {"show": "Nothing"}])
def test_a_bad_link_opens_the_page_all_the_same(query: dict[str, str]) -> None:
    assert opened(**query).metric
