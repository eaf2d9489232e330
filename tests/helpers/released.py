"""The released IVC-Prune on a transformers model, block by block, for one prompt with one image.

Written from the formulas of the method and of its released Qwen2.5-VL code. NumPy chooses tokens in
float64; torch runs the blocks in float32 with caches that are gathered at the kept tokens.
"""

import dataclasses

import numpy as np
import torch

_COS_SHARE = _SIN_SHARE = 0.1
_SEED_SHARE = 0.01


@dataclasses.dataclass
class Span:
    """The image of a prompt: `length` tokens from slot `start` on."""

    start: int
    length: int


def image_span(ids: np.ndarray, vision_start: int, vision_end: int) -> Span:
    """Find the first image by its marks."""
    start = int(np.flatnonzero(ids == vision_start)[0]) + 1
    return Span(start, int(np.flatnonzero(ids == vision_end)[0]) - start)


def top(scores: np.ndarray, count: int) -> set[int]:
    """Return the best `count` indices; ties go to the lowest."""
    return set(np.argsort(-np.asarray(scores), kind="stable")[:count].tolist())


def coordinate_scores(
    positions: np.ndarray, span: Span, turns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average cosines and sines over all planes and the three axes of positions [3, S]."""
    angles = positions[:, span.start : span.start + span.length, None] * turns

    def mean(wave: np.ndarray) -> np.ndarray:
        time, height, width = wave.mean(axis=2)
        return (time + (height + width)) / 3

    return mean(np.cos(angles)), mean(np.sin(angles))


def foreground(values: np.ndarray, span: Span) -> tuple[set[int], np.ndarray]:
    """Score the image tokens by value vectors [S, heads, C]; return seeds and scores."""
    values = values.astype(np.float64)
    image = np.arange(span.start, span.start + span.length)

    def row(slot: int) -> np.ndarray:
        logits = np.einsum("hc,jhc->hj", values[slot], values[image]) / np.sqrt(values.shape[2])
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).mean(axis=0)

    # The end mark and the first text token behind it are not asked.
    rows = [row(slot) for slot in range(span.start + span.length + 2, len(values))]
    seeds = top(np.mean(rows, axis=0), max(1, round(_SEED_SHARE * span.length)))
    rows += [row(span.start + seed) for seed in sorted(seeds)]
    return seeds, np.mean(rows, axis=0)


def kept_tokens(
    values: np.ndarray,
    positions: np.ndarray,
    span: Span,
    turns: np.ndarray,
    keep_ratio: float = 0.5,
) -> np.ndarray:
    """Return the ascending prompt slots that survive."""
    cosine, sine = coordinate_scores(positions, span, turns)
    seeds, score = foreground(values, span)
    chosen = top(cosine, round(_COS_SHARE * span.length)) | seeds
    chosen |= top(sine, round(_SIN_SHARE * span.length))
    for token in np.argsort(-score, kind="stable").tolist():
        if len(chosen) >= round(keep_ratio * span.length):
            break
        chosen.add(token)
    text = [*range(span.start), *range(span.start + span.length, len(values))]
    return np.array(sorted([*text, *(span.start + token for token in chosen)]))


class Released:
    """A transformers model of the Qwen families whose decoder is walked by hand.

    Nothing was released for Qwen3-VL: there it is the rule of Qwen2.5-VL, and what the tower adds
    to the outputs of the first blocks stays with its tokens.
    """

    whole = 0  # first blocks whose caches are not pruned

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.text = model.model.language_model
        config = self.text.config
        shared = config.hidden_size // config.num_attention_heads
        self.width = getattr(config, "head_dim", None) or shared
        rope = config.rope_parameters
        self.axes = np.repeat([0, 1, 2], rope["mrope_section"])
        if rope.get("mrope_interleaved"):
            plane = np.arange(self.width // 2)
            ends = 3 * np.array(rope["mrope_section"])[plane % 3]
            self.axes = np.where(plane < ends, plane % 3, 0)
        self.turns = rope["rope_theta"] ** -(np.arange(0, self.width, 2) / self.width)

    def embed(
        self, arrays: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, np.ndarray, list[torch.Tensor]]:
        """Return what enters the decoder: hidden states [S, D], position ids [3, S], and what is
        added to the outputs of its first blocks, [S, D] each."""
        seen = {}

        def watch(module: torch.nn.Module, arguments: tuple, named: dict) -> None:
            seen.update(named)

        hook = self.text.register_forward_pre_hook(watch, with_kwargs=True)
        self.model(**arrays, use_cache=False)
        hook.remove()
        hidden, added = seen["inputs_embeds"][0], []
        for feature in seen.get("deepstack_visual_embeds") or ():
            added.append(torch.zeros_like(hidden))
            added[-1][seen["visual_pos_masks"][0]] = feature
        return hidden, seen["position_ids"][-3:, 0].numpy(), added

    def choose(self, values: np.ndarray, positions: np.ndarray, span: Span) -> np.ndarray:
        """Return the ascending prompt slots that survive, by values [S, heads, C]."""
        return kept_tokens(values, positions, span, self.turns)

    def generate(
        self, arrays: dict[str, torch.Tensor], layer: int | None, span: Span, steps: int
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Prefill with pruning before block `layer` (None prunes nothing), then decode greedily.

        Returns:
            The kept slots, the logits after the prompt, and `steps` tokens.
        """
        hidden, positions, added = self.embed(arrays)
        following = int(positions.max()) + 1
        kept, caches = np.arange(len(hidden)), []
        for number, block in enumerate(self.text.layers):
            if number == layer:
                values = caches[-1][1].numpy()
                kept = self.choose(values, positions, span)
                hidden, positions = hidden[kept], positions[:, kept]
                added = [each[kept] for each in added]
                caches[self.whole :] = [(k[kept], v[kept]) for k, v in caches[self.whole :]]
            hidden, cache = self._block(block, hidden, positions, None)
            hidden = hidden + added[number] if number < len(added) else hidden
            caches.append(cache)
        logits = self._logits(hidden[-1])
        first, tokens = logits.numpy(), [int(logits.argmax())]
        for step in range(steps - 1):
            hidden = self.text.embed_tokens(torch.tensor(tokens[-1:]))
            place = np.full((3, 1), following + step)
            for number, block in enumerate(self.text.layers):
                hidden, caches[number] = self._block(block, hidden, place, caches[number])
            tokens.append(int(self._logits(hidden[-1]).argmax()))
        return kept, first, tokens

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(self.text.norm(hidden))

    def _block(
        self,
        block: torch.nn.Module,
        hidden: torch.Tensor,
        positions: np.ndarray,
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Run new tokens [n, D] behind a cache; return them and the longer cache."""
        attention, normed = block.self_attn, block.input_layernorm(hidden)
        project = (attention.q_proj, attention.k_proj, attention.v_proj)
        queries, keys, values = (part(normed).view(len(hidden), -1, self.width) for part in project)
        if hasattr(attention, "q_norm"):
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        queries, keys = self._rotate(queries, positions), self._rotate(keys, positions)
        if past is not None:
            keys, values = torch.cat([past[0], keys]), torch.cat([past[1], values])
        groups = queries.shape[1] // keys.shape[1]
        logits = torch.einsum(
            "qhc,shc->hqs", queries, keys.repeat_interleave(groups, dim=1)
        ) / np.sqrt(self.width)
        visible = torch.ones(logits.shape[1:], dtype=torch.bool)
        visible = visible.tril(diagonal=len(keys) - len(hidden))
        weights = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        mixed = torch.einsum("hqs,shc->qhc", weights, values.repeat_interleave(groups, dim=1))
        hidden = hidden + attention.o_proj(mixed.reshape(len(hidden), -1))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return hidden, (keys, values)

    def _rotate(self, vectors: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        angle = torch.from_numpy(positions[self.axes].T * self.turns).float()[:, None]  # [n, 1, F]
        first, second = vectors.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
