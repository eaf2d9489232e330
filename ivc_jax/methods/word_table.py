"""What calibration has found out about a model's visual tokens: a small JSON file, read here."""

import dataclasses
import json
from pathlib import Path

from ivc_jax.methods.base import MethodError


@dataclasses.dataclass(frozen=True)
class WordTable:
    """Ids of the words that give away what a visual token is, of one model.

    Attributes:
        vit_sinks: words of sinks that come out of the tower.
        llm_sinks: of those that the decoder makes.
        dead: of tokens that look alike in most images.
    """

    vit_sinks: tuple[int, ...] = ()
    llm_sinks: tuple[int, ...] = ()
    dead: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """The words of each class, as `words.classify` takes them."""
        return self.vit_sinks, self.llm_sinks, self.dead


def read_table(path: str | Path) -> WordTable:
    """Read the words of a table that `ivc-jax lens` has written.

    Raises:
        MethodError: no such file, or not such a file.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text())
        words = {
            field.name: tuple(int(word) for word in content[field.name])
            for field in dataclasses.fields(WordTable)
        }
    except OSError as error:
        raise MethodError(f"table={path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise MethodError(f"table={path} is no table that `ivc-jax lens` has written") from None
    return WordTable(**words)
