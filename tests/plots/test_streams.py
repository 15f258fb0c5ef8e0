from typing import Any

import numpy as np
import pytest
from xarray import Dataset

from interp import lens, plots
from tests.variants import some_tokens, variant


def table(name: str = "gpt2", **options: Any) -> Dataset:
    model = variant(name)
    _, cache = model.run_with_cache(some_tokens())
    return lens.stream_statistics(model, cache, **options)


@pytest.mark.parametrize("what", ["norm", "variance", "cosine", "cosine_before"])
def test_the_curves_are_means_of_each_kind_without_the_first_position(what: str) -> None:
    of = table()
    figure = plots.stream_statistics(of, what)
    lines = {trace.name: trace for trace in figure.data if "%" not in trace.name}
    bands = {trace.name.partition(",")[0]: trace for trace in figure.data if "%" in trace.name}
    wanted = {
        "stream": ["L0 stream", "L1 stream", "final stream"],
        "attention": ["L0 attn", "L1 attn"],
        "MLP": ["L0 mlp", "L1 mlp"],
    }
    if what == "cosine_before":
        del wanted["stream"]  # nothing is written by it
    assert list(lines) == list(bands) == list(wanted)
    for kind, names in wanted.items():
        values = of[what].sel(component=names, pos=slice(1, None)).values.reshape(len(names), -1)
        np.testing.assert_allclose(lines[kind].y, values.mean(-1), rtol=1e-5)
        low, high = np.quantile(values, [0.1, 0.9], -1)
        np.testing.assert_allclose(bands[kind].y, [*high, *low[::-1]], rtol=1e-5)
        assert list(lines[kind].x) == list(range(len(names)))
        assert [said.partition("<br>")[0] for said in lines[kind].hovertext] == names
        assert f"{values.mean(-1)[0]:.4g}<br>10% to 90%: {low[0]:.4g} to {high[0]:.4g}" in lines[kind].hovertext[0]
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.layout.xaxis.ticktext == ("0", "1", "end")
    said = {"cosine": "cosine with the final stream", "cosine_before": "cosine with the stream before"}.get(what, what)
    assert figure.layout.yaxis.title.text == said
    assert figure.layout.title.text.replace("<br>", " ") == f"Stream statistics: {said}"
    under = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert under.startswith("mean of 3 prompts × 6 positions, band: 10% to 90% · without position 0 · model ")


def test_position_0_counts_if_it_is_alone() -> None:
    of = table()
    alone = plots.stream_statistics(of.sel(pos=[0]))
    np.testing.assert_allclose(alone.data[-1].y, of.norm.sel(component=["L0 mlp", "L1 mlp"], pos=0).mean("prompt"))
    last = table(pos=-1)
    figure = plots.stream_statistics(last.isel(prompt=1))
    assert len(figure.data) == 3
    np.testing.assert_allclose(figure.data[1].y, last.norm.sel(component=["L0 attn", "L1 attn"])[:, 1])
    for each in (alone, figure):
        assert "without position" not in each.layout.title.subtitle.text
    assert "mean" not in figure.layout.title.subtitle.text


def test_a_model_without_mlps_has_two_curves() -> None:
    figure = plots.stream_statistics(table("attn_only"), theme="dark")
    assert [trace.name for trace in figure.data[2:]] == ["stream", "attention"]


def test_on_a_log_axis_norms_are_as_they_are() -> None:
    plain, log = (plots.stream_statistics(table(), values=values) for values in ("linear", "log"))
    assert log.layout.yaxis.type == "log"
    assert log.layout.yaxis.tickformat == "~g"  # else "5" may mean 0.5
    assert log.layout.yaxis.title.text == "norm (log)"
    np.testing.assert_array_equal(log.data[-1].y, plain.data[-1].y)
    with pytest.raises(ValueError, match="cosine has numbers that are not above 0"):
        plots.stream_statistics(table(), "cosine", values="log")


def test_what_is_no_table_of_streams_is_refused() -> None:
    with pytest.raises(ValueError, match=r"what='size'; of \['norm', .* the table has \['norm', "):
        plots.stream_statistics(table(), "size")
    with pytest.raises(ValueError, match=r"lack \['kind'\]"):
        plots.stream_statistics(table().drop_vars("kind"))
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.stream_statistics(table().isel(component=[1, 2]).sel(component=["L0 stream"]), "cosine_before")
    with pytest.raises(ValueError, match="empty"):
        plots.stream_statistics(table().isel(prompt=[]))
