"""Foreground: what text and seeds look at (IVC-Prune, arXiv 2602.03060).

By value similarity, as published: values carry no rotation, so these rows measure content alone.
Or by the model's own attention, in which content and rotation meet.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import Released
from ivc_jax.ivc import round_scores
from ivc_jax.methods.base import Stage
from ivc_jax.methods.defaults import fill_in
from ivc_jax.methods.fields import check_choice, check_fractions, check_not_negative
from ivc_jax.methods.requests import AttentionRows, Request, TokenVectors, Values
from ivc_jax.methods.select import Segments, bound_total, from_mask, round_counts
from ivc_jax.types import Layout, typed


@dataclasses.dataclass(frozen=True)
class Foreground:
    """What foreground and seeds are ranked by, which rows are asked, and what they run over.

    Attributes:
        seed_fraction: share of the tokens that act as queries beside the text, at least one.
        seed_rounding: "round" half to even (released code) or "ceil" (paper) of the seed count.
        query_offset: text slots skipped after a segment before its queries begin; None is the
            released code's for the model (Qwen2.5-VL: 2, the end mark and one more).
        queries: "after" the segment only (released code), or "all" text of the prompt.
        key_scope: the softmax runs over the tokens of the segment ("image") or over every valid
            token of the prompt, text included and without a causal mask ("all"); None is the
            released code's for the model (Qwen2.5-VL: "image").
        foreground: similarity of "values" (as published), or the model's own "attention" of the
            same queries in the same block, whose seeds are kept but not asked in turn (see
            `score_attention`).
    """

    seed_fraction: float = 0.01
    seed_rounding: str = "round"
    query_offset: int | None = None
    queries: str = "after"
    key_scope: str | None = None
    foreground: str = "values"

    def __post_init__(self) -> None:
        check_fractions(seed_fraction=self.seed_fraction)
        check_not_negative(query_offset=self.query_offset)
        check_choice("seed_rounding", self.seed_rounding, ("round", "ceil"))
        check_choice("queries", self.queries, ("after", "all"))
        check_choice("key_scope", self.key_scope, ("image", "all"))
        check_choice("foreground", self.foreground, ("values", "attention"))

    def resolve(self, released: Released) -> "Foreground":
        """Fill in what is not given."""
        if self.foreground == "attention":  # its rows are as they are
            released = dataclasses.replace(released, key_scope="image")
        return fill_in(self, released)

    def request(self, stage: Stage) -> Request:
        """Return the signal that the scores are made of: of the block before the cut."""
        if self.foreground == "attention":
            return AttentionRows(stage.layer - 1, "text")
        return Values(stage.layer - 1)

    def count_seeds(self, max_count: int, least: int = 1) -> np.ndarray:
        """Tabulate the seeds of a segment of each size 0 .. max_count, `least` or all of them."""
        counts = round_counts(self.seed_fraction, max_count, self.seed_rounding)
        return np.minimum(np.maximum(counts, least), np.arange(max_count + 1, dtype=np.int32))

    def score(
        self,
        signal: TokenVectors | jax.Array,
        layout: Layout,
        within: Segments,
        score_dtype: str = "float32",
        visual_queries: bool = False,
        among: jax.Array | None = None,
        least: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the foreground scores and the mask of the seeds, both [B, V].

        Args:
            signal: what `request` asks for.
            within: the segments, each of which is asked on its own.
            score_dtype: as in `score_values`.
            visual_queries: as in `score_values`.
            among: bool [B, V], what may be a seed; seeds are counted by it. None is all.
            least: seeds of a segment, if there are so many tokens.
        """
        counts = self.count_seeds(layout.visual_slots, least)
        seed_count = within.look_up(counts)  # [B, V]
        if among is not None:
            seed_count = jnp.asarray(counts)[within.sum(among.astype(jnp.int32))]
        if self.foreground == "attention":
            return score_attention(signal, layout, within, seed_count, self, among)
        bound = bound_total(counts, within.bound)
        return score_values(
            signal, layout, within, seed_count, bound, self, score_dtype, visual_queries, among
        )


@typed
def fill(
    foreground: Float[Array, "B V"],
    priority: Bool[Array, "B V"],
    target: Int[Array, "B V"],
    within: Segments,
) -> Bool[Array, "B V"]:
    """Keep the priority tokens and top up with foreground until each segment has its target.

    One ranking does both: foreground scores are probabilities, priority tokens get 2.
    """
    order = jnp.where(priority, 2.0, foreground)  # [B, V]
    return within.valid & (within.top(order, target) | priority)


