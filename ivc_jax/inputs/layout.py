"""Where the visual tokens of a sample sit, and the M-RoPE position of every token.

Text advances all three position ids by one; a visual segment counts (frame, row, column) from
where it starts, and the text behind it goes on after the longer side of its grid:

    token     <s>  i  i  i  i  i  i   Q   R        grid 1 x 2 x 3 merged cells
    time       0   1  1  1  1  1  1   4   5
    height     0   1  1  1  2  2  2   4   5
    width      0   1  2  3  1  2  3   4   5        next position 6

Models that number all tokens on one line (`RopeConfig.line`) count visual ones as text.

Models with absolute time count the frames of a video in steps of time. The text behind does not
wait for the last frame, so that ids may go down there and their largest may exceed the slots.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import Batch, InputError, Visual, check_ids
from ivc_jax.inputs.footprint import Footprint, measure_visual
from ivc_jax.inputs.patches import cut_patches
from ivc_jax.inputs.relevance import spread_relevance
from ivc_jax.types import typed

_KINDS = ("image", "video")


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A visual in its sample, with the slots at which its runs of placeholders start."""

    kind: str
    visual: Visual
    footprint: Footprint
    starts: tuple[int, ...]

    @property
    def runs(self) -> list[slice]:
        """The slots of each run of placeholders."""
        length = self.footprint.count // self.footprint.runs
        return [slice(start, start + length) for start in self.starts]


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
        content: [v] bool, whether a token shows a part of its picture.
        objects: [v] bool, whether it holds a part of an annotated object; None if nobody says.
        relevance: [v] float32, of its image or temporal slice; None if nobody says.
    """

    tokens: np.ndarray
    segments: tuple[Segment, ...]
    positions: np.ndarray
    next_position: int
    visual_slot: np.ndarray
    segment_id: np.ndarray
    grid: np.ndarray
    content: np.ndarray
    objects: np.ndarray | None
    relevance: np.ndarray | None = None


def arrange(batch: Batch, config: ModelConfig) -> list[Arrangement]:
    """Give each sample its visuals and number its tokens.

    Raises:
        InputError: placeholders and grids disagree, in number or in size, or an id lies beyond the
            embedding.
    """
    if batch.videos and config.video_token_id is None:
        raise InputError(
            f"this model takes no videos, the batch has {len(batch.videos)}; leave them out"
        )
    images = _join_tiles(batch, config) if config.vision.tiled else batch.images
    visuals = {"image": images, "video": batch.videos}
    supply = {kind: _measure(visuals[kind], kind, config) for kind in _KINDS}
    # The visual that each run of placeholders belongs to, and how many runs are used up:
    #     <s> v v <t> v v Q i i i i i      owners: videos 0 0 (one of two slices), images 0 1
    owners = {
        kind: [index for index, (_, each) in enumerate(supply[kind]) for _ in range(each.runs)]
        for kind in _KINDS
    }
    used = dict.fromkeys(_KINDS, 0)
    arranged = []
    for sample, tokens in enumerate(batch.tokens):
        check_ids(tokens, config.decoder.vocab_size, f"sample {sample}")
        # (kind, visual) -> the slots where its runs start
        starts: dict[tuple[str, int], list[int]] = {}
        for kind, start, length in _find_runs(tokens, config):
            # Visuals may touch: one run of placeholders can hold several.
            while length:
                index = owners[kind][used[kind]] if used[kind] < len(owners[kind]) else None
                taken = _fit(supply[kind], index, kind, sample, length)
                starts.setdefault((kind, index), []).append(start)
                used[kind] += 1
                start, length = start + taken, length - taken
        segments = []
        for (kind, index), found in starts.items():
            visual, footprint = supply[kind][index]
            if len(found) != footprint.runs:
                raise InputError(
                    f"sample {sample}: {kind} {index} of the batch expected {footprint.runs} runs"
                    f" of placeholders, one a temporal slice, found {len(found)}"
                )
            segments.append(Segment(kind, visual, footprint, tuple(found)))
        marked = batch.objects[sample] if batch.objects else None
        one = _number(tokens, tuple(segments), _check_objects(marked, segments, sample))
        visuals = [(each.kind, each.footprint) for each in segments]
        told = spread_relevance(
            batch.relevance[sample] if batch.relevance else None, visuals, sample
        )
        arranged.append(dataclasses.replace(one, relevance=told))
    for kind in _KINDS:
        if used[kind] < len(owners[kind]):
            raise InputError(
                f"batch: expected placeholders for {len(supply[kind])} {kind}s, found them for"
                f" {owners[kind][used[kind]]}; remove the others or add their placeholders"
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
        objects=tuple(batch.objects[row] for row in rows) if batch.objects else (),
        relevance=tuple(batch.relevance[row] for row in rows) if batch.relevance else (),
    )


@typed
def number_sample(length: int, segments: Sequence[Segment]) -> Int[np.ndarray, "3 n"]:
    """Number the tokens of a sample of `length` slots.

    Equal to `get_rope_index` of HF's Qwen2-VL, and of its Qwen2.5-VL where segments have time
    steps.
    """
    pieces, slot, position = [], 0, 0  # what is numbered so far ends before these two
    for segment in segments:
        taken = segment.footprint
        ids = np.split(taken.positions.T, taken.runs, axis=1)  # of each run, [3, v / runs]
        for run, run_ids in zip(segment.runs, ids, strict=True):
            text = run.start - slot  # text tokens before the run
            pieces.append(np.tile(np.arange(position, position + text), (3, 1)))  # [3, text]
            pieces.append(position + text + run_ids)  # [3, v / runs]
            position += text + taken.span  # the longer side of the grid, or on a line the tokens
            slot = run.stop
    pieces.append(np.tile(np.arange(position, position + length - slot), (3, 1)))
    return np.concatenate(pieces, axis=1).astype(np.int32)


def _measure(
    visuals: Sequence[Visual], kind: str, config: ModelConfig
) -> list[tuple[Visual, Footprint]]:
    """Pair each visual with its footprint."""
    vision, merge = config.vision, config.vision.spatial_merge_size
    pairs = []
    for index, visual in enumerate(visuals):
        if visual.patches.ndim == 4:
            sizes = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
            patches, grid = cut_patches(visual.patches, *sizes)
            visual = dataclasses.replace(visual, patches=patches, grid=grid)
        t, h, w = visual.grid  # slices, and patches of each
        if (h % merge or w % merge) and not vision.cuts_cells:
            raise InputError(
                f"{kind} {index}: grid {visual.grid} must be multiples of the merge size {merge};"
                " use the checkpoint's own preprocessor"
            )
        side = vision.table_side
        if side is not None and not vision.table_interpolated and (h, w) != (side, side):
            raise InputError(
                f"{kind} {index}: grid {visual.grid} should be {side} x {side} patches a slice;"
                " use the checkpoint's own preprocessor"
            )
        if visual.patches.shape != (t * h * w, vision.patch_values):
            raise InputError(
                f"{kind} {index}: patches {visual.patches.shape} should be"
                f" {(t * h * w, vision.patch_values)}; use the checkpoint's own preprocessor"
            )
        columns, rows = visual.tiles
        if vision.view_size is not None and t != 1 + columns * rows:
            raise InputError(
                f"{kind} {index}: {t} slices are not a view of the whole and {columns} x {rows}"
                " tiles; pass images_spatial_crop=[(columns, rows), ...], the view not counted"
            )
        pairs.append((visual, measure_visual(visual, kind, config)))
    return pairs


def _join_tiles(batch: Batch, config: ModelConfig) -> tuple[Visual, ...]:
    """Make pictures of tiles that came one by one: the tiles of one run of placeholders.

    A processor may return the tiles of all pictures without a word about which are whose:

        <img> i i i i i i </img> and <img> i i </img>      tiles a b c d of 2 tokens
              `- a b c -'                  `d'

    What it is not told, how they lie, is (0, 0).
    """
    side = config.vision.table_side // config.vision.spatial_merge_size
    waiting, joined = list(batch.images), []
    for tokens in batch.tokens:
        for _, _, length in _find_runs(tokens, config):
            wanted, taken = length // side**2, []  # tiles
            while waiting and sum(each.grid[0] for each in taken) < wanted:
                taken.append(waiting.pop(0))
            joined += taken if len(taken) < 2 else [_join(taken)]
    return (*joined, *waiting)


def _join(tiles: Sequence[Visual]) -> Visual:
    patches = np.concatenate([tile.patches for tile in tiles])
    count, *sides = sum(tile.grid[0] for tile in tiles), *tiles[0].grid[1:]
    return dataclasses.replace(tiles[0], patches=patches, grid=(count, *sides), tiles=(0, 0))


def _find_runs(tokens: np.ndarray, config: ModelConfig) -> list[tuple[str, int, int]]:
    """List the runs of equal placeholders: (kind, first slot, length)."""
    ids = {config.image_token_id: "image", config.video_token_id: "video"}  # None is no token
    # tokens 7 9 9 9 5: runs start at 0 1 4 and end before 1 4 5
    starts = np.flatnonzero(np.diff(tokens, prepend=tokens[0] - 1))
    ends = np.append(starts[1:], len(tokens))
    return [
        (ids[int(tokens[start])], int(start), int(end - start))
        for start, end in zip(starts, ends, strict=True)
        if int(tokens[start]) in ids
    ]


def _fit(
    supply: Sequence[tuple[Visual, Footprint]],
    index: int | None,
    kind: str,
    sample: int,
    found: int,
) -> int:
    """Return the length of the next run of visual `index`, which must fit into `found` slots."""
    if index is None:
        raise InputError(
            f"sample {sample}: expected 0 more {kind} placeholders after {len(supply)} {kind}s of"
            f" the batch, found {found}; pass the missing {kind} or remove its placeholders"
        )
    visual, footprint = supply[index]
    length = footprint.count // footprint.runs  # tokens of one run
    if length > found:
        # what processors write whose settings do not say how many tokens a picture has
        bare = found == 1
        raise InputError(
            f"sample {sample}: {kind} {index} of the batch with grid {visual.grid} expected"
            f" {length} placeholders, found {found}; repeat its placeholder once a visual token"
            + bare
            * " (state patch_size in processor_config.json, or use the processor of `load`)"
        )
    return length


def _check_objects(
    marked: np.ndarray | None, segments: Sequence[Segment], sample: int
) -> np.ndarray | None:
    count = sum(segment.footprint.count for segment in segments)
    if marked is not None and (np.shape(marked) != (count,) or marked.dtype != bool):
        raise InputError(
            f"sample {sample}: its objects must be bool [{count}], one a visual token, got"
            f" {getattr(marked, 'dtype', type(marked).__name__)} {list(np.shape(marked))}"
        )
    return marked


def _number(
    tokens: np.ndarray, segments: tuple[Segment, ...], objects: np.ndarray | None
) -> Arrangement:
    positions = number_sample(len(tokens), segments)  # [3, n]
    counts = [segment.footprint.count for segment in segments]
    slots = [np.r_[tuple(segment.runs)] for segment in segments]  # [v] each
    grids = [segment.footprint.grid for segment in segments]  # [v, 3] each
    empty = np.zeros((0, 3), np.int32)  # a sample of text has none
    return Arrangement(
        tokens=tokens,
        segments=segments,
        positions=positions,
        # not positions[-1]: frames may reach further than the text behind them
        next_position=int(positions.max()) + 1,
        visual_slot=np.concatenate([np.zeros(0, np.int32), *slots]).astype(np.int32),
        segment_id=np.repeat(np.arange(len(segments)), counts).astype(np.int32),
        grid=np.concatenate([empty, *grids]),
        content=np.concatenate([empty[:, 0] > 0, *(each.footprint.content for each in segments)]),
        objects=objects,
    )
