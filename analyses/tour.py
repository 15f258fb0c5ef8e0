"""Run the notebook `tour.ipynb` from top to bottom, and keep what it shows, small: figures as pictures.

`python -m analyses.tour` writes the notebook with its outputs; opened in Jupyter, its figures are alive.
"""

import base64
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient

from analyses.output import picture

NOTEBOOK = Path(__file__).with_name("tour.ipynb")
_FIGURE = "application/vnd.plotly.v1+json"


def run(notebook: Path = NOTEBOOK) -> Any:
    """The notebook with the outputs of a fresh run; a cell that fails raises."""
    content = nbformat.read(notebook, as_version=4)
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # the figure alone, without the library that draws it
    where = {"metadata": {"path": str(notebook.parents[1])}}
    NotebookClient(content, timeout=600, coalesce_streams=True, resources=where).execute()
    for cell in cells(content):
        cell.metadata.pop("execution", None)  # when it ran
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return content


def cells(content: Any) -> list[Any]:
    """The cells of code."""
    return [cell for cell in content.cells if cell.cell_type == "code"]


def main() -> None:
    """Run it, and write it with its figures as pictures."""
    content = run()
    with TemporaryDirectory() as folder:
        for cell in cells(content):
            for output in cell.outputs:
                if _FIGURE in output.get("data", {}):
                    png = Path(folder, "figure.png")
                    picture(go.Figure(output.data[_FIGURE]), png, finer=1)
                    output.data = {"image/png": base64.b64encode(png.read_bytes()).decode()}
    nbformat.write(content, NOTEBOOK)


if __name__ == "__main__":
    main()
