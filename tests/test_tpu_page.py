"""docs/tpu.md can be pasted as it stands: names are set, options exist, meshes fill the slice."""

import importlib
import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from ivc_jax.commands.main import COMMANDS
from ivc_jax.evals.benchmarks.tasks import find
from ivc_jax.families import list_sizes
from ivc_jax.methods import parse
from ivc_jax.parallel.mesh import parse_mesh
from ivc_jax.version import __version__

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tpu.md").read_text()
BLOCKS = re.findall(r"^ *```sh\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
TEXT = "\n".join(BLOCKS).replace("\\\n", " ")
NAMES = dict(re.findall(r"(?<=\s)([A-Z]+)=(\S+)", TEXT))


def list_commands():
    """Each `ivc-jax COMMAND ...` of the page: (command, arguments), variables filled in."""
    filled = re.sub(r"\$([A-Z]+)", lambda found: NAMES[found[1]], TEXT)
    lines = [
        re.sub(r'^.*ivc-jax |"$|  +#.*$', "", line)
        for line in filled.splitlines()
        if "ivc-jax " in line
    ]
    return [(words[0], words[1:]) for words in map(shlex.split, lines)]


def read(command, arguments):
    module = importlib.import_module(f"ivc_jax.commands.{COMMANDS[command]}")
    return tyro.cli(module.Arguments, args=arguments)


@pytest.mark.parametrize(
    "pattern", [r"<[A-Za-z_ -]+>", "(?i)your[_-]", "TODO", "OWNER", "XXX", "[A-Z]+:PORT"]
)
def test_there_is_no_placeholder(pattern):
    assert re.findall(pattern, PAGE) == []


def test_every_name_is_set_before_it_is_used():
    first, *later = BLOCKS
    used = set(re.findall(r"\$\{?([A-Z]+)", "\n".join(later)))
    assert used <= set(re.findall(r"(?<=\s)([A-Z]+)=", first))
    assert "$" not in first
    assert NAMES["WHEEL"] == f"ivc_jax-{__version__}-py3-none-any.whl"


def test_blocks_are_shell():
    subprocess.run(["bash", "-n"], input="\n".join(BLOCKS), text=True, check=True)


def test_every_command_is_read():
    commands = list_commands()
    assert {name for name, _ in commands} >= {"plan", "refcoco", "check", "paper", "run"}
    for command, arguments in commands:
        read(command, arguments)


def test_methods_tasks_and_sizes_are_known():
    for command, arguments in list_commands():
        options = read(command, arguments)
        if command == "plan":
            assert options.model.model in list_sizes()
        for spec in getattr(getattr(options, "run", None), "methods", None) or ():
            parse(spec)
    tasks = read(*next(pair for pair in list_commands() if "MME" in pair[1])).data.tasks
    assert [task.name for task in find(tasks)] == ["MME", "POPE"]


def test_runs_have_the_mesh_and_the_batch_of_the_plan():
    (planned,) = [arguments for name, arguments in list_commands() if name == "plan"]
    runs = [arguments for name, arguments in list_commands() if "--distributed" in arguments]
    assert len(runs) == 2
    for option in ("--mesh", "--batch-size"):
        values = {arguments[arguments.index(option) + 1] for arguments in [planned, *runs]}
        assert len(values) == 1
    mesh = parse_mesh(planned[planned.index("--mesh") + 1])
    sides = planned[planned.index("--topology") + 1].partition(":")[2]
    chips = math.prod(map(int, sides.split("x")))
    assert mesh["data"] * mesh["model"] == chips
    assert f"v5litepod-{chips}" in PAGE
    assert int(planned[planned.index("--batch-size") + 1]) % mesh["data"] == 0


def test_the_compiler_knows_the_slice():
    """Apart: libtpu wants its environment set before JAX starts."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install libtpu")
    code = """if True:
        from ivc_jax.studies.planning import plan, sizes, slices
        slices.prepare_environment()
        mesh = plan.choose_mesh(
            "data=4,model=4", sizes.find_config("qwen2.5-vl-7b"), slices.find_slice("v5e:4x4")
        )
        print(dict(mesh.shape))
    """
    own = {"IVC_JAX_TYPECHECK", "XLA_FLAGS"}  # libtpu has flags of its own, and ends at others
    environment = {name: value for name, value in os.environ.items() if name not in own}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=300, check=True,
    ).stdout  # fmt: skip
    assert shown == "{'data': 4, 'model': 4}\n"
