"""What methods are told by towers with a class token, against transformers."""

import jax
import numpy as np
import pytest
from families import internvl, llava
from helpers.prompts import hf_arrays

import ivc_jax
from ivc_jax.engine.prefill import run_prefill
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.requests import (
    AttentionReceived,
    ClassFeatures,
    Hidden,
    TowerAttention,
    TowerKeys,
)
from ivc_jax.methods.select import from_mask

torch = pytest.importorskip("torch")

# Ragged prompts of three pictures (tiles): which of them a sample has.
PROMPTS = {
    "llava": llava.hf_arrays(llava.RAGGED),
    "internvl": internvl.hf_arrays([(6, (1,), 7), (11,), (2, (2,), 9)]),
}
PICTURES = {0: [0], 2: [1, 2]}
EARLY = 0


class Probe(Method):
    """Keeps everything and writes down what it is told."""

    name = "probe"

    def __init__(self, asked):
        self.asked, self.heard = asked, None

    @property
    def stages(self):
        return (Stage(0, 1.0),)

    def requests(self, stage):
        return self.asked

    def select(self, signals, layout, stage, num_keep):
        heard = [signals[request] for request in self.asked]
        self.heard = [signal() if callable(signal) else signal for signal in heard]
        return from_mask(layout.visual_valid, num_keep)


