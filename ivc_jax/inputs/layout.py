"""Where the visual tokens of a sample sit, and the M-RoPE position of every token.

Text advances all three position ids by one; a visual segment counts (frame, row, column) from
where it starts, and the text behind it goes on after the longer side of its grid:

    token     <s>  i  i  i  i  i  i   Q   R        grid 1 x 2 x 3 merged cells
    time       0   1  1  1  1  1  1   4   5
    height     0   1  1  1  2  2  2   4   5
    width      0   1  2  3  1  2  3   4   5        next position 6

Models with absolute time count the frames of a video in steps of time: frame 3 at 4 positions a
second and half a second a frame is 3 * 4 * 0.5 = 6, rounded down. The text behind does not wait
for the last frame, so that ids may go down there and their largest may exceed the slots.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import Batch, InputError, Visual
from ivc_jax.types import typed

_KINDS = ("image", "video")


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A visual in its sample: `cells` (t, h, w) merged, placeholders from slot `start` on.

    Frames lie `time_step` time positions apart.
    """

    kind: str
    visual: Visual
    cells: tuple[int, int, int]
    start: int
    time_step: float = 1.0

    @property
    def count(self) -> int:
        """Number of visual tokens."""
        return int(np.prod(self.cells))


@dataclasses.dataclass(frozen=True, eq=False)
class Arrangement:
    """One unpadded sample with its visuals in order of occurrence.

    Attributes:
        tokens: [n] int32.
        segments: the visuals; segment ids are indices here.
        positions: [3, n] int32, (time, height, width).
        next_position: of the first generated token, one above the largest so far.
        visual_slot: [v] int32, slots of the placeholders, ascending.
        segment_id: [v] int32.
        grid: [v, 3] int32, (frame, row, column) of the merged cell.
    """

    tokens: np.ndarray
    segments: tuple[Segment, ...]
    positions: np.ndarray
    next_position: int
    visual_slot: np.ndarray
    segment_id: np.ndarray
    grid: np.ndarray


def arrange(batch: Batch, config: ModelConfig) -> list[Arrangement]:
    """Give each sample its visuals and number its tokens.

    Raises:
        InputError: placeholders and grids disagree, in number or in size.
    """
    supply = {kind: _merged(visuals, kind, config) for kind, visuals in _visuals(batch).items()}
    used = dict.fromkeys(_KINDS, 0)
    arranged = []
    for sample, tokens in enumerate(batch.tokens):
        segments = []
        for kind, start, length in _runs(tokens, config):
            # Visuals may touch: one run of placeholders can hold several.
            while length:
                visual, cells = _take(supply[kind], used[kind], kind, sample, length)
                step = _time_step(kind, visual, config)
                segments.append(Segment(kind, visual, cells, start, step))
                used[kind] += 1
                start, length = start + segments[-1].count, length - segments[-1].count
        arranged.append(_number(tokens, tuple(segments)))
    for kind in _KINDS:
        if used[kind] < len(supply[kind]):
            raise InputError(
                f"batch: expected placeholders for {len(supply[kind])} {kind}s, found them for"
                f" {used[kind]}; remove the others or add their placeholders"
            )
    return arranged


def take_rows(batch: Batch, rows: Sequence[int], config: ModelConfig) -> Batch:
    """Return the batch of these samples with their visuals, in this order."""
    arranged = arrange(batch, config)
    segments = [segment for row in rows for segment in arranged[row].segments]
    return Batch(
        tokens=tuple(batch.tokens[row] for row in rows),
        images=tuple(segment.visual for segment in segments if segment.kind == "image"),
        videos=tuple(segment.visual for segment in segments if segment.kind == "video"),
    )


@typed
def rope_positions(length: int, segments: Sequence[Segment]) -> Int[np.ndarray, "3 n"]:
    """Number the tokens of a sample of `length` slots.

    Equal to `get_rope_index` of HF's Qwen2-VL, and of its Qwen2.5-VL where segments have time
    steps.
    """
    pieces, slot, position = [], 0, 0
    for segment in segments:
        text = segment.start - slot
        pieces.append(np.tile(np.arange(position, position + text), (3, 1)))
        position += text
        cells = _cell_grid(segment.cells).T
        # A float32 product, as the reference implementation forms it.
        time = cells[0].astype(np.float32) * np.float32(segment.time_step)
        cells[0] = time.clip(max=2**30)  # rounded down; what is cut off exceeds every model
        pieces.append(position + cells)
        position += max(segment.cells[1:])
        slot = segment.start + segment.count
    pieces.append(np.tile(np.arange(position, position + length - slot), (3, 1)))
    return np.concatenate(pieces, axis=1).astype(np.int32)


