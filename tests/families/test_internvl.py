"""InternVL in both layouts against transformers: logits and greedy tokens."""

import numpy as np
import pytest
from families.internvl import TOKENS, hf_arrays
from helpers.tiny import random_tensors, tiny_config

import ivc_jax
from ivc_jax.inputs.bucket import Buckets

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers
from helpers import parity

CASES = {
    "several tiles and one": [(2, (3,), 3, (1,), 5)],
    "ragged batch": [(3, (1,), 5), (11,), (1, (5,), 2, (1,), 9)],
}


def unfuse(tensors, sizes):
    """Rename the tensors of an InternLM2 chat model to a Llama inside transformers' InternVL."""
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    width = sizes["hidden_size"] // heads
    renamed = {
        "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
        "tok_embeddings": "embed_tokens", "language_model.output": "lm_head",
        "language_model.lm_head": "lm_head",
        "language_model.model": "model.language_model",
        "mlp1.0": "model.multi_modal_projector.layer_norm",
        "mlp1.1": "model.multi_modal_projector.linear_1",
        "mlp1.3": "model.multi_modal_projector.linear_2",
        "vision_model.encoder.layers": "model.vision_tower.encoder.layer",
        "vision_model.embeddings": "model.vision_tower.embeddings",
        "class_embedding": "cls_token", "position_embedding": "position_embeddings",
        "patch_embedding": "patch_embeddings.projection",
        "attn.proj": "attention.projection_layer", "attn.q_norm": "attention.q_norm",
        "attn.k_norm": "attention.k_norm", "norm1": "layernorm_before",
        "norm2": "layernorm_after", "ls1": "lambda_1", "ls2": "lambda_2",
    }  # fmt: skip
    state = {}
    for name, tensor in tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name.endswith("attention.wqkv.weight"):
            parts = tensor.reshape(groups, heads // groups + 2, width, -1)
            for part, rows in (("q", parts[:, :-2]), ("k", parts[:, -2]), ("v", parts[:, -1])):
                key = name.replace("attention.wqkv", f"self_attn.{part}_proj")
                state[key] = rows.reshape(-1, tensor.shape[1])
        elif ".attn.qkv." in name:
            for part, rows in zip("qkv", np.split(tensor, 3), strict=True):
                state[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            state[name] = tensor
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def assemble(config):
    """Build the reference of a chat checkpoint out of parts of transformers."""
    text, vision = config["llm_config"], config["vision_config"]
    kind = "llama" if text["model_type"] == "internlm2" else "qwen2"
    sizes = {name: value for name, value in text.items() if name != "architectures"}
    native = tiny_config("old", family="internvl")
    tower = native["vision_config"] | {
        "norm_type": vision["norm_type"],
        "attention_bias": vision["qkv_bias"],
        "use_qk_norm": vision["qk_normalization"],
    }
    native |= {"text_config": sizes | {"model_type": kind}, "vision_config": tower}
    del native["architectures"], native["model_type"]
    model = transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(**native, attn_implementation="eager")
    )
    missing, unexpected = model.load_state_dict(unfuse(random_tensors(config), text), strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name]
    return model.eval().requires_grad_(False)


CHECKPOINTS = {
    "native": {"family": "internvl", "generation": "old"},
    "native, saved anew, tied": {"family": "internvl", "generation": "new", "tied": True},
    "native, 6B tower": {"family": "internvl_6b"},
    "chat, InternLM2": {"family": "internvl_chat", "generation": "old"},
    "chat, Qwen2, 6B tower": {"family": "internvl_chat_6b"},
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(request, tiny_hf, load_torch):
    settings = CHECKPOINTS[request.param]
    folder = tiny_hf(**settings)
    model, _ = ivc_jax.load(folder, dtype="float32")
    if "chat" not in settings["family"]:
        return model, load_torch(folder)
    return model, assemble(
        tiny_config(settings.get("generation", "new"), family=settings["family"])
    )


@pytest.mark.parametrize("case", CASES)
def test_logits_and_32_greedy_tokens_equal_transformers(pair, case):
    model, reference = pair
    arrays = hf_arrays(CASES[case])
    parity.check_answers(model, arrays, *parity.ask(reference, parity.to_tensors(arrays)))


@pytest.fixture(scope="module")
def deep(tiny_hf):
    settings = {"num_hidden_layers": 5}
    path = tiny_hf(family="internvl_chat", generation="old", **settings)
    model, _ = ivc_jax.load(path, dtype="float32", processor=False)
    return model, assemble(tiny_config("old", family="internvl_chat", **settings))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("tiles", [(1, 1), (2, 3)])
def test_kept_sets_logits_and_greedy_tokens_equal_the_released_method(deep, tiles, raw):
    released = pytest.importorskip("helpers.released_internvl")
    model, reference = deep
    count = np.prod(tiles) + (np.prod(tiles) > 1)
    arrays = hf_arrays([(5, (int(count),), 9)], seed=int(count))
    walk = released.ReleasedInternVL(reference, tiles, side=4, raw=raw)
    with torch.no_grad():
        span = released.Span(6, int(count) * TOKENS)
        kept, logits, tokens = walk.generate(parity.to_tensors(arrays), 3, span, 24)
    arrays["images_spatial_crop"] = [tiles]
    method = f"ivc:layer=3{',quirks=official' * raw}"
    bucket = Buckets(visual=(7 * TOKENS,), rows=(7,))  # a program for both counts of tiles
    prompt = parity.check_answers(model, arrays, logits[None], [tokens], method, bucket)
    np.testing.assert_array_equal(prompt.kept[0], kept)
    assert len(kept) == 16 + round(0.5 * count * TOKENS)
