"""Attention in steps against attention written out, and how much memory its program takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivc_jax.nn import attention, stepwise
from ivc_jax.nn.attention import attend
from ivc_jax.nn.stepwise import attend_stepwise

pytestmark = pytest.mark.usefixtures("highest_precision")


@pytest.fixture
def small_parts(monkeypatch):
    """Two slots at least, three parts at most: N = 21 falls into slots 0-7, 8-15 and 16-20."""
    monkeypatch.setattr(stepwise, "_PARTS", 3)
    monkeypatch.setattr(stepwise, "_PART_SLOTS", 2)


def draw(B, N, S, H, G, C):
    make = np.random.default_rng(0).standard_normal
    return make((B, N, H, C)), make((B, S, G, C)), make((B, S, G, C))


def write_out(queries, keys, values, visible):
    """Attention in float64, head by head; visible is [B, N, S]."""
    H, C = queries.shape[2:]
    group = H // keys.shape[2]
    mixed = np.zeros_like(queries)
    for head in range(H):
        scores = np.einsum("bqc,bsc->bqs", queries[:, :, head], keys[:, :, head // group])
        scores = np.where(visible, scores / np.sqrt(C), -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed[:, :, head] = np.einsum("bqs,bsc->bqc", shares, values[:, :, head // group])
    return mixed


def run(vectors, **options):
    lengths, mask = options.pop("lengths", None), options.pop("mask", None)
    arrays = (jnp.asarray(vector, jnp.float32) for vector in vectors)
    return np.asarray(attend_stepwise(*arrays, lengths, mask, **options))


# of scores: all at once; some pairs; one pair; a few queries, which do not divide a part; one query
STEPS = [2**20, 4 * 8 * 3 * 21 * 2, 4 * 8 * 3 * 21, 4 * 3 * 3 * 21, 1]


@pytest.mark.parametrize("step_bytes", STEPS)
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (2, 2), (3, 1)])
def test_causal_parts_and_steps(small_parts, step_bytes, heads, groups):
    vectors = draw(2, 21, 21, heads, groups, 8)
    visible = np.tri(21, dtype=bool)[None]
    found = run(vectors, causal=True, step_bytes=step_bytes)
    np.testing.assert_allclose(found, write_out(*vectors, visible), rtol=0, atol=2e-6)


@pytest.mark.parametrize("step_bytes", STEPS)
def test_ragged_lengths(step_bytes):
    vectors = draw(3, 21, 21, 6, 2, 8)
    lengths = np.array([21, 1, 13])
    visible = np.arange(21) < lengths[:, None, None]
    found = run(vectors, lengths=jnp.asarray(lengths), step_bytes=step_bytes)
    np.testing.assert_allclose(found, write_out(*vectors, visible), rtol=0, atol=2e-6)


@pytest.mark.parametrize("step_bytes", STEPS)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_masks_of_few_queries(step_bytes, samples, count):
    """As behind a prompt: one query a sample, or those of an answer."""
    vectors = draw(3, count, 21, 6, 2, 8)
    mask = np.random.default_rng(1).random((samples, 1, count, 21)) < 0.4
    mask[..., 0] = True
    found = run(vectors, mask=jnp.asarray(mask), step_bytes=step_bytes)
    wanted = write_out(*vectors, np.broadcast_to(mask[:, 0], (3, count, 21)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_a_mask_and_lengths_hold_both():
    vectors = draw(2, 7, 7, 2, 1, 8)
    mask = np.tri(7, dtype=bool)[None, None]
    lengths = np.array([7, 4])
    found = run(vectors, mask=jnp.asarray(mask), lengths=jnp.asarray(lengths), step_bytes=2**20)
    visible = mask[:, 0] & (np.arange(7) < lengths[:, None, None])
    np.testing.assert_allclose(found, write_out(*vectors, visible), rtol=0, atol=2e-6)


@pytest.mark.parametrize("step_bytes", [2**20, 1])
def test_queries_that_see_nothing_are_finite(step_bytes):
    vectors = draw(2, 5, 9, 2, 1, 8)
    mask = np.ones((2, 1, 5, 9), bool)
    mask[1, :, 3] = False
    for options in ({"mask": jnp.asarray(mask)}, {"lengths": jnp.array([0, 9])}):
        assert np.isfinite(run(vectors, step_bytes=step_bytes, **options)).all()


def test_large_logits_of_hidden_keys_do_not_drown_the_others():
    """A hidden key may have any length: the largest logit is that of the visible ones."""
    queries, keys, values = draw(1, 2, 3, 1, 1, 8)
    keys[:, 2] = 1e4 * queries[:, 0]
    found = run((queries, keys, values), lengths=jnp.array([2]), step_bytes=2**20)
    visible = np.array([[[True, True, False]]])
    np.testing.assert_allclose(found, write_out(queries, keys, values, visible), atol=2e-6)


def test_half_precision_keeps_scores_in_float32():
    vectors = [jnp.asarray(x, jnp.bfloat16) for x in draw(1, 64, 64, 2, 1, 16)]
    found = attend_stepwise(*vectors, causal=True, step_bytes=2**20)
    assert found.dtype == jnp.bfloat16
    exact = [np.asarray(x, np.float64) for x in vectors]
    wanted = write_out(*exact, np.tri(64, dtype=bool)[None])
    # probabilities and results are rounded to 8 bits, scores are not
    assert np.abs(np.asarray(found, np.float64) - wanted).max() < 0.02


def test_nothing_to_attend_from():
    x = jnp.zeros((0, 4, 2, 8))
    assert attend(x, x, x, lengths=jnp.zeros(0, jnp.int32)).shape == x.shape


@pytest.mark.parametrize("causal", [True, False])
def test_no_program_holds_all_scores_of_16k_tokens(causal):
    """12 heads have 12.9 GB of scores; with masks as booleans it would be another 3."""
    B, N, H, G, C = 1, 16_384, 12, 2, 128
    queries, keys = (jax.ShapeDtypeStruct((B, N, count, C), jnp.float32) for count in (H, G))
    lengths = jax.ShapeDtypeStruct((B,), jnp.int32)
    function = jax.jit(lambda q, k, v, n: attend(q, k, v, lengths=n, causal=causal))
    compiled = function.lower(queries, keys, keys, lengths).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**29


def test_masked_attention_of_many_queries_is_bounded_too():
    """64 answers of 256 tokens behind 4,096: 3.2 GB of scores."""
    queries, keys = (
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 256, 12, 128), (64, 4096, 2, 128))
    )
    mask = jax.ShapeDtypeStruct((64, 1, 256, 4096), bool)
    function = jax.jit(lambda q, k, v, m: attend(q, k, v, mask=m))
    compiled = function.lower(queries, keys, keys, mask).compile()
    inputs = 4 * (64 * 256 * 12 * 128 + 2 * 64 * 4096 * 2 * 128)  # each may be laid out anew
    assert (
        compiled.memory_analysis().temp_size_in_bytes < 2 * inputs + 2 * attention._CPU_STEP_BYTES
    )
