"""How often do the IVC cells of the benchmark hold a digit? A check on the removal ablation.

    python experiments/coverage.py docs/evidence/coverage.json

Removing tokens that hold background costs nothing, so a set that lies where digits are rare looks
harmless. Counts the cells of test scenes of which a digit covers at least 0.4.
"""

import json
import pathlib
import sys
import time

import numpy as np

from digit_scenes import digits, tsv
from digit_scenes.packing import find_covered
from digit_scenes.setting import SMALL
from ivc_jax import ivc

_SEEDS, _SCENES = (0, 1, 2), 200
_START = 1  # position id of the first visual token
_ROPE = {"head_dim": 48, "theta": 1e4}
_SETS = {  # cos fraction, sin fraction
    "all cells": None,
    "cos, 10 %": (0.1, 0.0),
    "sin, 10 %": (0.0, 0.1),
    "cos + sin, 10 % each": (0.1, 0.1),
    "cos + sin, 30 % each": (0.3, 0.3),
}


def measure() -> dict[str, dict[str, float]]:
    """Return the size of each set and the share of its cells under digits."""
    split, first = tsv.SPLITS["test"]
    source = digits.load(split)
    taken = np.zeros(SMALL.grid**2)
    for seed in _SEEDS:
        for number in range(_SCENES):
            random = np.random.default_rng((first, seed, number))
            scene = SMALL.render(random, source, 3 + number % 7)
            boxes = [find_covered(digit.box, SMALL.canvas, SMALL.grid) for digit in scene.digits]
            taken += np.any(boxes, axis=0)
    taken /= len(_SEEDS) * _SCENES
    cells = np.indices((1, SMALL.grid, SMALL.grid)).reshape(3, -1) + _START
    found = {}
    for name, fractions in _SETS.items():
        chosen = np.arange(SMALL.grid**2)
        if fractions is not None:
            chosen = ivc.select(
                cells, **_ROPE, cos_fraction=fractions[0], sin_fraction=fractions[1]
            )
        share = round(float(taken[chosen].mean()), 4)
        found[name] = {"cells": len(chosen), "under digits": share}
    return found


def main() -> int:
    """Write the file named on the command line."""
    from ivc_jax.commands.origin import find_commit

    if len(sys.argv) != 2:
        print("usage: coverage.py FILE", file=sys.stderr)
        return 2
    meta = {"command": "python experiments/coverage.py", "commit": find_commit()}
    meta |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    content = {"meta": meta, "scenes": len(_SEEDS) * _SCENES, "sets": measure()}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
