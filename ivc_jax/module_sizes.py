"""Sizes of the modules that methods bring along. Nothing here waits for JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of CoViPAL's module (`ivc_jax.methods.ppm`).

    Attributes:
        width: of its own stream (d).
        heads: of its attention.
        blocks: pre-norm blocks.
        mlp_ratio: inner width of a block's feed-forward part, as a multiple of the width.
        text_tokens: the last tokens of the prompt behind the first image that are read.
        places: add sine embeddings of row, column and frame to visual tokens.
        cross: tokens attend to the text and to average-pooled visual tokens only, which is linear
            in the visual tokens.
        pooled: how many of these there are.
    """

    width: int = 512
    heads: int = 8
    blocks: int = 2
    mlp_ratio: int = 4
    text_tokens: int = 128
    places: bool = True
    cross: bool = False
    pooled: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "heads", "blocks", "mlp_ratio", "text_tokens", "pooled"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        # two axes, a sine and a cosine each
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width must be a multiple of heads and of 4, got {self.width} and {self.heads}"
            )
