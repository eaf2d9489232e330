"""EmbedLens: the worked numbers, the probe in chunks, a slow reference, tables and mistakes."""

import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.methods import MethodError, parse, words
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import (
    Embeddings,
    Parameters,
    TokenVectors,
    Weights,
    WordEmbeddings,
)
from ivc_jax.methods.testing import listed, run_stage
from ivc_jax.methods.words import ALIVE, DEAD, LLM_SINK, VIT_SINK, classify, probe

E = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (-1, 0, 1), (1, 0, 1), (0.5, -1, 0.2)]
TOKENS = [(0.9, 0.1, 0), (0.1, 1, 0.2), (-0.15, 0.1, 3), (-2, 0.1, 2.1)]
TOKENS += [(1, 0.9, 0.2), (0.7, 0.2, 0.9), (0.1, 0.05, 0.8), (2, -3, 0.5)]
TOP = [[0, 3, 6], [1, 4, 3], [2, 5, 4], [5, 2, 4], [3, 0, 1], [6, 2, 4], [2, 6, 4], [7, 0, 6]]
BEST = [0.99388, 0.97590, 0.99820, 0.99911, 0.98776, 0.97736, 0.99038, 0.99170]
MARGIN = [0.65358, 0.90689, 0.25707, -0.27540, 1.22080, 0.72636, 0.37761, -0.44226]
LINE = (1, (1, 8), 1)

SAMPLES = [(3, (4, 5), 4, (3, 7), 5), (2, (3, 3, 4), 2, (2, 9), 6), (2, (6, 6), 6)]
BUCKET = {"text_slots": 20, "visual_slots": 60, "num_images": 4}
D, W = 7, 23


def as_array(rows):
    return jnp.asarray(rows, jnp.float32)


def run(spec, samples, tokens, table, junk=np.nan, **bucket):
    layout = make_layout(samples, **bucket)
    visual = np.full((*layout.image_id.shape, np.shape(table)[1]), junk, np.float32)
    for row, vectors in zip(visual, tokens, strict=True):
        row[: len(vectors)] = vectors
    text = jnp.zeros((len(samples), layout.text_index.shape[1], visual.shape[-1]))
    signals = {Embeddings(): TokenVectors(jnp.asarray(visual), text)}
    signals[WordEmbeddings()] = as_array(table)
    method = parse(spec).resolve(model_config())
    return listed(run_stage(method, layout, signals))


def test_worked_example_words_classes_and_margin():
    found = probe(as_array([TOKENS]), as_array(E), 3, (5, 7))
    np.testing.assert_array_equal(found.ids[0], TOP)
    np.testing.assert_allclose(found.cosines[0, :, 0], BEST, rtol=0, atol=2e-5)
    np.testing.assert_allclose((found.outside - found.inside)[0], MARGIN, rtol=0, atol=2e-5)
    kinds = np.full(8, ALIVE)
    kinds[7], kinds[[2, 3]] = LLM_SINK, DEAD
    np.testing.assert_array_equal(classify(found.ids, ((), (7,), (5,)))[0], kinds)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ("keep_ratio=0.375", [1, 4, 5]),
        ("keep_ratio=0.75", [0, 1, 2, 4, 5, 6]),
        ("keep_ratio=0.75,strict=true", [0, 1, 4, 5, 6]),
        ("keep_ratio=1,strict=true", [0, 1, 4, 5, 6]),
        ("keep_ratio=1,strict=true,remove=sinks", [0, 1, 2, 3, 4, 5, 6]),
        ("keep_ratio=1,strict=true,remove=dead", [0, 1, 4, 5, 6, 7]),
        ("keep_ratio=1,strict=true,control=matching", [2, 3, 7]),
        ("keep_ratio=1,strict=true,words=1", [0, 1, 2, 4, 5, 6]),
    ],
)
def test_worked_example_kept_tokens(fields, kept):
    config = model_config()  # 9 words
    assert config.decoder.vocab_size == 9
    assert run(f"embedlens:llm_sinks=7,dead=5,{fields}", [LINE], [TOKENS], E) == [kept]


def test_random_control_spares_the_classes_and_takes_as_many_others():
    drawn = set()
    for seed in range(4):
        spec = f"embedlens:llm_sinks=7,dead=5,keep_ratio=1,strict=true,control=random,seed={seed}"
        (kept,) = run(spec, [LINE], [TOKENS], E)
        assert {2, 3, 7} < set(kept)
        assert len(kept) == 5
        drawn.add(tuple(kept))
    assert len(drawn) > 1


