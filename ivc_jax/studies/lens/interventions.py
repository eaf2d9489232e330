"""Visual tokens that skip parts of the decoder, enter it late or leave it early.

Everything is done by masks in one program, whichever blocks are meant. A token that has not entered
yet, or has left, is seen by no text and changes nothing; text keeps the positions that it has in
the full prompt. What is measured is the first token of the answer: nothing is decoded.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.compact import Sequence, add_feature
from ivc_jax.engine.prefill import embed_inputs, place
from ivc_jax.model import Model
from ivc_jax.nn import decoder, rope
from ivc_jax.nn.blocks import take_block
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs


@dataclasses.dataclass(frozen=True)
class Intervention:
    """What happens to some visual tokens.

    Attributes:
        name: of the row in tables.
        skip: sublayers that leave them as they are: n is the attention of block n, n + 0.5 its
            feed-forward part, as in the released code (llava_llama_layer_skipping.py). They stay
            visible.
        entry: first block that they are part of.
        exit: first block that they are not part of any more; None is never.
    """

    name: str
    skip: tuple[float, ...] = ()
    entry: int = 0
    exit: int | None = None

    def masks(self, num_layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Say for each block whether they are present, attend and are fed forward: bool [L]."""
        blocks = np.arange(num_layers)
        present = (blocks >= self.entry) & (
            blocks < (num_layers if self.exit is None else self.exit)
        )
        attend, feed = (~np.isin(blocks + part, self.skip) for part in (0, 0.5))
        return present, present & attend, present & feed


def intervene(
    model: Model, inputs: Inputs, tokens: np.ndarray, intervention: Intervention
) -> np.ndarray:
    """Return the logits [B, vocab] of the first token of each answer.

    Args:
        inputs: collated.
        tokens: bool [B, V], the visual tokens that it happens to.
    """
    masks = intervention.masks(model.config.decoder.num_layers)
    inputs = place(model, inputs)
    with on_mesh(model.mesh):
        return np.asarray(_run(model.config, model.params, inputs, jnp.asarray(tokens), *masks))


@partial(jax.jit, static_argnums=0)
def _run(
    config: ModelConfig,
    params: dict[str, Any],
    inputs: Inputs,
    tokens: jax.Array,
    present: jax.Array,
    attending: jax.Array,
    fed: jax.Array,
) -> jax.Array:
    hidden, features, _ = embed_inputs(config, params, inputs)
    layout, own = inputs.layout, params["decoder"]
    B, N = inputs.tokens.shape
    slot = jnp.where(layout.visual_valid & tokens, layout.visual_index, N)  # [B, V]
    meant = jnp.zeros((B, N), bool)
    meant = meant.at[jnp.arange(B)[:, None], slot].set(True, mode="drop")
    seen = jnp.tri(N, dtype=bool) & (jnp.arange(N) < layout.lengths[:, None])[:, None]  # [B, N, N]
    angles = rope.angles(config.decoder.rope, layout.positions)
    sequence = Sequence(hidden, layout, jnp.zeros((B, N), jnp.int32), features)
    for layer in range(config.decoder.num_layers):
        # A slot sees itself whatever happens: no softmax runs over nothing.
        hides = ~present[layer] & meant[:, None] & ~jnp.eye(N, dtype=bool)  # [B, N, N]
        attend = partial(_attend, mask=(seen & ~hides)[:, None], moves=attending[layer] | ~meant)
        hidden, _ = decoder.run_layer(
            *(config.decoder, take_block(own["layers"], layer), sequence.hidden, angles, attend),
            fed=fed[layer] | ~meant,
        )
        sequence = sequence.replace(hidden=hidden)
        if sequence.features is not None:
            sequence = add_feature(sequence)
    last = jnp.take_along_axis(sequence.hidden, (layout.lengths - 1)[:, None, None], axis=1)[:, 0]
    return decoder.logits(config.decoder, own, last)


def _attend(
    *vectors: jax.Array, mask: jax.Array, moves: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attend under a mask; what does not move gets zeros, which the projection leaves zeros."""
    mixed, handed = decoder.attend_whole(*vectors, mask=mask)
    return jnp.where(moves[..., None, None], mixed, 0), handed
