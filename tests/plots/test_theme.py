import subprocess
import sys
from pathlib import Path

import numpy as np
from xarray import DataArray

from interp import plots
from interp.plots.theme import broken, seen, visible

ROOT = Path(__file__).parent.parent.parent


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_without_plotly_one_message_says_what_to_install() -> None:
    code = """
import sys
sys.modules["plotly"] = None
import interp
try:
    import interp.plots
except ImportError as error:
    print(error)
"""
    assert run(code).strip() == "interp.plots draws with plotly, which is not installed: pip install interp[plots]"


def test_an_unknown_theme_is_named() -> None:
    code = """
from xarray import DataArray
from interp import plots
try:
    plots.heatmap(DataArray([[1.0, 2.0]], dims=("layer", "head")), theme="blue")
except ValueError as error:
    print(error)
"""
    assert run(code).strip() == "theme='blue'; allowed: 'light', 'dark'"


def test_tokens_are_shown_as_text_with_their_spaces() -> None:
    assert visible(" a\n\tb\r") == "·a⏎⇥b␍"
    assert visible("<b>&$x$") == "&lt;b&gt;&amp;&#36;x&#36;"
    assert visible("a" * 40) == "a" * 11 + "…"


def test_characters_without_a_shape_are_named() -> None:
    assert visible("a\x00b") == "a␀b"
    assert visible("\u202eabc") == "U+202Eabc"  # it would turn the text around
    assert seen("<b>\u200bé") == "<b>U+200Bé"


def test_long_titles_are_broken_into_lines() -> None:
    result = DataArray(np.eye(2), dims=("layer", "head"), attrs={"metric": "a long name of a metric " * 6})
    short, long = plots.heatmap(result, title="short"), plots.heatmap(result, title="much longer " * 8)
    assert max(map(len, long.layout.title.text.split("<br>"))) <= 34
    assert max(map(len, long.layout.title.subtitle.text.split("<br>"))) <= 62
    assert long.layout.margin.t == short.layout.margin.t + 22 * long.layout.title.text.count("<br>")


def test_names_are_broken_at_spaces_and_only_where_they_must_be_at_dots() -> None:
    assert broken("receiver blocks.3.attn.hook_q", 20) == "receiver<br>blocks.3.attn.hook_q"
    assert broken("receiver blocks.3.attn.hook_q", 18) == "receiver<br>blocks.3.attn.<br>hook_q"
    assert broken("head 3", 18) == "head 3"


def test_no_button_sends_a_figure_to_a_service() -> None:
    figure = plots.heatmap(DataArray(np.eye(2), dims=("layer", "head")))
    assert "sendChartToCloud" in figure.layout.template.layout.modebar.remove
