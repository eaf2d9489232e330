"""Settings of the recipe: the grid, the kind of rotary embedding, the sizes, the steps.

A setting is handed from function to function; nothing reads one from a global.
"""

import dataclasses

from digit_scenes.glyphs import CELL
from digit_scenes.scenes import GRID


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A part of the decoder's training.

    Attributes:
        side: cells along a side of what is shown of a picture, its top left corner.
        digits: fewest and most digits of a scene.
        steps: steps of the lesson.
    """

    side: int
    digits: tuple[int, int]
    steps: int


# Where digits lie, and to compare that, is learnt first where it is easy: two or three digits among
# four cells. docs/log.md has what became of models that met more of the grid from the start.
_LESSONS = (
    Lesson(2, (2, 3), 200),
    Lesson(3, (2, 4), 250),
    Lesson(4, (2, 6), 250),
    Lesson(6, (2, 9), 250),
    Lesson(8, (2, 9), 250),
    Lesson(12, (3, 9), 400),
    Lesson(14, (3, 9), 200),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of the recipe.

    Attributes:
        kind: "sections" (Qwen2.5-VL: each axis turns planes that lie side by side), "interleaved"
            (Qwen3-VL: the axes take turns) or "line" (LLaVA: tokens are numbered in raster order).
        grid: cells along a side of the picture.
        digits: fewest and most digits of a scene; nine at most, so that every answer to a counting
            question is one word.
        layers: blocks of the decoder; `width`, `intermediate`, `heads` are its other sizes.
        sections: rotary planes of a head that turn with (time, height, width); of a line none.
        theta: base of the rotary frequencies.
        steps_tower: steps of the stage `tower`.
        lessons: what the decoder learns before it meets whole pictures.
        steps: steps of the decoder with whole pictures.
        rows: scenes in a step of the decoder.
    """

    name: str
    kind: str
    grid: int = 12
    digits: tuple[int, int] = (3, 9)
    layers: int = 6
    width: int = 192
    intermediate: int = 512
    heads: int = 4
    sections: tuple[int, int, int] | None = None
    theta: float = 1e4
    steps_tower: int = 2000
    lessons: tuple[Lesson, ...] = _LESSONS
    steps: int = 2400
    rows: int = 16

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other; a ValueError names the field and the remedy."""
        planes = self.width // self.heads // 2
        good = {
            "kind": (self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            "grid": (2 <= self.grid <= 64, "from 2 to 64"),
            "digits": (
                1 <= self.digits[0] <= self.digits[1] <= min(9, self.grid**2),
                "ascending, from 1 to 9, and no more than cells",
            ),
            "width": (self.width == 2 * planes * self.heads, f"heads={self.heads} times even"),
            "sections": (
                self.sections is None
                if self.kind == "line"
                else self.sections is not None and sum(self.sections) == planes,
                "none for a line" if self.kind == "line" else f"planes that sum to {planes}",
            ),
        }
        for field, (holds, remedy) in good.items():
            if not holds:
                value = getattr(self, field)
                raise ValueError(f"setting {self.name!r}: {field}={value} must be {remedy}")

    @property
    def course(self) -> tuple[Lesson, ...]:
        """The lessons that the grid has room for, and the last one: whole pictures."""
        smaller = (lesson for lesson in self.lessons if lesson.side < self.grid)
        return (*smaller, Lesson(self.grid, self.digits, self.steps))

    @property
    def canvas(self) -> int:
        """Side of a picture in pixels."""
        return self.grid * CELL

    @property
    def head_dim(self) -> int:
        """Width of a head of the decoder."""
        return self.width // self.heads


KINDS = ("sections", "interleaved", "line")

# With theta 10 the slowest plane of 24 turns by 0.11 radians a cell: both axes turn.
_SECTIONS = Setting("sections", "sections", sections=(6, 9, 9), theta=10.0)

SETTINGS = {
    setting.name: setting
    for setting in (
        dataclasses.replace(_SECTIONS, name="bundled", grid=GRID, layers=8, steps=3000),
        _SECTIONS,
        Setting("interleaved", "interleaved", sections=(8, 8, 8), theta=100.0),
        Setting("line", "line", theta=1e4, steps=3600),
    )
}
