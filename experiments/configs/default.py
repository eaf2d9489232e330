"""Which tokens may go? A method of each kind on the bundled model and benchmark, at equal budgets.

    python experiments/run.py

Text attention (fastv), the same with IVC tokens added, attention in the tower (visionzip), several
cuts (pyramiddrop), IVC-Prune, and as controls random tokens, which go where IVC-Prune cuts or, like
visionzip's, before the first block; fewer rows at the smaller budget, for time. The tower of this
model sees one cell at a time: what visionzip ranks by is attention across cells that the tower
itself never pays.
Hardware: two CPU cores, under three minutes with an empty compile cache.
The vision tower runs once for all methods, so that times of a prefill leave it out.
Expected: docs/default_run, with 60 questions a task.
`python experiments/run.py methods` compares all methods.
"""

from ivc_jax.commands.settings import RunConfig

_METHODS = {  # by budget
    0.5: ("random", "random:layer=0", "fastv", "fastv+ivc", "visionzip", "pyramiddrop", "ivc"),
    0.25: ("random", "fastv", "fastv+ivc", "visionzip", "ivc"),
}

CONFIG = RunConfig(
    methods=(
        "dense",
        *(
            f"{name}{',' if ':' in name else ':'}budget={budget}"
            for budget, names in _METHODS.items()
            for name in names
        ),
    ),
    tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
    batch_size=20,
    limit=60,
    share_tower=True,
    out="runs/default",
)
