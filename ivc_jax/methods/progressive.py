"""Methods that cut several times: layers and shares, published or solved for a budget."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.fields import check_keep_ratio, require
from ivc_jax.methods.select import bound_total, keep_one, round_counts

Family = Callable[[float], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Progressive(Method):
    """Base of progressive methods.

    Subclasses give `_schedule`, `_published_ratios` and `select`, and may change `_count`.

    Attributes:
        layers: first block behind each cut, ascending; None asks `resolve`.
        ratios: share of the unpruned tokens left after each cut; None is the published schedule.
        keep_ratio: share left after the last cut, earlier shares follow the method's own rule.
        budget: mean over layers of the share in the cache. Only one of the last three.
    """

    first_layer: ClassVar[int] = 0  # the earliest block that can be behind a cut
    rounding: ClassVar[str] = "floor"  # of a share times the tokens of a sample

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    keep_ratio: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        names = ("ratios", "keep_ratio", "budget")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise MethodError(f"{self.name}: {' and '.join(given)} exclude each other; give one")
        for name in ("keep_ratio", "budget"):
            if getattr(self, name) is not None:
                check_keep_ratio(getattr(self, name), name)
        if self.ratios is not None:
            object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in self.ratios))
            for ratio in self.ratios:
                check_keep_ratio(ratio, "each of ratios")
            if list(self.ratios) != sorted(self.ratios, reverse=True):
                raise MethodError(f"ratios must not grow from cut to cut, got {self.ratios}")
        if self.layers is not None:
            if not self.layers:
                raise MethodError("layers must name at least one cut")
            object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
            if list(self.layers) != sorted(set(self.layers)):
                raise MethodError(f"layers must ascend, got {self.layers}")
            if self.layers[0] < self.first_layer:
                raise MethodError(
                    f"{self.name} cannot cut before layer {self.first_layer}, got {self.layers}"
                )
        both = self.layers is not None and self.ratios is not None
        if both and len(self.layers) != len(self.ratios):
            raise MethodError(
                f"layers and ratios must pair up, got {self.layers} and {self.ratios}"
            )

    def _schedule(self, num_layers: int, target: float | None) -> tuple[tuple[int, ...], Family]:
        """Return the layers and the family of shares for a model of some depth.

        Args:
            target: the budget, or None.

        Returns:
            Layers, and shares as a function of x in (0, 1] that grow with x, ones at x = 1.
        """
        raise NotImplementedError

    @property
    def _published_ratios(self) -> tuple[float, ...]:
        """Return the shares if neither ratios nor keep_ratio nor budget is given."""
        raise NotImplementedError

    def resolve(self, config: ModelConfig) -> "Progressive":
        """Fill in layers and ratios."""
        num_layers = config.decoder.num_layers
        layers, family = self._schedule(num_layers, self.budget)
        layers = layers if self.layers is None else self.layers  # a rule may only look at them
        if self.budget is not None:
            layers, ratios = self._solve_budget(layers, family, num_layers)
        elif self.keep_ratio is not None:
            ratios = _reach(family, self.keep_ratio)
        else:
            ratios = self.ratios or self._published_ratios
        return dataclasses.replace(self, layers=layers, ratios=ratios, keep_ratio=None, budget=None)

    def _solve_budget(
        self, layers: tuple[int, ...], family: Family, num_layers: int
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Solve the shares; where the layers before the first cut cost too much, cut earlier."""
        while True:

            def stages(x: float, layers: tuple[int, ...] = layers) -> tuple[Stage, ...]:
                return tuple(map(Stage, layers, family(x)))

            x = budget.solve(stages, num_layers, self.budget)
            if x is not None:
                return layers, family(x)
            # Each cut one block sooner, as far as they can go without meeting.
            earlier = tuple(
                max(self.first_layer + number, layer - 1) for number, layer in enumerate(layers)
            )
            if earlier == layers or self.layers is not None:
                budget.refuse(self, stages(1e-3), num_layers)
            layers = earlier

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts."""
        layers = require(self.layers, self.name, "layers")
        ratios = require(self.ratios, self.name, "ratios")
        return tuple(map(self._make_stage, layers, ratios))

    def _make_stage(self, layer: int, ratio: float) -> Stage:
        return Stage(layer, ratio)

    def stage_number(self, stage: Stage) -> int:
        """Return which of the cuts a stage is, from 0."""
        return self.stages.index(stage)

    def _count(self, stage: Stage, max_count: int) -> np.ndarray:
        """Tabulate the tokens left after a cut of every unpruned count 0 .. max_count."""
        return keep_one(round_counts(stage.keep_ratio, max_count, self.rounding))

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the tokens left by the largest count."""
        return bound_total(self._count(stage, visual_slots), 1)


def _reach(family: Family, keep_ratio: float) -> tuple[float, ...]:
    """Find the member of a family whose last share is keep_ratio."""
    low, high = 0.0, 1.0  # the share grows with x: halve until float64 has no more to halve
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if family(middle)[-1] <= keep_ratio else (low, middle)
    ratios = family(1.0) if keep_ratio == 1 else family(high)
    return (*ratios[:-1], keep_ratio)  # to the last digit, which a count may hang on


def scale_layers(layers: tuple[int, ...], depth: int, num_layers: int) -> tuple[int, ...]:
    """Move layers published for one depth to another, rounded half to even and kept ascending."""
    # (8, 16, 24) of 32 on 28: 7, 14, 21; on 3: 1, 2, 3, where rounding alone gives 1, 2, 2
    scaled: list[int] = []
    for layer in layers:
        place = round(layer * num_layers / depth)
        scaled.append(max(place, scaled[-1] + 1) if scaled else place)
    return tuple(scaled)
