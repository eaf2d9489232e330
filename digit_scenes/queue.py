"""Train all models of the study, and put the study's questions to each; a kill costs little.

    python -m digit_scenes.queue --out RUNS
    python -m digit_scenes.queue --out RUNS --at-once 12 --records docs/evidence/cells

RUNS/SETTING-SEED is the folder of a run (`digit_scenes.train`). The same command goes on where it
was: a run whose checkpoint is written is done. Two cores train one model at a time; an accelerator
is shared by several, each with a core of its own to draw scenes on.
"""

import argparse
import concurrent.futures
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from digit_scenes.setting import SETTINGS

_SEEDS = (0, 1, 2)
ORDER = tuple(
    (setting, seed) for seed in _SEEDS for setting in ("bundled", "sections", "interleaved", "line")
)


def list_commands(
    runs: pathlib.Path, records: pathlib.Path | None, setting: str, seed: int
) -> Iterator[list[str]]:
    """List what is left to run for one model, as arguments of Python."""
    name = f"{setting}-{seed}"
    model = runs / name / "hf"
    if not model.exists():
        yield ["-m", "digit_scenes.train", f"--out={runs / name}",
               f"--setting={setting}", f"--seed={seed}"]  # fmt: skip
    if records is None:
        return
    for module, file in (("measure", "answers.json"), ("maps", "maps.json")):
        asked = (f"digit_scenes.study.{module}", str(model), str(records / name / file))
        yield ["-m", *asked, f"--grid={SETTINGS[setting].grid}"]


def _finish(commands: Iterator[list[str]]) -> None:
    for command in commands:
        subprocess.run([sys.executable, *command], check=True)


def main(argv: list[str] | None = None) -> None:
    """Train and ask what is not done yet; what fails ends the command after the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--at-once", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--records", type=pathlib.Path, help="folder of the study's records")
    options = parser.parse_args(argv)
    with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
        tasks = [pool.submit(_finish, list_commands(options.out, options.records, *each))
                 for each in ORDER]  # fmt: skip
    for task in tasks:
        task.result()


if __name__ == "__main__":
    main()
