"""Methods made from another method: what all of them share."""

import dataclasses
from typing import ClassVar, TypeVar

import jax

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.requests import Request, Signals
from ivc_jax.types import Layout, Selection

_M = TypeVar("_M", bound="Modifier")


class Modifier(Method):
    """A method made from another one, its field `host`; what it does not change is the host's."""

    suffix: ClassVar[str]  # what it is called behind the "+" of a specification

    host: Method

    @property
    def name(self) -> str:
        """Name of the host and the modifier."""
        return f"{self.host.name}+{self.suffix}"

    def resolve(self: _M, config: ModelConfig) -> _M:
        """Resolve the host."""
        return dataclasses.replace(self, host=self.host.resolve(config))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The cuts of the host."""
        return self.host.stages

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for what the host asks for."""
        return self.host.requests(stage)

    def check(self, layout: Layout) -> None:
        """Refuse what the host refuses."""
        self.host.check(layout)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Keep the bound of the host."""
        return self.host.capacity(stage, visual_slots, num_images)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Let the host choose."""
        return self.host.select(signals, layout, stage, num_keep)

    def take_apart(self, signals: Signals, layout: Layout, stage: Stage) -> dict[str, jax.Array]:
        """Return the parts of the host's choice."""
        return self.host.take_apart(signals, layout, stage)

    def rope(self, rope: RopeConfig) -> RopeConfig:
        """Leave the rotary embedding to the host."""
        return self.host.rope(rope)


def unwrap(method: Method) -> list[Method]:
    """List a method and its hosts, outermost first."""
    parts = [method]
    while isinstance(parts[-1], Modifier):
        parts.append(parts[-1].host)
    return parts
