"""The notebooks run from their first cell to their last, as a reader runs them."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# In place of the cell with the tag `parameters`: a tiny model and few tokens.
SMALL = 'MODEL, OUT, TEXTS, TOKENS, LENGTH = "random:tiny-llama", "my-adapters", 6, 1500, 32'


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = SMALL
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    drawn = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    figures = [output.data["text/html"] for output in drawn if "<svg" in output.data.get("text/html", "")]
    assert figures and all(len(text.encode()) <= 150_000 and "<script" not in text for text in figures)
    assert all(len(output.data["text/plain"]) < 300 for output in drawn), "reprs are one line"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_says_where_it_installs_from(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert 'SOURCE = ""' in "".join(cells[0]["source"]) and not any(cell["outputs"] for cell in cells)
