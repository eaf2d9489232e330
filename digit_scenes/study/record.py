"""What a model answered under each condition, as a file that grows while it is measured."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from digit_scenes.study.exam import Pupil
from ivc_jax.commands.origin import find_commit
from ivc_jax.evals.running.records import write_atomically


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Describe the command line of what asks a model: the checkpoint, the record, the scenes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("record", type=pathlib.Path)
    parser.add_argument("--grid", type=int, default=12, help="cells along a side of the pictures")
    parser.add_argument("--scenes", type=int, default=192)
    return parser


def describe(pupil: Pupil, path: pathlib.Path, **options: int) -> dict[str, Any]:
    """Say of which model a record is, what was asked, and by which commit."""
    rope = pupil.config.decoder.rope
    return {
        "model": path.parent.name,
        "family": pupil.config.family,
        "rope": {
            "theta": rope.theta,
            "sections": rope.sections and list(rope.sections),
            "interleaved": rope.interleaved,
        },
        "blocks": pupil.shape[0],
        "grid": pupil.plan.grid,
        **options,
        "commit": find_commit(),
    }


def check_same(path: pathlib.Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a record of something else; another commit may.

    Raises:
        ValueError: the file is another's.
    """
    if {**found, "commit": ""} != {**wanted, "commit": ""}:
        raise ValueError(f"{path} is of another model or other scenes: {found}")


def save(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Write a record in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")


@dataclasses.dataclass
class Record:
    """Right answers by condition and task, a digit a scene.

    Attributes:
        meta: of the model and the scenes.
        asked: task to questions of each scene.
        right: condition to task to right answers of each scene.
        seconds: condition to the time it took.
    """

    path: pathlib.Path
    meta: dict[str, Any]
    asked: dict[str, str] = dataclasses.field(default_factory=dict)
    right: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, path: pathlib.Path, pupil: Pupil, scenes: int) -> "Record":
        """Begin a record, or go on with one of the same model and scenes.

        Raises:
            ValueError: the file is another's.
        """
        meta = describe(pupil, path, scenes=scenes)
        if not path.exists():
            return cls(path, meta)
        record = cls.read(path)
        check_same(path, record.meta, meta)
        return record

    @classmethod
    def read(cls, path: pathlib.Path) -> "Record":
        """Read a record."""
        return cls(path, **json.loads(path.read_text()))

    def add(self, condition: str, counts: dict[str, np.ndarray], seconds: float) -> None:
        """Write down what was right, and how often it was asked: int [scenes, 2] by task."""
        write = lambda numbers: "".join(map(str, numbers.tolist()))  # noqa: E731
        self.right[condition] = {task: write(each[:, 0]) for task, each in counts.items()}
        self.asked = {task: write(each[:, 1]) for task, each in counts.items()}
        self.seconds[condition] = round(seconds, 2)
        content = {k: v for k, v in dataclasses.asdict(self).items() if k != "path"}
        save(self.path, content)

    def mean(self, condition: str, task: str) -> float:
        """Return the mean over scenes of the share of right answers."""
        return float(np.nanmean(self.read_shares(condition, task)))

    def read_shares(self, condition: str, task: str) -> np.ndarray:
        """Return the share of right answers of each scene; NaN where nothing was asked."""
        right, asked = (
            np.array([*map(int, text)], float)
            for text in (self.right[condition][task], self.asked[task])
        )
        return np.divide(right, asked, out=np.full(len(asked), np.nan), where=asked > 0)
