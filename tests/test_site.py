"""The site is built with warnings as errors, holds every page, and asks nobody for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ivc_jax
from ivc_jax.commands.main import COMMANDS
from ivc_jax.methods import METHODS

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(
    r"""<(?:script|img|iframe)[^>]*src="?https?:|<link[^>]*rel="?stylesheet"?[^>]*https?:"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e .[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - listed == set()


def test_commands_and_fields_come_from_the_program(site):
    commands = (site / "commands.html").read_text()
    assert [name for name in COMMANDS if f'id="ivc-jax-{name}"' not in commands] == []
    assert "such as data=8,model=4" in commands
    assert "Compile for a TPU slice without having it" in commands
    fields = (site / "fields.html").read_text()
    assert [name for name in METHODS if f"<code>{name}</code>" not in fields] == []
    assert str(ROOT) not in fields  # no path of the machine it is built on


def test_the_reference_has_every_public_name(site):
    page = (site / "reference" / "package.html").read_text()
    names = {*ivc_jax.__all__} - {"__version__", "ivc", "methods"}
    homes = {name: f"{ivc_jax._HOMES[name]}.{name}" for name in names}
    assert [home for home in homes.values() if f'id="{home}"' not in page] == []
    assert 'id="ivc_jax.ivc.scores"' in (site / "reference" / "coordinates.html").read_text()


def test_notebooks_are_pages_with_their_figures(site):
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{path.stem}.html").read_text()
        assert f'href="{path.name}"' in page
        figures = re.findall(rf'src="({path.stem}_[^"]+)"', page)
        assert all((site / "notebooks" / figure).exists() for figure in figures)
        assert len(figures) == path.read_text().count('"image/png"')


def test_what_pages_link_to_goes_along(site):
    """mkdocs has checked the links between pages; these are of files outside of docs."""
    start = (site / "index.html").read_text()
    linked = set(re.findall(r'href="(files/[^"#]+)"', start))
    assert "files/benchmarks/results/plan_7b.json" in linked
    assert len(linked) > 20
    assert [link for link in linked if not (site / link).is_file()] == []


def test_no_page_asks_another_host(site):
    pages = [path for path in site.rglob("*.html") if "files" not in path.relative_to(site).parts]
    assert len(pages) > 30
    asking = [path.name for path in pages if OUTSIDE.search(path.read_text())]
    assert asking == []
