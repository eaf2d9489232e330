"""Which method keeps most at equal budget? All of them on the bundled model and benchmark.

    python experiments/run.py methods

A budget is the mean over layers of the share of visual tokens in the cache. Methods that cannot
reach one on this model's eight layers, because a whole first layer holds more, are left out there
and named in the report. VScan is left out everywhere: it needs a block of the tower that attends
beyond windows. The sigma of pore was fitted to the trend of each host on training scenes
(`python experiments/fit_pore.py`, docs/methods_run/pore_fit.json).
Hardware: two CPU cores; the same command goes on after a kill.
Expected: docs/methods_run.
"""

from ivc_jax.commands.settings import RunConfig

_BUDGETS = (0.5, 0.33, 0.22, 0.11, 0.05)
_SEEDS = (0, 1, 2)
_METHODS = (
    "ivc",
    # References that models of other kinds chose (docs/coordinates.md).
    "ivc:coordinates=farthest",
    "ivc:coordinates=phase",
    *(f"random:seed={seed}" for seed in _SEEDS),
    # As early as the methods that cut before the decoder, and so as cheap.
    *(f"random:layer=0,seed={seed}" for seed in _SEEDS),
    "uniform",
    "fastv",
    "fastv+ivc",
    "fastv+pore:sigma={sigma}",
    "pyramiddrop",
    "pyramiddrop+ivc",
    "pyramiddrop+pore:sigma={sigma}",
    "sparsevlm",
    "holov",
    "scope",
    "visiondrop",
    "visionzip",
    "prumerge",
    "prumerge:plus=true",
    "fsr",
    "nuwa",
    "vflowopt",
    "divprune",
    "dart",
    "fastervlm",
    "hired",
    "vispruner",
    "cdpruner",
    "fitprune",
)


# Of the block that a host looks at: FastV looks at block 1 where its budget allows it, at block 0
# below; PyramidDrop at block 2 or block 0.
_SIGMA_OF_BLOCK = (-0.1672, -0.9669, -1.6022)


def _at(spec: str, budget: float) -> str:
    looks_at = {"fastv": 1 if budget >= 0.33 else 0, "pyramiddrop": 2 if budget >= 0.5 else 0}
    sigma = _SIGMA_OF_BLOCK[looks_at.get(spec.partition("+")[0], 0)]
    return f"{spec.format(sigma=sigma)}{',' if ':' in spec else ':'}budget={budget}"


CONFIG = RunConfig(
    methods=("dense", *(_at(spec, budget) for budget in _BUDGETS for spec in _METHODS)),
    tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
    batch_size=32,
    limit=64,
    share_tower=True,
    out="runs/methods",
    skip_unreachable=True,
)
