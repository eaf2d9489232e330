"""Tokens merged as features of the tower, whose projector follows, on a tiny LLaVA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families.llava import RAGGED, hf_arrays

import ivc_jax
from ivc_jax.engine.prefill import encode
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import MethodError, parse
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.requests import ClassFeatures, TowerAttention, TowerFeatures
from ivc_jax.methods.select import from_mask, keep_weights
from ivc_jax.nn import tower


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(family="llava", num_hidden_layers=4), dtype="float32")[0]


@pytest.fixture(scope="module")
def inputs(model):
    return collate(ivc_jax.Batch.from_hf(**hf_arrays(RAGGED)), model.config)


@dataclasses.dataclass(frozen=True)
class FirstTwo(Method):
    """Keep every token; the first becomes the mean of the first two, and the third a half."""

    name = "first_two"
    merge_in: str = "tower"

    @property
    def stages(self):
        return (Stage(0, 1.0, merge_in=self.merge_in),)

    def requests(self, stage):
        return (TowerFeatures(),)

    def select(self, signals, layout, stage, num_keep):
        chosen = from_mask(layout.visual_valid, num_keep)
        weights = keep_weights(chosen, layout.visual_valid.shape[1])
        half = jnp.where(layout.visual_valid[:, :2].all(axis=1), 0.5, 0.0)  # [B]
        weights = weights.at[:, 0, :2].set(half[:, None]).at[:, 2, 2].set(half)
        return chosen.replace(weights=weights)


def project(model, features):
    """Return what the projector makes of one token's features [E]."""
    rows = jnp.asarray(features)[None, None]
    return tower.project(model.config.vision, model.params["vision"], rows)[0, 0]


def test_the_projector_follows_the_mean_of_features(model, inputs):
    vision, params = model.config.vision, model.params["vision"]
    tap = tower.Features(vision.depth - 1, vision.depth - 1)
    encoded = encode(model, inputs)
    rows = jnp.asarray(inputs.patches), jnp.asarray(inputs.patch_positions)
    _, tapped = tower.encode(vision, params, *rows, [tap])
    features = np.asarray(tapped[tap]).reshape(-1, vision.embed_dim)[inputs.visual_source]
    visual = np.array(encoded.visual)  # [B, V, D]
    for row in (0, 2):
        visual[row, 0] = project(model, features[row, :2].mean(axis=0))
        visual[row, 2] = project(model, features[row, 2] / 2)
    wanted = ivc_jax.prefill(model, inputs.replace(visual=jnp.asarray(visual)))
    found = ivc_jax.prefill(model, inputs, FirstTwo())
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.logits[1], wanted.logits[1])  # of words alone
    # the mean of what the projector makes is something else
    other = ivc_jax.prefill(model, inputs, FirstTwo(merge_in="decoder"))
    assert np.abs(other.logits[0] - found.logits[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "also"),
    [
        ("visiondrop", "causal=true"),
        ("visionzip", "contextual=0.2"),
        ("prumerge", "neighbours=3"),
        ("fsr", "focus_mass=0.3"),
        ("nuwa", "tau=0.1"),
    ],
)
def test_methods_merge_there_where_a_token_is_one_patch(model, inputs, tiny_hf, spec, also):
    first, *later = parse(spec).resolve(model.config).stages
    assert first.merge_in == "tower"
    assert all(stage.merge_in == "decoder" for stage in later)
    given, default = (
        ivc_jax.prefill(model, inputs, f"{spec}:{fields}")
        for fields in (f"{also},merge_in=decoder", also)
    )
    assert np.abs(np.asarray(given.logits) - np.asarray(default.logits)).max() > 1e-3
    other, _ = ivc_jax.load(tiny_hf(), dtype="float32")
    assert parse(spec).resolve(other.config).stages[0].merge_in == "decoder"
    with pytest.raises(MethodError, match="merge_in=tower needs a token for each patch"):
        parse(f"{spec}:merge_in=tower").resolve(other.config)
    with pytest.raises(MethodError, match="merge_in must be one of"):
        parse(f"{spec}:merge_in=head")


