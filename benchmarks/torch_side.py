"""The other side of a comparison: the same work with torch and transformers.

Nothing imports torch before something is asked of this module, and `is_comparable` says whether
that makes sense. Attention is torch's own (SDPA) everywhere; blocks, norms and towers are those of
transformers, called in a loop of our own so that a cut can be made between two of them.
"""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import resident


def is_comparable() -> bool:
    """Tell whether torch and transformers are installed and compute on the device of JAX."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return False
    return jax.default_backend() == "cpu" or choose_device() == "cuda"


def choose_device() -> str:
    """Return "cuda" where JAX computes on a GPU that torch sees too, else "cpu"."""
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait for what the GPU still has to do."""
    import torch

    if choose_device() == "cuda":
        torch.cuda.synchronize()


def measure_peak(work: Callable[[], Any]) -> dict[str, int]:
    """Do some work and return what was resident before and at most, in bytes."""
    import torch

    if choose_device() == "cpu":
        return resident.measure_peak(work)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return {"before": before, "peak": torch.cuda.max_memory_allocated()}


class TorchModel:
    """A checkpoint in transformers."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device = choose_device()
        kind = getattr(torch, dtype)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=kind, attn_implementation="sdpa"
        )
        self.model = model.eval().to(self.device)
        self.text = self.model.model.language_model
        signature = inspect.signature(self.text.layers[0].forward).parameters
        # transformers renames it.
        self._cache_name = "cache" if "cache" in signature else "past_key_values"

    def list_arrays(self) -> list[np.ndarray]:
        """Return the parameters without a copy, their bits as integers; none from a GPU."""
        import torch

        if self.device != "cpu":
            return []
        kinds = {2: torch.int16, 4: torch.int32}
        each = (parameter.data for parameter in self.model.parameters())
        return [tensor.view(kinds[tensor.element_size()]).numpy() for tensor in each]

    def to_tensor(self, array: Any) -> Any:
        """Return an array of NumPy or JAX as a tensor on the device of the model."""
        import torch

        values = np.asarray(array)
        if values.dtype.kind not in "iufb":  # bfloat16
            values = values.astype(np.float32)
        tensor = torch.from_numpy(np.array(values)).to(self.device)
        return (
            tensor.to(self.text.embed_tokens.weight.dtype)
            if tensor.is_floating_point()
            else (tensor.long())
        )

    def embed(self, inputs: Any) -> tuple[Any, Any]:
        """Return hidden states [B, N, D] of unpadded inputs with `visual`, and positions."""
        import torch

        with torch.inference_mode():
            hidden = self.text.embed_tokens(self.to_tensor(inputs.tokens))
            slots = self.to_tensor(inputs.layout.visual_index)  # [B, V]
            rows = torch.arange(len(slots), device=self.device)[:, None]
            hidden[rows, slots] = self.to_tensor(inputs.visual)
            return hidden, self.to_tensor(inputs.layout.positions)  # [3, B, N]

    def prefill(
        self, hidden: Any, positions: Any, layer: int | None = None, kept: Any = None
    ) -> tuple[Any, Any]:
        """Run a prompt; before block `layer` keep the slots `kept` [B, S] alone, in caches too.

        Returns:
            Logits [B, vocab] of the last token, and the cache.
        """
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            cache = DynamicCache()
            turned = self.text.rotary_emb(hidden, positions)
            for number, block in enumerate(self.text.layers):
                if number == layer:
                    rows = torch.arange(len(kept), device=self.device)[:, None]
                    hidden = hidden[rows, kept]
                    turned = self.text.rotary_emb(hidden, positions[:, rows, kept])
                    for earlier in cache.layers:  # [B, G, S, C]
                        earlier.keys = earlier.keys[rows, :, kept].transpose(1, 2).contiguous()
                        earlier.values = earlier.values[rows, :, kept].transpose(1, 2).contiguous()
                hidden = self._run(block, hidden, turned, cache)
            logits = self.model.lm_head(self.text.norm(hidden[:, -1]))
            wait()
        return logits, cache

    def _run(self, block: Any, hidden: Any, turned: Any, cache: Any, mask: Any = None) -> Any:
        named = {self._cache_name: cache}
        found = block(hidden, attention_mask=mask, position_embeddings=turned, **named)
        return found[0] if isinstance(found, tuple) else found

    def decode(self, logits: Any, cache: Any, position: Any, steps: int, static: bool) -> Any:
        """Choose a token, run it, choose the next, `steps` + 1 tokens in all; greedy: [B, T].

        Args:
            logits: [B, vocab] behind the prompt.
            cache: of the prompt; it is left as it is.
            position: [B] of the first generated token.
            steps: tokens that are run through the model.
            static: with transformers' static cache, which is masked, instead of a growing one.
        """
        import torch

        with torch.inference_mode():
            length = cache.layers[0].keys.shape[2]
            caches = self._copy(cache, length + steps if static else None)
            slots = torch.arange(length + steps, device=self.device)
            token, tokens = logits.argmax(dim=-1), []
            for step in range(steps):
                tokens.append(token)
                hidden = self.text.embed_tokens(token[:, None])  # [B, 1, D]
                # text: the three axes agree
                places = (position + step)[None, :, None].expand(3, -1, 1)
                turned = self.text.rotary_emb(hidden, places)
                mask = (slots <= length + step)[None, None, None] if static else None
                for block in self.text.layers:
                    hidden = self._run(block, hidden, turned, caches, mask)
                token = self.model.lm_head(self.text.norm(hidden[:, -1])).argmax(dim=-1)
            wait()
        return torch.stack([*tokens, token], dim=1)

    def _copy(self, cache: Any, capacity: int | None) -> Any:
        """Return a cache of its own: a growing one, or a static one of so many slots."""
        from transformers import DynamicCache, StaticCache

        copy = DynamicCache() if capacity is None else StaticCache(self.text.config, capacity)
        for number, layer in enumerate(cache.layers):
            copy.update(layer.keys, layer.values, number)
        return copy

    def encode(self, patches: Any, grids: Any) -> Any:
        """Run the tower over patches [P, values] of pictures of these grids: [V, D]."""
        import torch

        with torch.inference_mode():
            found = self.model.model.visual(patches, grid_thw=grids)
            wait()
        return getattr(found, "pooler_output", found)


def list_peaks(
    rows: int, inner: int, columns: int, size: int, dtype: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Return the ways to multiply matrices, and those to read memory."""
    import torch

    where = {"device": choose_device(), "dtype": getattr(torch, dtype)}
    x, weight = torch.ones(rows, inner, **where), torch.ones(columns, inner, **where)
    table, vector = torch.ones(size // 2048, 2048, **where), torch.ones(2048, **where)

    def finish(run: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            with torch.inference_mode():
                run()
            wait()

        return call

    return (
        {"product": finish(lambda: torch.nn.functional.linear(x, weight))},
        {
            "matrix by vector": finish(lambda: table @ vector),
            "sum": finish(table.sum),
        },
    )
