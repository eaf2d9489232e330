"""What the training of CoViPAL's module can be told. Nothing here waits for JAX."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Training:
    """Both stages: the module imitates the attention of a deeper block, then learns from answers.

    Attributes:
        layer: block of the cut; the module reads what enters it.
        guide: block whose attention is imitated; None is 0.57 of the depth.
        rows: queries whose attention counts: all from the first visual token on, or text alone.
        labels: divided by their mean over the sample, or raw.
        per_row: divide a label by the number of queries that can see its token.
        tau: temperature of the soft mask.
        least: the smallest share that a token keeps under the soft mask.
        halvings: of the search for the threshold that meets the budget.
        ratios: shares of tokens kept; a step of the second stage takes one of them.
        answers: what the second stage learns from, the cell of the row or what the model itself
            says without pruning.
        beta: weight of the divergence from the model without pruning.
        straight_through: mask hard in the forward pass of the second stage.
        samples_1: of the first stage; rows are seen again where there are fewer.
        samples_2: of the second; 0 leaves it out.
        batch_1: rows of a step of the first stage.
        batch_2: of the second.
        rate_1: peak learning rate of the first stage.
        rate_2: of the second.
        weight_decay: of AdamW.
        warmup: share of a stage's steps that the rate rises in; then it falls along a cosine.
        max_new_tokens: bound on the answers of the model itself.
        seed: of the order of rows and of the first parameters.
    """

    layer: int = 0
    guide: int | None = None
    rows: Literal["all", "text"] = "all"
    labels: Literal["mean", "raw"] = "mean"
    per_row: bool = False
    tau: float = 0.2
    least: float = 1e-6
    halvings: int = 50
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5)
    answers: Literal["cell", "model"] = "cell"
    beta: float = 0.0
    straight_through: bool = False
    samples_1: int = 50_000
    samples_2: int = 50_000
    batch_1: int = 64
    batch_2: int = 32
    rate_1: float = 1e-4
    rate_2: float = 2e-5
    weight_decay: float = 0.01
    warmup: float = 0.03
    max_new_tokens: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tau", "least", "halvings", "batch_1", "batch_2", "rate_1", "rate_2"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("layer", "samples_1", "samples_2", "weight_decay", "beta", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios must be shares in (0, 1], got {self.ratios}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")

    def choose_guide(self, num_layers: int) -> int:
        """Return the block to imitate: 0.57 of the depth, 16 of 28, if none is given.

        Raises:
            ValueError: it is not deeper than the cut, or outside the model.
        """
        guide = self.guide
        if guide is None:
            guide = min(max(round(0.57 * num_layers), self.layer + 1), num_layers - 1)
        if not self.layer < guide < num_layers:
            raise ValueError(
                f"guide must be a block behind layer={self.layer} of a model of {num_layers}"
                f" blocks, got {guide}"
            )
        return guide
