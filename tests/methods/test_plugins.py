"""A method of another package: installed by pip, named in `--methods`, shown in the report."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers.packages import install

from ivc_jax import methods
from ivc_jax.methods import spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULE = '''
import dataclasses
import jax.numpy as jnp
from ivc_jax.methods import select
from ivc_jax.methods.base import Method, Stage


@dataclasses.dataclass(frozen=True)
class LeftHalf(Method):
    """Keep the left columns of each image."""

    name = "left_half"
    keep_ratio: float = 0.5

    @property
    def stages(self):
        return (Stage(0, self.keep_ratio),)

    def select(self, signals, layout, stage, num_keep):
        within = select.Segments.by_image(layout)
        counts = within.look_up(select.round_counts(stage.keep_ratio, layout.visual_slots))
        keep = within.top(-layout.grid[..., 2].astype(jnp.float32), counts)
        return select.from_mask(keep, num_keep)
'''
ENTRY_POINTS = """[ivc_jax.methods]
left_half = left_half:LeftHalf
ivc = left_half:LeftHalf
broken = left_half:Missing
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the package from a wheel."""
    return install(tmp_path_factory.mktemp("plugin"), "left_half", MODULE, ENTRY_POINTS)


def test_an_installed_method_runs_and_is_reported(site, tiny_hf, tmp_path):
    options = ["--model", tiny_hf(), "--methods", "dense", "left_half:keep_ratio=0.25"]
    options += ["--tasks", "colour", "--limit", "2", "--batch-size", "2", "--no-compile-cache"]
    command = [sys.executable, ROOT / "experiments" / "run.py", *options, "--out", tmp_path]
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT)
    assert "| left_half | 0.25 |" in (tmp_path / "report.md").read_text()
    row = json.loads((tmp_path / "results.json").read_text())["rows"][-1]
    assert (row["visual_tokens"], row["kept_tokens"]) == (64, 16)
    record = json.loads(
        (tmp_path / "records/DigitScenes_colour.jsonl").read_text().splitlines()[-1]
    )
    assert all(token % 8 < 2 for token in record["kept"])  # two columns of an 8 x 8 grid


def test_names_are_kept_and_broken_packages_left_out(site, monkeypatch, caplog):
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    spec._load_plugins.cache_clear()
    try:
        assert methods.parse("left_half").name == "left_half"
        assert isinstance(methods.parse("ivc"), methods.IVCPrune)
        with pytest.raises(methods.MethodError, match=r"known methods: dense.*left_half"):
            methods.parse("broken")
    finally:
        spec._load_plugins.cache_clear()
    assert "the name 'ivc' is taken" in caplog.text
    assert "method 'broken' of left_half:Missing does not load" in caplog.text
