"""Does pruning keep grounding? Qwen2.5-VL or Qwen2-VL on the RefCOCO splits.

    python experiments/run.py grounding --model Qwen/Qwen2.5-VL-3B-Instruct --data-dir TSVS

TSVS holds RefCOCO_testA.tsv and others in the format of VLMEvalKit; sets without a file are left
out. Qwen2.5-VL is scored in the frame of its resized images, as published; the metric
accuracy_original_frame scales its boxes back instead. Files in that frame are other tasks
(--tasks RefCOCO_testA_for_qwen25vl). Hardware: one accelerator with 16 GB. The paper has, for the
7B model, IVC-Prune at 0.5 within a point of dense and FastV clearly below; not measured with this
code yet.
"""

from ivc_jax.commands.settings import RunConfig
from ivc_jax.evals.benchmarks.tasks import REFCOCO

CONFIG = RunConfig(
    methods=("dense", "fastv:keep_ratio=0.5", "fastv+ivc:keep_ratio=0.5", "ivc:keep_ratio=0.5"),
    tasks=REFCOCO,
    model="Qwen/Qwen2.5-VL-3B-Instruct",
    batch_size=1,
    out="runs/grounding",
    skip_missing_files=True,
)
