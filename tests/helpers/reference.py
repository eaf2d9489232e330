"""IVC-Prune token by token, for comparison."""

import itertools

import numpy as np
from helpers.layouts import C, G

from ivc_jax.methods.defaults import fill_in
from ivc_jax.methods.drawn import lay_out
from ivc_jax.methods.testing import ROPE

# Two unequal images with text around them; one image; a video and an image.
SAMPLES = [(3, (4, 5), 4, (3, 7), 5), (2, (6, 6), 6), (4, (3, 4, 3), 5, (2, 5), 4)]


def top(scores, count) -> set[int]:
    return set(np.argsort(-np.asarray(scores), kind="stable")[:count].tolist())


class Slow:
    """The formulas token by token in float64, one sample.

    `values` are vectors [slots, G, C], or attention [H, slots, slots] for foreground=attention.
    """

    def __init__(self, sample, values, method):
        row = lay_out(sample)
        self.method, self.values = method, values.astype(np.float64)
        self.coded, self.asking = map(fill_in, (method.coordinates, method.foreground_rule))
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
            if stay if stay is not None else self.method.combine != "union":
                first |= seeds & set(group)
            ranked = sorted(group, key=lambda token: -score[token])
            if self.method.combine == "union":
                share = self.method.foreground_fraction
                share = 0.4 if share is None else share
                kept |= first | set(ranked[: round(share * len(group))])
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
            if self.coded.positions == "relative":
                positions[:, members] += 1 - self.positions[:, members[:1]]
            elif self.coded.positions == "index":
                positions[:, members] = np.arange(len(members)) + 1
        positions += self.coded.position_offset
        turns = (self.coded.theta or ROPE.theta) ** -(np.arange(8) / 8)  # of 8 planes
        thirds = {"high": slice(0, 3), "middle": slice(3, 6), "low": slice(6, 8)}
        turns = turns[thirds.get(self.coded.frequencies, slice(None))]
        chosen = set()
        fractions = self.coded.cos_fraction, self.coded.sin_fraction
        for wave, fraction in zip((np.cos, np.sin), fractions, strict=True):
            t, h, w = wave(positions[:, group, None] * turns).mean(axis=2)
            total = h + w if self.coded.axes == "hw" else t + (h + w)
            chosen |= {group[token] for token in top(total, round(fraction * len(group)))}
        return chosen

    def foreground(self):
        method, score, seeds = self.asking, np.zeros(len(self.slots)), set()
        for group in self.asked:
            last = self.slots[group[-1]]
            askers = [t for t in self.text if t > last][method.query_offset :]
            if method.queries == "all":
                askers = list(self.text)
            if self.method.quirks == "official":
                askers += [slot for slot in self.slots if slot > last + method.query_offset]
            rows = [self.row(slot, group) for slot in askers] or [np.zeros(len(group))]
            count = method.seed_fraction * len(group)
            count = int(np.ceil(count)) if method.seed_rounding == "ceil" else round(count)
            best = top(np.mean(rows, axis=0), max(1, count))
            if method.foreground == "values":
                rows += [self.row(self.slots[group[seed]], group) for seed in sorted(best)]
            score[group] = np.mean(rows, axis=0)
            seeds |= {group[seed] for seed in best}
        return score, seeds

    def row(self, slot, group):
        keys = self.slots[group]
        if self.asking.foreground == "attention":
            return self.values[:, slot, keys].mean(axis=0)
        scope = keys if self.asking.key_scope == "image" else np.arange(len(self.values))
        rows = []
        for head in range(G):
            logits = self.values[:, head] @ self.values[slot, head] / np.sqrt(C)
            rows.append(np.exp(logits[keys]) / np.exp(logits[scope]).sum())
        return np.mean(rows, axis=0)
