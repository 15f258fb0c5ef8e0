"""What comes from outside and means harm is refused in words, or shown as text; the page stays usable, nothing runs."""

import io
import json
import os
import pickle
import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_safetensors
from streamlit.testing.v1 import AppTest

from interp import HookedGPT
from interp.tokenization import Tokenizer
from tests.dashboard.app import ENTRY, healthy, opened, shown
from tests.dashboard.browser import ROOT, Watched, chromium, served
from tests.variants import variant

PAGES = sorted(f"views/{file.name}" for file in (ENTRY.parent / "views").glob("[!_]*.py"))
OTHERS = [page for page in PAGES if page != "views/model.py"]
MARKUP = (
    "<script>window.run = 1</script><img src=x onerror='window.run = 1'><b>b</b> $x^2$ :red[x] [l](javascript:run())"
)
PROMPTS = {
    "markup": MARKUP,
    "plotly's markup": "<br><br><a href='https://example.com/x'>a</a> %{x} <extra>",
    "right to left": "\u202eabc\u2066 \u05d0\u05d1\u05d2 \u0627\u0644 \u200f end\u202c",
    "emoji": "👩\u200d💻🧠 é ü 漢字 \U0001f3f3\ufe0f\u200d\U0001f308",
    "NUL": "a\0b\0 \x07\x1b[31m red \x7f",
    "no characters": "\u200b\ufeff\u2060",
    "long": "<b>spam</b> & eggs, " * 5_000,
    "one long word": "x" * 3_000,
}
LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", ""}


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hosts that this process asked for: the test fails if there is one that is not this machine."""
    asked: list[str] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connects(self: socket.socket, address: Any) -> None:
        host = str(address[0]) if isinstance(address, tuple) else ""
        if host not in LOCAL:
            asked.append(host)
            raise OSError("there is no network here")
        connect(self, address)

    def looks_up(host: Any, *rest: Any, **more: Any) -> Any:
        if str(host or "") not in LOCAL:
            asked.append(str(host))
            raise OSError("there is no network here")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", connects)
    monkeypatch.setattr(socket, "getaddrinfo", looks_up)
    yield asked
    assert not asked, asked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The allowed folder, with a good model in it, and another one beside it."""
    model = HookedGPT(variant("gpt2", d_vocab=257, n_ctx=120).cfg, Tokenizer.bytes())
    for where in ("models/good", "outside"):
        model.save_pretrained(tmp_path / where)
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def said(at: AppTest) -> str:
    return " ".join(each.value for each in at.warning).replace("\\", "")


def is_harmless(at: AppTest) -> None:
    """No text on the page is read as HTML, and no figure holds markup of the prompt's."""
    for each in (*at.markdown, *at.caption, *at.warning, *at.info):
        assert not getattr(each.proto, "allow_html", False)
        assert not re.search(r"(?<!\\)(<script|<img|<a )", each.value), each.value
    for each in at.get("plotly_chart"):
        spec = each.proto.spec
        assert not re.search(r"<(script|img|a|b|extra)[ >]", spec.replace("<extra></extra>", "")), spec[:300]


@pytest.mark.parametrize("page", OTHERS)
def test_hostile_prompts_are_shown_as_text_on_every_page(page: str) -> None:
    at = opened(page)
    for prompt in PROMPTS.values():
        at.text_area(key="prompt").set_value(prompt).run()
        now = shown(healthy(at))
        assert now.prompt == prompt
        is_harmless(at)
    at.text_area(key="prompt").set_value("x = 1").run()
    # Caveats may be there, and what two pages ask for: another prompt.
    others = [each for each in healthy(at).warning if each.icon != ":material/straighten:"]
    assert all("second prompt is needed" in each.value for each in others)
    assert shown(at).prompt == "x = 1"


@pytest.mark.parametrize("field", ["target", "foil"])
def test_hostile_targets_are_refused_in_words(field: str) -> None:
    at = opened()
    for text in PROMPTS.values():
        at.text_input(key=field).set_value(text).run()
        assert f"{field.capitalize()} token" in said(healthy(at))
        is_harmless(at)
    at.text_input(key=field).set_value("").run()
    assert not healthy(at).warning


@pytest.mark.parametrize("name", ["model", "prompt", "target", "q", "k", "layer", "mlp_layer", "neuron", "fp", "x"])
def test_hostile_links_open_the_page(name: str) -> None:
    for value in (MARKUP, "-1", "9" * 400, "nan", "../../etc/passwd", "\0"):
        at = opened(**{name: value})
        is_harmless(at)
        assert shown(at) if name != "target" else said(at) or shown(at)


