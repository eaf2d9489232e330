"""Shared fixtures: tiny random checkpoints, the reference that loads them, precision."""

import importlib.metadata
import os
import tempfile

os.environ["IVC_JAX_TYPECHECK"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles many small programs and runs each once; set to 0 to test optimised code.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    # All in one module, by the older emitters of XLA's CPU back end: a prefill with one cut
    # compiles in 0.85 s in place of 2.4 s. JAX 0.11 has no other emitters to choose.
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])

# Torch's threads wait for one another in a loop, and tiny models leave them nothing else to do: 32
# tokens of a reference take 0.13 s of processor time on one thread, 0.8 s on two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many files compile the same small programs: what one process of a session has compiled, the others
# (pytest-xdist's, and those that tests start) read. They inherit these variables.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="ivc_jax_programs_")  # goes with this process
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# The variables above are read while these modules are imported.
import functools
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.tiny import tiny_config, write_checkpoint


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Drop compiled programs after each file.

    Each maps memory of its own; Linux allows a process 65,530 mappings, and XLA crashes beyond.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a function that makes tiny random checkpoint directories; treat them as read-only.

        path = tiny_hf(tied=False, generation="new", shards=1, seed=0, num_hidden_layers=3)
        path = tiny_hf(family="qwen2_5_vl")

    `generation` chooses config layout and tensor names together ("old": flat, `model.layers.0...`;
    "new": nested, `model.language_model.layers.0...`). Other keywords change decoder sizes. Equal
    arguments give the same directory.
    """
    made: dict[tuple, Path] = {}

    def make(
        *,
        tied: bool = False,
        generation: str = "new",
        shards: int = 1,
        seed: int = 0,
        family: str = "qwen2_vl",
        **text: Any,
    ) -> Path:
        key = (tied, generation, shards, seed, family, *sorted(text.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny_hf")
            write_checkpoint(
                folder,
                tiny_config(generation, tied, family, **text),
                **{"family": family, "generation": generation, "shards": shards, "seed": seed},
            )
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def load_torch() -> Callable[[Path], Any]:
    """Give a function that loads a directory in transformers: float32, eager attention, eval mode.

    Tests that ask for it skip where torch or transformers is missing.
    """
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    @functools.cache
    def load(path: Path) -> Any:
        name = json.loads((path / "config.json").read_text())["architectures"][0]
        model = getattr(transformers, name).from_pretrained(
            path, dtype="float32", attn_implementation="eager"
        )
        return model.eval().requires_grad_(False)

    return load


@pytest.fixture
def highest_precision() -> Iterator[None]:
    """Multiply float32 matrices as float32 on every backend."""
    with jax.default_matmul_precision("highest"):
        yield
