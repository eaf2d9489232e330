"""What finds the foreground: values or attention, seeds, and which text asks?

    python experiments/run.py foreground

Hardware: two CPU cores. Expected: docs/evidence/foreground.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_KEPT = (0.5, 0.25)
_CHOICES = {  # series, label: fields
    ("published", "values, seeds, offset 2"): "",
    ("parts", "no IVC tokens"): "cos_fraction=0.0,sin_fraction=0.0",
    ("foreground", "attention"): "foreground=attention",
    ("foreground", "attention, no IVC tokens"): (
        "foreground=attention,cos_fraction=0.0,sin_fraction=0.0"
    ),
    ("seeds", "not kept"): "keep_seeds=false",
    ("seeds", "a single one"): "seed_fraction=0.0",
    ("seeds", "5 %"): "seed_fraction=0.05",
    ("seeds", "10 %"): "seed_fraction=0.1",
    # Behind the picture stand a mark and three words at least.
    **{("query offset", str(n)): f"query_offset={n}" for n in (0, 1, 3)},
    ("queries", "all text"): "queries=all",
    ("softmax", "over all tokens"): "key_scope=all",
    ("combination", "union, 40 % foreground"): "combine=union",
    ("precision", "bfloat16 scores"): "score_dtype=bfloat16",
}


def _study(keep_ratio: float) -> Study:
    full = f"ivc:keep_ratio={keep_ratio}"
    variants = tuple(
        Variant(f"{full},{fields}" if fields else full, *names)
        for names, fields in _CHOICES.items()
        # A union has a size of its own: 40 % foreground and the IVC tokens.
        if keep_ratio == 0.5 or "union" not in fields
    )
    return Study(
        name=f"foreground_{round(100 * keep_ratio)}",
        title=f"Foreground, keep ratio {keep_ratio:g}",
        question="Every row changes one thing of the published method and is compared with it.",
        reference=full,
        variants=variants,
    )


STUDIES = tuple(map(_study, _KEPT))

CONFIG = ablation("foreground", STUDIES, limit=32, num_scenes=8)
