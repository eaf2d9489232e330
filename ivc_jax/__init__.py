"""Visual-token pruning for vision-language models in JAX.

model, processor = ivc_jax.load("path/or/hub-id")
batch = processor(prompts=["Locate the red 7."], images=[[image]])
out = ivc_jax.generate(model, batch, "ivc:keep_ratio=0.5")
processor.decode(out.tokens, out.lengths)
"""

from ivc_jax import ivc, methods
from ivc_jax.engine.decode import Output, decode, generate
from ivc_jax.engine.prefill import Prefill, encode, prefill
from ivc_jax.engine.sampling import Sampling
from ivc_jax.inputs.batch import Batch
from ivc_jax.model import Model, load
from ivc_jax.version import __version__

__all__ = [
    "Batch",
    "Model",
    "Output",
    "Prefill",
    "Sampling",
    "__version__",
    "decode",
    "encode",
    "generate",
    "ivc",
    "load",
    "methods",
    "prefill",
]
