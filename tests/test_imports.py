"""Imports point one way; the package never reaches for torch, transformers or its own users."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ivc_jax"

# What each part of the package may import from the package.
ALLOWED = {
    "types": set(),
    "config": {"decoder_parts"},  # for annotations alone
    "decoder_parts": {"config"},
    "version": set(),
    "nearest": set(),
    "module_sizes": set(),
    "ivc": {"types", "config"},
    "parallel": {"types", "config", "parallel"},
    "cloud": set(),
    "nn": {"types", "config", "decoder_parts", "nn", "parallel.constraints"},
    "inputs": {"types", "config", "inputs"},
    "methods": {"types", "config", "ivc", "methods", "nearest", "module_sizes", "nn.attention"},
    "weights": {"types", "config", "nn", "parallel", "weights"},
    "families": {"config", "decoder_parts", "inputs", "weights.keymap", "families"},
    "model": {"families", "types", "config", "nn", "inputs", "parallel", "weights", "cloud"},
    "engine": {
        *("types", "config", "nn", "inputs", "methods.base", "methods.requests", "model"),
        *("parallel", "engine", "weights.modules"),
    },
    "evals": {
        *("types", "config", "inputs", "methods", "model", "parallel", "engine"),
        *("evals", "cloud", "nearest", ""),
    },
    "reports": {"ivc", "evals", "inputs", "methods", "reports"},
    "studies": {
        *("types", "config", "ivc", "families", "nn", "inputs", "methods", "engine", "weights"),
        *("model", "parallel", "evals", "reports", "studies", "nearest", "module_sizes"),
    },
    "commands": None,
}
FORBIDDEN = {"torch", "checkpoints_convert", "experiments"}
# Only the rooms above the library draw, and only commands know the bundled benchmark.
DRAWING = {"reports", "studies", "commands"}
LAZY = {"transformers", "tokenizers", "jinja2", "huggingface_hub", "orbax", "qwix", "av", "optuna"}
# What `import ivc_jax` must not wait for.
UNUSED = {
    *("matplotlib", "jinja2", "tyro", "grain", "optax", "orbax", "torch", "transformers"),
    "digit_scenes",
}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "ivc_jax":
                found |= {f"ivc_jax.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_point_one_way(path):
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for name in imports(path):
        if not name.startswith("ivc_jax"):
            continue
        target = name.removeprefix("ivc_jax").removeprefix(".")
        prefixes = {target, target.split(".")[0], ".".join(target.split(".")[:2])}
        assert ALLOWED[room] is None or prefixes & ALLOWED[room], (
            f"{relative} must not import {name}"
        )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_package_never_imports_its_users_or_torch(path):
    found = {name.split(".")[0] for name in imports(path)}
    room = path.relative_to(PACKAGE).parts[0]
    assert not found & FORBIDDEN
    assert room in DRAWING or "matplotlib" not in found
    assert room == "commands" or "digit_scenes" not in found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_heavy_libraries_are_imported_lazily(path):
    if path.relative_to(PACKAGE).parts[0] in DRAWING:
        return
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & LAZY


def test_importing_the_package_loads_nothing_that_draws_renders_or_parses():
    program = (
        "import sys, ivc_jax; print('jax' in sys.modules);"
        "print(all(hasattr(ivc_jax, name) for name in ivc_jax.__all__));"
        "print({*ivc_jax.__all__} <= {*dir(ivc_jax)}, hasattr(ivc_jax, 'nothing'));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, loaded = done.stdout.splitlines()
    assert found == ["False", "True", "True False"]  # names are imported when asked for
    assert "ivc_jax" in loaded.split()
    assert not set(loaded.split()) & UNUSED


def test_scores_do_not_hear_of_runs():
    for path in (PACKAGE / "evals" / "benchmarks").rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith("ivc_jax.evals.running")]


def test_no_file_is_longer_than_350_lines():
    folders = (
        "ivc_jax",
        "checkpoints_convert",
        "experiments",
        "digit_scenes",
        "tests",
    )
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert {str(path): n for path in files if (n := len(path.read_text().splitlines())) > 350} == {}