def test_signals_of_the_tower_are_those_of_the_block_behind_the_feature(
    model, inputs, tiny_hf, load_torch
):
    """The class token's attention and the features, against CLIP's in transformers."""
    torch = pytest.importorskip("torch")
    reference = load_torch(tiny_hf(family="llava", num_hidden_layers=4))
    pixels = torch.from_numpy(hf_arrays(RAGGED)["pixel_values"])
    with torch.no_grad():
        out = reference.model.vision_tower(
            pixels, output_attentions=True, output_hidden_states=True
        )
    attention = out.attentions[-2][:, :, 0, 1:].mean(axis=1).numpy()  # [pictures, patches]
    hidden = out.hidden_states[-2][:, 1:].numpy()
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Look(FirstTwo):
        name = "look"

        def requests(self, stage):
            return TowerFeatures(), TowerAttention()

        def select(self, signals, layout, stage, num_keep):
            seen.update(features=signals[TowerFeatures()], attention=signals[TowerAttention()]())
            return from_mask(layout.visual_valid, num_keep)

    with jax.disable_jit():
        ivc_jax.prefill(model, jax.tree.map(jnp.asarray, inputs), Look())
    picture = {0: [0], 2: [1, 2]}  # of the samples
    for row, numbers in picture.items():
        count = len(numbers) * attention.shape[1]
        np.testing.assert_allclose(
            seen["attention"][row, :count], np.concatenate(attention[numbers]), atol=1e-6
        )
        np.testing.assert_allclose(
            seen["features"][row, :count], np.concatenate(hidden[numbers]), atol=1e-4
        )


@dataclasses.dataclass(frozen=True)
class WithClass(FirstTwo):
    """The second token of a sample becomes the class token of its picture."""

    name = "with_class"

    def requests(self, stage):
        return TowerFeatures(), ClassFeatures()

    def select(self, signals, layout, stage, num_keep):
        chosen = super().select(signals, layout, stage, num_keep)
        return chosen.replace(becomes_class=(jnp.arange(num_keep) == 1) & chosen.valid)


def test_a_kept_token_may_become_the_class_token(model, inputs):
    vision, params = model.config.vision, model.params["vision"]
    last = vision.depth - 1
    tap = tower.Features(last, last, of_class=True)
    rows = jnp.asarray(inputs.patches), jnp.asarray(inputs.patch_positions)
    classes = tower.encode(vision, params, *rows, [tap])[1][tap]  # [R, E]
    assert classes.shape == (len(rows[0]), vision.embed_dim)
    plain = FirstTwo()
    # as if the tower had made the class token of that patch, which the first one averages
    merged = encode(model, inputs).visual
    visual = np.array(merged)
    for row, picture in ((0, 0), (2, 1)):
        visual[row, 1] = project(model, classes[picture])
    tap = tower.Features(last, last)
    features = np.asarray(tower.encode(vision, params, *rows, [tap])[1][tap])
    features = features.reshape(-1, vision.embed_dim)[inputs.visual_source]
    for row in (0, 2):
        visual[row, 0] = project(model, features[row, :2].mean(axis=0))
        visual[row, 2] = project(model, features[row, 2] / 2)
    wanted = ivc_jax.prefill(model, inputs.replace(visual=jnp.asarray(visual)))
    found = ivc_jax.prefill(model, inputs, WithClass())
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.logits[1], wanted.logits[1])
    assert np.abs(ivc_jax.prefill(model, inputs, plain).logits[0] - found.logits[0]).max() > 1e-3
    with pytest.raises(MethodError, match="with_class keeps class tokens, which needs merge_in=to"):
        ivc_jax.prefill(model, inputs, WithClass(merge_in="decoder"))
