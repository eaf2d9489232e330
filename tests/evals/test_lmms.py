"""The lmms-eval adapter: with the real package where it is installed, else with a stand-in."""

import importlib
import importlib.metadata
import importlib.util
import sys
import types

import numpy as np
import PIL.Image
import pytest

import ivc_jax

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
GREEDY = {"max_new_tokens": 4, "temperature": 0, "do_sample": False}


class StandIn:
    """What the adapter uses of `lmms_eval.api.model.lmms`."""

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.task_dict = {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)

    @property
    def world_size(self):
        return self._world_size


@pytest.fixture(scope="module")
def adapter():
    """The adapter's module; nothing of it stays loaded."""
    name = "ivc_jax.evals.lmms_adapter"
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            for module in ("lmms_eval", "lmms_eval.api"):
                patch.setitem(sys.modules, module, types.ModuleType(module))
            model = types.ModuleType("lmms_eval.api.model")
            model.lmms = StandIn
            patch.setitem(sys.modules, "lmms_eval.api.model", model)
        yield importlib.import_module(name)
        sys.modules.pop(name)


def picture(seed, width, height):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(values)


DOCUMENTS = [
    {"text": "What?", "images": [picture(0, 24, 16)]},
    {"text": "Compare <image> with <image>.", "images": [picture(1, 16, 16), picture(2, 16, 24)]},
    {"text": "No picture at all.", "images": None},
    {"text": "Which of <image>, <image>, <image>?", "images": [picture(3, 16, 24)]},
]


def ask(processor, document):
    """Return the batch of one document: marks without an image each are words."""
    if document is not DOCUMENTS[3]:
        return processor([document["text"]], [document["images"]])
    picture = {"type": "image", "image": document["images"][0]}
    content = [picture, {"type": "text", "text": document["text"]}]
    return processor([{"role": "user", "content": content}])


def requests(options=GREEDY, documents=DOCUMENTS):
    return [
        types.SimpleNamespace(
            args=(document["text"], dict(options), lambda d: d["images"], number, "shapes", "test")
        )
        for number, document in enumerate(documents)
    ]


def make(adapter, path, documents=DOCUMENTS, **settings):
    model = adapter.IvcJax(str(path), dtype="float32", **settings)
    model.task_dict["shapes"] = {"test": documents}
    return model


@pytest.fixture(scope="module")
def model(adapter, tiny_hf):
    # One bucket: requests of every kind share a padded shape, and the test a program.
    return make(
        adapter,
        tiny_hf(num_hidden_layers=2),
        method="ivc:layer=1;keep_ratio=0.5",
        batch_size=2,
        buckets=1,
    )


def test_answers_are_those_of_generate_in_order(model, tiny_hf):
    """Several images, none, marks with and without images, two bounds, a partial batch."""
    noted = []
    model.cache_hook = types.SimpleNamespace(add_partial=lambda *args: noted.append(args))
    asked = requests()
    asked[1].args[1]["max_new_tokens"] = 2
    got = model.generate_until(asked)
    loaded, processor = ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")
    batch = ivc_jax.Batch.join([ask(processor, document) for document in DOCUMENTS])
    method = ivc_jax.methods.parse("ivc:layer=1,keep_ratio=0.5")
    output = ivc_jax.generate(loaded, batch, method, 4, processor.stop_ids)
    lengths = np.minimum(output.lengths, [4, 2, 4, 4])
    assert got == processor.decode(output.tokens, lengths)
    assert len(set(got)) > 1
    assert sorted(answer for *_, answer in noted) == sorted(got)
    assert {name for name, *_ in noted} == {"generate_until"}


def test_a_semicolon_stands_for_the_comma_of_a_specification(model):
    assert model.method == ivc_jax.methods.parse("ivc:layer=1,keep_ratio=0.5")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"do_sample": True},
        {"do_sample": True, "temperature": None},
        {"do_sample": True, "temperature": 0.2},
        {"num_beams": 3},
        {"max_new_tokens": 0.5},
        {"max_new_tokens": -1},
    ],
)
def test_what_is_not_greedy_is_an_error_that_names_the_document(model, options):
    with pytest.raises(ValueError, match=r"task shapes, document 0: .*(--gen_kwargs|positive)"):
        model.generate_until(requests(options))


def test_greedy_options_in_their_many_spellings(adapter):
    read = adapter.Generation.from_task
    assert read({}, 9).max_new_tokens == 9
    assert read({"max_gen_toks": 7}, 9).max_new_tokens == 7
    silent = {"temperature": 0.0, "do_sample": True, "top_p": None, "num_beams": 1, "until": None}
    assert read({**silent, "image_aspect_ratio": "original"}, 9) == adapter.Generation(9)
    assert read({"temperature": 0.2, "do_sample": False}, 9) == adapter.Generation(9)


def test_stop_strings_cut_at_the_first_one_found(adapter):
    read = adapter.Generation.from_task
    assert read({"until": ["\n\n", "", "."]}, 9).cut("one. two\n\nthree") == "one"
    assert read({"until": "\n"}, 9).cut("one\ntwo") == "one"
    assert read({"until": ["?"]}, 9).cut("one two") == "one two"


def test_a_visual_that_is_no_image_names_the_document(model):
    documents = [DOCUMENTS[0], {"text": "Listen.", "images": [{"array": [0.0]}]}]
    model.task_dict["shapes"] = {"test": documents}
    try:
        with pytest.raises(ValueError, match="task shapes, document 1: image 0 is a dict, not an"):
            model.generate_until(requests(documents=documents))
    finally:
        model.task_dict["shapes"] = {"test": DOCUMENTS}


