"""Which tokens may go? Every method on the bundled model and benchmark at two keep ratios.

    python experiments/run.py

Hardware: two CPU cores, under three minutes with an empty compile cache.
Expected: dense about 91 % on average over the whole test sets; at 16 questions a task, methods at a
keep ratio of 0.5 within its interval but for FastV on counting, and at 0.25 FastV and random lose
grounding (docs/default_run).
"""

from experiments.settings import RunConfig

_KEEP_RATIOS = (0.5, 0.25)
_METHODS = ("random", "uniform", "fastv", "fastv+ivc", "ivc")

CONFIG = RunConfig(
    methods=(
        "dense",
        *(f"{name}:keep_ratio={ratio}" for ratio in _KEEP_RATIOS for name in _METHODS),
    ),
    tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
    batch_size=8,
    limit=16,
    # the tokens and patches of a bundled scene: no padding
    visual_buckets=(144,),
    patch_buckets=(576,),
    out="runs/default",
)
