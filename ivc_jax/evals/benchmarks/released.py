"""What the released evaluation does to pictures and cells before the model sees them.

`--protocol released` does the same: VLMEvalKit as vendored by the authors of IVC-Prune
(arXiv 2602.03060), in the settings that they ran each model with.
"""

from ivc_jax.inputs.resize import SmartResize

_CELL = 28 * 28  # pixels of a visual token of the published Qwen models

# What Qwen2.5-VL sees of a picture; files of RefCOCO in its frame are made for these bounds.
QWEN2_5_PICTURES = SmartResize(min_pixels=4 * _CELL, max_pixels=16384 * _CELL)
