"""The losses of both stages, through a frozen model of any family."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence, add_feature
from ivc_jax.engine.decoder_signals import split
from ivc_jax.engine.prefill import embed_inputs
from ivc_jax.methods.covipal import score
from ivc_jax.module_sizes import Sizes
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.attention import attend_biased
from ivc_jax.nn.blocks import take_block
from ivc_jax.studies.covipal.labels import compare, sum_received
from ivc_jax.studies.covipal.settings import Training
from ivc_jax.studies.covipal.soft import bias_keys, spread
from ivc_jax.types import Inputs, Layout


@flax.struct.dataclass
class Answers:
    """Where the answers begin behind the prompts of a batch, and how many tokens stay."""

    prompts: jax.Array  # [B] int32, tokens of the prompt, the answer lies behind
    tokens: jax.Array  # [B, A] int32
    valid: jax.Array  # [B, A] bool
    counts: jax.Array  # [B] int32, visual tokens kept


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The static part of a loss: the model's sizes, the module's, and the settings."""

    config: ModelConfig
    sizes: Sizes
    training: Training

    def imitate(self, params: dict, model: dict[str, Any], inputs: Inputs) -> jax.Array:
        """Return the error of the module's scores against attention received in the guide.

        Args:
            params: of the module.
            model: parameters of the model.
            inputs: prompts alone.
        """
        layout, settings, decoder_config = inputs.layout, self.training, self.config.decoder
        guide = settings.choose_guide(decoder_config.num_layers)
        entering = self._run(model, self._embed(model, inputs), 0, settings.layer, None)
        deeper = self._run(model, entering, settings.layer, guide, None)
        angles = rope.angles(decoder_config.rope, layout.positions)
        layers = model["decoder"]["layers"]
        queries, keys, _ = decoder.project(decoder_config, layers, deeper.hidden, angles, guide)
        received = sum_received(queries, keys, layout, settings.rows, settings.per_row)
        scores = score(self.sizes, params, split(layout, entering.hidden), layout)
        return compare(scores, received, layout.visual_valid, settings.labels)

    def tune(
        self, params: dict, model: dict[str, Any], inputs: Inputs, answers: Answers
    ) -> jax.Array:
        """Return the cross-entropy of answers under the soft mask, plus what `beta` weighs.

        Args:
            params: of the module.
            model: parameters of the model.
            inputs: prompts with their answers behind them.
        """
        layout, settings = inputs.layout, self.training
        entering = self._run(model, self._embed(model, inputs), 0, settings.layer, None)
        # The module does not see the answer.
        asked = layout.text_valid & (layout.text_index < answers.prompts[:, None])
        hidden = split(layout, entering.hidden)
        scores = score(self.sizes, params, hidden, layout.replace(text_valid=asked))
        bias = bias_keys(
            *(scores, layout, answers.counts, settings.tau, settings.least, settings.halvings),
            straight_through=settings.straight_through,
        )
        masked = self._answer(model, entering, answers, bias)
        total = jnp.maximum(answers.valid.sum(), 1)
        right = jnp.take_along_axis(masked, answers.tokens[..., None], axis=2)[..., 0]  # [B, A]
        loss = -jnp.where(answers.valid, right, 0.0).sum() / total
        if settings.beta:
            whole = self._answer(model, entering, answers, None)
            apart = optax.losses.kl_divergence_with_log_targets(masked, whole)  # [B, A]
            loss += settings.beta * jnp.where(answers.valid, apart, 0.0).sum() / total
        return loss

    def _embed(self, model: dict[str, Any], inputs: Inputs) -> Sequence:
        hidden, features, _ = embed_inputs(self.config, model, inputs)
        origin = jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)
        return Sequence(hidden, inputs.layout, origin, features)

    def _run(
        self,
        model: dict[str, Any],
        sequence: Sequence,
        start: int,
        stop: int,
        bias: jax.Array | None,
    ) -> Sequence:
        """Run blocks start..stop-1 with something added to the logits of visual keys, [B, V]."""
        config, layout = self.config.decoder, sequence.layout
        angles = rope.angles(config.rope, layout.positions)  # [B, N, F]
        mask, added = _draw_mask(layout), None if bias is None else spread(bias, layout)

        def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, *_: Any) -> tuple:
            return attend_biased(queries, keys, values, mask, added), None

        @jax.checkpoint  # of a deep model no block's insides are kept for the way back
        def run(params: dict, hidden: jax.Array) -> jax.Array:
            return decoder.run_layer(config, params, hidden, angles, attend)[0]

        for layer in range(start, stop):
            hidden = run(take_block(model["decoder"]["layers"], layer), sequence.hidden)
            sequence = sequence.replace(hidden=hidden)
            if sequence.features is not None:
                sequence = add_feature(sequence)
        return sequence

    def _answer(
        self, model: dict[str, Any], entering: Sequence, answers: Answers, bias: jax.Array | None
    ) -> jax.Array:
        """Return log-probabilities of every token of the answers: [B, A, vocab]."""
        config = self.config.decoder
        left = self._run(model, entering, self.training.layer, config.num_layers, bias).hidden
        # The token before it says how likely one is.
        slots = answers.prompts[:, None] - 1 + jnp.arange(answers.tokens.shape[1])  # [B, A]
        slots = jnp.minimum(slots, left.shape[1] - 1)
        hidden = jnp.take_along_axis(left, slots[..., None], axis=1)  # [B, A, D]
        return jax.nn.log_softmax(decoder.logits(config, model["decoder"], hidden), axis=-1)


def _draw_mask(layout: Layout) -> jax.Array:
    """Mark what a query may look at: valid slots up to its own, [B, 1, N, N]."""
    slots = jnp.arange(layout.positions.shape[2])
    present = slots < layout.lengths[:, None]  # [B, N]
    # a query of padding looks at itself, or its row would be empty
    seen = (slots <= slots[:, None]) & (present[:, None] | (slots == slots[:, None]))
    return seen[:, None]
