"""IVC-Prune as released for LLaVA-1.5: a union at 24 x 24 tokens, worked out apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import kept_sets, token_values
from helpers.published import E_COS, E_SIN
from helpers.reference import Slow

from ivc_jax.config import RopeConfig
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import IVCPrune, parse
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.requests import RopeSettings, TokenVectors, Values
from ivc_jax.methods.testing import listed

CONFIG = parse_config(list_sizes()["llava-1.5-7b"])
BEFORE, COUNT, BEHIND = 35, 576, 12  # tokens of the prompt: text, the picture, text
G, C = 3, 8  # heads and width of the drawn values


def line_up(layout):
    """Number all tokens on one line."""
    N = layout.positions.shape[2]
    positions = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), layout.positions.shape)
    return layout.replace(positions=positions, num_positions=N)


def run(method, values):
    """Prune one picture; values [tokens of the prompt, G, C]. Return kept offsets and capacity."""
    layout = line_up(make_layout([(BEFORE, (24, 24), BEHIND)]))
    (stage,) = method.stages
    capacity = method.capacity(stage, COUNT, 1)
    visual = slice(BEFORE, BEFORE + COUNT)
    signals = {
        Values(stage.layer - 1): TokenVectors(
            jnp.asarray(values[None, visual]), jnp.asarray(np.delete(values, visual, axis=0)[None])
        )
    }
    rope = RopeConfig(128, 1e4)
    chosen = jax.jit(
        lambda signals: method.select(signals | {RopeSettings(): rope}, layout, stage, capacity)
    )(signals)
    return listed(chosen)[0], capacity


def top(scores, count):
    return set(np.argsort(-scores, kind="stable")[:count].tolist())


def expect(values):
    """The formulas in float64: rows over all tokens of the prompt, text from the third on."""
    values = values.astype(np.float64)
    logits = np.einsum("qgc,kgc->qkg", values, values) / np.sqrt(C)
    rows = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).mean(axis=2)
    rows = rows[:, BEFORE : BEFORE + COUNT]
    asked = rows[BEFORE + COUNT + 2 :]
    seeds = top(asked.mean(axis=0), 6)
    seed_rows = rows[[BEFORE + seed for seed in sorted(seeds)]]
    scores = np.concatenate([asked, seed_rows]).mean(axis=0)
    return sorted(top(scores, 115) | seeds | set(E_COS) | set(E_SIN))


@pytest.mark.parametrize("seed", range(4))
def test_bare_ivc_is_the_released_union(seed):
    values = np.random.default_rng(seed).normal(size=(BEFORE + COUNT + BEHIND, G, C))
    kept, capacity = run(parse("ivc:layer=16").resolve(CONFIG), values.astype(np.float32))
    assert kept == expect(values.astype(np.float32))
    assert 115 < len(kept) <= capacity == 179
    assert 150 <= len(kept) <= 175


def test_fields_written_out_are_the_same_method():
    """As the specification of the released code has them."""
    written = parse(
        "ivc:layer=16,combine=union,foreground_fraction=0.2,cos_fraction=0.05,sin_fraction=0.05,"
        "keep_seeds=true,key_scope=all,query_offset=2"
    )
    assert written.resolve(CONFIG) == parse("ivc").resolve(CONFIG)
    (stage,) = parse("ivc:whole_kv_layers=1").resolve(CONFIG).stages
    assert (stage.layer, stage.compact_earlier_kv, stage.whole_kv_layers) == (16, True, 1)
    assert stage.keep_ratio == pytest.approx(0.3)


@pytest.mark.parametrize("offset", [0, 2, 3])
def test_offsets_count_text_behind_a_picture_that_another_touches(offset):
    """What follows the first picture is no text: both are asked about by the same words."""
    samples = [(2, (3, 4), (4, 3), 7), (3, (2, 5), 1, (3, 3), 6)]
    fields = dataclasses.asdict(CONFIG.released) | {"query_offset": offset, "layer": 2}
    method = IVCPrune(**fields, seed_fraction=0.1)
    values = [token_values(sample, seed) for seed, sample in enumerate(samples)]
    pairs = zip(samples, values, strict=True)
    wanted = [Slow(*pair, method).kept() for pair in pairs]
    assert kept_sets(method, make_layout(samples, text_slots=20), values) == wanted
    if offset == 2:
        none = dataclasses.replace(method, query_offset=6)
        assert kept_sets(none, make_layout(samples, text_slots=20), values) != wanted
