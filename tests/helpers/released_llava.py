"""The released IVC-Prune for LLaVA-1.5 on a transformers model; see `released`.

Written from its formulas: a union of foreground, IVC tokens and seeds, the softmax over all tokens.
"""

import numpy as np
import torch
from helpers.released import Released, Span, top

_FOREGROUND, _COORDINATES, _SEEDS = 0.2, 0.05, 0.01


class ReleasedLlava(Released):
    """Llama's blocks walked by hand; with `whole` 1 the first cache stays, as it does there."""

    def __init__(self, model: torch.nn.Module, whole: int = 0) -> None:
        self.model, self.whole = model, whole
        self.text = model.model.language_model
        config = self.text.config
        self.width = config.hidden_size // config.num_attention_heads
        self.axes = np.zeros(self.width // 2, int)  # all planes turn by the place on the line
        theta = config.rope_parameters["rope_theta"]
        self.turns = theta ** -(np.arange(0, self.width, 2) / self.width)

    def embed(
        self, arrays: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, np.ndarray, list[torch.Tensor]]:
        """Return hidden states [S, D], places as positions [3, S], and nothing that is added."""
        seen = {}

        def watch(module: torch.nn.Module, arguments: tuple, named: dict) -> None:
            seen.update(named)

        hook = self.text.register_forward_pre_hook(watch, with_kwargs=True)
        self.model(**arrays, use_cache=False)
        hook.remove()
        hidden = seen["inputs_embeds"][0]
        return hidden, np.tile(np.arange(len(hidden)), (3, 1)), []

    def choose(self, values: np.ndarray, positions: np.ndarray, span: Span) -> np.ndarray:
        """Return the ascending prompt slots that survive, by values [S, heads, C]."""
        values, end = values.astype(np.float64), span.start + span.length
        logits = np.einsum("qhc,khc->hqk", values, values) / np.sqrt(values.shape[2])
        raised = np.exp(logits - logits.max(axis=2, keepdims=True))
        rows = (raised / raised.sum(axis=2, keepdims=True)).mean(axis=0)[:, span.start : end]
        asked = rows[end + 2 :]  # both skipped tokens are text
        seeds = top(asked.mean(axis=0), max(1, round(_SEEDS * span.length)))
        seed_rows = [rows[span.start + seed] for seed in sorted(seeds)]
        score = np.concatenate([asked, seed_rows]).mean(axis=0)
        angles = positions[0, span.start : end, None] * self.turns
        chosen = top(score, round(_FOREGROUND * span.length)) | seeds
        for wave in (np.cos, np.sin):
            chosen |= top(wave(angles).sum(axis=1), round(_COORDINATES * span.length))
        kept = [slot for slot in range(len(values)) if not span.start <= slot < end]
        return np.array(sorted([*kept, *(span.start + token for token in chosen)]))