@typed
def score_values(
    values: TokenVectors,
    layout: Layout,
    within: Segments,
    seed_count: Int[Array, "B V"],
    num_seeds: int,
    rules: Foreground,
    score_dtype: str = "float32",
    visual_queries: bool = False,
    among: Bool[Array, "B V"] | None = None,
) -> tuple[Float[Array, "B V"], Bool[Array, "B V"]]:
    """Score tokens by how much the text, and the tokens it likes best, resemble their values.

    P[q, j] = mean over heads of softmax_j(v[q] . v[j] / sqrt(C)). The queries of a segment give
    s = mean of P[q, j]; the best tokens by s are the seeds; f is the mean over query and seed rows
    together, each row weighing the same.

    Args:
        within: the segments; a softmax runs inside each.
        seed_count: seeds of the segment that the token is in.
        num_seeds: bound on the seeds of a sample.
        score_dtype: "bfloat16" rounds the probabilities, their mean over heads and the means over
            rows as the released code does.
        visual_queries: later images of the sample act as queries too (a slip of the released code).
        among: what may be a seed; None is all.

    Returns:
        f, and the mask of the seeds. A segment that nothing asks about has s = 0 everywhere.
    """
    rules = fill_in(rules)
    visual, text = values.visual.astype(jnp.float32), values.text.astype(jnp.float32)
    mass = _Mass(visual, text, layout, rules.key_scope, score_dtype)
    asked = _mark_queries(layout, within, rules)  # [B, M, T]
    total, rows = mass.add_up(text, asked, within), asked.sum(axis=2)  # [B, V], [B, M]
    if visual_queries and layout.num_images > 1:
        behind = _find_last(layout, Segments.by_image(layout)) + rules.query_offset  # [B, M, 1]
        later = (layout.visual_index[:, None] > behind) & layout.visual_valid[:, None]
        total, rows = total + mass.add_up(visual, later, within), rows + later.sum(axis=2)
    rows = within.spread(rows)  # [B, V]

    mean = round_scores(total / jnp.maximum(rows, 1), score_dtype)  # s
    seeds = layout.visual_valid & (within.rank(mean, among) < seed_count)

    chosen = from_mask(seeds, num_seeds)  # index [B, A]
    vectors = jnp.take_along_axis(visual, chosen.index[..., None, None], axis=1)  # [B, A, G, C]
    owner = jnp.take_along_axis(within.number, chosen.index, axis=1)  # [B, A]
    same = (owner[:, :, None] == within.number[:, None]) & chosen.valid[:, :, None]  # [B, A, V]
    total = total + mass.rows(vectors, same).sum(axis=1)
    return round_scores(total / jnp.maximum(rows + seed_count, 1), score_dtype), seeds


@typed
def score_attention(
    rows: Float[Array, "B H T V"],
    layout: Layout,
    within: Segments,
    seed_count: Int[Array, "B V"],
    rules: Foreground,
    among: Bool[Array, "B V"] | None = None,
) -> tuple[Float[Array, "B V"], Bool[Array, "B V"]]:
    """Score tokens by the attention that the queries of their segment pay them.

    The mean over heads and queries of the model's rows as they are: probabilities over the whole
    prompt, so that an image's scores do not add up to one. The best tokens are the seeds. They
    are not asked in turn: rows of visual tokens would be needed.

    Args:
        rows: attention of every text slot (`AttentionRows` with queries="text").
        within: the segments.
        seed_count: seeds of the segment that the token is in.
        among: as in `score_values`.

    Returns:
        The scores, 0 in a segment that nothing asks about, and the mask of the seeds.
    """
    rows = rows.astype(jnp.float32).mean(axis=1)  # [B, T, V]
    asked = _mark_queries(layout, within, fill_in(rules))
    total = _add_segments(
        lambda member: jnp.where(member[:, None], rows, 0.0), asked, within, layout.visual_valid
    )
    scores = total / jnp.maximum(within.spread(asked.sum(axis=2)), 1)
    return scores, layout.visual_valid & (within.rank(scores, among) < seed_count)


def _add_segments(
    rows_of: Callable[[jax.Array], jax.Array], asked: jax.Array, within: Segments, valid: jax.Array
) -> jax.Array:
    """Add up rows over those that each segment asks: [B, V].

    Args:
        rows_of: gives the rows [B, Q, V] against the members [B, V] of a segment, 0 elsewhere.
        asked: [B, M, Q] bool.
    """

    def add_segment(total: jax.Array, segment: tuple) -> tuple[jax.Array, None]:
        number, chosen = segment
        rows = rows_of((within.number == number) & valid)  # [B, Q, V]
        return total + jnp.where(chosen[:, :, None], rows, 0.0).sum(axis=1), None

    empty = jnp.zeros(within.number.shape, jnp.float32)
    parts = (jnp.arange(within.bound), jnp.moveaxis(asked, 1, 0))
    return jax.lax.scan(add_segment, empty, parts)[0]


