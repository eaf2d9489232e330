"""What kinds of numbers the paper gives; those entered are in `experiments/configs/paper.py`."""

import dataclasses
from collections.abc import Iterable, Mapping

from ivc_jax.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Number:
    """One published number.

    Attributes:
        value: as it is printed: percent, or the benchmark's points.
        source: where in the paper it stands.
        second_hand: taken from a third party's summary of the paper, not from the paper.
    """

    value: float
    source: str
    second_hand: bool = False


@dataclasses.dataclass(frozen=True)
class Published:
    """The numbers of one model, and the sizes by which a checkpoint is known to be it.

    Attributes:
        model: its name.
        family: `ModelConfig.family`.
        num_layers: of the decoder.
        hidden_size: of the decoder.
        numbers: by row of the table, then by set, by group of tasks for "Avg. %" ("grounding",
            "general VQA"), or by "kept" for the mean share of visual tokens in the cache.
    """

    model: str
    family: str
    num_layers: int
    hidden_size: int
    numbers: Mapping[str, Mapping[str, Number]]

    def fits(self, config: ModelConfig) -> bool:
        """Tell whether a checkpoint has the sizes of this model."""
        sizes = config.family, config.decoder.num_layers, config.decoder.hidden_size
        return sizes == (self.family, self.num_layers, self.hidden_size)


def find(known: Iterable[Published], config: ModelConfig) -> Published | None:
    """Return the numbers that are for a checkpoint of this configuration, if there are any."""
    return next((published for published in known if published.fits(config)), None)
