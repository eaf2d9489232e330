"""What people meet around the code: links that lead somewhere, one version, typed."""

import re
import tomllib
from pathlib import Path

import pytest

import ivc_jax
from ivc_jax.commands.main import COMMANDS
from ivc_jax.methods import METHODS
from ivc_jax.version import __version__

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("digit_*/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    near = [link for link in links if not link.startswith(("http", "mailto"))]
    assert [link for link in near if not (page.parent / link).exists()] == []


def test_citation_and_changes_are_of_this_version():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## .*{re.escape(__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_changes_name_every_command_and_method():
    text = (ROOT / "CHANGELOG.md").read_text()
    words = set(re.findall(r"[a-z0-9-]+", text.lower()))
    assert [name for name in COMMANDS if name not in words] == []
    spelt = {"dense", "ivc", "ivc_progressive", "ivc_removal"}  # IVC-Prune and its forms, in prose
    assert [name for name in METHODS if name not in words | spelt] == []


def test_types_are_announced():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (Path(ivc_jax.__file__).parent / "py.typed").exists()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["ivc_jax"]
    assert "Typing :: Typed" in project["project"]["classifiers"]


def test_hosted_ci_runs_the_script_on_every_classified_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    prefix = "Programming Language :: Python :: "
    classified = [c.removeprefix(prefix) for c in project["project"]["classifiers"] if prefix in c]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', workflow) == classified
    assert "run: .ci/run" in workflow
