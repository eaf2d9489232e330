"""Ties that a model's rounding would decide: the same tokens stay alone, in a batch, in any bucket.

All tokens of a blank page are alike, those of a symmetric picture come in pairs. What the tower and
the decoder compute for them differs in the last bits from bucket to bucket, about 1e-6 of it.
"""

import numpy as np
import pytest
from helpers.methods import complete
from helpers.modules import give_weights
from PIL import Image

import ivc_jax
from ivc_jax import Batch
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods import METHODS, MethodError, parse
from ivc_jax.methods.requests import TowerRequest

BLIND = {"dense", "random", "uniform"}  # they look at nothing that a model computes
# Scores of block 0 see no order yet: the value vectors of a blank page are one.
SPECS = [*(complete(name) for name in METHODS if name not in BLIND), "ivc:layer=1"]
SPECS += ["scope+ivc", "nuwa+ivc"]
SMALL = Buckets(text=(32,), visual=(16,), patches=(64,), rows=(1,), images=(1,))
LARGE = Buckets(text=(48,), visual=(40,), patches=(160,), rows=(6,), images=(2,))


def draw_pictures(unit=28):
    """A blank page, one with a black corner, a symmetric one, a dark one: 4 x 4 tokens each."""
    side = 4 * unit
    blank = Image.new("RGB", (side, side), "white")
    corner, mirror = blank.copy(), blank.copy()
    corner.paste((0, 0, 0), (0, 0, unit, unit))
    for box in ((0, 0), (3 * unit, 3 * unit)):
        mirror.paste((200, 0, 0), (*box, box[0] + unit, box[1] + unit))
    return blank, corner, mirror, Image.new("RGB", (side, side), "black")


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def setting(request, tiny_hf):
    """A model and its prompts, one alone in a small bucket or all with others in a large one.

    The tower runs once for all methods, in each of the two buckets.
    """
    model, processor = ivc_jax.load(tiny_hf(family=request.param, num_hidden_layers=4))
    unit = model.config.vision.patch_size * model.config.vision.spatial_merge_size
    pictures = draw_pictures(unit)
    prompts = [processor(["x"], [[picture]]) for picture in pictures]
    noise = np.random.default_rng(0).integers(0, 256, (5 * unit, 6 * unit, 3), np.uint8)
    other = processor(["what is in it"], [[Image.fromarray(noise)]])
    one = [ivc_jax.encode(model, collate(prompt, model.config, SMALL)) for prompt in prompts]
    joined = collate(Batch.join([*prompts, other]), model.config, LARGE)
    return model, one, ivc_jax.encode(model, joined)


def asks_tower(method):
    """Tell whether a method wants more of the tower than what enters the decoder."""
    asked = (request for stage in method.stages for request in method.requests(stage))
    return any(isinstance(request, TowerRequest) for request in asked)


@pytest.mark.parametrize("spec", SPECS)
def test_equal_tokens_are_kept_alike_alone_and_in_a_batch(setting, spec, tmp_path):
    model, alone, together = setting
    try:
        method = parse(give_weights(spec, model.config, tmp_path)).resolve(model.config)
    except MethodError as error:
        pytest.skip(str(error))
    seen = spec == "ivc:layer=1" or asks_tower(method)
    if model.config.family == "qwen2_5_vl" and not seen:
        pytest.skip("the families differ in the tower alone")
    kept = [ivc_jax.prefill(model, inputs, method).kept[0] for inputs in alone]
    joined = ivc_jax.prefill(model, together, method).kept
    names = ("blank", "corner", "mirror", "black")
    assert {name: list(map(int, row)) for name, row in zip(names, kept, strict=True)} == {
        name: list(map(int, row)) for name, row in zip(names, joined, strict=False)
    }
