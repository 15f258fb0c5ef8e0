import sys
from importlib import import_module

import jaxtyping
import numpy as np
import pytest
from xarray import DataArray

from interp import plots
from interp.plots.theme import broken, seen, visible


def test_without_plotly_one_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "interp.plots")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(
        ImportError, match=r"^interp.plots draws with plotly, .* not installed: pip install interp\[plots\]$"
    ):
        import_module("interp.plots")


def test_an_unknown_theme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no annotations checked
    with pytest.raises(ValueError, match="theme='blue'; allowed: 'light', 'dark'"):
        plots.heatmap(DataArray(np.eye(2), dims=("layer", "head")), theme="blue")  # type: ignore[arg-type]


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
