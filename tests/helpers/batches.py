"""Four prompts as batches, and the two buckets that most tests of the engine run in."""

import numpy as np
from helpers.prompts import hf_arrays

import ivc_jax
from ivc_jax.inputs.bucket import Buckets

PROMPTS = [
    (3, ("image", (1, 6, 8)), 5),
    (11,),
    (1, ("image", (1, 8, 8)), 2, ("image", (1, 4, 10)), 9),
    (2, ("video", (2, 6, 4)), 6),
]
# One bucket for everything, so that few programs are compiled; WIDE is the larger one.
BUCKET = Buckets(text=(24,), visual=(32,), patches=(64,), rows=(5,), images=(2,))
WIDE = Buckets(text=(48,), visual=(48,), patches=(128,), rows=(8,), images=(4,))
STEPS = 6


def batch_of(*rows):
    """Make a batch of some of the PROMPTS whose content does not depend on its mates."""
    singles = [ivc_jax.Batch.from_hf(**hf_arrays([PROMPTS[row]], seed=row)) for row in rows]
    return ivc_jax.Batch(
        tokens=sum((single.tokens for single in singles), ()),
        images=sum((single.images for single in singles), ()),
        videos=sum((single.videos for single in singles), ()),
    )


def show_pictures(processor):
    """Make a ragged batch by a processor: one picture, words alone, two unequal pictures."""
    draw = np.random.default_rng(0)
    one, two, three = (
        draw.integers(0, 256, (*size, 3), np.uint8) for size in ((30, 41), (20, 50), (64, 30))
    )
    prompts = ["What is it?", "Words alone.", "Is <image> like <image>, or is it not?"]
    return processor(prompts, [[one], None, [two, three]])
