"""Which tokens may go? Five methods on the bundled model and benchmark at two equal budgets.

    python experiments/run.py

Hardware: two CPU cores, under three minutes with an empty compile cache.
Expected: dense about 91 % on average over the whole test sets; the rest in docs/default_run, with
16 questions a task and so with wide intervals. `python experiments/run.py methods` compares all.
"""

from experiments.settings import RunConfig

_BUDGETS = (0.5, 0.25)
_METHODS = ("random", "uniform", "fastv", "pyramiddrop", "ivc")

CONFIG = RunConfig(
    methods=(
        "dense",
        *(f"{name}:budget={budget}" for budget in _BUDGETS for name in _METHODS),
    ),
    tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
    batch_size=8,
    limit=16,
    # the tokens and patches of a bundled scene: no padding
    visual_buckets=(144,),
    patch_buckets=(576,),
    out="runs/default",
)
