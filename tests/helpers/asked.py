"""Questions about scenes: their answers, and packed ones against single ones."""

import jax
import jax.numpy as jnp
import numpy as np

from digit_scenes.glyphs import COLOUR_NAMES
from digit_scenes.packing import Plan
from digit_scenes.questions import LENGTHS, ask
from digit_scenes.scenes import Scene
from ivc_jax.config import DecoderConfig
from ivc_jax.nn import decoder, rope


def check_contents(random: np.random.Generator, scene: Scene) -> None:
    """Ask for colours, counts and existence, and compare the answers."""
    q = ask(random, scene, "colour")
    labels = [d.label for d in scene.digits]
    assert (q is None) == all(labels.count(label) > 1 for label in labels)
    if q is not None:
        same = {COLOUR_NAMES[d.colour] for d in scene.digits if str(d.label) in q.text}
        assert same == {q.answer}

    for _ in range(4):
        q = ask(random, scene, "counting")
        matching = [d for d in scene.digits if d.name.split()[0] in q.text]
        expected = scene.digits if q.text == "How many digits?" else matching
        assert q.answer == str(len(expected))

        q = ask(random, scene, "existence")
        name = q.text.split(" ", 3)[3][:-1]
        assert q.answer == ("Yes" if name in {d.name for d in scene.digits} else "No")
        if q.answer == "No":
            label, colour = name[-1], name.split()[0]
            labels = {str(d.label) for d in scene.digits}
            assert q.category != "adversarial" or label in labels
            assert q.category != "popular" or (
                label not in labels and any(colour in d.name for d in scene.digits)
            )


def check_packed(
    packed: jax.Array,
    config: DecoderConfig,
    params: dict,
    plan: Plan,
    batch: dict[str, np.ndarray],
    visual: jax.Array,
) -> None:
    """Compare logits [1, A, vocab] of packed questions with those of each question alone."""

    @jax.jit
    def run_alone(params, tokens):
        length, end = tokens.shape[1], plan.grid**2 + 1
        hidden = decoder.embed(params, tokens).at[:, 1:end].set(visual)
        positions = np.tile(np.arange(length, dtype=np.int32), (3, 1, 1))
        if not plan.line:
            # the picture's cells share one time step; text goes on after the largest index
            cell = np.arange(plan.grid**2)
            positions[:, 0, 1:end] = [1 + 0 * cell, 1 + cell // plan.grid, 1 + cell % plan.grid]
            positions[:, 0, end:] = plan.grid + 1 + np.arange(length - end)
        angles = rope.angles(config.rope, jnp.asarray(positions))
        hidden, _ = decoder.run_span(config, params["layers"], hidden, angles, 0, config.num_layers)
        return decoder.logits(config, params, hidden)

    at = 0
    for start, task in zip(plan.starts, plan.tasks, strict=True):
        asked, answered = LENGTHS[task]
        own = batch["tokens"][:, start : start + asked + answered]
        tokens = np.concatenate([batch["tokens"][:, : plan.picture], own], axis=1)
        single = run_alone(params, tokens)[:, -(answered + 1) :]
        np.testing.assert_allclose(packed[:, at : at + answered + 1], single, atol=1e-5)
        at += answered + 1
    assert at == len(plan.answer_index) == packed.shape[1]
