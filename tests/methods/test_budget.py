"""Equal budgets: every method solves a schedule whose caches hold what was asked for."""

import dataclasses

import numpy as np
import pytest
from helpers.methods import complete
from helpers.models import model_config
from helpers.prompts import hf_arrays

import ivc_jax
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.methods import METHODS, BudgetError, MethodError, describe, parse
from ivc_jax.methods.base import Stage
from ivc_jax.methods.budget import measure, solve
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.fields import list_fields
from ivc_jax.methods.testing import run_cuts

PRUNING = [complete(name) for name, kind in METHODS.items() if "budget" in list_fields(kind)]
BUDGETS = (0.5, 0.33, 0.22, 0.11)
# One image of 16 x 24 cells: rounding to whole tokens is below half a percent.
PROMPT = [(5, ("image", (1, 32, 48)), 9)]
BUCKET = Buckets(text=(24,), visual=(384,), patches=(1536,), rows=(1,), images=(1,))


def with_budget(spec, budget):
    return parse(f"{spec}{',' if ':' in spec else ':'}budget={budget}")


def test_measure_by_hand():
    assert measure((), 4) == 1.0
    assert measure((Stage(2, 0.5),), 4) == 0.75
    assert measure((Stage(2, 0.5, compact_earlier_kv=True),), 4) == 0.5
    assert measure((Stage(2, 0.5, True, whole_kv_layers=1),), 4) == 0.625
    assert measure((Stage(1, 0.5), Stage(3, 0.25)), 4) == (1 + 0.5 + 0.5 + 0.25) / 4


def test_solve_finds_the_share_or_nothing():
    def family(x):
        return (Stage(1, x),)

    assert solve(family, 4, 0.5) == pytest.approx(1 / 3, abs=1e-11)
    assert solve(family, 4, 1.0) == 1.0
    assert solve(family, 4, 0.25) is None


@pytest.mark.parametrize("depth", [28, 36, 12])
@pytest.mark.parametrize("name", PRUNING)
def test_every_method_solves_every_budget(name, depth):
    for budget in BUDGETS:
        try:
            method = with_budget(name, budget).resolve(model_config(depth))
        except BudgetError as error:
            # Both must see a whole block, or three, before they can cut.
            late = ("sparsevlm", "fastv", "dart")
            assert (name in late and budget == 0.11) or depth == 12
            assert f"budget={budget}" in str(error)  # noqa: PT017
            continue
        assert measure(method.stages, depth) == pytest.approx(budget, rel=2e-3)
        assert method.budget is None  # equal schedules are equal methods


@pytest.mark.parametrize("spec", [*PRUNING, "fastv+ivc", "pyramiddrop+pore:sigma=1.0"])
def test_what_is_kept_is_the_budget(spec):
    method = with_budget(spec, 0.6).resolve(model_config(6))
    cuts = run_cuts(method, make_layout([(9, (16, 24), 5)]))
    stages = [
        dataclasses.replace(stage, keep_ratio=len(kept) / 384)
        for stage, [(kept, _)] in zip(method.stages, cuts, strict=True)
    ]
    # A union is as large as its overlap allows, and clusters and cells come in whole numbers.
    # A square grid of 15 x 15 is what 230 tokens make.
    loose = {"fastv+ivc": 0.08, "sparsevlm": 0.015, "vflowopt": 0.02, "quota": 0.025}
    assert measure(stages, 6) == pytest.approx(0.6, rel=loose.get(spec, 0.006))


@pytest.mark.parametrize("spec", ["pyramiddrop", "ivc_progressive"])
def test_the_caches_hold_the_budget(tiny_hf, spec):
    model, _ = ivc_jax.load(tiny_hf(num_hidden_layers=6), dtype="float32")
    inputs = collate(ivc_jax.Batch.from_hf(**hf_arrays(PROMPT)), model.config, BUCKET)
    prompt = ivc_jax.prefill(model, inputs, parse(f"{spec}:budget=0.6"))
    (share,) = prompt.cached_share
    assert share == pytest.approx(0.6, rel=0.006)
    visual = np.stack([span.lengths[0] for span in prompt.cache]) - 16  # 9 + 5 text, two marks
    layers = [span.keys.shape[0] for span in prompt.cache]
    assert share == pytest.approx(np.average(visual / 384, weights=layers))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fastv:keep_ratio=0.5,budget=0.5", "keep_ratio and budget exclude each other"),
        ("holov:keep_ratio=0.5,budget=0.5", "exclude each other"),
        ("pyramiddrop:ratios=0.5/0.25/0.125,budget=0.5", "ratios and budget exclude each other"),
        ("nuwa:keep_ratio=0.2,budget=0.5", "keep_ratio and budget exclude each other"),
        ("ivc:budget=0", r"budget must be in \(0, 1\]"),
        ("scope:budget=1.5", r"budget must be in \(0, 1\]"),
        ("ivc:combine=union,budget=0.5", "takes no budget"),
        ("pyramiddrop:ratios=0.2/0.4/0.1", "must not grow"),
        ("pyramiddrop:layers=4/2,ratios=0.5/0.2", "layers must ascend"),
        ("pyramiddrop:layers=2/4,ratios=0.5", "must pair up"),
    ],
)
def test_what_a_budget_excludes(spec, message):
    with pytest.raises(MethodError, match=message):
        parse(spec)


def test_an_unreachable_budget_names_the_least():
    with pytest.raises(BudgetError, match=r"cannot be reached on 5 layers.*the least is 0\.2"):
        parse("fastv:budget=0.15").resolve(model_config(5))
    with pytest.raises(BudgetError, match=r"fastv\+ivc: budget=0\.22 is shared with the IVC"):
        parse("fastv+ivc:budget=0.22").resolve(model_config(5))
    with pytest.raises(BudgetError, match="IVC tokens alone exceed"):
        parse("fastv+ivc:budget=0.5,cos_fraction=0.4").resolve(model_config(28))


def test_fastv_moves_its_cut_forward_only_where_it_must():
    for budget, layer in ((0.5, 2), (0.33, 1)):
        (stage,) = parse(f"fastv:budget={budget}").resolve(model_config(5)).stages
        assert stage.layer == layer
    (stage,) = parse("fastv:layer=3,budget=0.5").resolve(model_config(28)).stages
    assert stage == Stage(3, pytest.approx((0.5 * 28 - 3) / 25))


def test_ivc_fractions_shrink_with_the_budget():
    half, fifth = (parse(f"ivc:budget={b}").resolve(model_config(28)) for b in (0.6, 0.2))
    assert (half.coordinates.cos_fraction, half.keep_ratio) == (0.1, 0.6)
    shrunk = fifth.coordinates.cos_fraction, fifth.coordinates.sin_fraction
    assert shrunk == pytest.approx((0.04, 0.04))
    host = parse("fastv+ivc:budget=0.5").resolve(model_config(28)).host
    # 0.2 of IVC tokens and 0.375 of the host, overlapping in 0.2 * 0.375
    assert measure(host.stages, 28) == pytest.approx(0.375)


@pytest.mark.parametrize("name", PRUNING)
def test_descriptions_name_the_budget(name):
    method = with_budget(name, 0.33)
    assert "budget=0.33" in describe(method)
    assert "keep_ratio" not in describe(method)
    assert parse(describe(method)) == method
