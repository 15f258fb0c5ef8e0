"""The page that compares: A, B and B − A are the library's numbers, and what does not fit is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
import torch
from pandas import DataFrame
from streamlit.testing.v1 import AppTest

from dashboards.parts.compare.measured import SHOWN
from dashboards.parts.other import aligned
from interp import HookedGPT, heads
from interp.tokenization import Tokenizer
from interp.training import Run, Task, TrainingConfig, repeated_tokens, train
from tests.dashboard.app import healthy, opened, shown
from tests.dashboard.browser import Watched
from tests.variants import variant

PAGE = "views/compare.py"
ASKED = {"target": " height", "foil": " width"}
OTHER = "for each in area(width, length):\n    print(width *"


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, HookedGPT]:
    """Models in the allowed folder: two checkpoints of a run, and others that do not fit beside them."""
    made = {"run/1": variant("gpt2", d_vocab=257, n_ctx=60)}
    made["run/2"] = variant("gpt2", d_vocab=257, n_ctx=60, seed=5)
    made |= {"short": variant("gpt2", d_vocab=257, n_ctx=6), "wide": variant("gpt2", d_vocab=257, n_heads=4, d_head=4)}
    for name, each in made.items():
        HookedGPT.save_pretrained(_with(each, Tokenizer.bytes()), tmp_path / name)
    _with(made["run/1"], None).save_pretrained(tmp_path / "ids")
    _with(made["run/1"], Tokenizer.characters("".join(map(chr, range(32, 289))))).save_pretrained(tmp_path / "letters")
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path))
    st.cache_resource.clear()  # models of these names in another folder
    return {name: HookedGPT.from_pretrained(tmp_path / name) for name in made}


def _with(model: HookedGPT, tokenizer: Tokenizer | None) -> HookedGPT:
    made = HookedGPT(model.cfg, tokenizer)
    made.load_state_dict(model.state_dict())
    return made


def texts(at: AppTest) -> str:
    kinds = (at.caption, at.info, at.warning, at.markdown, at.text, at.error)
    return "\n".join(each.value for kind in kinds for each in kind).replace("\\", "")


def grids(at: AppTest) -> list[np.ndarray]:
    """The numbers of the three grids: A, B, B − A."""
    before = len(at.dataframe)
    for key in ("a", "b", "change"):
        at.toggle(key=f"compare_{key}_map_table").set_value(True)
    healthy(at.run())
    found = [each.value.to_numpy() for each in at.dataframe if each.value.columns[0] == "H0"]
    assert (len(found), len(at.dataframe)) == (3, before + 3)
    return found


def told(at: AppTest, column: str) -> DataFrame:
    """The table that has this column."""
    return next(each.value for each in at.dataframe if column in each.value)


def by_hand(model: HookedGPT, tokens: torch.Tensor, what: str, target: int, foil: int, q: int) -> np.ndarray:
    """A number of each head, from patterns and results: [layer head]."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
        n, found = tokens.shape[1], []
        assert model.cfg.normalization_type == "RMS"
        toward = model.ln_final.w.double() * (model.W_U[:, target] - model.W_U[:, foil]).double()
        for layer in range(model.cfg.n_layers):
            pattern = cache["pattern", layer][0].double()
            if what == "direct effect":
                z = cache["z", layer][0, q].double()
                write = torch.einsum("hd,hdm->hm", z, model.W_O[layer].double())
                found.append(write @ toward / cache["ln_final.hook_scale"][0, q].double())
            elif what == "first here":
                found.append(pattern[:, :, 0].mean(-1))
            elif what == "itself here":
                found.append(pattern.diagonal(dim1=1, dim2=2).mean(-1))
            elif what == "previous here":
                found.append(pattern.diagonal(-1, 1, 2).mean(-1))
            else:
                entropy = -(pattern * pattern.clamp_min(1e-30).log()).sum(-1)[:, 1:]
                found.append(1 - (entropy / torch.arange(2, n + 1).log()).mean(-1))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("what", SHOWN)