def test_several_processes_are_refused(model, monkeypatch):
    monkeypatch.setattr(model, "_world_size", 2)
    with pytest.raises(ValueError, match="2 processes: start a single one"):
        model.generate_until(requests())


def test_bounds_on_pictures_are_those_of_load(adapter, tiny_hf):
    """The picture of 24 x 16 pixels takes 6 tokens of 8 x 8; within 16 x 16 pixels 2."""
    path = tiny_hf(num_hidden_layers=2)
    sizes = []
    for bounds in ({}, {"max_pixels": 256}, {"min_pixels": 1024, "max_pixels": 2048}):
        (asked,) = requests(documents=DOCUMENTS[:1])
        made = make(adapter, path, documents=DOCUMENTS[:1], **bounds)
        sizes.append(made._measure(made._read(asked.args[0], *asked.args[2:])).visual)
        processor = ivc_jax.load(path, dtype="float32", **bounds)[1]
        rule = made._answerer.make_reader().pictures
        assert (rule.min_pixels, rule.max_pixels) == (
            processor.images.min_pixels, processor.images.max_pixels
        )  # fmt: skip
    assert sizes == [6, 2, 20]
    with pytest.raises(ValueError, match="min_pixels"):
        make(adapter, path, min_pixels=2048, max_pixels=256)


@pytest.mark.parametrize("size", ["auto", 0, 3])
def test_a_batch_size_that_does_not_fit(adapter, tiny_hf, size):
    with pytest.raises(ValueError, match="batch_size must be a multiple of data=2"):
        adapter.IvcJax(str(tiny_hf()), batch_size=size, data=2)


CHOICES = {0: ["yes", " no"], 1: ["A", "B", "both of them"]}


def likelihoods(target=lambda text: text):
    return [
        types.SimpleNamespace(
            args=(
                *(DOCUMENTS[number]["text"], target(text), lambda d: d["images"], number),
                *("shapes", "test"),
            )
        )
        for number, texts in CHOICES.items()
        for text in texts
    ]


def test_likelihoods_are_losses_of_score_in_order(model, tiny_hf):
    """lmms-eval takes the smallest for the best: the mean loss, as transformers reports it."""
    noted = []
    model.cache_hook = types.SimpleNamespace(add_partial=lambda *args: noted.append(args))
    got = model.loglikelihood(likelihoods())
    loaded, processor = ivc_jax.load(tiny_hf(num_hidden_layers=2), dtype="float32")
    spec, place = "ivc:layer=1,keep_ratio=0.5", 0
    for number, texts in CHOICES.items():
        batch = ivc_jax.Batch.join([ask(processor, DOCUMENTS[number])] * len(texts))
        totals = ivc_jax.score(loaded, batch, texts, spec, processor=processor)
        losses = -totals / [len(ids) for ids in processor.encode(texts)]
        mine = [loss for loss, _ in got[place : place + len(texts)]]
        np.testing.assert_allclose(mine, losses, rtol=0, atol=1e-4)
        place += len(texts)
    assert not any(greedy for _, greedy in got)
    assert sorted(args[2] for args in noted) == sorted(got)
    # What greedy decoding says is greedy, and better than the others.
    first = ivc_jax.generate(loaded, ask(processor, DOCUMENTS[0]), spec, 1, ())
    text = processor.decode(first.tokens, first.lengths)[0]
    assert processor.encode([text]) == np.asarray(first.tokens).tolist()
    told = likelihoods(lambda _: lambda document: text)[0]  # by the document
    ((loss, greedy),) = model.loglikelihood([told])
    assert greedy
    assert loss < min(loss for loss, _ in got[:2])


def test_likelihoods_that_cannot_be_had_are_named(model):
    with pytest.raises(ValueError, match="task shapes, document 0: its answer is empty"):
        model.loglikelihood(likelihoods(lambda text: ""))
    with pytest.raises(ValueError, match="leave out acc_mutual_info"):
        model.loglikelihood([types.SimpleNamespace(args=("", "A"))])


def test_other_kinds_of_requests_say_what_to_choose(model):
    with pytest.raises(NotImplementedError, match="output_type: generate_until"):
        model.generate_until_multi_round([])


@needs_package
def test_the_package_makes_the_model_from_its_arguments(adapter, tiny_hf):
    from lmms_eval.api.instance import Instance

    assert issubclass(adapter.IvcJax, adapter.lmms)
    line = f"pretrained={tiny_hf()},method=ivc:layer=1;keep_ratio=0.5,dtype=float32,weights=int8"
    line += ",min_pixels=256,max_pixels=1024"
    found = adapter.IvcJax.create_from_arg_string(line, {"batch_size": "2", "device": None})
    assert found.method == ivc_jax.methods.parse("ivc:layer=1,keep_ratio=0.5")
    assert (found.batch_size, found._answerer.model.weights) == (2, "int8")
    assert found._answerer.make_reader().pictures.max_pixels == 1024
    found.task_dict["shapes"] = {"test": DOCUMENTS}
    (asked,) = requests(documents=DOCUMENTS[:1])
    metadata = {"task": "shapes", "doc_id": 0, "repeats": 1}
    instance = Instance("generate_until", asked.args, 0, metadata)
    assert found.generate_until([instance])


@needs_package
def test_the_package_finds_the_class_by_its_manifest(adapter):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(adapter.manifest())
    assert registry.get_model_class("ivc_jax").__name__ == "IvcJax"
