"""CoViPAL's module against random tokens at equal budgets, on held-out scenes.

    python experiments/run.py covipal

Scenes are of test digits, which neither the model nor the module has seen. The module is
bundled/covipal; docs/methods.md has the command that trained it. Random tokens go before block 0,
as with the module, and before the block where `random` goes by itself, with what was read by then.
Hardware: two CPU cores, a minute. docs/evidence/covipal has its record.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.25, 0.1)
_DRAWS = (0, 1)


def _study(budget: float) -> Study:
    trained = f"covipal:budget={budget}"
    variants = [Variant("dense", label="dense"), Variant(trained, label="covipal")]
    for where, label in ((",layer=0", "random, before block 0"), ("", "random, in the middle")):
        drawn = (f"random:budget={budget},seed={seed}{where}" for seed in _DRAWS)
        variants += [Variant(method, label=label) for method in drawn]
    return Study(
        name=f"covipal_{round(100 * budget)}",
        title=f"A trained module, budget {budget:g}",
        question="Rows are compared with CoViPAL's module at the same budget.",
        reference=trained,
        variants=tuple(variants),
    )


STUDIES = tuple(map(_study, _BUDGETS))

CONFIG = ablation("covipal", STUDIES, limit=48, num_scenes=16)
