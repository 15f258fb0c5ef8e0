"""The page on memories: its numbers are the library's, and every widget does what it says."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboards.parts.state import Chosen
from interp import HookedGPT, memories
from interp.corpus import standard_library
from interp.interventions import Scale, Site
from tests.dashboard.app import array, figure_of, healthy, opened, shown
from tests.dashboard.browser import Watched

PAGE = "views/memories.py"
TITLES = {"memories": "Memories add", "value": "what its value", "switched": "Next token", "card": ": promotes"}


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l").requires_grad_(False)


def drawn(at: AppTest, name: str) -> dict[str, Any]:
    """A figure of the page, known by its title."""
    found = [figure_of(at, i) for i in range(len(at.get("plotly_chart")))]
    own = [each for each in found if TITLES[name] in each["layout"]["title"]["text"].replace("<br>", " ")]
    assert len(own) == 1, [each["layout"]["title"]["text"] for each in found]
    return own[0]


def captions(at: AppTest) -> str:
    return " ".join(each.value for each in at.caption).replace("\\", "")


def said(at: AppTest) -> str:
    return " ".join(each.value for each in at.markdown).replace("\\", "")


def metrics_of(at: AppTest) -> dict[str, str]:
    return {each.label: each.value for each in at.metric}


def effects(now: Chosen) -> torch.Tensor:
    """What each memory adds to the logit difference, from the run itself: [layer neuron]."""
    model = now.model
    with torch.no_grad():
        _, cache = model.run_with_cache(now.tokens)
        direction = (model.W_U[:, now.target] - model.W_U[:, now.foil]) * model.ln_final.w
        toward = direction / cache["ln_final.hook_scale"][0, now.q]
        return torch.stack([cache["post", layer][0, now.q] * (model.W_out[layer] @ toward) for layer in range(4)])


def test_the_list_and_its_figure_are_the_memories_that_add_most() -> None:
    at = opened(PAGE)
    now = shown(at)
    each = effects(now)
    order = each.flatten().abs().argsort(descending=True)[:40].tolist()
    table = at.dataframe[0].value
    assert table.memory.tolist() == [f"L{i // 1024}N{i % 1024}" for i in order]
    np.testing.assert_allclose(table.adds, each.flatten()[order], rtol=1e-3, atol=1e-6)
    bars = drawn(at, "memories")["data"]
    values = {int(y): x for bar in bars for y, x in zip(array(bar["y"]), array(bar["x"]), strict=True)}
    np.testing.assert_allclose([values[i] for i in range(16)], each.flatten()[order[:16]], rtol=1e-3)
    assert sum(values.values()) == pytest.approx(float(each.sum()), abs=1e-4)
    assert f"4,096 memories add {float(each.sum()):+.4f}: what the MLPs added, {float(each.sum()):+.4f}" in captions(at)
    assert "✓" in captions(at)
    assert "✗" not in captions(at)
    at.segmented_control(key="memories_of").set_value("This layer").run()
    layer = order[0] // 1024
    assert at.dataframe[0].value.memory.tolist()[0] == f"L{layer}N{order[0] % 1024}"
    assert f"1,024 memories add {float(each[layer].sum()):+.4f}" in captions(healthy(at))


def test_a_page_without_a_choice_shows_the_strongest_memory_and_one_with_a_layer_that_layers() -> None:
    at = opened(PAGE)
    each = effects(shown(at)).abs()
    layer, neuron = divmod(int(each.flatten().argmax()), 1024)
    assert f"**L{layer}N{neuron}** promotes" in said(at)
    at.number_input(key="mlp_layer").set_value(3).run()
    assert f"**L3N{int(each[3].argmax())}** promotes" in said(healthy(at))
    at.number_input(key="neuron").set_value(7).run()
    assert "**L3N7** promotes" in said(healthy(at))
    assert "**L1N9** promotes" in said(opened(PAGE, mlp_layer="1", neuron="9"))


def test_the_card_says_which_token_a_memory_pulls_towards() -> None:
    at = opened(PAGE, target=" width", foil=" height")
    each = effects(shown(at))
    for place, words in ((each.argmax(), ("·width", "·height")), (each.argmin(), ("·height", "·width"))):
        layer, neuron = divmod(int(place), 1024)
        at.number_input(key="mlp_layer").set_value(layer)
        at.number_input(key="neuron").set_value(neuron).run()
        assert "; here it pulls towards {}, away from {}".format(*words) in said(healthy(at))


@pytest.mark.parametrize("place", [(0, 3), (2, 110), (3, 1023)])
def test_a_memorys_numbers_are_the_librarys(place: tuple[int, int], model: HookedGPT) -> None:
    layer, neuron = place
    at = opened(PAGE, mlp_layer=str(layer), neuron=str(neuron), q="5", prompt="def area(width, height):\n    return")
    now = shown(at)
    _, cache = model.run_with_cache(now.tokens)
    each = effects(now)[layer]
    numbers = metrics_of(at)
    assert numbers["Coefficient"] == f"{float(cache['post', layer][0, 5, neuron]):+.3f}"
    assert float(numbers["Adds"]) == pytest.approx(float(each[neuron]), abs=6e-5)
    assert numbers["In its layer"] == f"{1 + int((each.abs() > each[neuron].abs()).sum())} of 1,024"
    assert numbers["Length of value"] == f"{float(model.W_out[layer, neuron].norm()):.3f}"
    logits = model.ln_final.unheard(model.W_out[layer, neuron]) @ model.W_U
    bars = drawn(at, "value")["data"][0]
    up, down = logits.sort(descending=True).values[:10], logits.sort().values[:10]
    np.testing.assert_allclose(array(bars["x"]), torch.cat((up, down.flip(0))).detach(), rtol=1e-4)
    fired = memories.key_tokens(model, layer, neuron)
    assert f"{float(fired.coefficient[0]):.2f} · " in said(at)


@pytest.mark.parametrize(
    ("switch", "factor", "is_everywhere"),
    [("Off", 0, False), ("Off", 0, True), ("On", 1, True), ("Scaled", -3.5, False)],
)
def test_a_switched_memory_shows_what_follows(
    switch: str, factor: float, is_everywhere: bool, model: HookedGPT
) -> None:
    at = opened(PAGE, mlp_layer="2", neuron="110", q="9")
    at.segmented_control(key="switch").set_value(switch)
    at.toggle(key="everywhere").set_value(is_everywhere).run()
    if switch == "Scaled":
        at.number_input(key="factor").set_value(factor).run()
    now = shown(healthy(at))
    tokens = now.tokens[:, :10]
    site = Site("post", 2, neuron=110, pos=None if is_everywhere else -1)
    with torch.no_grad():
        before = model(tokens)[0, -1]
        with model.edit([Scale(site, factor)]):
            after = model(tokens)[0, -1]
    figure = drawn(at, "switched")
    names = [bar["name"] for bar in figure["data"]]
    assert names == ["as they are", f"× {factor:g}"]
    ids = torch.maximum(before.softmax(-1), after.softmax(-1)).topk(10).indices
    for bar, logits in zip(figure["data"], (before, after), strict=True):
        np.testing.assert_allclose(array(bar["x"]), logits.softmax(-1)[ids], rtol=1e-4)
    differences = [float(logits[now.target] - logits[now.foil]) for logits in (before, after)]
    assert "{:+.4f}, then {:+.4f}".format(*differences) in captions(at)


def test_the_search_finds_the_values_that_promote_a_token(model: HookedGPT) -> None:
    at = opened(PAGE)
    for text, token in (("", shown(at).target), (" None", model.to_single_token(" None"))):
        at.text_input(key="promotes").set_value(text).run()
        found = memories.promoters(model, token, 20)
        table = healthy(at).dataframe[1].value
        assert table.memory.tolist() == found.memory.values.tolist()
        np.testing.assert_allclose(table.logit, found.logit, rtol=1e-5)
    for text, complaint in ((" None of", "2 tokens, not one"), ("\x00<b>", "tokens, not one"), ("🙂" * 50, "not one")):
        at.text_input(key="promotes").set_value(text).run()
        assert complaint in " ".join(each.value for each in healthy(at).warning).replace("\\", "")
        assert "**L" in said(at)


def test_a_scan_is_asked_for_with_its_seconds_and_shows_the_card(model: HookedGPT) -> None:
    at = opened(PAGE, mlp_layer="1", neuron="15")
    at.selectbox(key="scan_tokens").set_value(5000).run()
    assert "Scan with layer 1: about" in at.button(key="scan").label
    assert "A text counts once" not in captions(at)
    at.button(key="scan").click().run()
    texts = (text[:2000] for text in standard_library())
    found = memories.triggers(model, texts, 1, n_ctx=256, max_tokens=5000, progress=False)
    card = memories.neuron_card(model, 1, 15, found, 8, progress=False)
    tables = [each for each in drawn(healthy(at), "card")["data"] if each["type"] == "table"]
    assert list(tables[0]["cells"]["values"][0]) == [f"{value:.3f}" for value in card["triggers"].value.values]
    assert f"Of 5,000 tokens in {found.about['documents']} texts" in captions(at)
    at.number_input(key="neuron").set_value(16).run()  # the layer is read already
    assert "L1N16" in drawn(healthy(at), "card")["layout"]["title"]["text"]
    dead = int((found.value[0, :, 0] <= 0).nonzero()[0]) if (found.value[0, :, 0] <= 0).any() else None
    if dead is not None:
        at.number_input(key="neuron").set_value(dead).run()
        assert "is never above 0" in healthy(at).info[-1].value


@pytest.mark.parametrize("of", ["memories", "value", "switched", "card"])
def test_the_code_beside_a_figure_makes_it_again(of: str) -> None:
    at = opened(PAGE, mlp_layer="1", neuron="15", q="7")
    at.selectbox(key="scan_tokens").set_value(5000).run()
    at.button(key="scan").click().run()
    code = next(each.value for each in healthy(at).code if each.value.rstrip().endswith(_LAST[of]))
    known: dict[str, Any] = {}
    exec(code, known)
    mine = json.loads(known["fig"].to_json())
    for own, on_page in zip(mine["data"], drawn(at, of)["data"], strict=True):
        for axis in ("x", "y"):
            if axis in own:
                mine_there, drawn_there = (array(each[axis]).astype(float) for each in (own, on_page))
                np.testing.assert_allclose(mine_there, drawn_there, rtol=1e-4, atol=1e-6)


_LAST = {
    "memories": "fig = plots.memory_bars(found)",
    "value": "fig = plots.value_bars(best, worst)",
    "switched": "fig = plots.next_token_bars(found)",
    "card": "fig = plots.neuron_card(card)",
}


@pytest.mark.parametrize("name", ["planted/memories", "planted/induction", "stdlib-attn-2l", "modular-addition"])
def test_every_kind_of_model_has_the_page_or_a_sentence(name: str) -> None:
    at = opened(PAGE, model=name)
    now = shown(at)
    if now.model.cfg.attn_only:
        assert "no memories" in at.info[-1].value
        assert not at.get("plotly_chart")
        return
    assert "**L0N" in said(at)
    at.selectbox(key="scan_tokens").set_value(5000).run()
    at.button(key="scan").click().run()
    assert healthy(at).get("plotly_chart")
    at.text_input(key="promotes").set_value("99999999999999999999").run()
    assert healthy(at).warning
    at.text_input(key="promotes").set_value("1").run()
    assert not healthy(at).warning


def test_what_was_picked_on_a_larger_model_gives_way() -> None:
    at = opened(PAGE, mlp_layer="3", neuron="1000")
    at.selectbox(key="model").set_value("planted/memories").run()
    assert "**L0N" in said(healthy(at))


@pytest.mark.parametrize("query", [{"mlp_layer": "9"}, {"neuron": "-1"}, {"mlp_layer": "<b>", "neuron": "1e99"}])
def test_a_link_with_what_is_not_there_is_a_link_without_it(query: dict[str, str]) -> None:
    assert "**L2N110** promotes" in said(opened(PAGE, **query))


def test_a_prompt_of_one_token_and_none() -> None:
    at = opened(PAGE, prompt="x", bos="false")
    assert "**L" in said(at)
    at.text_area(key="prompt").set_value("").run()
    assert "There is no prompt" in healthy(at).warning[0].value


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 800)])
def test_in_the_browser_a_click_in_the_list_shows_that_memory_and_the_link_has_it(
    dashboard: str, new_page: Callable[..., Watched], scheme: str, width: int
) -> None:
    watched = new_page(scheme, width)
    page = watched.open(f"{dashboard}/memories?neuron=3&mlp_layer=1")
    page.get_by_text("L1N3 promotes").wait_for()
    watched.idle()
    grid = page.get_by_test_id("stDataFrame").first
    box = grid.bounding_box()
    page.mouse.click(box["x"] + 15, box["y"] + 35 + 17)  # the first row's box
    page.wait_for_url("**neuron=110**")
    page.get_by_text("L2N110 promotes").wait_for()
    watched.idle()
    assert page.get_by_label("Layer", exact=True).input_value() == "2"
    assert page.get_by_label("Neuron", exact=True).input_value() == "110"
    page.go_back()
    page.get_by_text("L1N3 promotes").wait_for()
    watched.idle()
    assert page.get_by_label("Layer", exact=True).input_value() == "1"
    assert page.get_by_label("Neuron", exact=True).input_value() == "3"
    page.get_by_label("Neuron", exact=True).fill("4")
    page.keyboard.press("Enter")
    page.get_by_text("L1N4 promotes").wait_for()
    page.get_by_label("Token", exact=True).fill(" None")
    page.keyboard.press("Enter")
    page.get_by_text("those whose logit of ·None is largest").wait_for()
    watched.idle()
    other = new_page(scheme, width)
    page = other.open(page.url)
    page.get_by_text("L1N4 promotes").wait_for()
    other.idle()
