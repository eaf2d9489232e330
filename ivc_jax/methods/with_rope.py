"""An ablation: other rotary frequencies inside the model's own attention.

A plane i of a head turns queries and keys by theta^(-2i / head_dim) radians a position (RoFormer,
arXiv 2104.09864, section 3.2.2). What attention knows of places it knows from these turns:

    plane                0     1      2       3        head_dim 8, theta 10000
    usual                1     0.1    0.01    0.001
    stop_planes=0/3      0     0.1    0.01    0        these two see no position
    attention_theta=100  1     0.32   0.1     0.032

The weights stay those that were trained with the usual turns, so a loss of accuracy says that the
model as it is reads these planes, not that no model could do without them. Text tokens lose the
same planes as visual ones.
"""

import dataclasses
import math
from typing import ClassVar

import jax

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.fields import sort_planes
from ivc_jax.methods.modifier import Modifier, unwrap
from ivc_jax.methods.requests import Signals
from ivc_jax.types import Layout, Selection


@dataclasses.dataclass(frozen=True)
class WithRope(Modifier):
    """Change the rotary embedding of the decoder under a method, in prefill and decode.

    Attention that the host ranks by changes too, since it is the model's own. IVC scores, the
    host's or those of +ivc, are formed from the usual frequencies (`RopeSettings`).

    Attributes:
        host: any method, the dense model included.
        stop_planes: planes that do not turn, beside those that the model's configuration stops.
        attention_theta: base of the frequencies; None is the model's.
    """

    suffix: ClassVar[str] = "rope"

    host: Method
    stop_planes: tuple[int, ...] = ()
    attention_theta: float | None = None

    def __post_init__(self) -> None:
        if any(isinstance(part, WithRope) for part in unwrap(self.host)):
            raise MethodError(f"{self.host.name} has its rotary embedding changed; drop one +rope")
        object.__setattr__(self, "stop_planes", sort_planes("stop_planes", self.stop_planes))
        if self.attention_theta is not None:
            theta = float(self.attention_theta)
            if not (math.isfinite(theta) and theta > 0):
                raise MethodError(f"attention_theta must be finite and above 0, got {theta}")
            object.__setattr__(self, "attention_theta", theta)  # 500 and 500.0 are one string

    @property
    def has_score(self) -> bool:
        """Whether the host has one, which +pore may correct."""
        return self.host.has_score

    def resolve(self, config: ModelConfig) -> "WithRope":
        """Check the planes against the model; resolve the host."""
        planes = config.decoder.rope.head_dim // 2
        if self.stop_planes and self.stop_planes[-1] >= planes:
            raise MethodError(
                f"stop_planes: the model has planes 0 to {planes - 1}, got {self.stop_planes[-1]}"
            )
        return super().resolve(config)

    def rope(self, rope: RopeConfig) -> RopeConfig:
        """Stop planes and change the base of what the host uses."""
        rope = self.host.rope(rope)
        if self.attention_theta is not None:
            rope = dataclasses.replace(rope, theta=self.attention_theta)
        if not self.stop_planes:
            return rope
        turning = list(rope.frequency_mask or (True,) * (rope.head_dim // 2))  # [F]
        for plane in self.stop_planes:
            turning[plane] = False
        return dataclasses.replace(rope, frequency_mask=tuple(turning))

    def scores(self, signals: Signals, layout: Layout, stage: Stage) -> jax.Array:
        """Let the host score, if it has scores."""
        return self.host.scores(signals, layout, stage)

    def choose(
        self, scores: jax.Array, signals: Signals, layout: Layout, stage: Stage, num_keep: int
    ) -> Selection:
        """Let the host choose by the given scores."""
        return self.host.choose(scores, signals, layout, stage, num_keep)
