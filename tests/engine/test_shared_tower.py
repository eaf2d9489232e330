"""Visual tokens encoded once serve every method as its own run of the tower would."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from helpers.batches import BUCKET, batch_of
from helpers.tsv import IMAGE, write_tsv
from jax.sharding import PartitionSpec
from PIL import Image

import ivc_jax
from ivc_jax.commands import session as sessions
from ivc_jax.commands.settings import RunConfig
from ivc_jax.engine.prefill import run_prefill
from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running.answerer import ModelAnswerer, can_share_pictures
from ivc_jax.evals.running.batching import cover_sizes
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import parse
from ivc_jax.methods.requests import TowerRequest
from ivc_jax.parallel.batch import place_inputs
from ivc_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def encoded(model, inputs):
    return ivc_jax.encode(model, inputs)


@pytest.mark.parametrize("spec", ["dense", "ivc"])
def test_shared_and_own_tower_agree(model, inputs, encoded, spec):
    own, shared = (ivc_jax.prefill(model, given, parse(spec)) for given in (inputs, encoded))
    np.testing.assert_allclose(shared.logits, own.logits, rtol=0, atol=1e-5)
    for ours, theirs in zip(shared.kept, own.kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_methods_that_cut_before_the_decoder_choose_alike(model, inputs, encoded):
    """Among them SCOPE, which asks about the tower: what it needs of that still runs."""
    methods = [parse(spec).resolve(model.config) for spec in ("random:layer=0", "scope")]
    assert any(isinstance(r, TowerRequest) for r in methods[1].requests(methods[1].stages[0]))

    @jax.jit  # of the selections alone: the compiler drops the decoder
    def choose(params, *inputs):
        run = partial(run_prefill.__wrapped__, model.config)
        return [[run(m, params, given).selection for m in methods] for given in inputs]

    own, shared = choose(model.params, inputs, encoded)
    for ours, theirs in zip(shared, own, strict=True):
        np.testing.assert_array_equal(ours.valid, theirs.valid)
        np.testing.assert_array_equal(ours.index, theirs.index)


def test_prefill_of_encoded_inputs_has_no_tower(model, inputs, encoded):
    """Neither weights nor patches: the first may be missing, the second are no argument."""
    blind = dataclasses.replace(model, params={"decoder": model.params["decoder"]})
    patches = f"tensor<{'x'.join(map(str, inputs.patches.shape))}xf32>"
    method = parse("random").resolve(model.config)
    program = run_prefill.lower(model.config, method, blind.params, encoded).as_text()
    assert patches not in program
    assert patches in run_prefill.lower(model.config, method, model.params, inputs).as_text()
    with pytest.raises(KeyError, match="vision"):
        ivc_jax.prefill(blind, inputs)


def test_encoding_again_forgets_the_tokens_of_before(model, encoded):
    assert encoded.visual.shape == (4, 32, 64)
    stale = encoded.replace(visual=np.zeros_like(encoded.visual))
    np.testing.assert_array_equal(ivc_jax.encode(model, stale).visual, encoded.visual)


def test_a_batch_without_images_stays_as_it_is(model):
    text = collate(batch_of(1), model.config, BUCKET)
    given = ivc_jax.encode(model, text)
    assert jax.tree.structure(given) == jax.tree.structure(text)
    assert jax.tree.all(jax.tree.map(np.array_equal, given, text))


def test_a_mesh_splits_visual_tokens_by_sample(encoded):
    placed = place_inputs(encoded, make_mesh())
    assert placed.visual.sharding.spec == PartitionSpec("data")


def test_the_answerer_encodes_when_told_to(loaded):
    picture = Image.effect_noise((40, 56), 90).convert("RGB")
    for share in (False, True):
        answerer = ModelAnswerer(*loaded, share_tower=share)
        host = collate(answerer.processor(["What?"], [[picture]]), loaded[0].config)
        device = answerer.place({0: host})
        assert host.visual is None
        if share:
            assert device.visual.shape == (*host.visual_source.shape, 64)
        else:
            assert device.visual is None


def test_samples_with_one_picture_answer_as_with_a_picture_each(loaded):
    """As a run has them: a broken row among them, the last one a repetition."""
    pictures = [Image.effect_noise((40, 56), spread).convert("RGB") for spread in (90, 40)]
    holders, questions = [0, 0, 2, None, 2], ["What?", "Where is it?", "Is it?", "", "Is it?"]
    found = []
    for share in (False, True):
        answerer = ModelAnswerer(*loaded, share_tower=True, share_pictures=share)
        samples = [
            None if holder is None else answerer.processor([text], [[pictures[holder // 2]]])
            for holder, text in zip(holders, questions, strict=True)
        ]
        rows = 2 if share else 5
        sizes = [answerer.processor.measure(text, [(40, 56)]) for text in questions]
        shape = dataclasses.replace(cover_sizes(sizes, 5), rows=rows)
        placed = answerer.place({0: answerer.collate(samples, shape, holders)})
        assert placed.patches.shape[0] == rows
        method = ivc_jax.methods.parse("ivc:layer=2,keep_ratio=0.5")
        found.append([(a.text, a.kept) for a in answerer.answer(placed, method, 4)])
    assert found[0] == found[1]


def test_rows_are_not_shared_where_a_method_weighs_them_for_one_sample(loaded):
    config = loaded[0].config
    resolved = {
        name: ivc_jax.methods.parse(name).resolve(config) for name in ("dense", "random", "scope")
    }
    assert can_share_pictures([resolved["dense"], resolved["random"]])
    assert not can_share_pictures([resolved["dense"], resolved["scope"]])


def test_a_run_says_whether_it_shared_the_tower(tiny_hf, tmp_path):
    task = TASKS["DigitScenes_colour"]
    header = ["image", *task.scoring.columns]
    cells = [IMAGE if name == "image" else "1" for name in header]
    write_tsv(tmp_path / task.file_name, header, [cells])
    settings = RunConfig(
        methods=("dense",),
        tasks=(task.name,),
        model=str(tiny_hf(num_hidden_layers=4)),
        data_dir=str(tmp_path),
        out=str(tmp_path / "out"),
        share_tower=True,
    )
    session = sessions.open_session(settings, resume=True, log=lambda line: None)
    assert session.answerer.share_tower
    session.plan = dataclasses.replace(session.plan, methods=())  # nothing to answer
    meta = sessions.evaluate(session, lambda *progress: None)
    session.close()
    assert meta.shared_tower is True
    assert meta.image_start is not None


def test_only_runs_that_share_the_tower_have_a_new_identity(model):
    usual = RunConfig(methods=("dense",), tasks=("colour",))
    shared = dataclasses.replace(usual, share_tower=True)
    before, now = (sessions._identify(each, "name", model) for each in (usual, shared))
    assert now == {**before, "shared tower": True}
