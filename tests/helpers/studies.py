"""Made-up records of ablations and of models of the study, for the pages that read them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from digit_scenes.study.conditions import list_conditions
from digit_scenes.study.record import Record
from ivc_jax.config import RopeConfig
from ivc_jax.studies.study import Study
from ivc_jax.studies.table import Cell, Row

BLOCKS, SCENES = 4, 60
ROPES = {"sections": RopeConfig(48, 10.0, (6, 9, 9)), "line": RopeConfig(48, 1e4)}
ASKED = {
    **dict.fromkeys(("grounding", "rows", "columns"), 6),
    **dict.fromkeys(("reading", "relations", "existence", "colour", "counting"), 4),
}
TASKS = ("grounding", "reading", "relations", "existence", "colour", "counting")
GROUPS = ("grounding", "spatial", "semantic", "average", *(f"DigitScenes_{t}" for t in TASKS))


def write_study(
    folder: Path, study: Study, differ: Callable[[Row, str], float], score: float = 0.8
) -> None:
    """Write the rows of a study below the folder of its run.

    Args:
        differ: difference of a row on a group of tasks; 0 is not sure, all others are.
        score: of what a row is compared with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple, Row] = {}
    for variant in study.variants:
        key = variant.series, variant.label, variant.x, variant.y
        versus = variant.versus or ("" if variant.spec == study.reference else study.reference)
        row = Row(*key, (variant.spec,), versus, 0.5, 0.5, 1e9, 100, {})
        cells = {}
        for group in GROUPS:
            value = differ(row, group) if versus else 0.0
            p = float("nan") if not versus else 1.0 if value == 0 else 0.001
            wide = 0.02
            cells[group] = Cell(
                *(score + value, score + value - wide, score + value + wide),
                *(value, value - wide, value + wide, p, p),
            )
        rows.setdefault(key, dataclasses.replace(row, cells=cells))
    meta = {"command": f"run.py {folder.name}", "commits": ["abc"], "device": "1 x cpu"}
    content = {
        "meta": {**meta, "dtype": "float32"},
        "rows": [*map(dataclasses.asdict, rows.values())],
    }
    (folder / f"study_{study.name}.json").write_text(json.dumps(content))


def write_models(folder: Path, lose: Callable[[str], float]) -> None:
    """Write the answers of two models of each kind.

    Args:
        lose: what a condition, by its key, costs grounding.
    """
    for kind, rope in ROPES.items():
        for seed in (0, 1):
            random = np.random.default_rng(seed)
            meta = {
                "model": f"{kind}-{seed}",
                "rope": {
                    "theta": rope.theta,
                    "sections": rope.sections and list(rope.sections),
                    "interleaved": False,
                },
                **{"blocks": BLOCKS, "grid": 12, "scenes": SCENES, "commit": "abc"},
            }
            record = Record(folder / f"{kind}-{seed}" / "answers.json", meta)
            for condition in list_conditions(BLOCKS, rope):
                counts = {}
                for task, asked in ASKED.items():
                    spatial = task in ("grounding", "rows", "columns")
                    right = random.binomial(asked, 0.9 - spatial * lose(condition.key), SCENES)
                    counts[task] = np.stack([right, np.full(SCENES, asked)], axis=1)
                record.add(condition.key, counts, 0.0)
