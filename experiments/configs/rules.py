"""Which tokens should serve as coordinates? Rules of reference tokens at equal budgets.

    python experiments/run.py rules
    ivc-jax run rules --model CHECKPOINT --data-dir TSVS --tasks RefCOCO_testA MMStar

IVC-Prune with its references chosen by the released scores, by the scores of each axis' own planes,
as an even lattice, as points far from each other in rotary space, as an even cover of the phase, at
random (three draws), and without any; then the same added to PyramidDrop and to uniform tokens.
Models whose tokens are numbered along one line have no axes: rows that need them are left out
there. Hardware: two CPU cores. Expected: docs/evidence/rules.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.5, 0.33, 0.22, 0.11, 0.05)
_DRAWS = (0, 1, 2)
_RULES = {
    "released": ("",),
    "section-true": (",frequencies=section",),
    "lattice": (",coordinates=lattice",),
    "farthest": (",coordinates=farthest",),
    "phase": (",coordinates=phase",),
    "random": tuple(f",coordinates=random,random_seed={seed}" for seed in _DRAWS),
    "none": (",cos_fraction=0.0,sin_fraction=0.0",),
}
_HOSTS = {"+ivc on uniform": "uniform+ivc", "+ivc on pyramiddrop": "pyramiddrop+ivc"}
_LEAST = 0.22  # PyramidDrop keeps the first blocks whole, uniform+ivc needs room for its own tokens


def _variants(budget: float) -> list[Variant]:
    rows = {"ivc": "ivc"} | (_HOSTS if budget >= _LEAST else {})
    found = []
    for series, method in rows.items():
        for label, fields in _RULES.items():
            if label == "none" and method != "ivc":
                continue
            found += [
                Variant(f"{method}:budget={budget}{field}", series, label) for field in fields
            ]
    return found


def _study(budget: float) -> Study:
    return Study(
        name=f"rules_{round(100 * budget)}",
        title=f"Rules of reference tokens, budget {budget:g}",
        question=(
            "As many references by every rule; rows are compared with IVC-Prune as it was released"
            " at the same budget."
        ),
        reference=f"ivc:budget={budget}",
        variants=tuple(_variants(budget)),
    )


STUDIES = tuple(map(_study, _BUDGETS))

CONFIG = ablation("rules", STUDIES, limit=96, num_scenes=16, skip_unreachable=True)
