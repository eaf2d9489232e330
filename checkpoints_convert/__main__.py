"""Command line: python -m checkpoints_convert SOURCE TARGET [--dtype DTYPE] [--verify]."""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from checkpoints_convert.convert import check_target, convert
from checkpoints_convert.verify import check_installed, check_reference, verify
from ivc_jax.model import find_folder
from ivc_jax.weights import checkpoint


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Convert a Hugging Face checkpoint into an Orbax checkpoint for ivc_jax.load."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Hugging Face directory or hub id (owner/name)."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """Directory to make; it must not exist or be empty."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Store parameters in this dtype (default: what SOURCE holds)."""
    verify: bool = False
    """Compare last-token logits with transformers afterwards, in float32."""
    tolerance: float = 1e-4
    """Largest difference of a logit that --verify accepts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    chosen = tyro.cli(
        Annotated[Arguments, tyro.conf.FlagCreatePairsOff],
        args=arguments,
        prog="python -m checkpoints_convert",
    )
    try:
        with _show_progress():
            return _run(chosen)
    except ValueError as error:  # CheckpointError and ConfigError: the message is for the user
        print(f"error: {error}", file=sys.stderr)
        return 1


@contextmanager
def _show_progress() -> Iterator[None]:
    """Print what the package logs."""
    # Orbax logs a traceback of each thread that fails; the one error at the end says it better.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logger, handler = logging.getLogger("ivc_jax"), logging.StreamHandler()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _run(chosen: Arguments) -> int:
    check_target(chosen.target)
    if chosen.verify:
        check_installed()
    source = find_folder(chosen.source)
    if chosen.verify and checkpoint.is_converted(source):
        raise ValueError(f"--verify needs a Hugging Face SOURCE; {source} is a converted one")
    if chosen.verify:
        check_reference(source)
    start = time.perf_counter()
    written = convert(source, chosen.target, chosen.dtype)
    seconds = time.perf_counter() - start
    print(
        f"wrote {written.folder}: {written.num_bytes / 1e9:.3f} GB of {written.dtype} parameters"
        f" in {seconds:.1f} s"
    )
    if not chosen.verify:
        return 0
    differences = verify(source, chosen.target, written.dtype)
    for name, difference in differences.items():
        print(f"verify, {name} prompt: largest difference of a logit {difference:.2e}")
    # A NaN compares false with everything and must not pass.
    if all(difference <= chosen.tolerance for difference in differences.values()):
        print(f"verified: within {chosen.tolerance:g} of transformers in float32")
        return 0
    print(
        f"error: {chosen.target} differs from transformers by more than {chosen.tolerance:g};"
        " it is kept for inspection",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
