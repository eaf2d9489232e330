"""CoViPAL (arXiv 2508.17243): a small trained module scores tokens before the decoder."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import ModelConfig
from ivc_jax.methods import budget
from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.fields import check_not_negative, flat, require
from ivc_jax.methods.ppm import PPM, read_sizes
from ivc_jax.methods.requests import Hidden, Parameters, Request, Signals, TokenVectors, Weights
from ivc_jax.methods.select import Segments, bound_total, from_mask, keep_one, round_counts
from ivc_jax.methods.upfront import Upfront
from ivc_jax.module_sizes import Sizes
from ivc_jax.types import Layout, Selection, typed


@flat(
    *("keep_ratio", "budget", "positions", "weights", "layer", "per_image", "width", "heads"),
    *("blocks", "mlp_ratio", "text_tokens", "places", "cross", "pooled"),
)
@dataclasses.dataclass(frozen=True)
class CoViPAL(Upfront):
    """Keep the tokens that a module, trained for the model, scores best beside the question.

    The module (`ppm.py`) reads the visual tokens and the text behind the first image as they enter
    the decoder. max(1, round(keep_ratio * tokens)) stay, half to even, all images of a sample
    ranked together; they keep their position ids, as what is trained with a soft mask requires.
    Weights are trained by `ivc-jax covipal-train`, for each model its own.

    Nothing but the idea and both training stages is published in what could be read: sizes, labels
    and rounding are this project's, and fields.

    The module takes (V + T) D width operations, and in each block 12 (V + T) width² + 2 (V + T)²
    width; with `cross`, V + T of the square are `pooled` + T.

    Attributes:
        positions: "original" position ids, or "reindex" to number what is left 0, 1, 2, ...
        weights: the module's file, or a folder of `covipal-train`; bundled/covipal fits the bundled
            model alone.
        layer: the cut, and what the module reads, is before this block; it must be the one that
            the module was trained for.
        per_image: show the module every image alone, and give each its own budget.
        module: sizes, where the file of the weights does not say them.
    """

    name: ClassVar[str] = "covipal"

    positions: str = "original"
    weights: str = "bundled/covipal"
    layer: int = 0
    per_image: bool = False
    module: Sizes = Sizes()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(layer=self.layer)
        if not self.weights:
            raise MethodError("covipal needs weights=FILE, a module trained for the model")

    def resolve(self, config: ModelConfig) -> "CoViPAL":
        """Fill in keep_ratio."""
        if self.budget is None or self.layer == 0:
            return super().resolve(config)
        return budget.resolve(self, config.decoder.num_layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One cut, before `layer`."""
        ratio = require(self.keep_ratio, self.name, "keep_ratio")
        return (Stage(self.layer, ratio, renumber=self.positions == "reindex"),)

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for what enters the block behind the cut, and for the module."""
        return Hidden(), Weights(self.weights)

    def capacity(self, stage: Stage, visual_slots: int, num_images: int) -> int:
        """Bound the kept tokens by the rounding."""
        counts = count_kept(stage.keep_ratio, visual_slots)
        return bound_total(counts, num_images if self.per_image else 1)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Keep the best of the sample or of each image."""
        found: Parameters = signals[Weights(self.weights)]
        trained = found.settings.get("layer", self.layer)
        if trained != self.layer:
            raise MethodError(
                f"weights {self.weights!r} were trained for layer={trained}, not {self.layer}"
            )
        sizes = read_sizes(self.module, dict(found.settings.get("sizes", ())))
        hidden: TokenVectors = signals[Hidden()]
        params = found(shape_params(sizes, hidden.visual.shape[2]))
        scores = score(sizes, params, hidden, layout, self.per_image)
        within = Segments.by_image(layout) if self.per_image else Segments.by_sample(layout)
        counts = within.look_up(count_kept(stage.keep_ratio, layout.visual_slots))
        return from_mask(within.top(scores, counts), num_keep)


def count_kept(keep_ratio: float, max_count: int) -> np.ndarray:
    """Tabulate the tokens kept of every count 0 .. max_count, int32."""
    return keep_one(round_counts(keep_ratio, max_count))


@typed
def score(
    sizes: Sizes, params: dict, hidden: TokenVectors, layout: Layout, per_image: bool = False
) -> Float[Array, "B V"]:
    """Run the module on the tokens of a layout.

    Args:
        params: of the module.
        hidden: visual [B, V, D] and text [B, T, D].
        per_image: with every image alone.
    """
    index, valid = choose_text(layout, sizes.text_tokens)  # [B, Q] both
    text = jnp.take_along_axis(hidden.text, index[..., None], axis=1)  # [B, Q, D]

    def run(visual_valid: jax.Array) -> jax.Array:
        return apply(sizes, params, hidden.visual, text, visual_valid, valid, layout.grid)

    if not per_image:
        return run(layout.visual_valid)

    def add(total: jax.Array, image: jax.Array) -> tuple[jax.Array, None]:
        own = layout.image_id == image  # [B, V]
        return jnp.where(own, run(own), total), None

    start = jnp.zeros(layout.visual_valid.shape, jnp.float32)
    return jax.lax.scan(add, start, jnp.arange(layout.num_images))[0]


def apply(sizes: Sizes, params: dict, *arguments: jax.Array) -> jax.Array:
    """Run a `PPM` of these parameters in float32, whatever the device takes for it by default."""
    with jax.default_matmul_precision("highest"):
        return PPM(sizes).apply({"params": params}, *arguments)


def init_params(sizes: Sizes, width: int, key: jax.Array) -> dict:
    """Draw the parameters of a module for a model of width `width`."""
    token, valid = jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool)
    grid = jnp.zeros((1, 1, 3), jnp.int32)
    return jax.jit(PPM(sizes).init)(key, token, token, valid, valid, grid)["params"]


def shape_params(sizes: Sizes, width: int) -> dict:
    """Return the shapes of these parameters without making them."""
    return jax.eval_shape(lambda: init_params(sizes, width, jax.random.key(0)))


@typed
def choose_text(layout: Layout, most: int) -> tuple[Int[Array, "B Q"], Bool[Array, "B Q"]]:
    """Choose the last text tokens behind the first visual token: places among T, and which count.

    Returns:
        Both [B, min(most, T)], in the order of the prompt, valid ones first.
    """
    N = layout.positions.shape[2]
    first = jnp.where(layout.visual_valid, layout.visual_index, N).min(
        axis=1, keepdims=True, initial=N
    )  # [B, 1]
    behind = layout.text_valid & (layout.text_index > first)  # [B, T]
    # how many follow, itself included
    left = jnp.cumsum(behind[:, ::-1], axis=1)[:, ::-1]
    chosen = behind & (left <= most)
    order = jnp.argsort(~chosen, axis=1, stable=True)[:, :most].astype(jnp.int32)
    return order, jnp.take_along_axis(chosen, order, axis=1)
