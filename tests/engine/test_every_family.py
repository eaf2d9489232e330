"""Promises of every method on every family: batch mates do not change a sample's result.

A family takes part by its name. Pictures and words go through its own processor.
"""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.batches import show_pictures
from helpers.methods import complete
from helpers.modules import give_weights
from helpers.programs import find_programs

import ivc_jax
from ivc_jax.inputs.bucket import Buckets, choose_shape, collate
from ivc_jax.inputs.layout import arrange, take_rows
from ivc_jax.methods import METHODS

FAMILIES = ("llava", "qwen3_vl", "deepseek_vl2", "internvl")
OPTIONS = {"internvl": {"max_tiles": 3}}  # one picture of one tile, two of two and a thumbnail
BLOCKS = 4  # of the decoder
ANSWERED = ("dense", "ivc", "sparsevlm")  # whose answers are compared too: one, two, four spans
ALONE = ANSWERED[:2]  # in a program of their own
STEPS = 6


@pytest.fixture(scope="module", params=FAMILIES)
def shown(request, tiny_hf):
    """The model, three ragged samples together, and those with pictures among their like.

    Three copies of a sample have no other mates, and run in the program of the batch; alone, in
    a batch of one, are those of the first two methods that are answered.
    """
    path = tiny_hf(family=request.param, num_hidden_layers=BLOCKS)
    options = OPTIONS.get(request.param, {})
    model, processor = ivc_jax.load(path, dtype="float32", **options)
    batch, config = show_pictures(processor), model.config
    copies = {row: take_rows(batch, [row] * 3, config) for row in (0, 2)}
    shapes = [
        dataclasses.asdict(choose_shape(arrange(each, config), config, Buckets()))
        for each in (batch, *copies.values())
    ]
    one = Buckets(**{name: (max(shape[name] for shape in shapes),) for name in shapes[0]})
    copies = {row: collate(each, config, one) for row, each in copies.items()}
    alone = {row: collate(take_rows(batch, [row], config), config, one) for row in copies}
    return model, batch, collate(batch, config, one), copies, alone


@pytest.mark.parametrize("name", METHODS)
def test_batch_mates_change_nothing(shown, name, tmp_path):
    model, batch, together, copies, alone = shown
    spec = give_weights(complete(name), model.config, tmp_path)
    prompt = ivc_jax.prefill(model, together, spec)
    answers = ivc_jax.decode(model, prompt, STEPS, ()).tokens if name in ANSWERED else None
    for row, inputs in (alone if name in ALONE else copies).items():
        own = ivc_jax.prefill(model, inputs, spec)
        kept = prompt.kept[row]
        np.testing.assert_array_equal(kept, own.kept[0])
        np.testing.assert_allclose(prompt.logits[row], own.logits[0], rtol=0, atol=1e-4)
        assert prompt.cached_share[row] == pytest.approx(own.cached_share[0])
        if answers is not None:
            answer = ivc_jax.decode(model, own, STEPS, ()).tokens[0]
            np.testing.assert_array_equal(answers[row], answer)
        visual = batch.tokens[row] == model.config.image_token_id
        assert set(np.flatnonzero(~visual)) <= set(kept)
        if name != "dense":
            assert 0 < visual[kept].sum() < visual.sum()
    np.testing.assert_array_equal(prompt.kept[1], np.arange(len(batch.tokens[1])))  # text alone


@pytest.mark.parametrize("spec", ["dense", "ivc", "nuwa"])
def test_programs_lower_for_cuda_and_tpu(shown, spec):
    model, _, together, *_ = shown
    for function, arguments in find_programs(model, spec, batch=together):
        exported = jax.export.export(function, platforms=["cuda", "tpu"])(*arguments)
        assert exported.platforms == ("cuda", "tpu")
        assert "stablehlo.dot_general" in exported.mlir_module()
