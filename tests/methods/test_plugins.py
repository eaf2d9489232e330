"""A method of another package: installed by pip, named in `--methods`, shown in the report."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers.packages import install

from ivc_jax import methods
from ivc_jax.commands.main import main
from ivc_jax.methods import plugins, testing

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
    assert "| left_half | 0.250 |" in (tmp_path / "report.md").read_text()
    row = json.loads((tmp_path / "results.json").read_text())["rows"][-1]
    assert (row["visual_tokens"], row["kept_tokens"]) == (64, 16)
    record = json.loads(
        (tmp_path / "records/DigitScenes_colour.jsonl").read_text().splitlines()[-1]
    )
    assert all(token % 8 < 2 for token in record["kept"])  # two columns of an 8 x 8 grid


def test_names_are_kept_and_broken_packages_left_out(site, monkeypatch, caplog):
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    plugins.load_packages.cache_clear()
    try:
        assert methods.parse("left_half").name == "left_half"
        assert isinstance(methods.parse("ivc"), methods.IVCPrune)
        with pytest.raises(methods.MethodError, match=r"known methods: dense.*left_half"):
            methods.parse("broken")
    finally:
        plugins.load_packages.cache_clear()
    assert "the name 'ivc' is taken" in caplog.text
    assert "method 'broken' of left_half:Missing does not load" in caplog.text


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a method of one's own; the tables are as before afterwards."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(methods, "MODIFIERS", dict(methods.MODIFIERS))
    path = tmp_path / "own.py"
    path.write_text('"""Left of the picture (no paper)."""\n' + MODULE)
    return path


def test_a_class_in_a_file_is_a_method(own):
    method = methods.parse(f"{own}:LeftHalf:keep_ratio=0.25")
    assert (method.name, method.keep_ratio) == ("left_half", 0.25)
    # The key of its records does not hang on where the file lies.
    assert methods.describe(method) == "left_half:keep_ratio=0.25"
    assert methods.parse("left_half:keep_ratio=0.25") == method
    both = methods.parse(f"{own}:LeftHalf+ivc")
    assert methods.describe(both) == "left_half+ivc:keep_ratio=0.5"
    assert methods.load_file(own) == {"LeftHalf": type(method)}  # imported once
    testing.check_method(method)


def test_a_changed_file_is_read_anew(own):
    methods.load_file(own)
    own.write_text(own.read_text().replace("keep_ratio: float = 0.5", "keep_ratio: float = 0.75"))
    os.utime(own, ns=(1, 1))
    assert methods.parse(f"{own}:LeftHalf").keep_ratio == 0.75


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", "defines no method 'Left'; it has LeftHalf; did you mean 'LeftHalf'?"),
        ('"left_half"', '"ivc"', "the name 'ivc' is taken by ivc_jax.methods.ivc.IVCPrune"),
        ('    name = "left_half"\n', "", "the name 'dense' is taken"),
        ('"left_half"', '"left half"', "needs a name of letters, digits and _, got 'left half'"),
        ("@dataclasses.dataclass(frozen=True)\n", "", "LeftHalf must be a @dataclasses.dataclass"),
        ("class LeftHalf(Method)", "class LeftHalf", "defines no method: a class of"),
        ("import dataclasses", "import datclasses", "does not load: ModuleNotFoundError"),
        ("return select.from_mask", "return = select", "does not load: SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(own, capsys, old, new, message):
    text = own.read_text()
    own.write_text(text.replace(old, new, 1) if old else text)
    assert main(["methods", f"{own}:Left"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["methods", "--plugin", str(tmp_path / "none.py")]) == 2
    assert "none.py: there is no such file" in capsys.readouterr().err


def test_commands_list_and_explain_methods_of_a_file(own, capsys):
    assert main(["methods", "--plugin", str(own)]) == 0
    assert "left_half    Keep the left columns" in " ".join(capsys.readouterr().out.split("  "))
    assert main(["methods", f"{own}:LeftHalf"]) == 0
    shown = capsys.readouterr().out
    assert "left_half: Keep the left columns of each image." in shown
    assert "source: Left of the picture (no paper)." in shown
    assert str(own) in shown.replace("\n", "")


def test_inspect_takes_a_method_from_a_file(own, tiny_hf, tmp_path, capsys):
    options = ["--model", str(tiny_hf()), "--max-new-tokens", "1", "--out", str(tmp_path / "k.png")]
    assert main(["inspect", "--plugin", str(own), "--methods", "left_half", *options]) == 0
    assert "left_half" in capsys.readouterr().out
