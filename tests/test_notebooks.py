"""The notebooks run from top to bottom, offline, and print what is committed beside their cells."""

import os
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NAMES = ("quick_start", "coordinates", "own_method", "own_tsv")
nbformat = pytest.importorskip(
    "nbformat", reason="nbformat is not installed: pip install -e .[test]"
)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def list_code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def read_printed(cell):
    """What a cell prints, without what hangs on the machine: blanks at ends of lines, colours."""
    parts = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    text = re.sub(r"\x1b\[[0-9;]*m", "", "".join(parts))
    return [line.rstrip() for line in text.splitlines()]


@pytest.fixture
def environment(tmp_path):
    """With `ivc-jax` on the path, whether or not this environment's scripts are."""
    program = tmp_path / "bin" / "ivc-jax"
    program.parent.mkdir()
    lines = (f"#!{sys.executable}", "import sys", "from ivc_jax.commands.main import start")
    program.write_text("\n".join((*lines, "sys.exit(start())\n")))
    program.chmod(0o755)
    path = os.pathsep.join((str(program.parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}


def test_every_notebook_is_listed():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_prints_what_is_committed(name, tmp_path, environment):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = read(name)
    printed = [read_printed(cell) for cell in list_code(notebook)]
    folder = tmp_path / "elsewhere"  # not a checkout
    folder.mkdir()
    client = nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    assert [read_printed(cell) for cell in list_code(notebook)] == printed
    assert sum(map(len, printed)) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_was_run_once_from_the_top(name):
    notebook = read(name)
    cells = list_code(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert all("execution" not in cell.metadata for cell in notebook.cells)  # when it was run
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_is_small_and_of_no_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < 300_000
    assert re.findall(r"/(?:home|root|tmp|work|usr|Users)/", text) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_notebook_lead_to_files(name):
    texts = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", "\n".join(texts))
    assert [link for link in links if not (FOLDER / link).exists()] == []
