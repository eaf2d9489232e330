"""How the next token is chosen from logits.

A rule is a small pytree: its settings are static, what differs from run to run are leaves. The
decode loop carries it in its state and knows nothing more about it.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Greedy:
    """Take the likeliest token; ties go to the lowest id."""

    def choose(self, logits: jax.Array, step: jax.Array) -> jax.Array:
        """Choose one token a sample.

        Args:
            logits: [B, vocab] float32.
            step: [] int32, tokens chosen before.

        Returns:
            [B] int32.
        """
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


GREEDY = Greedy()