def test_grids_are_what_hooks_say_of_both_prompts(model: HookedGPT, what: str) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, compare_what=what)
    now, other = shown(at), model.to_tokens(OTHER, prepend_bos=True)
    assert other.shape[1] != now.tokens.shape[1]
    answers = (now.target, now.foil)
    a = by_hand(model, now.tokens, what, *answers, now.tokens.shape[1] - 1)
    b = by_hand(model, other, what, *answers, other.shape[1] - 1)
    for found, wanted in zip(grids(at), (a, b, b - a), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(b - a).max() > 0.05
    listed = told(at, "head")
    order = np.argsort(-np.abs(b - a), axis=None)
    assert listed["head"][0] == "L{}H{}".format(*divmod(int(order[0]), a.shape[1]))
    np.testing.assert_allclose(listed["B − A"].abs(), np.abs(b - a).ravel()[order], atol=4e-5)
    assert listed["B − A"][0] == pytest.approx((b - a).ravel()[order[0]], abs=4e-5)


def test_next_tokens_are_those_of_either(model: HookedGPT) -> None:
    at = opened(PAGE, other=OTHER, q="9")
    now, other = shown(at), model.to_tokens(OTHER, prepend_bos=True)
    q = other.shape[1] - (now.tokens.shape[1] - 9)
    with torch.no_grad():
        a, b = model(now.tokens)[0, 9].softmax(-1), model(other)[0, q].softmax(-1)
    found = told(at, "token")
    wanted = {*a.topk(10).indices.tolist(), *b.topk(10).indices.tolist()}
    assert len(found) == len(wanted) > 10
    np.testing.assert_allclose(sorted(found.A), sorted(a[list(wanted)].numpy()), atol=1e-6)
    np.testing.assert_allclose(sorted(found.B), sorted(b[list(wanted)].numpy()), atol=1e-6)
    np.testing.assert_allclose(found["B − A"], found.B - found.A)
    assert f"A is read at 9, B at {q}" in texts(at)


@pytest.mark.parametrize("what", ["direct effect", "focus here", "first here"])
def test_the_code_makes_the_numbers_again(what: str) -> None:
    at = opened(PAGE, **ASKED, other=OTHER, compare_what=what)
    found, listed = grids(at), told(at, "head")
    made = []
    for each in at.code:
        names: dict[str, Any] = {}
        exec(each.value, names)
        made.append(names)
    for names, key, wanted in zip(made, ("a", "b", "change"), found, strict=False):
        np.testing.assert_allclose(names[key], wanted, atol=1e-5)
        np.testing.assert_allclose(names["fig"].data[0].z, wanted, atol=1e-5)
    after, changed = made[3:]
    np.testing.assert_allclose([row[1:] for row in after["table"]], told(at, "token").iloc[:, 1:], atol=1e-6)
    np.testing.assert_allclose([each for _, each in changed["table"]], listed["B − A"], atol=1e-5)


def test_checkpoints_of_a_run_are_compared_on_the_same_prompt(folder: dict[str, HookedGPT]) -> None:
    at = opened(PAGE, model="folder/run/1", prompt="ab abc ab", compare_by="Model", compare_model="folder/run/2")
    now = shown(at)
    wanted = []
    for each in (folder["run/1"], folder["run/2"]):
        _, cache = each.run_with_cache(now.tokens)
        wanted.append(heads.direct_effects(each, cache, now.target, now.foil).to_numpy()[..., 0])
    for found, each in zip(grids(at), (*wanted, wanted[1] - wanted[0]), strict=True):
        np.testing.assert_allclose(found, each, atol=1e-6)
    assert np.abs(wanted[1] - wanted[0]).max() > 1e-4
    probs = [each(now.tokens)[0, -1].softmax(-1).detach() for each in (folder["run/1"], folder["run/2"])]
    assert told(at, "token").B.max() == pytest.approx(float(probs[1].max()), abs=1e-6)
    assert "A is folder/run/1, B is folder/run/2" in texts(at)
    assert "other_model = HookedGPT.from_pretrained('folder/run/2')" in at.code[0].value
    assert "other_tokens = tokens" in at.code[0].value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder/wide", "4 heads in a layer against 3"),
        ("folder/short", "it reads 6 tokens at once, and the prompt has 10"),
        ("folder/ids", "one of them has no tokenizer"),
        ("folder/letters", "another tokenizer"),
        ("stdlib-4l", "4 layers against 2"),
        ("planted/copy", "9 tokens in its vocabulary against 257"),
        ("folder/nothing", "a second model is needed"),
        ("folder/run/1", "a second model is needed"),
    ],
)
def test_models_that_do_not_fit_are_told(folder: dict[str, HookedGPT], name: str, said: str) -> None:
    at = opened(PAGE, model="folder/run/1", prompt="ab abc ab", compare_by="Model", compare_model=name)
    assert said in texts(at)
    assert not at.dataframe
    at.selectbox(key="compare_model").set_value("folder/run/2")
    healthy(at.run())
    assert len(at.dataframe) == 2


