"""DeepSeek-VL2: its files, and agreement with the same model assembled from transformers' parts."""

import json

import numpy as np
import pytest
from helpers.mosaics import CASES, to_arrays, write_prompts
from helpers.tiny import tiny_config

import ivc_jax
from ivc_jax import families
from ivc_jax.config import ConfigError
from ivc_jax.engine.cost import count_block_flops
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.bucket import Buckets
from ivc_jax.weights import keymap
from ivc_jax.weights.placement import abstract_params
from ivc_jax.weights.source import DTYPES

FAMILIES = ["deepseek_vl2", "deepseek_vl2_tiny", "deepseek_vl2_base"]
BUCKET = Buckets(visual=(144,), rows=(6, 12), images=(2,))  # of one prompt, of three


@pytest.mark.parametrize(
    ("family", "case"),
    [
        *(("deepseek_vl2", case) for case in CASES),
        *((each, "ragged batch") for each in FAMILIES[1:]),
    ],
)
def test_logits_and_32_greedy_tokens_equal_transformers(tiny_hf, family, case):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from helpers.deepseek_reference import Reference
    from helpers.parity import check_answers

    path = tiny_hf(family=family)
    model, reference = ivc_jax.load(path, dtype="float32")[0], Reference(path)
    made = write_prompts(CASES[case])
    wanted = [
        reference.answer(
            ids, [(torch.from_numpy(tiles), *shape) for tiles, *shape, _ in pictures], 32
        )
        for ids, pictures in made
    ]
    logits, tokens = map(np.array, zip(*wanted, strict=True))
    check_answers(model, to_arrays(made), logits, tokens, buckets=BUCKET)


def test_a_cache_holds_vectors_and_shared_keys_alone(tiny_hf):
    arrays = to_arrays(write_prompts(CASES["one picture"]))
    batch, sizes = ivc_jax.Batch.from_hf(**arrays), {}
    for family in FAMILIES[:2]:
        model, _ = ivc_jax.load(tiny_hf(family=family), dtype="float32")
        for spec in ("dense", "ivc:layer=1,keep_ratio=0.5"):
            prompt = ivc_jax.prefill(model, batch, spec)
            slots = sum(span.keys.shape[0] * span.keys.shape[2] for span in prompt.cache)
            sizes[family, spec] = prompt.kv_bytes / slots / 4
    # rank 24 and 8 turned, against keys and values of four heads of 16
    assert set(sizes.values()) == {24 + 8, 2 * 4 * 16}
    assert {sizes["deepseek_vl2", spec] for spec in ("dense", "ivc:layer=1,keep_ratio=0.5")} == {32}


def test_the_released_processor_and_stacked_slices_are_one_batch():
    made = write_prompts(CASES["ragged batch"])
    first, second = (ivc_jax.Batch.from_hf(**to_arrays(made, kind)) for kind in (True, False))
    assert len(first.images) == len(second.images) == 3
    for one, other in zip(first.images, second.images, strict=True):
        assert (one.grid, one.tiles, one.size) == (other.grid, other.tiles, other.size)
        np.testing.assert_array_equal(one.patches, other.patches)


def test_images_without_their_shapes_are_refused():
    arrays = to_arrays(write_prompts(CASES["one picture"]), released=True)
    with pytest.raises(InputError, match=r"images \(1, 2, 3, 30, 30\) must be \[batch, tiles"):
        ivc_jax.Batch.from_hf(**(arrays | {"images_spatial_crop": None}))
    arrays["images_spatial_crop"] = np.array([[[2, 2]]])
    with pytest.raises(InputError, match="speaks of up to 5 tiles a sample, images holds 2"):
        ivc_jax.Batch.from_hf(**arrays)


def read(**language):
    config = tiny_config(family="deepseek_vl2")
    config["language_config"] |= language
    return families.parse_config(config)


def test_what_a_file_leaves_out_is_the_class_default():
    config = {"model_type": "deepseek_vl_v2", "image_token_id": 3, "language_config": {"a": 1}}
    config |= {"vision_config": {}, "projector_config": {}}
    decoder = families.parse_config(config).decoder
    assert (decoder.num_layers, decoder.hidden_size, decoder.num_heads) == (30, 4096, 32)
    assert decoder.latent.query_rank == 1536
    assert decoder.experts is None
    assert families.parse_config(config).vision.embed_dim == 1024
    assert read(q_lora_rank=None).decoder.latent.query_rank is None


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_scaling of a DeepSeek decoder"),
        ({"topk_method": "random"}, "topk_method 'random' is not one of greedy"),
        ({"moe_layer_freq": 2}, "moe_layer_freq must be 1"),
        ({"scoring_func": "tanh"}, "scoring_func 'tanh' is not one of"),
        ({"attention_bias": True}, "attention_bias=true is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ],
)
def test_settings_that_cannot_be_run_are_named(language, message):
    with pytest.raises(ConfigError, match=message):
        read(**language)


def test_published_sizes():
    sizes = families.list_sizes()
    tiny, small, base = (
        families.parse_config(sizes[name])
        for name in ("deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2")
    )
    assert tiny.decoder.latent is None
    assert tiny.decoder.head_dim == 128
    assert small.decoder.latent.rank + small.decoder.rope.head_dim == 576
    assert small.decoder.head_dim == 192
    assert small.vision.mlp_dim == 4304
    assert small.vision.table_side == 27
    assert small.vision.cuts_cells
    assert base.decoder.experts.biased
    assert json.dumps(sizes["deepseek-vl2-small"])  # as a file would say it


@pytest.mark.parametrize("name", ["deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2"])
def test_operations_are_those_of_the_matrices_that_a_token_meets(name):
    """Of a token alone, without attention: two for each number of its matrices."""
    config = families.parse_config(families.list_sizes()[name])
    decoder, experts = config.decoder, config.decoder.experts
    layers = abstract_params(config, DTYPES["bfloat16"])["decoder"]["layers"]
    for layer in (0, 5):
        met = 0
        for path, leaf in keymap.flatten(layers[layer]).items():
            if path.endswith("weight"):
                part = experts.chosen / experts.count if "/experts/" in path else 1
                met += part * leaf.size
        width = decoder.num_heads * (decoder.head_dim + decoder.value_dim)
        assert count_block_flops(decoder, 1, layer) == pytest.approx(2 * (met + width))
