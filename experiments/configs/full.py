"""The bundled benchmark in full: enough examples to tell the methods apart.

    python experiments/run.py full

Hardware: one accelerator; hours on two CPU cores.
Methods that a budget leaves out are named in the report.
Expected: intervals of three to five points; not measured yet.
"""

from ivc_jax.commands.settings import RunConfig

_BUDGETS = (0.75, 0.5, 0.25, 0.1)
_METHODS = ("random", "uniform", "fastv", "fastv+ivc", "pyramiddrop", "pyramiddrop+ivc", "ivc")

CONFIG = RunConfig(
    methods=(
        "dense",
        *(f"{name}:budget={budget}" for budget in _BUDGETS for name in _METHODS),
    ),
    tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
    batch_size=32,
    num_scenes=400,
    out="runs/full",
    skip_unreachable=True,
)
