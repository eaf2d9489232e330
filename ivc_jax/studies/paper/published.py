"""The paper's numbers, and the rows and columns of its grounding and VQA tables.

Every number is from the paper, arXiv 2602.03060, or where it says so from a summary of it by
others. The paper may well have one where there is none here.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from ivc_jax.config import ModelConfig
from ivc_jax.evals.benchmarks.tasks import GENERAL_VQA, REFCOCO


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
        # Names of folders say nothing: a checkpoint is known by its family and its sizes.
        sizes = config.family, config.decoder.num_layers, config.decoder.hidden_size
        return sizes == (self.family, self.num_layers, self.hidden_size)


def find(known: Iterable[Published], config: ModelConfig) -> Published | None:
    """Return the numbers that are for a checkpoint of this configuration, if there are any."""
    return next((published for published in known if published.fits(config)), None)


_VANILLA, _REMOVAL = "vanilla", "vanilla without IVC"  # the paper's names of its rows
_FASTV, _FASTV_IVC = "FastV", "FastV + IVC"
_PDROP, _PDROP_IVC = "PDrop", "PDrop + IVC"
_IVC = "IVC-Prune"

# The paper does not say how it ran the removal, PDrop and the "+ IVC" rows: these have the
# published settings of the methods. We have no numbers of SparseVLM.
ROWS = {
    _VANILLA: "dense",
    _REMOVAL: "ivc_removal",
    _FASTV: "fastv:layer=2,keep_ratio=0.5",  # hard-coded in the released evaluation
    _FASTV_IVC: "fastv+ivc:layer=2,keep_ratio=0.5",
    _PDROP: "pyramiddrop",
    _PDROP_IVC: "pyramiddrop+ivc",
    "SparseVLM": "sparsevlm",
    _IVC: "ivc:keep_ratio=0.5",  # its layer is the released one where there is one
}

TABLES = {  # sets and headings of the columns
    "grounding": {name: name.replace("_", " ") for name in REFCOCO},
    "vqa": dict(
        zip(
            GENERAL_VQA,
            ("SEED", "MMB", "MMStar", "RWQA", "MME", "POPE", "TextVQA", "ChartQA", "AI2D"),
            strict=True,
        )
    ),
}


def _quote_main(value: float, second_hand: bool = False) -> Number:
    return Number(value, "main results", second_hand)


def _quote_ablation(testa: float, plus_testa: float, seed: float, mmb: float, known: int) -> dict:
    """Enter a row of the ablations; all but the first `known` numbers are second-hand."""
    # columns of the paper's ablation tables
    sets = ("RefCOCO_testA", "RefCOCO+_testA", "SEEDBench_IMG", "MMBench_DEV_EN_V11")
    values = zip(sets, (testa, plus_testa, seed, mmb), strict=True)
    return {
        name: Number(value, "ablations", second_hand=place >= known)
        for place, (name, value) in enumerate(values)
    }


PUBLISHED = (
    Published(
        model="Qwen2.5-VL-7B",
        family="qwen2_5_vl",
        num_layers=28,
        hidden_size=3584,
        numbers={
            _VANILLA: _quote_ablation(92.2, 88.0, 76.7, 82.4, known=4),
            _REMOVAL: _quote_ablation(84.1, 79.4, 76.1, 82.2, known=4),
            _FASTV: _quote_ablation(74.4, 68.9, 72.9, 80.5, known=1)
            | {
                "kept": _quote_main(54),
                "grounding": _quote_main(84.7),
                "general VQA": _quote_main(98.4, True),
            },
            _FASTV_IVC: _quote_ablation(82.1, 76.5, 74.6, 80.5, known=1),
            _PDROP: _quote_ablation(77.6, 72.1, 74.0, 78.9, known=1),
            _PDROP_IVC: _quote_ablation(83.9, 76.5, 74.6, 79.2, known=1),
            _IVC: {
                "RefCOCO_testA": Number(92.0, "efficiency"),
                "kept": _quote_main(50),
                "grounding": _quote_main(99.6),
                "general VQA": _quote_main(100.6),
            },
        },
    ),
)
