"""One setting of a `config.json`, in whatever places and spellings the file states it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ivc_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Parts of a file that may state the same settings, by the name of each part.

    Files of one family come in several layouts, and some state a setting in two of them:

        {"vocab_size": 9, "rope_theta": 1e6, "text_config": {"vocab_size": 9, ...}}

    Where both say the same, either is read. Where they differ, no reader can know which one the
    weights were made for. A null counts as not stated.

    Attributes:
        parts: the top level is "", others are named as in errors ("text_config").
    """

    parts: Mapping[str, Mapping[str, Any]]

    def __or__(self, other: "Settings") -> "Settings":
        """Return the parts of both."""
        return Settings({**self.parts, **other.parts})

    def enter(self, *names: str) -> "Settings":
        """Return the objects of these names in any part; none at all is no error.

        Raises:
            ConfigError: one of them is no object.
        """
        found = self.list(*names)
        for where, value in found.items():
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} must be an object, got {value!r}")
        return Settings(found)

    def list(self, *names: str) -> dict[str, Any]:
        """Return what each part says under each spelling, by place ("text_config.rope_theta")."""
        return {
            f"{part}.{name}" if part else name: content[name]
            for part, content in self.parts.items()
            for name in names
            if content.get(name) is not None
        }

    def find(self, *names: str, default: Any = None) -> Any:
        """Return a setting by any of its spellings.

        Raises:
            ConfigError: two places disagree; the message names both.
        """
        found = iter(self.list(*names).items())
        place, value = next(found, ("", default))
        for other, second in found:
            if second != value:
                raise ConfigError(
                    f"config.json contradicts itself: {place} is {value!r}, {other} is {second!r};"
                    " keep the one that the weights were made for"
                )
        return value

    def require(self, name: str, only: Any, default: Any = None) -> None:
        """Refuse a setting that has another value than the only one that is built here.

        Args:
            name: of the setting.
            only: its value.
            default: what a file means that does not state it; None is `only`.

        Raises:
            ConfigError: another value.
        """
        found = self.find(name, default=only if default is None else default)
        if found != only:
            raise ConfigError(f"{name} {found!r} is not supported, only {only!r}")

    def __getitem__(self, name: str) -> Any:
        """Return a setting that the file must state.

        Raises:
            ConfigError: as `find`.
            KeyError: it does not.
        """
        value = self.find(name)
        if value is None:
            raise KeyError(name)
        return value