def _time_step(kind: str, visual: Visual, config: ModelConfig) -> float:
    """Return the time positions from one frame to the next."""
    rate = config.vision.tokens_per_second
    if kind == "image" or rate is None:
        return 1.0
    return float(np.float32(rate) * np.float32(min(visual.seconds, 2**30)))


def _visuals(batch: Batch) -> dict[str, tuple[Visual, ...]]:
    return {"image": batch.images, "video": batch.videos}


def _merged(
    visuals: Sequence[Visual], kind: str, config: ModelConfig
) -> list[tuple[Visual, tuple[int, int, int]]]:
    """Pair each visual with its grid in merged cells."""
    merge = config.vision.spatial_merge_size
    pairs = []
    for index, visual in enumerate(visuals):
        t, h, w = visual.grid
        if h % merge or w % merge:
            raise InputError(
                f"{kind} {index}: grid {visual.grid} must be multiples of the merge size {merge};"
                " use the checkpoint's own preprocessor"
            )
        if visual.patches.shape != (t * h * w, config.vision.patch_values):
            raise InputError(
                f"{kind} {index}: patches {visual.patches.shape} should be"
                f" {(t * h * w, config.vision.patch_values)}; use the checkpoint's own preprocessor"
            )
        pairs.append((visual, (t, h // merge, w // merge)))
    return pairs


def _runs(tokens: np.ndarray, config: ModelConfig) -> list[tuple[str, int, int]]:
    """List the runs of equal placeholders: (kind, first slot, length)."""
    ids = {config.image_token_id: "image", config.video_token_id: "video"}
    starts = np.flatnonzero(np.diff(tokens, prepend=tokens[0] - 1))
    ends = np.append(starts[1:], len(tokens))
    return [
        (ids[int(tokens[start])], int(start), int(end - start))
        for start, end in zip(starts, ends, strict=True)
        if int(tokens[start]) in ids
    ]


def _take(
    supply: Sequence[tuple[Visual, tuple[int, int, int]]],
    index: int,
    kind: str,
    sample: int,
    found: int,
) -> tuple[Visual, tuple[int, int, int]]:
    """Return the next visual, which must fit into `found` placeholders."""
    if index >= len(supply):
        raise InputError(
            f"sample {sample}: expected 0 more {kind} placeholders after {len(supply)} {kind}s of"
            f" the batch, found {found}; pass the missing {kind} or remove its placeholders"
        )
    visual, cells = supply[index]
    expected = int(np.prod(cells))
    if expected > found:
        raise InputError(
            f"sample {sample}: {kind} {index} of the batch with grid {visual.grid} expected"
            f" {expected} placeholders, found {found}; repeat its placeholder once a visual token"
        )
    return visual, cells


def _cell_grid(cells: tuple[int, int, int]) -> np.ndarray:
    """List (frame, row, column) of all cells in token order, [v, 3]."""
    return np.stack(np.unravel_index(np.arange(np.prod(cells)), cells), axis=1).astype(np.int32)


def _number(tokens: np.ndarray, segments: tuple[Segment, ...]) -> Arrangement:
    positions = rope_positions(len(tokens), segments)
    counts = [segment.count for segment in segments]
    slots = [np.arange(segment.start, segment.start + segment.count) for segment in segments]
    grids = [_cell_grid(segment.cells) for segment in segments]
    empty = np.zeros((0, 3), np.int32)
    return Arrangement(
        tokens=tokens,
        segments=segments,
        positions=positions,
        next_position=int(positions.max()) + 1,
        visual_slot=np.concatenate([np.zeros(0, np.int32), *slots]).astype(np.int32),
        segment_id=np.repeat(np.arange(len(segments)), counts).astype(np.int32),
        grid=np.concatenate([empty, *grids]),
    )
