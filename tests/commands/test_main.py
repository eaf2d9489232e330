"""The program: its commands, what its help lists, and words that it does not know."""

import re
import subprocess
import sys

import pytest

from ivc_jax import methods
from ivc_jax.commands.cli import SCRIPT
from ivc_jax.commands.main import COMMANDS, main
from ivc_jax.commands.settings import list_configs, load_config
from ivc_jax.evals.benchmarks.tasks import BUNDLED_PREFIX, TASKS


@pytest.fixture
def help_of(capsys):
    """Give a function that returns what a command says of itself."""

    def ask(*given, program="ivc-jax"):
        with pytest.raises(SystemExit) as stop:
            main([*given, "--help"], program)
        assert stop.value.code == 0
        return capsys.readouterr().out

    return ask


def test_without_a_command_it_lists_everything(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    assert shown.startswith("usage: ivc-jax COMMAND")
    known = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    words = {word.strip(",") for word in shown.split()}
    assert known >= {*COMMANDS, *list_configs(), *methods.METHODS, "+ivc", "+pore", "+rope"}
    assert words >= {name.removeprefix(BUNDLED_PREFIX) for name in TASKS}
    assert "  rope        Which rotary frequencies matter" in shown


def test_the_script_lists_the_same_and_its_own_options(help_of):
    shown = help_of(program=SCRIPT)
    assert shown.startswith("usage: run.py COMMAND")
    assert re.search(r"methods NAME +List the pruning methods", shown)
    assert "usage: run.py [-h] [OPTIONS] CONFIG" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_name_and_the_defaults(help_of, name):
    shown = help_of(name)
    assert shown.startswith(f"usage: ivc-jax {name} [-h]")
    options = re.split(r"(?m)^[^\w\n]+(?=--\w)", shown)[1:]
    assert options
    assert [text for text in options if not re.search(r"\((default:|required)", text)] == []


@pytest.mark.parametrize(
    ("name", "groups", "config"),
    [
        ("run", ["model", "video", "data", "run", "several hosts"], "default"),
        ("paper", ["model", "data", "run", "several hosts"], "paper"),
        ("plan", ["model", "device", "run"], None),
        ("choose-layer", ["model", "data", "choice", "run"], None),
        ("inspect", ["model", "video", "run"], None),
    ],
)
def test_help_sorts_options_into_groups(help_of, name, groups, config):
    shown = help_of(name)
    titles = re.findall(r"(?m)^\W+([\w ]+) options\W*$", shown)
    assert titles == groups
    if config:
        settings = " ".join(shown.partition(f"The config {config}:")[2].split())
        assert f"--batch-size {load_config(config).batch_size}," in settings
        assert f"--out runs/{config}." in settings


@pytest.mark.parametrize(
    ("program", "given", "message"),
    [
        ("ivc-jax", ["papper"], "unknown command 'papper'; known: run, inspect, paper"),
        ("ivc-jax", ["papper"], "did you mean 'paper'?"),
        ("ivc-jax", ["rope"], "unknown command 'rope'"),
        ("ivc-jax", ["run", "roope"], "unknown config 'roope'; known: covipal, default"),
        ("ivc-jax", ["run", "roope"], "did you mean 'rope'?"),
        ("ivc-jax", ["methods", "ivcc"], "unknown method 'ivcc'; known: dense"),
        ("ivc-jax", ["methods", "ivcc"], "did you mean 'ivc'?"),
        (SCRIPT, ["inspct"], "unknown config 'inspct'; known: covipal, default"),
        (SCRIPT, ["inspct"], "commands: run, inspect, paper"),
        (SCRIPT, ["inspct"], "did you mean 'inspect'?"),
        (SCRIPT, ["methods", "nothing.like.it"], "unknown method"),
    ],
)
def test_words_that_are_not_known(capsys, program, given, message):
    assert main(given, program) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_methods_are_listed_and_explained(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*methods.METHODS, "+ivc", "+pore", "+rope"]
    assert main(["methods", "ivc"]) == 0
    shown = capsys.readouterr().out
    fields = {line.split("│")[1].strip(): line.split("│")[2:4] for line in shown.splitlines()
              if line.startswith("│")}  # fmt: skip
    default, meaning = fields["seed_fraction"]
    assert default.strip() == "0.01"
    assert meaning.strip().startswith("share of")
    assert fields["cos_fraction"][0].strip() == "none"  # the model's
    for name, (default, _) in fields.items():  # what is listed is what a specification takes
        if name and default.strip() not in ("none", ""):
            methods.parse(f"ivc:{name}={default.strip()}")


def test_the_script_runs_the_configuration_named_like_the_command(tmp_path, capsys):
    """`run.py methods` is what the records of docs/methods_run name."""
    options = ["--data-dir", str(tmp_path / "none"), "--no-compile-cache", "--out", str(tmp_path)]
    assert main(["methods", *options], SCRIPT) == 2
    assert "none is not a folder" in capsys.readouterr().err


def test_configs_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ivc_jax.commands.settings import RunConfig\n"
        "CONFIG = RunConfig(methods=('dense',), tasks=('colour',), limit=7)\n"
    )
    assert load_config(str(path)).limit == 7
    path.write_text("CONFIG = 3\n")
    assert main([str(path)], SCRIPT) == 2
    assert "defines no CONFIG" in capsys.readouterr().err


def test_the_package_alone_draws_and_renders_nothing():
    code = "import sys, ivc_jax; print({'matplotlib', 'jinja2', 'tyro'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
