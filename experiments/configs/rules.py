"""Which tokens should serve as coordinates? Rules of reference tokens at equal budgets.

    python experiments/run.py rules
    ivc-jax run rules --model CHECKPOINT --data-dir TSVS --tasks RefCOCO_testA MMStar

IVC-Prune with its references chosen by the released scores, by the scores of each axis' own planes,
as an even lattice, as points far from each other in rotary space, as an even cover of the phase, at
random (two draws), and without any; cut before block 3 of 8, after about a third of the depth, and
where it cuts by default. The same references are added to uniform tokens and to PyramidDrop. Models
whose tokens are numbered along one line have no axes: give them --methods without the rows that
need them. Hardware: two CPU cores; the same command goes on after a kill. Expected:
docs/evidence/rules.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.5, 0.33, 0.22, 0.11, 0.05)
_EARLY = ",layer=3"
_DRAWS = (0, 1)
_RULES = {
    "released": ("",),
    "section-true": (",frequencies=section",),
    "lattice": (",coordinates=lattice",),
    "farthest": (",coordinates=farthest",),
    "phase": (",coordinates=phase",),
    "random": tuple(f",coordinates=random,random_seed={seed}" for seed in _DRAWS),
}
_NONE = ",cos_fraction=0.0,sin_fraction=0.0"
# Labels of rows: the method, fields, and the budgets at which it is asked.
_ROWS = {
    "ivc, before block 3": ("ivc", _EARLY, _BUDGETS),
    "ivc, default cut": ("ivc", "", (0.5, 0.11)),
    "uniform + ivc, before block 3": ("uniform+ivc", _EARLY, (0.5, 0.22)),
    "pyramiddrop + ivc": ("pyramiddrop+ivc", "", (0.5, 0.22)),
}


def _variants(budget: float) -> list[Variant]:
    found = []
    for rule, draws in _RULES.items():
        for label, (method, fields, budgets) in _ROWS.items():
            if budget not in budgets:
                continue
            versus = None if rule == "released" else "released"
            found += [
                Variant(f"{method}:budget={budget}{fields}{draw}", rule, label, versus=versus)
                for draw in draws
            ]
    for label, (method, fields, budgets) in _ROWS.items():
        if budget in budgets and method == "ivc":
            spec = f"ivc:budget={budget}{fields}{_NONE}"
            found.append(Variant(spec, "none", label, versus="released"))
    return found


def _study(budget: float) -> Study:
    return Study(
        name=f"rules_{round(100 * budget)}",
        title=f"Rules of reference tokens, budget {budget:g}",
        question=(
            "As many references by every rule. Rows are compared with the released rule in the same"
            " place and at the same budget, released ones with the unpruned model."
        ),
        reference="dense",
        variants=tuple(_variants(budget)),
    )


STUDIES = tuple(map(_study, _BUDGETS))

CONFIG = ablation("rules", STUDIES, limit=32, num_scenes=8, skip_unreachable=True)