def _mark_queries(layout: Layout, within: Segments, rules: Foreground) -> jax.Array:
    """Mark the text that acts as queries of each segment: bool [B, M, T].

    token <s> <v>  i   i  </v> Q   Q   Q      offset 2 skips </v> and the first Q
    token <s>  i   i   j   j   Q   Q   Q      of i as of j the first two Q: j is no text
    """
    last = _find_last(layout, within)  # [B, M, 1]
    asked = (last >= 0) & layout.text_valid[:, None]  # [B, M, T]
    if rules.queries == "all":
        return asked
    before = layout.text_valid[:, None] & (layout.text_index[:, None] <= last)  # [B, M, T]
    first = before.sum(axis=2, keepdims=True) + rules.query_offset  # [B, M, 1]
    return asked & (jnp.arange(layout.text_index.shape[1]) >= first)


def _find_last(layout: Layout, within: Segments) -> jax.Array:
    """Return the last slot of each segment, -1 of those that are empty: [B, M, 1]."""
    member = within.number[:, None] == jnp.arange(within.bound)[:, None]  # [B, M, V]
    return jnp.where(member, layout.visual_index[:, None], -1).max(axis=2, initial=-1)[..., None]


@dataclasses.dataclass(frozen=True)
class _Mass:
    """Rows of P against the visual tokens."""

    visual: jax.Array  # [B, V, G, C] float32
    text: jax.Array  # [B, T, G, C] float32
    layout: Layout
    key_scope: str
    score_dtype: str

    def add_up(self, queries: jax.Array, asked: jax.Array, within: Segments) -> jax.Array:
        """Add up the rows of `queries` [B, Q, G, C] over those each segment asks: [B, V]."""
        logits, log_total = _compare(queries, self.visual), self._sum_over_prompt(queries)
        return _add_segments(
            lambda member: self._average_heads(logits, member[:, None, None], log_total),
            asked,
            within,
            self.layout.visual_valid,
        )

    def rows(self, queries: jax.Array, member: jax.Array) -> jax.Array:
        """Return P of each query [B, Q, G, C] over its own members [B, Q, V]: [B, Q, V]."""
        logits, log_total = _compare(queries, self.visual), self._sum_over_prompt(queries)
        return self._average_heads(logits, member[:, None], log_total)

    def _average_heads(
        self, logits: jax.Array, member: jax.Array, log_total: jax.Array | None
    ) -> jax.Array:
        """Normalise [B, G, Q, V] and average over the heads: [B, Q, V]."""
        member = jnp.broadcast_to(member, logits.shape)
        if log_total is None:
            rows = _softmax(logits, member)
        else:
            rows = jnp.where(member, jnp.exp(logits - log_total[..., None]), 0.0)
        rounded = round_scores(rows, self.score_dtype)  # [B, G, Q, V]
        return round_scores(rounded.mean(axis=1), self.score_dtype)

    def _sum_over_prompt(self, queries: jax.Array) -> jax.Array | None:
        """Return log of the sum over every valid token, [B, G, Q]; None if segments normalise."""
        if self.key_scope == "image":
            return None

        def one_head(vectors: tuple) -> jax.Array:
            # One head at a time: text against text must not exist for all heads at once.
            rows, visual, text = (part[:, :, None] for part in vectors)
            parts = (visual, self.layout.visual_valid), (text, self.layout.text_valid)
            logits = [
                jnp.where(valid[:, None, None], _compare(rows, keys), -jnp.inf)
                for keys, valid in parts
            ]
            return jax.nn.logsumexp(jnp.concatenate(logits, axis=-1), axis=-1)[:, 0]  # [B, Q]

        # [G, B, Q, C] and alike
        by_head = [jnp.moveaxis(part, 2, 0) for part in (queries, self.visual, self.text)]
        return jnp.moveaxis(jax.lax.map(one_head, tuple(by_head)), 0, 1)


def _compare(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return v[q] . v[j] / sqrt(C) for each key/value head: float32 [B, G, Q, V]."""
    exact = jax.lax.Precision.HIGHEST  # accelerators would multiply in half precision
    return jnp.einsum("bqgc,bvgc->bgqv", rows, columns, precision=exact) * rows.shape[-1] ** -0.5


def _softmax(logits: jax.Array, member: jax.Array) -> jax.Array:
    """Normalise over the members of the last axis; everything else gets 0."""
    logits = jnp.where(member, logits, -jnp.inf)
    top = logits.max(axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    raised = jnp.exp(logits - top)
    # Masked again: NaN of one image must not reach another.
    total = raised.sum(axis=-1, keepdims=True)
    return jnp.where(member, raised / jnp.maximum(total, jnp.finfo(jnp.float32).tiny), 0.0)
