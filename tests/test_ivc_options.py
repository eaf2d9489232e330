"""Every alternative of IVC-Prune's settings against a slow reference, sample by sample."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layouts import ROPE, C, G, kept_sets, lay_out, make_layout, token_values

from ivc_jax.methods import IVCPrune, scoring, segments
from ivc_jax.methods.base import TokenVectors
from ivc_jax.methods.foreground import ForegroundRules, foreground_scores

# Two unequal images with text around them; one image; a video and an image.
SAMPLES = [(3, (4, 5), 4, (3, 7), 5), (2, (6, 6), 6), (4, (3, 4, 3), 5, (2, 5), 4)]


def top(scores, count) -> set[int]:
    return set(np.argsort(-np.asarray(scores), kind="stable")[:count].tolist())


class Slow:
    """The formulas token by token in float64, one sample."""

    def __init__(self, sample, values, method):
        row = lay_out(sample)
        self.method, self.values = method, values.astype(np.float64)
        self.slots, self.text = np.array(row["visual"]), np.array(row["text"])
        self.image, self.frame = np.array(row["image"]), np.array(row["grid"])[:, 0]
        self.positions = np.array(row["positions"])[self.slots].T
        tokens = range(len(self.slots))
        by_image = [[t for t in tokens if self.image[t] == i] for i in set(row["image"])]
        self.images = sorted(by_image)
        self.asked = [list(tokens)] if method.scope == "sample" else self.images

    def kept(self) -> list[int]:
        score, seeds = self.foreground()
        kept = set()
        for group in self.budgets():
            first = self.coordinates(group)
            stay = self.method.keep_seeds
            if stay if stay is not None else self.method.combine == "fill":
                first |= seeds & set(group)
            ranked = sorted(group, key=lambda token: -score[token])
            if self.method.combine == "union":
                kept |= first | set(ranked[: round(0.4 * len(group))])
                continue
            for token in ranked:
                if len(first) < round(self.method.keep_ratio * len(group)):
                    first.add(token)
            kept |= first
        if self.method.quirks == "official":
            kept |= set(np.flatnonzero(self.image > 0).tolist())
        return sorted(kept)

    def budgets(self):
        if not self.method.per_frame:
            return self.asked
        keys = zip(self.image, self.frame, strict=True)
        runs = itertools.groupby(enumerate(keys), key=lambda pair: pair[1])
        return [[token for token, _ in run] for _, run in runs]

    def coordinates(self, group) -> set[int]:
        positions = self.positions.copy()
        for members in self.images:
            if self.method.positions == "relative":
                positions[:, members] += 1 - self.positions[:, members[:1]]
            elif self.method.positions == "index":
                positions[:, members] = np.arange(len(members)) + 1
        chosen = set()
        for wave in (np.cos, np.sin):
            t, h, w = wave(positions[:, group, None] * ROPE.frequencies).mean(axis=2)
            total = h + w if self.method.axes == "hw" else t + (h + w)
            chosen |= {group[token] for token in top(total, round(0.1 * len(group)))}
        return chosen

    def foreground(self):
        method, score, seeds = self.method, np.zeros(len(self.slots)), set()
        for group in self.asked:
            last = self.slots[group[-1]] + 1 + method.query_offset
            askers = [t for t in self.text if method.queries == "all" or t >= last]
            if method.quirks == "official":
                askers += [slot for slot in self.slots if slot >= last]
            rows = [self.row(slot, group) for slot in askers]
            count = method.seed_fraction * len(group)
            count = int(np.ceil(count)) if method.seed_rounding == "ceil" else round(count)
            best = top(np.mean(rows, axis=0), max(1, count))
            rows += [self.row(self.slots[group[seed]], group) for seed in sorted(best)]
            score[group] = np.mean(rows, axis=0)
            seeds |= {group[seed] for seed in best}
        return score, seeds

    def row(self, slot, group):
        keys = self.slots[group]
        scope = keys if self.method.key_scope == "image" else np.arange(len(self.values))
        rows = []
        for head in range(G):
            logits = self.values[:, head] @ self.values[slot, head] / np.sqrt(C)
            rows.append(np.exp(logits[keys]) / np.exp(logits[scope]).sum())
        return np.mean(rows, axis=0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed_fraction": 0.13, "seed_rounding": "ceil"},
        {"seed_fraction": 0.3, "keep_ratio": 0.3, "keep_seeds": False},
        {"seed_fraction": 0.3, "combine": "union", "keep_seeds": True},
        {"queries": "all"},
        {"query_offset": 0},
        {"key_scope": "all"},
        {"key_scope": "all", "scope": "sample", "queries": "all"},
        {"scope": "sample"},
        {"positions": "relative"},
        {"positions": "index"},
        {"axes": "hw", "scope": "sample"},
        {"per_frame": True},
        {"per_frame": True, "combine": "union", "seed_fraction": 0.1, "keep_seeds": True},
        {"quirks": "official"},
    ],
    ids=lambda fields: ",".join(f"{name}={value}" for name, value in fields.items()) or "default",
)
def test_kept_sets_equal_the_slow_reference(fields):
    method = IVCPrune(layer=2, **fields)
    values = [token_values(sample, seed) for seed, sample in enumerate(SAMPLES)]
    layout = make_layout(SAMPLES, text_slots=20, visual_slots=60, num_images=3)
    pairs = zip(SAMPLES, values, strict=True)
    assert kept_sets(method, layout, values) == [Slow(*pair, method).kept() for pair in pairs]


def scored(values, layout, **rules):
    counts = jnp.ones_like(layout.image_id)
    rules = ForegroundRules(**rules)
    return foreground_scores(values, layout, segments.images(layout), counts, 1, rules)[0]


# One head, four image tokens, two text tokens, and three slots of padding that no key may reach.
def six_tokens():
    image = [[2, 0, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    layout = make_layout([((2, 2), 2)], text_slots=4, visual_slots=5)
    visual = jnp.array([*image, [9] * 4], jnp.float32)
    text = jnp.array([[2, 0, 0, 0], [0, 0, 0, 2], [9] * 4, [9] * 4], jnp.float32)
    return TokenVectors(visual[None, :, None], text[None, :, None]), layout


def test_softmax_over_all_tokens_of_the_prompt():
    values, layout = six_tokens()
    found = scored(values, layout, query_offset=0, key_scope="all")
    expected = [0.267242, 0.059432, 0.115320, 0.059432]
    np.testing.assert_allclose(found[0, :4], expected, atol=1e-6)
    before = foreground_scores(
        values,
        layout,
        segments.images(layout),
        jnp.zeros_like(layout.image_id),
        1,
        ForegroundRules(query_offset=0, key_scope="all"),
    )[0]
    expected = [0.220611, 0.064753, 0.106669, 0.064753]
    np.testing.assert_allclose(before[0, :4], expected, atol=1e-6)


def test_half_precision_rounds_rows_heads_and_means():
    """With one head and one query the score is the row itself, rounded and averaged."""
    values, layout = six_tokens()
    found = np.asarray(scored(values, layout, query_offset=1, score_dtype="bfloat16")[0, :4])
    half = lambda x: np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float32)  # noqa: E731
    seed = half([0.61029595, 0.08259454, 0.22451496, 0.08259454])
    # Four equal keys: the text row is flat, and the lowest token is the seed.
    np.testing.assert_array_equal(found, half((half([0.25] * 4) + seed) / 2))


def test_frames_are_counted_by_runs():
    layout = make_layout(SAMPLES, visual_slots=60)
    frames = segments.frames(layout)
    assert frames.number[2].tolist() == [*np.repeat([0, 1, 2], 12), *[3] * 10, *[-1] * 14]
    assert frames.count[2].tolist() == [*[12] * 36, *[10] * 10, *[0] * 14]
    assert segments.first_of_image(layout)[0, :41].tolist() == [*[0] * 20, *[20] * 21]


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["image", "sample"])
def test_capacity_per_frame_holds_the_worst_split(ratio, scope):
    method = IVCPrune(layer=1, keep_ratio=ratio, scope=scope, per_frame=True)
    (stage,) = method.stages
    quota = scoring.rounded_counts(ratio, 60)
    coordinates = 2 * scoring.rounded_counts(0.1, 60)
    for frame in range(1, 61):
        most = 60 // frame * max(int(quota[frame]), int(coordinates[frame]))
        assert method.capacity(stage, 60, 2) >= min(60, most + 1)


def test_values_without_visual_slots_are_fine():
    layout = make_layout([(5,)])
    for fields in ({"per_frame": True}, {"scope": "sample"}, {"quirks": "official"}):
        assert kept_sets(IVCPrune(layer=2, **fields), layout, num_keep=0) == [[]]


def test_jitted_scores_do_not_depend_on_padding():
    values, layout = six_tokens()
    tight = make_layout([((2, 2), 2)])
    unpadded = TokenVectors(values.visual[:, :4], values.text[:, :2])
    run = jax.jit(lambda v, where: scored(v, where, query_offset=0, key_scope="all"))
    np.testing.assert_allclose(run(values, layout)[0, :4], run(unpadded, tight)[0], atol=1e-7)
