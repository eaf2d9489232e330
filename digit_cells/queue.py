"""Train all models of the study, one after the other; the same command goes on after a kill.

    python -m digit_cells.queue --out RUNS

RUNS/SETTING-SEED is the folder of a run (`digit_cells.train`). A run whose checkpoint is written is
done; the others go on where they were.
"""

import argparse
import pathlib
import subprocess
import sys

from digit_cells.setting import SETTINGS

ORDER = (
    ("sections", 0),
    ("bundled", 0),  # grows from it
    ("interleaved", 0),
    ("line", 0),
    *((setting, seed) for seed in (1, 2) for setting in ("sections", "interleaved", "line")),
)


def main(argv: list[str] | None = None) -> None:
    """Train what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of all runs")
    out = parser.parse_args(argv).out
    for setting, seed in ORDER:
        run = out / f"{setting}-{seed}"
        if (run / "hf").exists():
            continue
        command = ["-m", "digit_cells.train", f"--out={run}", f"--setting={setting}"]
        if SETTINGS[setting].start is not None:
            command.append(f"--grow-from={out / SETTINGS[setting].start.name}-{seed}")
        subprocess.run([sys.executable, *command, f"--seed={seed}"], check=True)


if __name__ == "__main__":
    main()
