import numpy as np
import pytest
from xarray import DataArray

from interp import plots


def result() -> DataArray:
    values = np.array([[1.0, 2.0, np.nan], [3.0, 2.5, 0.5]])
    return DataArray(values, [("run", ["before", "<b>after"]), ("pos", ["0 a", "1 <i>", "2 a"])], name="loss")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_line_for_each_run_along_positions_with_gaps(theme: str) -> None:
    figure = plots.lines(result(), title="Loss", theme=theme)  # type: ignore[arg-type]
    assert [trace.name for trace in figure.data] == ["before", "&lt;b&gt;after"]
    np.testing.assert_array_equal(figure.data[0].y, [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(figure.data[1].y, [3.0, 2.5, 0.5])
    assert list(figure.data[1].x) == [0, 1, 2]
    assert figure.layout.xaxis.ticktext == ("0 a", "1 &lt;i&gt;", "2 a")
    assert figure.layout.yaxis.title.text == "loss"
    assert "not computed" in figure.data[0].hovertext[2]
    assert figure.data[0].line.color != figure.data[1].line.color
    assert figure.layout.showlegend


def test_prompts_are_averaged_over_and_other_axes_refused() -> None:
    both = DataArray(np.stack([result(), result() + 2], -1), dims=("run", "pos", "prompt"), name="loss")
    np.testing.assert_array_equal(plots.lines(both).data[1].y, [4.0, 3.5, 1.5])
    with pytest.raises(ValueError, match="2 can be drawn"):
        plots.lines(result()[0])
