"""Parts of a vision tower over padded patch rows.

One row holds the patches of one image, or of one tile of it, or of one temporal slice of a video;
rows never see each other. A class token goes in front of its row. Without windows attention is full
inside a row, and rows are padded on the right:

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
from jaxtyping import Array, Bool, Int

from ivc_jax.config import VisionConfig
from ivc_jax.nn import rope
from ivc_jax.nn.attention import attend
from ivc_jax.nn.layers import MLP, NORMS, GatedMLP, Linear
from ivc_jax.parallel.constraints import axis_size, constrain


@flax.struct.dataclass
class Windows:
    """Attention windows of patch rows: W windows of P / W slots each, real patches first."""

    lengths: jax.Array  # [R, W] int32, real patches of each window


# What happens between projection and output: attention within what a patch may see. From rotated
# queries and keys and from values [R, P, H, C] it makes the mixed values [R, P, H, C].
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class VisionAttention(nn.Module):
    """Multi-head attention inside a patch row."""

    config: VisionConfig

    def setup(self) -> None:
        """Declare the projections under the names that checkpoints use."""
        width, bias = self.config.embed_dim, self.config.qkv_bias
        if self.config.fused_qkv:
            self.qkv = Linear(3 * width, use_bias=bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (Linear(width, use_bias=bias) for _ in "qkv")
        if self.config.qk_norm:
            self.q_norm = nn.RMSNorm(epsilon=self.config.norm_eps)
            self.k_norm = nn.RMSNorm(epsilon=self.config.norm_eps)
        self.proj = Linear(width)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project [R, P, D] to queries, keys and values [R, P, H, C], none of them rotated."""
        if self.config.fused_qkv:
            queries, keys, values = self._project_fused(x)
        else:
            shape = (*x.shape[:2], self.config.num_heads, self.config.head_dim)
            queries, keys, values = (
                constrain(projection(x).reshape(shape), None, None, "model")
                for projection in (self.q_proj, self.k_proj, self.v_proj)
            )
        if self.config.qk_norm:  # over all heads together, as InternViT-6B has it
            queries, keys = (
                norm(heads.reshape(x.shape)).reshape(heads.shape)
                for norm, heads in ((self.q_norm, queries), (self.k_norm, keys))
            )
        return queries, keys, values

    def _project_fused(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shape = (3, self.config.num_heads, self.config.head_dim)
        if axis_size("model") == 1 or self.is_initializing():
            qkv = self.qkv(x).reshape(*x.shape[:2], *shape)
        else:
            # A device holds columns that are no whole heads. Its share of whole heads of the
            # weight is far smaller than that of what the weight makes of the patches.
            params = self.get_variable("params", "qkv")
            weight = params["weight"].reshape(*shape, -1)  # [3, H, C, D]
            weight = constrain(weight, None, "model")
            qkv = jnp.einsum("rpd,thcd->rpthc", x, weight)  # [R, P, 3, H, C]
            if self.config.qkv_bias:
                qkv = qkv + constrain(params["bias"].reshape(shape), None, "model")
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    def __call__(self, x: jax.Array, angles: jax.Array | None, attend: Attend) -> jax.Array:
        """Map [R, P, D] to [R, P, D], with angles [R, P, F] if patches turn by their place."""
        queries, keys, values = self.project(x)  # [R, P, H, C] each
        if angles is not None:
            queries, keys = rope.rotate(queries, angles), rope.rotate(keys, angles)
        return self.proj(attend(queries, keys, values).reshape(x.shape))


def attend_rows(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    lengths: jax.Array,
    order: jax.Array | None = None,
    windows: Windows | None = None,
    full: jax.Array | None = None,
) -> jax.Array:
    """Attend within each patch row, or within its windows (an `Attend`).

    Args:
        lengths: [R], real patches of each row.
        order: [R, P], slots of each row, those of real patches first; None if they lie so.
        windows: without them attention is over the row.
        full: scalar bool, attend over the row despite the windows; None is False.
    """
    vectors = queries, keys, values
    if windows is None:
        return _attend_across(lengths, order, *vectors)
    if full is None:
        return _attend_within(windows, *vectors)
    return jax.lax.cond(
        full,
        lambda *qkv: _attend_across(lengths, order, *qkv),
        lambda *qkv: _attend_within(windows, *qkv),
        *vectors,
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
    lengths: jax.Array,
    order: jax.Array | None,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
) -> jax.Array:
    """Attend over the whole row, around padding that lies between its patches."""
    # Attention does not mind the order of its keys. With the real ones first their number says it
    # all, where a mask would cost P x P numbers in cuDNN.
    if order is not None:
        keys, values = (
            jnp.take_along_axis(x, order[:, :, None, None], axis=1) for x in (keys, values)
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
        if config.layer_scale:
            self.ls1, self.ls2 = (
                self.param(name, nn.initializers.ones, (config.embed_dim,))
                for name in ("ls1", "ls2")
            )
        sizes = (config.mlp_dim, config.embed_dim, config.activation)
        self.mlp = GatedMLP(*sizes, use_bias=True) if config.gated_mlp else MLP(*sizes)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the unrotated queries, keys and values [R, P, H, C] of the block's attention."""
        return self.attn.project(self.norm1(x))

    def __call__(self, x: jax.Array, angles: jax.Array | None, attend: Attend) -> jax.Array:
        """Map [R, P, D] to [R, P, D], with angles [R, P, F] if patches turn by their place."""
        mixed = self.attn(self.norm1(x), angles, attend)
        x = x + (self.ls1 * mixed if self.config.layer_scale else mixed)
        made = self.mlp(self.norm2(x))
        return x + (self.ls2 * made if self.config.layer_scale else made)


class PatchMerger(nn.Module):
    """Join each block of merge² consecutive patches into one visual token."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [R, P, D] to [R, P / merge², out_dim]."""
        R, P, D = x.shape
        config, joined = self.config, D * self.config.merge_area
        if config.merge_norm == "patch":
            x = NORMS[config.norm](epsilon=config.merge_eps, name="ln_q")(x)
        x = x.reshape(R, P // config.merge_area, joined)  # [R, W, merge² D]
        if config.merge_norm == "joined":
            x = NORMS["layernorm"](epsilon=config.merge_eps, name="ln_q")(x)
        return MLP(config.merge_dim or joined, config.out_dim, "gelu", name="mlp")(x)


def find_windows(valid: Bool[Array, "R P"], window_patches: int) -> Windows:
    """Count the real patches of each window."""
    R, P = valid.shape
    return Windows(valid.reshape(R, P // window_patches, window_patches).sum(axis=2))


def order_slots(valid: Bool[Array, "R P"]) -> Int[Array, "R P"]:
    """List the slots of each row, those of real patches first."""
    return jnp.argsort(~valid, axis=1, stable=True)
