"""IVC-Prune in several cuts against a slow reference, and against its one cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import gather_values, token_values
from helpers.models import model_config
from helpers.reference import SAMPLES, Slow, top

from ivc_jax.engine.compact import Sequence, compact
from ivc_jax.methods import IVCPrune, MethodError, ProgressiveIVC, describe, parse
from ivc_jax.methods.budget import BudgetError, measure
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.requests import Carry, Values
from ivc_jax.methods.testing import listed, run_stage

# These programs run once: compiling them well would cost more than it saves.
jitted_compact = jax.jit(compact, compiler_options={"xla_backend_optimization_level": 0})


def reference_cut(slow: Slow, present: list[int], share: float) -> list[int]:
    """Cut a sample once, token by token; `present` are the tokens left, as are those returned."""
    kept = []
    for image in slow.images:
        left = [token for token in image if token in present]
        askers = [slot for slot in slow.text if slot >= slow.slots[image[-1]] + 3]
        rows = [slow.row(slot, left) for slot in askers]
        count = max(1, round(slow.asking.seed_fraction * len(image)))
        seeds = [left[seed] for seed in sorted(top(np.mean(rows, axis=0), count))]
        rows += [slow.row(slow.slots[seed], left) for seed in seeds]
        chosen = slow.coordinates(image) | set(seeds)
        assert chosen <= set(left)
        for token in np.argsort(-np.mean(rows, axis=0), kind="stable"):
            if len(chosen) < round(share * len(image)):
                chosen.add(left[token])
        kept += sorted(chosen)
    return kept


def test_kept_sets_equal_the_slow_reference():
    fields = {"seed_fraction": 0.08, "frequencies": "high"}
    method = ProgressiveIVC(layers=(1, 3), ratios=(0.6, 0.3), **fields)
    layout = make_layout(SAMPLES, text_slots=20, visual_slots=60, num_images=3)
    # Slots of the prompt, moved as the cuts move them.
    origin = jnp.broadcast_to(jnp.arange(layout.positions.shape[2]), layout.positions.shape[1:])
    present, carry = [range(sum(layout.visual_valid[row].tolist())) for row in range(3)], None
    for number, stage in enumerate(method.stages):
        values = [token_values(sample, 10 * number + seed) for seed, sample in enumerate(SAMPLES)]
        moved = [
            own[np.minimum(slots, len(own) - 1)]
            for own, slots in zip(values, np.asarray(origin), strict=True)
        ]
        signals = {Values(stage.layer - 1): gather_values(layout, moved), Carry(): carry}
        chosen = run_stage(method, layout, signals, number)
        present = [
            reference_cut(Slow(sample, own, IVCPrune(**fields)), before, stage.keep_ratio)
            for sample, own, before in zip(SAMPLES, values, present, strict=True)
        ]
        places = zip(np.asarray(layout.visual_origin), listed(chosen), strict=True)
        assert [row[tokens].tolist() for row, tokens in places] == present
        carry = chosen.carry
        if number == 0:
            sequence = Sequence(hidden=origin[..., None], layout=layout, origin=origin)
            sequence, _ = jitted_compact(sequence, chosen)
            layout, origin = sequence.layout, sequence.origin


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(32, (8, 16, 24)), (28, (7, 14, 21)), (5, (1, 2, 4)), (4, (1, 2, 3)), (3, (1, 2)), (2, (1,))],
)
def test_default_schedule(depth, layers):
    method = ProgressiveIVC().resolve(model_config(depth))
    assert method == ProgressiveIVC(keep_ratio=0.5).resolve(model_config(depth))
    assert method.layers == layers
    factor = 0.5 ** (1 / len(layers))
    assert method.ratios == pytest.approx([factor ** (cut + 1) for cut in range(len(layers))])
    assert method.ratios[-1] == 0.5
    assert measure(method.stages, depth) == pytest.approx(0.5)


def test_one_block_is_too_few():
    with pytest.raises(MethodError, match="cannot cut before layer 1"):
        ProgressiveIVC().resolve(model_config(1))


def test_a_budget_is_the_last_share_and_shrinks_the_fractions_with_it():
    method = ProgressiveIVC(budget=0.2).resolve(model_config(28))
    once = IVCPrune(budget=0.2).resolve(model_config(28))
    assert method.ratios[-1] == pytest.approx(once.keep_ratio)
    for name in ("cos_fraction", "sin_fraction"):
        shrunk = getattr(once.coordinates, name)
        assert getattr(method.coordinates, name) == pytest.approx(shrunk)
    usual = ProgressiveIVC(keep_ratio=0.2).resolve(model_config(28))
    assert usual.coordinates.cos_fraction == 0.1


def test_a_budget_with_whole_early_caches():
    lazy = ProgressiveIVC(budget=0.5, compact_earlier_kv=False).resolve(model_config(28))
    assert measure(lazy.stages, 28) == pytest.approx(0.5)
    assert lazy.ratios[-1] < 0.2
    assert lazy.coordinates.cos_fraction == pytest.approx(0.1 * lazy.ratios[-1] / 0.5)
    with pytest.raises(BudgetError, match="cannot be reached on 4 layers"):
        ProgressiveIVC(budget=0.2, compact_earlier_kv=False).resolve(model_config(4))


def test_every_cut_is_that_of_ivc():
    config = model_config(28)
    method = ProgressiveIVC(layers=(16,), ratios=(0.3,), query_offset=1).resolve(config)
    once = IVCPrune(layer=16, keep_ratio=0.3, query_offset=1).resolve(config)
    assert method.stages == once.stages
    (stage,) = method.stages
    assert method.requests(stage) == once.requests(stage)
    for slots, images in ((0, 0), (3, 1), (60, 2)):
        assert method.capacity(stage, slots, images) == once.capacity(stage, slots, images)


@pytest.mark.parametrize(
    "spec",
    [
        "ivc_progressive",
        "ivc_progressive:layers=1/3,ratios=0.6/0.25,frequencies=low",
        "ivc_progressive:budget=0.3,cos_fraction=0.05,seed_fraction=0.02,compact_earlier_kv=false",
        "ivc_progressive:keep_ratio=0.25,query_offset=1",
    ],
)
def test_specifications_are_written_back(spec):
    assert set(describe(parse(spec)).split(":")[-1].split(",")) == set(
        spec.split(":")[-1].split(",")
    )
    assert parse(describe(parse(spec))) == parse(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ivc_progressive:layers=0/2", "cannot cut before layer 1"),
        ("ivc_progressive:layers=2/1", "layers must ascend"),
        ("ivc_progressive:keep_ratio=0.5,budget=0.5", "exclude each other"),
        ("ivc_progressive:sin_fraction=-0.1", "sin_fraction must be in"),
        ("ivc_progressive:seed_fraction=2", "seed_fraction must be in"),
        ("ivc_progressive:query_offset=-1", "query_offset must not be negative"),
        ("ivc_progressive:frequencies=most", "frequencies must be one of"),
        ("ivc_progressive+ivc", "keeps the IVC tokens already"),
    ],
)
def test_bad_input_is_named(spec, message):
    with pytest.raises(MethodError, match=message):
        parse(spec)


def test_planes_are_checked_against_the_model():
    with pytest.raises(MethodError, match="between 0 and 63"):
        ProgressiveIVC(frequencies=(64,)).resolve(model_config())
