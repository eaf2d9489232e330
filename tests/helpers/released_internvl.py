"""The released IVC-Prune for InternVL2.5 on parts of transformers; see `released`."""

from typing import Any

import numpy as np
import torch
from helpers.released import Span
from helpers.released_llava import ReleasedLlava
from helpers.tiles import choose


class ReleasedInternVL(ReleasedLlava):
    """Llama's blocks walked by hand: that is what InternLM2 is. Pictures are in tiles.

    Args:
        model: the whole.
        tiles: (columns, rows).
        side: cells along a tile.
        raw: values are projected from hidden states that were not normed, as the code does.
    """

    def __init__(
        self, model: torch.nn.Module, tiles: tuple[int, int], side: int, raw: bool
    ) -> None:
        super().__init__(model)
        self.tiles, self.side, self.raw = tiles, side, raw
        self.projected = np.zeros(0)  # of the block that ran last, [S, heads, C]

    def choose(self, values: np.ndarray, positions: np.ndarray, span: Span) -> np.ndarray:
        """Return the ascending prompt slots that survive, by values [S, heads, C]."""
        values = self.projected if self.raw else values
        chosen, _ = choose(values, span.start, self.tiles, self.turns, self.side)
        slots = np.arange(len(values))
        text = slots[(slots < span.start) | (slots >= span.start + span.length)]
        return np.sort(np.concatenate([text, span.start + np.array(chosen)]))

    def _block(self, block: Any, hidden: torch.Tensor, *rest: Any) -> Any:
        raw = block.self_attn.v_proj(hidden).view(len(hidden), -1, self.width)
        self.projected = raw.detach().numpy()
        return super()._block(block, hidden, *rest)