def test_folder_names_that_lead_elsewhere_open_nothing(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "round").symlink_to(folder)
    (folder / "inner").mkdir()
    for file in (folder.parent / "outside").iterdir():
        (folder / "inner" / file.name).symlink_to(file)
    at = opened("views/model.py")
    names = ["../outside", "good/../../outside", "..", "/etc", str(folder.parent / "outside"), "link", "inner", "a\0b",
             "round/../../outside", "~", "good\\..\\..\\outside", MARKUP, "x" * 5_000, "\u202egood"]  # fmt: skip
    for name in names:
        at.text_input(key="_folder").set_value(name).run()
        button(at, "Open the folder").click().run()
        assert said(healthy(at)), name
        assert str(folder) not in said(at)
        is_harmless(at)
        assert shown(at).name == "stdlib-4l"
    at.text_input(key="_folder").set_value("good").run()
    button(at, "Open the folder").click().run()
    assert shown(healthy(at)).name == "folder/good"


def button(at: AppTest, label: str) -> Any:
    return next(each for each in at.button if each.label == label)


class Bomb:
    """Pickled, it makes a file when it is read as a pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def uploads(good: Path, marker: Path) -> dict[str, tuple[list[tuple[str, bytes]], str]]:
    """Uploads that are none, each with words of what is said of it."""
    whole = {file.name: file.read_bytes() for file in good.iterdir()}
    weights = whole["model.safetensors"]
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8, "vocab_size": 9}

    def of(name: str, content: bytes, **more: Any) -> list[tuple[str, bytes]]:
        return [(name, content), ("config.json", json.dumps(config | more).encode())]

    zipped, stride = io.BytesIO(), io.BytesIO()
    torch.save({"wte.weight": torch.zeros(2), "x": Bomb(marker)}, zipped)
    torch.save({"wte.weight": torch.zeros(1).as_strided((10**9, 8), (0, 0))}, stride)
    tiny = to_safetensors({"wte.weight": torch.zeros(2, 2), "wpe.weight": torch.zeros(2, 2)})
    (length,) = struct.unpack("<Q", weights[:8])
    garbled = weights[:8] + b"\xff" * length + weights[8 + length :]
    beyond = weights[8 : 8 + length].replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1)
    return {
        "pickle as pt": (of("model.pt", pickle.dumps(Bomb(marker))), "no file of tensors alone"),
        "pickle as bin": (of("pytorch_model.bin", zipped.getvalue()), "no file of tensors alone"),
        "pickle as safetensors": (of("model.safetensors", pickle.dumps(Bomb(marker))), "safetensors"),
        "pickle as config": ([("config.json", pickle.dumps(Bomb(marker))), ("model.safetensors", tiny)], "config"),
        "cut off": ([("model.safetensors", weights[: len(weights) // 2])], "safetensors"),
        "cut in the header": ([("model.safetensors", weights[:100])], "safetensors"),
        "corrupted header": ([("model.safetensors", garbled)], "safetensors"),
        "corrupted offsets": ([("model.safetensors", weights[:8] + beyond + weights[8 + length :])], "safetensors"),
        "header of 2**60 bytes": ([("model.safetensors", struct.pack("<Q", 2**60) + weights[8:])], "safetensors"),
        "stride bomb": (of("model.pt", stride.getvalue(), vocab_size=10**9), "claims a shape of [1000000000, 8]"),
        "10**12 weights": (of("model.safetensors", tiny, n_embd=10**6, vocab_size=10**6), "weights"),
        "10**24 weights": (of("model.safetensors", tiny, n_embd=10**12, vocab_size=10**12), ""),
        "10**9 layers": (of("model.safetensors", tiny, n_layer=10**9), ""),
        "no numbers": (of("model.safetensors", tiny, n_embd="<b>", n_layer=None), ""),
    }  # fmt: skip


def test_hostile_uploads_are_refused_in_words_and_a_good_one_opens_after_them(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    at = opened("views/model.py")
    for name, (files, words) in uploads(folder / "good", marker).items():
        upload(at, files)
        assert words in said(healthy(at)), (name, said(at))
        assert len(said(at)) > 20, name
        assert "/tmp" not in said(at)
        is_harmless(at)
        assert shown(at).name == "stdlib-4l"
        assert not marker.exists(), name
    upload(at, [(file.name, file.read_bytes()) for file in (folder / "good").iterdir()])
    assert shown(healthy(at)).name.startswith("upload/")
    assert not healthy(at).warning


def upload(at: AppTest, files: list[tuple[str, bytes]]) -> None:
    given = [(name, content, "application/octet-stream") for name, content in files]
    at.file_uploader(key="_upload").set_value(given).run()
    button(at, "Open the upload").click().run()


@pytest.mark.parametrize(
    "of",
    ["pickle as pt", "pickle as bin", "cut off", "corrupted offsets", "stride bomb", "10**12 weights", "10**9 layers"],
)
def test_hostile_folders_are_refused_in_words_wherever_they_are_opened(folder: Path, tmp_path: Path, of: str) -> None:
    marker = tmp_path / "run"
    files, words = uploads(folder / "good", marker)[of]
    (folder / "bad").mkdir()
    for name, content in files:
        (folder / "bad" / name.replace("model.pt", "pytorch_model.bin")).write_bytes(content)
    if not (folder / "bad" / "config.json").exists():
        (folder / "bad" / "config.json").write_bytes((folder / "good" / "config.json").read_bytes())
    at = opened("views/model.py")
    at.selectbox(key="model").set_value("folder/bad").run()
    assert words in said(healthy(at)), said(at)
    assert str(folder) not in said(at)
    at.selectbox(key="model").set_value("folder/good").run()
    assert shown(healthy(at)).name == "folder/good"
    at.text_input(key="_folder").set_value("bad").run()
    button(at, "Open the folder").click().run()
    if of not in ("pickle as pt",):
        assert said(healthy(at))
    assert not marker.exists()


def test_the_guard_notices_a_request(guarded: list[str]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.com", 80))
    assert guarded == ["example.com"]
    guarded.clear()


GUARD = """
import socket
look_up = socket.getaddrinfo
def looks_up(host, *rest, **more):
    if str(host or "") not in ("", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        open({asked!r}, "a").write(f"{{host}}\\n")
        raise OSError("there is no network here")
    return look_up(host, *rest, **more)
socket.getaddrinfo = looks_up
"""


@pytest.mark.browser
@pytest.mark.slow
def test_in_the_browser_nothing_runs_and_nobody_else_is_asked(
    folder: Path, tmp_path: Path, new_page: Callable[..., Watched]
) -> None:
    chromium()
    marker, asked = tmp_path / "run", tmp_path / "asked"
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD.format(asked=str(asked)))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "guard"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    with served(tmp_path / "log", tmp_path, env=env) as address:
        watched = new_page()
        watched.open(f"{address}/?q={'9' * 400}&mlp_layer=1e999&prompt={'%3Cb%3E' * 9}")
        page = watched.open(address)
        model = HookedGPT.from_pretrained("stdlib-4l")
        for i in range(page.get_by_test_id("stSidebarNavLink").count()):
            page.get_by_test_id("stSidebarNavLink").nth(i).click()
            prompt = f"{i} " + " ".join(PROMPTS[name] for name in ("markup", "plotly's markup", "right to left"))
            page.get_by_label("Prompt", exact=True).fill(prompt)
            page.keyboard.press("Control+Enter")
            last = model.to_tokens(prompt)[:, -model.cfg.n_ctx :].shape[1] - 1
            page.wait_for_selector(f'.st-key-prompt_strip button[data-place="{last}"][aria-pressed="true"]')
            watched.idle()
            assert page.evaluate("window.run") is None
            assert page.locator("[data-testid=stMain] img[src=x], [data-testid=stMain] a[href*=example]").count() == 0
        page.get_by_test_id("stSidebarNavLink").filter(has_text="Model").click()
        page.get_by_role("tab", name="Upload").click()
        for name in ("pickle as pt", "pickle as bin", "cut off", "10**12 weights"):
            files, words = uploads(folder / "good", marker)[name]
            given = [
                {"name": name, "mimeType": "application/octet-stream", "buffer": content} for name, content in files
            ]
            page.locator("[data-testid=stMain] input[type=file]").set_input_files(given)
            page.get_by_role("button", name="Open the upload").click()
            page.locator("[data-testid=stAlert]", has_text=words).last.wait_for()
            watched.idle()
            page.reload()
            page.wait_for_selector("[data-testid=stSidebar] textarea")
            watched.idle()
            page.get_by_role("tab", name="Upload").click()
        assert not marker.exists()
    assert not asked.exists(), asked.read_text()
