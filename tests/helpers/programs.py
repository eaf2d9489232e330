"""The compiled programs of the engine with abstract arguments."""

import jax
import jax.numpy as jnp
from helpers.mosaics import to_arrays, write_prompts
from helpers.prompts import hf_arrays

import ivc_jax
from ivc_jax.engine.decode import run_decode
from ivc_jax.engine.prefill import run_prefill
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import parse
from ivc_jax.nn.blocks import stack_sections

PROMPTS = [(3, ("image", (1, 8, 8)), 5), (6,)]
MOSAICS = [(3, (2, 1, (20, 50)), 5), (6,)]


def find_arrays(config):
    """Return what a processor returns for a picture and for text alone."""
    if config.vision.view_size is not None:
        return to_arrays(write_prompts(MOSAICS))
    return hf_arrays(PROMPTS)


def stack_blocks(model):
    """Return the model with its blocks as they lie on a TPU."""
    vision, layers = model.params["vision"], model.params["decoder"]["layers"]
    params = {
        "vision": {**vision, "blocks": stack_sections(vision["blocks"])},
        "decoder": {**model.params["decoder"], "layers": stack_sections(layers)},
    }
    return ivc_jax.Model(model.config, params)


def find_programs(model, spec, sharding=None, batch=None):
    """Yield (jitted function, abstract arguments) of prefill and decode.

    Without a batch (or inputs) it is one of Qwen2-VL, or of a model that shows pictures as views.
    """
    batch = batch or ivc_jax.Batch.from_hf(**find_arrays(model.config))

    def abstract(tree):
        def leaf(array):
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

        return jax.tree.map(leaf, tree)

    method = parse(spec).resolve(model.config)
    inputs = collate(batch, model.config) if isinstance(batch, ivc_jax.Batch) else batch
    arguments = abstract(model.params), abstract(inputs)
    yield run_prefill, (model.config, method, *arguments)
    prompt = jax.eval_shape(lambda *a: run_prefill(model.config, method, *a), *arguments)
    stop = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=sharding)
    rest = abstract((prompt.logits, prompt.cache, prompt.next_position))
    yield run_decode, (model.config, 8, arguments[0]["decoder"], *rest, stop)