def test_the_probe_is_the_same_in_chunks_and_ties_go_to_the_lower_id(monkeypatch):
    random = np.random.default_rng(0)
    table = random.integers(-2, 3, (53, 4)).astype(np.float32)  # many alike up to a factor
    tokens = random.integers(-2, 3, (2, 9, 4)).astype(np.float32)

    def unit(x):
        length = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
        return x / np.maximum(length, 1e-12)

    cosine = unit(tokens) @ unit(table).T
    for chunk in (8192, 53, 7, 4, 1):
        monkeypatch.setattr(words, "_CHUNK", chunk)
        found = probe(jnp.asarray(tokens), jnp.asarray(table), 4, (3, 50))
        for row, ids, exact in zip(
            cosine.reshape(-1, 53), found.ids.reshape(-1, 4), found.cosines.reshape(-1, 4),
            strict=True,
        ):  # fmt: skip
            order = np.argsort(-row.round(5), kind="stable")[:4]
            assert sorted(row[ids].round(5)) == sorted(row[order].round(5))
            np.testing.assert_allclose(exact, row[order], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.inside, cosine[..., [3, 50]].max(axis=2), atol=1e-6)
        rest = np.delete(cosine, [3, 50], axis=2).max(axis=2)
        np.testing.assert_allclose(found.outside, rest, atol=1e-6)


def test_equal_words_are_named_by_the_lower_id(monkeypatch):
    table = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)  # words 0-3, 4-7, 8-11 alike
    for chunk in (8192, 5, 3):
        monkeypatch.setattr(words, "_CHUNK", chunk)
        found = probe(jnp.eye(3)[None], jnp.asarray(table), 5)
        np.testing.assert_array_equal(
            found.ids[0], [[0, 1, 2, 3, 4], [4, 5, 6, 7, 0], [8, 9, 10, 11, 0]]
        )


def test_of_several_classes_the_first_counts():
    ids = jnp.asarray([[[1, 2, 3], [3, 2, 9], [9, 3, 8], [9, 8, 7]]])
    np.testing.assert_array_equal(
        classify(ids, ((1,), (2,), (3,))), [[VIT_SINK, LLM_SINK, DEAD, ALIVE]]
    )


def follow(tokens, table, removed, count, strict) -> list[int]:
    """Choose of one image in float64, as section 3 says."""
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (tokens, table)]
    cosine = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :3]
    alive = ~np.isin(nearest, removed).any(axis=1)
    margin = np.delete(cosine, removed, axis=1).max(axis=1) - cosine[:, removed].max(axis=1)
    order = np.argsort(-(margin + 2 * alive), kind="stable")
    count = min(count, max(alive.sum(), 1)) if strict else count
    return sorted(order[:count].tolist())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.3, 0.62, 0.9])
def test_several_images_of_ragged_samples_follow_the_slow_reference(keep_ratio, strict):
    random = np.random.default_rng(5)
    table = random.normal(size=(W, D)).astype(np.float32)
    parts = [np.unique(lay_out(sample)["image"], return_counts=True)[1] for sample in SAMPLES]
    drawn = [random.normal(size=(sum(sizes), D)).astype(np.float32) for sizes in parts]
    removed, wanted = (3, 5, 8), []
    for sizes, tokens in zip(parts, drawn, strict=True):
        kept, first = [], 0
        for size in sizes:
            count = max(1, int(np.floor(keep_ratio * size)))
            image = follow(tokens[first : first + size], table, removed, count, strict)
            kept += [first + token for token in image]
            first += size
        wanted.append(kept)
    spec = f"embedlens:vit_sinks=3,llm_sinks=5,dead=8,keep_ratio={keep_ratio},strict={strict}"
    assert run(spec.lower(), SAMPLES, drawn, table, **BUCKET) == wanted
    assert run(spec.lower(), SAMPLES, drawn, table, junk=np.inf) == wanted


def test_an_image_without_an_alive_token_keeps_one():
    spec = "embedlens:llm_sinks=7,dead=5,keep_ratio=1,strict=true"
    gone = [TOKENS[3], TOKENS[2], TOKENS[7]]  # the second has the largest margin
    assert run(spec, [(1, (1, 3), 2)], [gone], E) == [[1]]