def test_a_model_that_is_damaged_is_told(folder: dict[str, HookedGPT], tmp_path: Path) -> None:
    (tmp_path / "run/2/model.safetensors").write_bytes(b"no weights")
    at = opened(PAGE, model="folder/run/1", compare_by="Model", compare_model="folder/run/2")
    assert texts(at).count("model.safetensors")
    assert str(tmp_path) not in texts(at)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"prompt": "x = ["}, "a second prompt is needed"),
        ({"other": "x", "q": "3"}, "Prompt B has 2 tokens: none stands 9 before its end"),
        ({"other": "def area(width, height):\n    return width *"}, "Both prompts are the same"),
        ({"other": "x " * 2000}, "tokens of prompt B are left out"),
        ({"model": "planted/induction", "other": "1 2 x"}, "what is not: x"),
        ({"compare_by": "<b>", "compare_what": "x", "layer": "99", "head": "99"}, "**L1H7**: A"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told(query: dict[str, str], said: str) -> None:
    assert said in texts(opened(PAGE, **query))


def test_the_same_prompt_twice_changes_nothing() -> None:
    at = opened(PAGE, prompt="x = [1, 2,")
    at.button(key="_compare_offer_0").click()
    healthy(at.run())
    a, b, change = grids(at)
    assert (a == b).all()
    assert not change.any()
    assert a.any()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with checkpoints of steps 0, 1 and 2, in the allowed folder; beside it one with a single one."""
    data = Task(repeated_tokens(12, 9, periods=(3, 4)))
    for name, steps, keep in (("run", 3, 9), ("short", 1, 0)):
        train(
            variant("gpt2", d_vocab=12, n_ctx=9),
            data,
            TrainingConfig(steps=steps, batch_size=2, lr=0.05, checkpoint_every=1, keep=keep),
            tmp_path / name,
            progress=False,
        )
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path))
    st.cache_resource.clear()
    return tmp_path / "run"


def test_two_steps_of_a_run_stand_beside_each_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened(PAGE, model="folder/run@2", prompt="1 2 3 1 2", compare_by="Training step", compare_step_b="3")
    now, own = shown(at), Run(run)

    def are_those_of(*steps: int) -> list[np.ndarray]:
        wanted = []
        for step in steps:
            model = own.model(step)
            _, cache = model.run_with_cache(now.tokens)
            wanted.append(heads.direct_effects(model, cache, now.target, now.foil).to_numpy()[..., 0])
        shown_now = grids(at)
        for found, each in zip(shown_now, (*wanted, wanted[1] - wanted[0]), strict=True):
            np.testing.assert_allclose(found, each, atol=1e-6)
        assert (steps[0] == steps[1]) == (np.abs(wanted[1] - wanted[0]).max() < 1e-4)
        assert f"A is folder/run@{steps[0]}, B is folder/run@{steps[1]}" in texts(at)
        return shown_now

    found = are_those_of(1, 3)
    monkeypatch.chdir(run.parent)
    Path("folder").symlink_to(".")
    names: dict[str, Any] = {}
    exec(at.code[2].value, names)
    np.testing.assert_allclose(names["fig"].data[0].z, found[2], atol=1e-6)
    for key in ("a", "b", "change"):
        at.toggle(key=f"compare_{key}_map_table").set_value(False)
    healthy(at.run())
    at.select_slider(key="compare_step_a").set_value(3)
    healthy(at.run())
    are_those_of(3, 3)
    assert "They have the same weights" in texts(at)


def test_steps_that_cannot_be_compared_are_told(run: Path) -> None:
    at = opened(PAGE, compare_by="Training step", compare_step_a="7")
    assert "stdlib-4l is no checkpoint of a run" in texts(at)
    at.button(key="_compare_offer_0").click()
    healthy(at.run())
    assert shown(at).name == "folder/run@3"
    assert "A is folder/run@1, B is folder/run@3" in texts(at)  # there is no step 7
    at.selectbox(key="model").set_value("folder/short@1")
    assert "The run folder/short has one checkpoint" in texts(healthy(at.run()))


def test_the_marked_head_is_marked_in_the_table_of_changes() -> None:
    at = opened(PAGE, prompt="x = [1, 2,", other="x = [2, 1,", layer="2", head="5")
    listed = told(at, "head")
    assert listed["head"][listed[" "] != ""].tolist() == ["L2H5"]
    place = listed["head"].tolist().index("L2H5")
    assert f"▶ is the head that is marked, {place + 1} of 32" in texts(at)
    assert [each.value for each in at.markdown if each.value in ("**A**", "**B**")] == ["**A**", "**B**"] * 2


def test_tokens_are_aligned_with_their_like() -> None:
    assert aligned("abcd", "xbcda") == ([None, 1, 2, 3], [None, 1, 2, 3, None])
    assert aligned("abcd", "bbda") == ([None, 1, None, None], [None, 1, None, None])
    assert aligned("aa", "") == ([None, None], [])


def test_every_widget_may_be_moved(folder: dict[str, HookedGPT]) -> None:
    at = opened(PAGE, model="folder/run/1", prompt="ab", other="abc")
    for by in ("Model", "Prompt"):
        at.segmented_control(key="compare_by").set_value(by)
        healthy(at.run())
        if by == "Model":
            for name in at.selectbox(key="compare_model").options:
                at.selectbox(key="compare_model").set_value(name)
                healthy(at.run())
        for what in SHOWN:
            at.selectbox(key="compare_what").set_value(what)
            healthy(at.run())
    for prompt in ("a", "", "ab"):
        at.text_area(key="other").set_value(prompt)
        healthy(at.run())
    at.number_input(key="layer").set_value(1)
    at.number_input(key="head").set_value(2)
    healthy(at.run())
    assert "**L1H2**: A" in texts(at)
    at.selectbox(key="model").set_value("planted/induction")
    healthy(at.run())


@pytest.mark.browser
def test_a_click_marks_a_head_in_all_three_and_leads_to_its_page(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page(height=1400)
    page = watched.open(f"{dashboard}/compare?prompt=x%20%3D%20a&other=y")
    for i, key in enumerate(("a", "b", "change")):
        grid = page.locator(f".st-key-compare_{key}_box .grid[data-ready='1']")
        grid.wait_for()
        watched.idle()
        box = page.locator(f".st-key-compare_{key}_box canvas").bounding_box()
        side, left, top = (float(grid.get_attribute(f"data-{name}")) for name in ("side", "left", "top"))
        page.mouse.click(box["x"] + left + (2.5 + i) * side, box["y"] + top + (0.5 + i) * side)
        page.locator("strong", has_text=f"L{i}H{2 + i}").wait_for()
        watched.idle()
        for other in ("a", "b", "change"):
            page.locator(f".st-key-compare_{other}_box .grid[data-selected='{i},{2 + i}']").wait_for()
    page.get_by_role("link", name="On the page Heads").click()
    page.wait_for_function("() => !location.pathname.includes('compare')")
    watched.idle()
    assert page.get_by_label("Prompt", exact=True).input_value() == "x = a"
    assert page.get_by_label("Layer", exact=True).input_value() == "2"
    assert page.get_by_label("Head", exact=True).input_value() == "4"
