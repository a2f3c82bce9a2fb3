"""The notebook runs from a fresh kernel, offline, and shows what its text promises."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nbformat.NotebookNode]:
    """The code cells by id, with their outputs. A cell that fails raises CellExecutionError."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    block = "from featcache.core.offline import offline\nguard = offline()\nguard.__enter__()"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(block))  # whatever tries to connect fails
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    asyncio.run(client.async_execute())
    return {cell.id: cell for cell in notebook.cells[1:] if cell.cell_type == "code"}


def shown(cell: nbformat.NotebookNode, kind: str) -> str:
    """The one output of a kind, besides the empty displays that bars leave."""
    there = [output.get("data", {}) for output in cell.outputs]
    (found,) = [data[kind] for data in there if kind in data and data.get("text/html") != ""]
    return str(found)


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_the_committed_file_is_clean() -> None:
    text = NOTEBOOK.read_text("utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id), "ids are names"
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert len(text) < 20_000
    assert text == nbformat.writes(notebook, indent=1).rstrip() + "\n"


def test_objects_show_themselves(executed: dict[str, nbformat.NotebookNode]) -> None:
    for name in ("init", "extract", "rows", "predict"):
        assert "<table" in shown(executed[name], "text/html"), name
    run = shown(executed["fit"], "text/html")
    assert re.search(r"<td>test</td><td>\d+\.\d\d %</td>", run)
    assert "data:image/png;base64," in run
    for name in ("images", "curves"):
        assert len(shown(executed[name], "image/png")) > 5000, name


def test_it_computes_what_its_text_says(executed: dict[str, nbformat.NotebookNode]) -> None:
    assert shown(executed["again"], "text/plain") == "0"
    assert shown(executed["features"], "text/plain") == "(4, 1280)"
    assert shown(executed["pull"], "text/plain") == "True"
    assert printed(executed["verify"]).endswith("sound: True\n")
    rows = [line for line in shown(executed["predict"], "text/html").splitlines() if "new/" in line]
    assert len(rows) == 8
    folds = re.search(r"each fold: \[([\d. ]+)\]", printed(executed["sklearn"]))
    assert folds
    assert all(float(score) > 0.5 for score in folds[1].split())


def test_no_bar_and_no_warning_is_left(executed: dict[str, nbformat.NotebookNode]) -> None:
    """A bar was there while its cell ran: what it left is an empty display."""
    for name, cell in executed.items():
        assert [output.text for output in cell.outputs if output.get("name") == "stderr"] == [], name
    left = [output.data["text/html"] for output in executed["fit"].outputs if output.output_type == "display_data"]
    assert left
    assert set(left) == {""}
