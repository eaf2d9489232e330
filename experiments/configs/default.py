"""Which tokens may go? Every method on the bundled model and benchmark at two keep ratios.

    python experiments/run.py

Hardware: two CPU cores, under three minutes with an empty compile cache.
Expected: 66 task rows and their averages. Sixteen examples a task show large differences only;
the config `full` has more.
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
