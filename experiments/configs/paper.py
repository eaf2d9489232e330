"""The paper's grounding and VQA tables: which rows and columns, and what to expect.

    python experiments/run.py paper --model Qwen/Qwen2.5-VL-7B-Instruct --data-dir TSVS

TSVS holds RefCOCO_testA.tsv, MMStar.tsv and others in the format of VLMEvalKit; sets without a
file are left out. Pictures and cells are treated as in the released evaluation. Hardware: one
accelerator that holds the 7B model in bfloat16 and a batch.
Expected: the published numbers (ivc_jax/studies/paper), which the tables print beside ours; not
measured with this code yet.
"""

from ivc_jax.commands.settings import RunConfig
from ivc_jax.evals.benchmarks.tasks import GENERAL_VQA, REFCOCO
from ivc_jax.studies.paper.published import ROWS

CONFIG = RunConfig(
    methods=tuple(ROWS.values()),
    tasks=(*REFCOCO, *GENERAL_VQA),
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    batch_size=4,
    protocol="released",
    out="runs/paper",
)
