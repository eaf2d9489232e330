"""PoRe (arXiv 2508.17807): take the trend along the sequence out of an attention score.

Text attends more to visual tokens that lie closer to it, whatever they show. A score is modelled
as trend times relevance, with the trend mu exp(sigma x) at the relative place x of a token, and
divided by the trend before tokens are ranked:

    x             0      .25     .5      .75
    score         .060   .090    .080    .120     the last token leads
    exp(-1.2 x)   1      .741    .549    .407
    corrected     .060   .067    .044    .049     the second one does
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.fields import check_choice
from ivc_jax.methods.modifier import Modifier
from ivc_jax.methods.requests import Signals
from ivc_jax.methods.select import Segments
from ivc_jax.types import Layout, Selection, typed

# 1 / weight of FastV's table, by rising powers of x.
_CUBIC = (1.0, 1.73374, -4.82643, 4.88413)


@dataclasses.dataclass(frozen=True)
class WithPoRe(Modifier):
    """Correct the score of another method at its first cut; later cuts rank by the raw score.

    The trend depends on the model, on the host and on its layer: fit it with `fit_trend`. The
    models here see images in their native shape, so no token is letterbox padding.

    Attributes:
        host: the method to correct, one that ranks by an attention score.
        sigma: strength of the exponential trend; 0 changes nothing, right for a model whose trend
            nobody has fitted. Released for LLaVA-1.5-7B with endpoint=true (playground/data/weight
            of intcomp/attention-bias, means over ten benchmarks): 1.886 under pyramiddrop, 1.941
            under sparsevlm; the exponential of the same end as FastV's table has 1.0266.
        trend: "exponential", or "cubic" for the table released for FastV on LLaVA-1.5-7B.
        per_image_trend: x runs over each image (or video) instead of over all visual tokens.
        endpoint: the last token has x = 1 (released tables); otherwise x = i / L.
    """

    suffix: ClassVar[str] = "pore"

    host: Method
    sigma: float = 0.0
    trend: str = "exponential"
    per_image_trend: bool = False
    endpoint: bool = False

    def __post_init__(self) -> None:
        if not self.host.has_score:
            raise MethodError(f"pore corrects an attention score; {self.host.name} has none")
        check_choice("trend", self.trend, ("exponential", "cubic"))
        object.__setattr__(self, "sigma", float(self.sigma))
        if not np.isfinite(self.sigma):
            raise MethodError(f"sigma must be a finite number, got {self.sigma}")
        if self.trend == "cubic" and self.sigma != 0:
            raise MethodError("sigma has an effect with trend=exponential only")

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Let the host choose, at its first cut by the corrected score."""
        if stage != self.host.stages[0]:
            return self.host.select(signals, layout, stage, num_keep)
        x = self._place(layout)  # [B, V]
        weights = weigh_cubic(x) if self.trend == "cubic" else weigh_exponential(x, self.sigma)
        scores = debias(self.host.scores(signals, layout, stage), weights)  # [B, V]
        return self.host.choose(scores, signals, layout, stage, num_keep)

    def _place(self, layout: Layout) -> jax.Array:
        """Return x of the tokens of an unpruned prompt: float32 [B, V], 0 at padding."""
        index, count = layout.visual_origin, layout.visual_count[:, None]
        if self.per_image_trend:
            index, count = index - Segments.by_image(layout).first, layout.image_count
        last = count - 1 if self.endpoint else count
        return jnp.where(layout.visual_valid, index / jnp.maximum(last, 1), 0.0)


@typed
def weigh_exponential(x: Float[Array, "B V"], sigma: float) -> Float[Array, "B V"]:
    """Return exp(-sigma x), the inverse of the trend up to a factor that no ranking sees."""
    return jnp.exp(-sigma * x.astype(jnp.float32))


@typed
def weigh_cubic(x: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Return the weights released for FastV on LLaVA-1.5-7B at any x in [0, 1]."""
    return 1 / jnp.polyval(jnp.array(_CUBIC[::-1], jnp.float32), x.astype(jnp.float32))


@typed
def debias(scores: Float[Array, "B V"], weights: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Multiply scores by weights in float32."""
    return scores.astype(jnp.float32) * weights


def fit_trend(mean_scores: np.ndarray, x: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Fit mu exp(sigma x) to the mean score at each place, by least squares in float64.

    Args:
        mean_scores: means over many samples, [n]; NaN where nothing was seen.
        x: places in [0, 1], [n].
        steps: of Gauss and Newton, from the fit to the logarithms of the scores above zero.

    Returns:
        sigma and mu.

    Raises:
        ValueError: fewer than two places have a score above zero.
    """
    scores, x = np.asarray(mean_scores, np.float64), np.asarray(x, np.float64)
    seen = np.isfinite(scores)
    scores, x = scores[seen], x[seen]
    positive = scores > 0
    if len(np.unique(x[positive])) < 2:
        raise ValueError("a trend needs scores above zero at two places or more")

    def error(fit: np.ndarray) -> float:
        return float(np.square(scores - fit[1] * np.exp(fit[0] * x)).sum())

    # A line through the logarithms weighs small scores too much, but is near enough to start.
    sigma, log_mu = np.polyfit(x[positive], np.log(scores[positive]), 1)
    fit = np.array([sigma, np.exp(log_mu)])
    for _ in range(steps):
        rise = np.exp(fit[0] * x)  # [n]
        slopes = np.stack([fit[1] * x * rise, rise], axis=1)  # by sigma and by mu, [n, 2]
        step = np.linalg.lstsq(slopes, scores - fit[1] * rise, rcond=None)[0]
        with np.errstate(over="ignore"):
            # A full step can overshoot where the data are far from any exponential.
            while not error(fit + step) <= error(fit) and abs(step).max() > 1e-15:
                step = step / 2
        fit = fit + step
    return float(fit[0]), float(fit[1])
