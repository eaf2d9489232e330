"""Does pruning keep grounding? Qwen2-VL on the eight RefCOCO splits.

    python experiments/run.py refcoco --model Qwen/Qwen2-VL-2B-Instruct --data-dir TSVS

TSVS holds RefCOCO_testA.tsv and the others in the format of VLMEvalKit. Hardware: one accelerator
with 16 GB. Expected from the paper, for Qwen2.5-VL-7B: IVC-Prune at 0.5 within a point of dense,
FastV clearly below. Not measured with this code yet.
"""

from experiments.settings import RunConfig

CONFIG = RunConfig(
    methods=("dense", "fastv:keep_ratio=0.5", "fastv+ivc:keep_ratio=0.5", "ivc:keep_ratio=0.5"),
    tasks=(
        *("RefCOCO_val", "RefCOCO_testA", "RefCOCO_testB"),
        *("RefCOCO+_val", "RefCOCO+_testA", "RefCOCO+_testB"),
        *("RefCOCOg_val", "RefCOCOg_test"),
    ),
    model="Qwen/Qwen2-VL-2B-Instruct",
    batch_size=1,
    out="runs/refcoco",
)