def say(path, arrays, load_torch):
    """Return the first block's attention and what enters it, of transformers."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    reference = load_torch(path)
    with torch.no_grad():
        out = reference(**tensors, output_attentions=True, output_hidden_states=True)
        normed = reference.model.language_model.norm(out.hidden_states[0])
    return out.attentions[0].numpy(), normed.numpy()


@pytest.mark.parametrize("family", PROMPTS)
def test_largest_head_and_normed_states_of_the_decoder(family, tiny_hf, load_torch):
    path, arrays = tiny_hf(family=family), PROMPTS[family]
    model = ivc_jax.load(path, dtype="float32", processor=False)[0]
    attention, normed = say(path, arrays, load_torch)
    received, hidden = listen(model, arrays, AttentionReceived(0, heads="max"), Hidden(normed=True))
    for row in PICTURES:
        visual = arrays["input_ids"][row] == model.config.image_token_id
        text = ~visual & (arrays["attention_mask"][row] == 1)
        largest = attention[row][:, visual][:, :, visual].max(axis=0).mean(axis=0)
        for found, wanted in (
            (received, largest),
            (hidden.visual, normed[row][visual]),
            (hidden.text, normed[row][text]),
        ):
            limit = 1e-5 * np.abs(wanted).max()
            np.testing.assert_allclose(found[row, : len(wanted)], wanted, rtol=0, atol=limit)


def listen(model, arrays, *asked):
    """Return signals [B, V, ...] of the prompts."""
    inputs = collate(ivc_jax.Batch.from_hf(**arrays), model.config)

    def run(params, inputs):
        method = Probe(asked)
        run_prefill.__wrapped__(model.config, method, params, inputs)
        return method.heard

    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(model.params, inputs)


@pytest.fixture(scope="module", params=PROMPTS)
def told(request, tiny_hf, load_torch):
    """The model, its prompts, and of every block of the reference's tower what went through it.

    Attention [pictures, H, 1 + P, 1 + P], queries and keys [pictures, 1 + P, H * C], outputs
    [pictures, 1 + P, E].
    """
    path, arrays = tiny_hf(family=request.param), PROMPTS[request.param]
    model = ivc_jax.load(path, dtype="float32", processor=False)[0]
    return model, arrays, hear(load_torch(path).model.vision_tower, arrays)


def hear(reference, arrays):
    """Note what goes through the blocks of a tower."""
    heard = []

    def note(block, inputs, output):
        heard[-1]["outputs"] = (output if torch.is_tensor(output) else output[0]).numpy()

    def note_attention(attention, inputs, kwargs, output):
        x = inputs[0] if inputs else kwargs["hidden_states"]
        vectors = {name: getattr(attention, f"{name[0]}_proj")(x) for name in ("queries", "keys")}
        for name, norm in (("queries", "q_norm"), ("keys", "k_norm")):
            vectors[name] = getattr(attention, norm, torch.nn.Identity())(vectors[name]).numpy()
        heard.append({"attention": output[1].numpy(), **vectors})

    hooks = []
    for name, module in reference.named_modules():
        if name.split(".")[-2:-1] in (["layers"], ["layer"]):
            attention = getattr(module, "self_attn", None) or module.attention
            hooks += [
                module.register_forward_hook(note),
                attention.register_forward_hook(note_attention, with_kwargs=True),
            ]
    with torch.no_grad():
        reference(torch.from_numpy(arrays["pixel_values"]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    return heard


def pool(model, patches):
    """Average [pictures, P, ...] over the square of patches that becomes a token."""
    side = model.config.vision.spatial_merge_size
    count, rest = round(patches.shape[1] ** 0.5), patches.shape[2:]
    cells = patches.reshape(len(patches), count // side, side, count // side, side, *rest)
    return cells.mean(axis=(2, 4)).reshape(len(patches), -1, *rest)


def check(found, expected):
    """Compare signals [B, V, ...] with those of pictures [pictures, tokens, ...]."""
    for row, numbers in PICTURES.items():
        wanted = np.concatenate(expected[numbers])
        limit = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(found[row, : len(wanted)], wanted, rtol=0, atol=limit)


@pytest.mark.parametrize("late", [False, True])
def test_row_of_the_class_token_and_keys(told, late):
    model, arrays, heard = told
    block = model.config.vision.depth - 1 if late else EARLY
    by = heard[block]
    asked = [None if late else EARLY]
    row, joined, mean, side_by_side, rotated = listen(
        *(model, arrays, TowerAttention(*asked), TowerAttention(*asked, heads="joined")),
        *(TowerKeys(*asked), TowerKeys(*asked, heads="joined")),
        TowerKeys(*asked, rotated=True),
    )
    check(row, pool(model, by["attention"][:, :, 0, 1:].mean(axis=1)))
    queries, keys = by["queries"], by["keys"]
    logits = np.einsum("rd,rpd->rp", queries[:, 0], keys) / np.sqrt(keys.shape[-1])
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    check(joined, pool(model, (raised / raised.sum(axis=1, keepdims=True))[:, 1:]))
    keys = keys[:, 1:]
    check(side_by_side, pool(model, keys))
    heads = model.config.vision.num_heads
    check(mean, pool(model, keys.reshape(*keys.shape[:2], heads, -1).mean(axis=2)))
    np.testing.assert_array_equal(rotated, mean)  # nothing turns there


def test_outputs_for_the_class_token(told):
    model, arrays, heard = told
    last = model.config.vision.depth - 1
    tokens = model.config.vision.merge_area
    for block, found in zip(
        (EARLY, last), listen(model, arrays, ClassFeatures(EARLY), ClassFeatures()), strict=True
    ):
        outputs = heard[block]["outputs"]
        count = (outputs.shape[1] - 1) // tokens
        check(found, np.repeat(outputs[:, :1], count, axis=1))


def test_hired_shares_the_budget_over_real_tiles(tiny_hf, load_torch):
    """Two tiles side by side and a thumbnail, whose halves are what the tiles are worth."""
    path = tiny_hf(family="internvl")
    model = ivc_jax.load(path, dtype="float32", processor=False)[0]
    arrays = internvl.hf_arrays([(5, (3,), 9)], seed=4)
    heard = hear(load_torch(path).model.vision_tower, arrays)
    early, late = (
        pool(model, heard[block]["attention"][:, :, 0, 1:].mean(axis=1)) for block in (0, -1)
    )  # [3, tokens of a tile]
    n = late.shape[1]
    side = round(n**0.5)
    total = int(0.4 * 3 * n)
    whole = total // 2
    left = np.arange(n) % side < side // 2
    worth = np.array([early[2][left].sum(), early[2][~left].sum()])
    share = (total - whole) * worth / worth.sum()
    quota = np.floor(share).astype(int)
    quota[np.argmax(share - quota)] += total - whole - quota.sum()
    kept = [np.sort(np.argsort(-late[i])[:k]) + i * n for i, k in enumerate([*quota, whole])]
    arrays["images_spatial_crop"] = [(2, 1)]
    prompt = ivc_jax.prefill(model, ivc_jax.Batch.from_hf(**arrays), "hired:keep_ratio=0.4")
    first = np.flatnonzero(arrays["input_ids"][0] == model.config.image_token_id)[0]
    inside = (prompt.kept[0] >= first) & (prompt.kept[0] < first + 3 * n)
    np.testing.assert_array_equal(prompt.kept[0][inside] - first, np.concatenate(kept))


def test_a_tower_without_class_token_says_so(tiny_hf):
    model, _ = ivc_jax.load(tiny_hf(), dtype="float32")
    with pytest.raises(MethodError, match="no class token: it cannot answer ClassFeatures"):
        listen(model, hf_arrays([(2, ("image", (1, 4, 4)), 3)]), ClassFeatures())


def test_what_a_token_receives_may_be_added_up_over_its_patches(told, tiny_hf):
    model, arrays, _ = told
    mean, added = listen(model, arrays, TowerAttention(), TowerAttention(patches="sum"))
    np.testing.assert_allclose(added, model.config.vision.merge_area * mean, rtol=1e-6)
    model, _ = ivc_jax.load(tiny_hf(), dtype="float32")  # all patches ask
    arrays = hf_arrays([(2, ("image", (1, 4, 4)), 3)])
    (added,) = listen(model, arrays, TowerAttention(patches="sum"))
    np.testing.assert_allclose(added.sum(axis=1), 1.0, rtol=1e-5)
