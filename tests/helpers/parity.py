"""Our answers beside those of a reference: logits within 1e-4, equal greedy tokens."""

from typing import Any

import jax
import numpy as np
import torch

import ivc_jax
from ivc_jax.inputs.bucket import Buckets, collate

DEFAULT = Buckets()


def to_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return what a processor made as transformers takes it."""
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def ask(
    reference: torch.nn.Module, tensors: dict[str, torch.Tensor], steps: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits [B, vocab] and greedy tokens [B, steps] of a transformers model."""
    with torch.no_grad():
        logits = reference(**tensors).logits[:, -1].numpy()
        tokens = reference.generate(
            **tensors, max_new_tokens=steps, do_sample=False, eos_token_id=None
        )
    return logits, tokens[:, tensors["input_ids"].shape[1] :].numpy()


def check_answers(
    model: ivc_jax.Model,
    arrays: dict[str, np.ndarray],
    logits: Any,
    tokens: Any,
    method: str | ivc_jax.methods.Method = "dense",
    buckets: Buckets = DEFAULT,
) -> ivc_jax.Prefill:
    """Hold our logits [B, vocab] and greedy tokens [B, steps] to the wanted ones.

    Args:
        buckets: few sizes, so that cases of as many prompts share a program.

    Returns:
        What the prompts left behind.
    """
    inputs = collate(ivc_jax.Batch.from_hf(**arrays), model.config, buckets)
    steps = np.shape(tokens)[1]
    with jax.default_matmul_precision("highest"):
        prompt = ivc_jax.prefill(model, inputs, method)
        out = ivc_jax.decode(model, prompt, max_new_tokens=steps, stop_ids=())
    np.testing.assert_allclose(prompt.logits, logits, rtol=0, atol=1e-4)
    assert (np.abs(logits).max(axis=1) > 1).all()  # the comparison is not between two zeros
    np.testing.assert_array_equal(out.tokens, tokens)
    np.testing.assert_array_equal(out.lengths, steps)
    return prompt
