"""IVC-Prune of a picture in tiles, written out in NumPy."""

import itertools

import numpy as np


def first(scores, count, taken=()):
    """Return the best `count` indices that are not taken; ties go to the lowest."""
    order = [token for token in np.argsort(-scores, kind="stable") if token not in taken]
    return set(order[: max(count, 0)])


def choose(values, start, tiles, frequencies, side):
    """Choose of one picture in tiles, as the released code for InternVL2.5 does, in float64.

    Args:
        values: [S, heads, C] of the whole prompt.
        start: slot of the first token of the picture.
        tiles: (columns, rows).
        frequencies: of the rotary planes.
        side: cells along a tile.

    Returns:
        The kept tokens, and how many there were before filling up or cutting off.
    """
    columns, rows = tiles
    size = side**2
    length = (columns * rows + (columns * rows > 1)) * size
    values = values.astype(np.float64)

    def similar(rows):
        logits = np.einsum("qgc,kgc->gqk", values[rows], values) / np.sqrt(values.shape[2])
        raised = np.exp(logits - logits.max(axis=2, keepdims=True))
        return (raised / raised.sum(axis=2, keepdims=True)).mean(axis=0)  # [rows, S]

    stop = start + length
    thumb = slice(stop - size, stop)
    asked = list(range(stop + 2, len(values)))
    seeds = first(similar(asked).mean(axis=0)[thumb], max(1, round(0.01 * size)))
    rows_asked = [*asked, *(stop - size + seed for seed in seeds)]
    score = similar(rows_asked).mean(axis=0)[thumb]
    angle = np.arange(start, stop)[:, None] * frequencies  # [L, F]
    coordinates = set()
    for wave in (np.cos(angle).mean(axis=1), np.sin(angle).mean(axis=1)):
        for tile, part in enumerate(wave.reshape(-1, size)):
            coordinates |= {tile * size + token for token in first(part, round(0.1 * size))}
    base = length - size
    inside = {token - base for token in coordinates if token >= base}
    looked_at = first(score, round(0.5 * size) - len(inside), inside)
    kept = coordinates | {base + token for token in looked_at | seeds}
    if columns * rows > 1:
        for token, down, across in itertools.product(looked_at, range(rows), range(columns)):
            y, x = token // side * rows + down, token % side * columns + across
            tile = y // side * columns + x // side
            kept.add(tile * size + y % side * side + x % side)
    target = max(1, round(0.5 * length))
    priority = len(kept)
    if priority < target:
        more = first(score, target - priority, {token - base for token in kept})
        kept |= {base + token for token in more}
    return sorted(kept)[:target], priority
