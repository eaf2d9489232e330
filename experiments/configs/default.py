"""Which tokens may go? Five methods on the bundled model and benchmark at two equal budgets.

    python experiments/run.py

Hardware: two CPU cores, under three minutes with an empty compile cache.
The vision tower runs once for all methods, so that times of a prefill leave it out.
Expected: dense about 96 % on average; the rest in docs/default_run, with 60 questions a task.
`python experiments/run.py methods` compares all methods.
"""

from ivc_jax.commands.settings import RunConfig

_BUDGETS = (0.5, 0.25)
_METHODS = ("random", "uniform", "fastv", "pyramiddrop", "ivc")

CONFIG = RunConfig(
    methods=(
        "dense",
        *(f"{name}:budget={budget}" for budget in _BUDGETS for name in _METHODS),
    ),
    tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
    batch_size=20,
    limit=60,
    share_tower=True,
    out="runs/default",
)
