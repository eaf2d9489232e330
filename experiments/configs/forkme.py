"""Copy this file to ask a question of your own: do the IVC tokens help FastV?

    python experiments/run.py forkme --limit 2

How to write a configuration:

1. Copy this file. In experiments/configs its name is enough (`run.py NAME`, or `ivc-jax run NAME`);
   anywhere else give its path (`ivc-jax run my/question.py`).
2. Ask the question in the first line: `ivc-jax --help` lists it. Below it give the command, the
   hardware, and the number to expect.
3. Define CONFIG. Its fields and their defaults are those of `RunConfig`; the command line overrides
   single ones. `ivc-jax methods` lists the methods, `ivc-jax methods NAME` their fields. "dense" is
   what retention is measured against, so it comes first.
4. An ablation compares variants with a reference: give `studies` too, and the report has a table
   with paired differences and a figure of each (see layer.py, which makes its methods from them).

Hardware: two CPU cores, a minute with an empty compile cache.
Expected: with two rows a task nothing but a table; with --limit 60, see docs/evidence/plus_ivc.
"""

from ivc_jax.commands.settings import RunConfig
from ivc_jax.studies.study import Study, Variant

_AT = "budget=0.5"  # every method holds half of the visual tokens, as a mean over layers

STUDIES = (
    Study(
        name="forkme",  # of the figure and of study_forkme.json
        title="IVC tokens for FastV",
        question="Both variants hold equally much; compared with plain FastV.",
        reference=f"fastv:{_AT}",
        variants=(
            Variant(f"fastv:{_AT}", series="FastV", label="plain"),
            Variant(f"fastv+ivc:{_AT}", series="FastV", label="with IVC tokens"),
        ),
    ),
)

CONFIG = RunConfig(
    methods=("dense", f"fastv:{_AT}", f"fastv+ivc:{_AT}"),
    tasks=("grounding", "colour"),  # of the bundled benchmark: no --data-dir
    limit=60,  # rows of each task
    batch_size=20,
    share_tower=True,  # methods differ after the tower only
    studies=STUDIES,
    out="runs/forkme",
)