@flax.struct.dataclass
class Directions(Parameters):
    """Prototypes as a file holds them."""

    rows: jax.Array
    settings: dict = flax.struct.field(pytree_node=False)

    def __call__(self, like):
        assert like["direction"].shape == self.rows.shape
        return {"direction": self.rows}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ("keep_ratio=1,strict=true", [0, 1, 4, 5, 6]),
        ("keep_ratio=1,strict=true,remove=sinks", [0, 1, 2, 3, 4, 5, 6]),
        ("keep_ratio=1,strict=true,remove=llm_sinks,control=matching", [7]),
        # 2 fills the last place: it is above its threshold by 0.001 alone
        ("keep_ratio=0.75", [0, 1, 2, 4, 5, 6]),
        ("keep_ratio=0.25", [1, 4]),  # farthest below
    ],
)
def test_prototypes_stand_for_the_words(fields, kept):
    units = np.array(TOKENS) / np.linalg.norm(TOKENS, axis=1, keepdims=True)
    rows = jnp.asarray(3 * np.stack([units[7], units[2], units[3]]), jnp.float32)
    above = np.stack([units @ units[i] for i in (7, 2, 3)], axis=1)
    limits = (0.99, 0.999, 0.9)
    alive = (above < limits).all(axis=1)
    assert np.flatnonzero(alive).tolist() == [0, 1, 4, 5, 6]
    found = Directions(rows, HashableDict(kinds=("llm_sink", "dead", "dead"), thresholds=limits))
    layout = make_layout([LINE])
    visual = jnp.asarray([TOKENS], jnp.float32)
    signals = {Embeddings(): TokenVectors(visual, jnp.zeros((1, 2, 3))), Weights("p"): found}
    method = parse(f"embedlens:prototypes=p,{fields}").resolve(model_config())
    assert listed(run_stage(method, layout, signals)) == [kept]


class HashableDict(dict):
    """What is static needs a hash."""

    def __hash__(self):
        return hash(tuple(sorted(self.items())))


def test_a_vocabulary_of_152_thousand_words_compiles_without_an_array_of_it():
    B, V, width, size = 1, 64, 16, 152_064
    lowered = jax.jit(probe, static_argnums=(2, 3)).lower(
        jax.ShapeDtypeStruct((B, V, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((size, width), jnp.bfloat16),
        3,
        (11, 70_000),
    )
    analysis = lowered.compile().memory_analysis()
    assert analysis.temp_size_in_bytes < V * size * 4  # [V, W] in float32


def test_a_table_is_read_into_the_words(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"vit_sinks": [4], "llm_sinks": [], "dead": [2, 1], "more": 0}))
    method = parse(f"embedlens:table={path},keep_ratio=0.25")
    assert method == parse("embedlens:vit_sinks=4,dead=1-2,keep_ratio=0.25")
    assert method.removed == (1, 2, 4)
    assert parse(f"embedlens:table={path},remove=sinks").removed == (4,)


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        (None, "table={}", "cannot be read: No such file"),
        ("{", "table={}", "is no table that `ivc-jax lens` has written"),
        ('{"dead": [1]}', "table={}", "is no table that"),
        ('{"dead": 1, "vit_sinks": [], "llm_sinks": []}', "table={}", "is no table that"),
        ('{"dead": [], "vit_sinks": [], "llm_sinks": []}', "table={}", "nothing to drop"),
        ('{"dead": [1], "vit_sinks": [], "llm_sinks": []}', "table={},dead=1", "exclude each"),
        (None, "dead=9", "dead=9 is no word of a vocabulary of 9"),
        (None, "remove=sinks,dead=1", "there are no words of what remove=sinks names"),
        (None, "dead=1,prototypes=x", "prototypes stand for words"),
        (None, "dead=1,words=0", "words must be at least 1"),
        (None, "dead=1,control=all", "control must be one of"),
        (None, "keep_ratio=0.5", "find them with `ivc-jax lens"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, content, spec, message):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)

    def use():
        method = parse(f"embedlens:{spec.format(path)}").resolve(model_config())
        return method.requests(method.stages[0])

    with pytest.raises(MethodError, match=message) as found:
        use()
    assert "\n" not in str(found.value)
