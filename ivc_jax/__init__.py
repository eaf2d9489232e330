"""Visual-token pruning for vision-language models in JAX.

model, processor = ivc_jax.load("path/or/hub-id")
batch = processor(prompts=["Locate the red 7."], images=[[image]])
out = ivc_jax.generate(model, batch, "ivc:keep_ratio=0.5")
processor.decode(out.tokens, out.lengths)
"""

import importlib
from typing import TYPE_CHECKING, Any

from ivc_jax.version import __version__

if TYPE_CHECKING:
    from ivc_jax import ivc, methods
    from ivc_jax.engine.decode import Output, decode, generate
    from ivc_jax.engine.prefill import Prefill, encode, prefill
    from ivc_jax.engine.rating import FrameScorer, rate_frames
    from ivc_jax.engine.sampling import Sampling
    from ivc_jax.engine.score import score
    from ivc_jax.engine.stream import Step, stream
    from ivc_jax.inputs.batch import Batch
    from ivc_jax.inputs.sampling import VideoOptions
    from ivc_jax.inputs.video import Clip
    from ivc_jax.model import Model, load

# Imported when they are asked for: JAX takes seconds, in which the program `ivc-jax` must already
# answer to Ctrl-C.
_HOMES = {
    "Batch": "ivc_jax.inputs.batch",
    "Clip": "ivc_jax.inputs.video",
    "FrameScorer": "ivc_jax.engine.rating",
    "Model": "ivc_jax.model",
    "Output": "ivc_jax.engine.decode",
    "Prefill": "ivc_jax.engine.prefill",
    "Sampling": "ivc_jax.engine.sampling",
    "Step": "ivc_jax.engine.stream",
    "VideoOptions": "ivc_jax.inputs.sampling",
    "decode": "ivc_jax.engine.decode",
    "encode": "ivc_jax.engine.prefill",
    "generate": "ivc_jax.engine.decode",
    "load": "ivc_jax.model",
    "prefill": "ivc_jax.engine.prefill",
    "rate_frames": "ivc_jax.engine.rating",
    "score": "ivc_jax.engine.score",
    "stream": "ivc_jax.engine.stream",
}
_MODULES = ("ivc", "methods")
__all__ = [
    "Batch",
    "Clip",
    "FrameScorer",
    "Model",
    "Output",
    "Prefill",
    "Sampling",
    "Step",
    "VideoOptions",
    "__version__",
    "decode",
    "encode",
    "generate",
    "ivc",
    "load",
    "methods",
    "prefill",
    "rate_frames",
    "score",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ivc_jax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ivc_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
