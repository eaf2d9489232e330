"""A baseline that looks at no signal: random tokens."""

import dataclasses
from typing import ClassVar

import jax

from ivc_jax.methods.cells import CellRanking, draw_cells
from ivc_jax.methods.fields import check_seed
from ivc_jax.types import Layout


@dataclasses.dataclass(frozen=True)
class Random(CellRanking):
    """Keep random tokens of each image.

    The draw of a token depends on the seed, on the number of its image within the sample and on
    its grid cell: padding and batch mates cannot change it.

    Attributes:
        seed: of the draw; other fields as in `CellRanking`.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def score_cells(self, layout: Layout) -> jax.Array:
        """Draw a number for every cell."""
        return draw_cells(layout, self.seed)
