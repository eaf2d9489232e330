"""Parts of a vision tower over padded patch rows, after Qwen2-VL's and Qwen2.5-VL's.

One row holds the patches of one image (or of one temporal slice of a video); rows never see each
other. Without windows attention is full inside a row, and rows are padded on the right:

    patch_positions[row]   (0,0) (0,1) (1,0) (1,1) (0,2) ... (-1,-1) (-1,-1)
                           `---- one merged token ---'       `-- padding --'

With windows most blocks attend within squares of the image only. Rows then come in window order,
every window padded to its full size, so that a reshape cuts a row into windows:

    row        a a a a b b - -   c c - - - - - -   - - - - - - - -
               `-- window 0 -'   `-- window 1 -'   `- padding -'       lengths 6 2 0
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ivc_jax.config import VisionConfig
from ivc_jax.nn import rope
from ivc_jax.nn.attention import attend
from ivc_jax.nn.layers import MLP, NORMS, GatedMLP, Linear
from ivc_jax.parallel.constraints import axis_size, constrain


@flax.struct.dataclass
class Windows:
    """Attention windows of patch rows: W windows of P / W slots each, real patches first."""

    lengths: jax.Array  # [R, W] int32, real patches of each window
    order: jax.Array  # [R, P] int32, slots of a row, those of real patches first


# What happens between projection and output: attention within what a patch may see. From rotated
# queries and keys and from values [R, P, H, C] it makes the mixed values [R, P, H, C].
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class VisionAttention(nn.Module):
    """Multi-head attention inside a patch row, with 2-D rotary positions."""

    config: VisionConfig

    def setup(self) -> None:
        """Declare the projections under the names that checkpoints use."""
        self.qkv = Linear(3 * self.config.embed_dim)
        self.proj = Linear(self.config.embed_dim)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project [R, P, D] to queries, keys and values [R, P, H, C], none of them rotated."""
        shape = (3, self.config.num_heads, self.config.head_dim)
        if axis_size("model") == 1 or self.is_initializing():
            qkv = self.qkv(x).reshape(*x.shape[:2], *shape)
        else:
            # A device holds columns that are no whole heads. Its share of whole heads of the
            # weight is far smaller than that of what the weight makes of the patches.
            params = self.get_variable("params", "qkv")
            weight = params["weight"].reshape(*shape, -1)  # [3, H, C, D]
            weight = constrain(weight, None, "model")
            bias = constrain(params["bias"].reshape(shape), None, "model")
            qkv = jnp.einsum("rpd,thcd->rpthc", x, weight) + bias  # [R, P, 3, H, C]
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    def __call__(self, x: jax.Array, angles: jax.Array, attend: Attend) -> jax.Array:
        """Map [R, P, D] to [R, P, D], with angles [R, P, F]."""
        queries, keys, values = self.project(x)  # [R, P, H, C] each
        mixed = attend(rope.rotate(queries, angles), rope.rotate(keys, angles), values)
        return self.proj(mixed.reshape(x.shape))


def attend_rows(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    lengths: jax.Array,
    windows: Windows | None = None,
    full: jax.Array | None = None,
) -> jax.Array:
    """Attend within each patch row, or within its windows (an `Attend`).

    Args:
        lengths: [R], real patches of each row.
        windows: without them attention is over the row, whose real patches come first.
        full: scalar bool, attend over the row despite the windows; None is False.
    """
    if windows is None:
        return attend(queries, keys, values, lengths=lengths)
    if full is None:
        return _attend_within(windows, queries, keys, values)
    return jax.lax.cond(
        full,
        lambda *qkv: _attend_across(windows, lengths, *qkv),
        lambda *qkv: _attend_within(windows, *qkv),
        *(queries, keys, values),
    )


def _attend_within(
    windows: Windows, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> jax.Array:
    """Attend inside each window: [R, P, H, C], as R * W short rows."""
    R, W = windows.lengths.shape
    cut = [x.reshape(R * W, -1, *x.shape[2:]) for x in (queries, keys, values)]  # [R W, P/W, H, C]
    # A window of padding alone still needs one key, or its softmax is 0 / 0.
    lengths = windows.lengths.reshape(R * W).clip(min=1)
    return attend(*cut, lengths=lengths).reshape(queries.shape)


def _attend_across(
    windows: Windows, lengths: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> jax.Array:
    """Attend over the whole row, around the padding between windows."""
    # Attention does not mind the order of its keys. With the real ones first their number says it
    # all, where a mask would cost P x P numbers in cuDNN.
    keys, values = (
        jnp.take_along_axis(x, windows.order[:, :, None, None], axis=1) for x in (keys, values)
    )
    return attend(queries, keys, values, lengths=lengths)


class VisionBlock(nn.Module):
    """Pre-norm transformer block of the tower. Its caller says which patches see which."""

    config: VisionConfig

    def setup(self) -> None:
        """Declare the parts under the names that checkpoints use."""
        config = self.config
        norm = partial(NORMS[config.norm], epsilon=config.norm_eps)
        self.norm1, self.norm2 = norm(), norm()
        self.attn = VisionAttention(config)
        sizes = (config.mlp_dim, config.embed_dim, config.activation)
        self.mlp = GatedMLP(*sizes, use_bias=True) if config.gated_mlp else MLP(*sizes)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the unrotated queries, keys and values [R, P, H, C] of the block's attention."""
        return self.attn.project(self.norm1(x))

    def __call__(self, x: jax.Array, angles: jax.Array, attend: Attend) -> jax.Array:
        """Map [R, P, D] to [R, P, D], with angles [R, P, F]."""
        x = x + self.attn(self.norm1(x), angles, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Join each block of merge² consecutive patches into one visual token."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [R, P, D] to [R, P / merge², out_dim]."""
        R, P, D = x.shape
        joined = D * self.config.merge_area
        # Patch by patch, before they are joined.
        x = NORMS[self.config.norm](epsilon=self.config.norm_eps, name="ln_q")(x)
        x = x.reshape(R, P // self.config.merge_area, joined)  # [R, W, merge² D]
        return MLP(joined, self.config.out_dim, "gelu", name="mlp")(x)


def find_windows(valid: Bool[Array, "R P"], window_patches: int) -> Windows:
    """Count the real patches of each window; list the slots of a row, real patches first."""
    R, P = valid.shape
    lengths = valid.reshape(R, P // window_patches, window_patches).sum(axis=2)  # [R, W]
    return Windows(lengths=lengths, order=jnp.argsort(~valid, axis=1, stable=True))
