"""Sizes and traits of parts that some decoders have: latent attention, experts."""

import dataclasses

from ivc_jax.config import ConfigError

ROUTER_SCORES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """Keys and values of all heads as one short vector of a token (DeepSeek-V2, arXiv 2405.04434,
    section 2.1), beside a key that all heads share and that alone is turned.

    Attributes:
        rank: width of the vector, which is normed.
        query_rank: width of another one that queries are made of; None makes them directly.
        plain_dim: width of the part of a head that is not turned; the turned one is the rope's.
        value_dim: width of a head of values.
        norm_eps: what the norms of both vectors add to the variance.
    """

    rank: int
    query_rank: int | None
    plain_dim: int
    value_dim: int
    norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """Feed-forward parts of which each token goes through a few.

    Attributes:
        count: of the experts.
        chosen: that a token goes through.
        hidden_dim: width of one.
        shared_dim: width of the part that all tokens go through as well; 0 has none.
        dense_layers: first blocks, whose feed-forward part is an ordinary one.
        score: what the router makes of its logits, "softmax" or "sigmoid".
        biased: experts are chosen by score plus a learned bias, and weighed by the score alone.
        groups: experts come in so many groups of neighbours.
        chosen_groups: of which the best ones are considered: by the sum of their two best scores
            where choices are biased, else by their best one.
        renormalize: the weights of a token's experts sum to one,
        scale: before they are multiplied by this.
    """

    count: int
    chosen: int
    hidden_dim: int
    shared_dim: int = 0
    dense_layers: int = 0
    score: str = "softmax"
    biased: bool = False
    groups: int = 1
    chosen_groups: int = 1
    renormalize: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.score not in ROUTER_SCORES:
            raise ConfigError(f"scoring_func {self.score!r} is not one of {ROUTER_SCORES}")
        if self.count % self.groups or not 1 <= self.chosen_groups <= self.groups:
            raise ConfigError(
                f"n_group {self.groups} must divide n_routed_experts {self.count}, and topk_group"
                f" {self.chosen_groups} be one to all of them"
            )
        considered = self.count // self.groups * self.chosen_groups
        if not 1 <= self.chosen <= considered:
            raise ConfigError(
                f"num_experts_per_tok {self.chosen} must be 1 to {considered}, the experts to"
                " choose from"
            )
