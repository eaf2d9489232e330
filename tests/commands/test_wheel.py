"""An installed wheel, far from the repository: it holds everything, and `ivc-jax` runs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import ivc_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("LICENSE", "README.md", "pyproject.toml")
PACKAGES = ("checkpoints_convert", "digit_scenes", "ivc_jax")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-index", "--no-deps")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources, which building writes into."""
    pytest.importorskip("setuptools", "77", reason="no setuptools that builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PARTS:
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "experiments", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """`ivc-jax` of an environment that has the wheel, and what it depends on from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, wheel], check=True)
    # Folders only: what other .pth files add, such as a repository installed to be edited, is not.
    (site,) = folder.glob("lib/python*/site-packages")
    outer = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site / "outer.pth").write_text("\n".join(sorted(outer)) + "\n")
    return folder / "bin" / "ivc-jax"


def run(program, *arguments, cwd):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [program, *map(str, arguments)], cwd=cwd, env=environment, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    configs = (ROOT / "experiments" / "configs").glob("*.py")
    wanted |= {f"ivc_jax/configs/{path.name}" for path in configs}
    scripts = (ROOT / "benchmarks").glob("*.py")
    wanted |= {f"ivc_jax/benchmarks/{path.name}" for path in scripts}
    # for readers of the repository: a page, and the models of the study
    left_out = {name for name in wanted if name.startswith("digit_scenes/models/")}
    assert left_out
    assert held == wanted - left_out - {"digit_scenes/README.md"}


def test_help_lists_what_the_wheel_carries(program, tmp_path):
    shown = run(program, "--help", cwd=tmp_path)
    for word in ("choose-layer", "plus_ivc", "forkme", "pyramiddrop", "RefCOCO_testA"):
        assert word in shown.replace(",", "").split()


def test_the_default_job_runs_outside_the_repository(program, tmp_path):
    options = ["--limit", "2", "--tasks", "colour", "--methods", "ivc:budget=0.5"]
    options += ["--batch-size", "2", "--max-new-tokens", "2"]
    shown = run(program, "run", *options, "--no-compile-cache", "--out", "out", cwd=tmp_path)
    assert "loading digit_scenes/checkpoint" in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    meta, (row,) = results["meta"], results["rows"]
    assert (row["n"], row["visual_tokens"], row["kept_tokens"]) == (2, 256, 128)
    assert meta["model"] == "digit_scenes/checkpoint"
    assert meta["commit"] == f"v{ivc_jax.__version__}"
    assert meta["command"].startswith("ivc-jax run --limit 2 ")
    assert "`ivc-jax run --limit 2 " in (tmp_path / "out" / "report.md").read_text()


def test_a_notebook_runs_outside_the_repository(program, tmp_path, monkeypatch):
    """It draws its picture and finds the model in the wheel."""
    pytest.importorskip("IPython", reason="IPython is not installed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "settings"))
    notebook = pathlib.Path(
        shutil.copy(ROOT / "docs" / "notebooks" / "coordinates.ipynb", tmp_path)
    )
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    *_, printed = ["".join(output["text"]) for output in outputs if "text" in output]
    python = program.with_name("python")
    shown = run(python, "-m", "IPython", "-c", f"%run {notebook.name}", cwd=tmp_path)
    assert printed.count("positions") == 2  # of a model's answers
    assert printed in shown
