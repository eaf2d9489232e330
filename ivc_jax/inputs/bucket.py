"""Padding to few sizes, so that few programs are compiled, and the arrays the prefill reads.

Two samples, "<s> i i i i Q" with a 4 x 4 patch image (merge 2) and "<s> Q", in the bucket of
T = 4 text slots, V = 6 visual slots, R = 1 row of P = 16 patches; N = T + V = 10:

    slot            0  1  2  3  4  5  6  7  8  9
    tokens[0]      <s> i  i  i  i  Q  -  -  -  -     lengths[0] = 6
    tokens[1]      <s> Q  -  -  -  -  -  -  -  -     lengths[1] = 2

    visual_index[0]   1  2  3  4  -  -      text_index[0]   0  5  -  -
    visual_source[0]  0  1  2  3  -  -      text_index[1]   0  1  -  -
                      `- row 0 -'           (-: 0 where not valid)

Padding is masked everywhere downstream and never changes a result.

What a visual takes up, and where its patches lie within their rows, is its `footprint`.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import Batch, InputError
from ivc_jax.inputs.footprint import Footprint
from ivc_jax.inputs.layout import Arrangement, arrange
from ivc_jax.types import Inputs, Layout


def list_steps(first: int, last: int, parts: int = 2) -> tuple[int, ...]:
    """List sizes from `first` to `last`, so many from each power of two times `first` to the next.

    Padding is less than 1 / parts of what is padded, unless that is less than `first`.
    """
    steps, start = set(), first
    while start <= last:
        steps |= {start * (parts + part) // parts for part in range(parts)}
        start *= 2
    return tuple(sorted(step for step in steps if step <= last))  # 16, 2: 16 24 32 48 64 96 ...


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Sizes that arrays are padded to, ascending; each count takes the smallest that fits.

    A picture is most of its prompt, and its tower takes the square of it: steps of visual tokens
    and patches are finer than those of text. Sixteen pictures of 576 patches went through a
    small tower in 0.74 s as 768, in 0.47 as they are. Pictures of any sizes are still at
    most eight programs an octave.

    Attributes:
        text: text slots of a sample; cut to the decoder's max_positions.
        visual: visual slots of a sample; 0 without visuals is always allowed.
        patches: patches of a row, rounded up to whole merged tokens or attention windows.
        rows: patch rows of a batch.
        images: visual segments of a sample.
        positions: position ids, where absolute time takes them beyond the slots; cut to the
            decoder's max_positions.
    """

    text: tuple[int, ...] = list_steps(16, 2**17)
    visual: tuple[int, ...] = list_steps(16, 2**17, parts=8)
    patches: tuple[int, ...] = list_steps(64, 2**16, parts=8)
    rows: tuple[int, ...] = list_steps(1, 2**14, parts=8)
    # powers of two alone: it is a static bound on segments, no axis
    images: tuple[int, ...] = tuple(2**power for power in range(13))
    positions: tuple[int, ...] = list_steps(64, 2**20)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            sizes = getattr(self, field.name)
            if not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes)):
                raise InputError(f"buckets {field.name}={sizes} must be positive and ascending")


@dataclasses.dataclass(frozen=True)
class Size:
    """What one sample takes up: counts as in `Buckets`, `patches` of its largest row."""

    text: int
    visual: int
    patches: int
    rows: int
    images: int
    positions: int


@dataclasses.dataclass(frozen=True)
class Shape(Size):
    """Static sizes of one bucket: what a compiled program depends on."""

    @property
    def slots(self) -> int:
        """N, the slots of a sequence."""
        return self.text + self.visual


def collate(batch: Batch, config: ModelConfig, buckets: Buckets = Buckets()) -> Inputs:
    """Pad a batch into the smallest bucket.

    One patch row is one image, one tile of an image, or one temporal slice of a video. A batch
    without visuals has V = R = P = 0.

    Args:
        batch: unpadded samples, at least one.
        config: of the model.
        buckets: the sizes to choose from.

    Returns:
        Inputs with NumPy leaves, dtypes as in `ivc_jax.types`.

    Raises:
        InputError: placeholders that do not match, or a sample larger than the largest bucket.
    """
    if not len(batch):
        raise InputError("the batch is empty; give it at least one prompt")
    samples = arrange(batch, config)
    return pad(samples, config, choose_shape(samples, config, buckets))


def pad(
    samples: Sequence[Arrangement], config: ModelConfig, shape: Shape, share: bool = False
) -> Inputs:
    """Pad samples to a shape that holds them all; see `collate`.

    Args:
        samples: of the batch.
        config: of the model.
        shape: to pad to.
        share: samples with one and the same `Visual` share its patch rows. Not for methods that ask
            for attention in the tower (`TowerAttention`), which weigh a row for one sample.
    """
    patches, patch_positions, visual_source = _fill_rows(samples, shape, config, share)
    return Inputs(
        tokens=_stack([sample.tokens for sample in samples], shape.slots),
        layout=_lay_out(samples, shape),
        next_position=np.array([sample.next_position for sample in samples], np.int32),
        patches=patches,
        patch_positions=patch_positions,
        visual_source=visual_source,
        objects=_stack_objects(samples, shape),
        relevance=_stack_relevance(samples, shape),
    )


def measure_sample(
    length: int, footprints: Sequence[Footprint], next_position: int, config: ModelConfig
) -> Size:
    """Measure a sample.

    Args:
        length: of its tokens, placeholders repeated.
        footprints: of its visuals.
        next_position: position id of the first generated token.
        config: of the model.

    Raises:
        InputError: the sample reaches beyond the positions of the model.
    """
    limit = config.decoder.max_positions
    if next_position > limit:
        raise InputError(
            f"({length} tokens) reaches position {next_position - 1}, the model's limit is"
            f" {limit} positions; shorten the prompt or use smaller images"
        )
    seen = sum(each.count for each in footprints)  # v, visual tokens
    return Size(
        # Even a prompt of placeholders alone gets text slots: T = 0 is not a bucket.
        text=max(length - seen, 1),
        visual=seen,
        patches=max((each.patches for each in footprints), default=0),
        rows=sum(each.rows for each in footprints),
        images=len(footprints),
        positions=next_position,
    )


def choose_shape(samples: Sequence[Arrangement], config: ModelConfig, buckets: Buckets) -> Shape:
    """Find the smallest bucket that holds every sample.

    Raises:
        InputError: a sample or an image exceeds the largest bucket or the model's positions.
    """
    limit = config.decoder.max_positions
    text = visual = patches = 0  # the largest of any sample, each in its bucket
    images = 1  # a bound on segments, which an empty visual space needs too
    sizes = []
    for index, sample in enumerate(samples):
        name = f"sample {index} ({len(sample.tokens)} tokens)"
        footprints = [segment.footprint for segment in sample.segments]
        try:
            size = measure_sample(len(sample.tokens), footprints, sample.next_position, config)
        except InputError as error:
            raise InputError(f"sample {index} {error}") from None
        text = max(text, _fit(size.text, buckets.text, name, "text tokens"))
        visual = max(visual, _fit(size.visual, buckets.visual, name, "visual tokens"))
        patches = max(patches, _fit(size.patches, buckets.patches, name, "patches a row"))
        images = max(images, _fit(size.images, buckets.images, name, "images"))
        sizes.append(size)
    # Rows hold whole merged tokens or windows, whatever the bucket.
    unit = config.vision.row_unit
    # A bucket above max_positions would hold padding only.
    text = min(text, limit)
    batch = f"the batch of {len(samples)} samples"
    # A visual segment of n tokens spans at most n position ids, unless its frames lie far apart.
    positions = max(size.positions for size in sizes)
    if positions > text + visual:
        positions = min(limit, _fit(positions, buckets.positions, batch, "position ids"))
    return Shape(
        text=text,
        visual=visual,
        patches=-(-patches // unit) * unit,  # rounded up to whole units
        # rows are of the batch, all else of a sample
        rows=_fit(sum(size.rows for size in sizes), buckets.rows, batch, "patch rows"),
        images=images,
        # never below N: one program for all prompts of a bucket
        positions=max(positions, text + visual),
    )


def _fit(count: int, sizes: Sequence[int], name: str, what: str) -> int:
    """Return the smallest size that holds `count`; 0 for 0."""
    if not count:
        return 0
    if count > sizes[-1]:
        raise InputError(
            f"{name} has {count} {what}, the largest bucket holds {sizes[-1]}; use a shorter"
            " prompt, smaller or fewer images, or larger Buckets"
        )
    return sizes[bisect.bisect_left(sizes, count)]


def _stack(rows: Sequence[np.ndarray], slots: int, fill: int = 0) -> np.ndarray:
    """Pad arrays [n, ...] on the right to int32 [B, slots, ...]."""
    padded = np.full((len(rows), slots, *rows[0].shape[1:]), fill, np.int32)  # [B, slots, ...]
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _stack_objects(samples: Sequence[Arrangement], shape: Shape) -> np.ndarray | None:
    """Pad the marks of objects to bool [B, V]; None unless every sample with visuals has some."""
    # a sample of text has no token that anything could be said of
    marks = [sample.objects if len(sample.content) else sample.content for sample in samples]
    if all(s.objects is None for s in samples) or any(mark is None for mark in marks):
        return None
    return _stack(marks, shape.visual).astype(bool)


def _stack_relevance(samples: Sequence[Arrangement], shape: Shape) -> np.ndarray | None:
    """Pad the relevance of tokens to float32 [B, V], 0 where nobody says; None if nobody does."""
    if all(sample.relevance is None for sample in samples):
        return None
    table = np.zeros((len(samples), shape.visual), np.float32)
    for row, sample in zip(table, samples, strict=True):
        if sample.relevance is not None:
            row[: len(sample.relevance)] = sample.relevance
    return table


def _mark_valid(counts: Sequence[int], slots: int) -> np.ndarray:
    return np.arange(slots) < np.asarray(counts)[:, None]  # [B, slots]


def _lay_out(samples: Sequence[Arrangement], shape: Shape) -> Layout:
    visual_counts = [len(sample.visual_slot) for sample in samples]  # [B]
    text_index = [  # [n - v] each: all slots but those of placeholders
        np.delete(np.arange(len(sample.tokens)), sample.visual_slot) for sample in samples
    ]
    image_count = [  # [v] each
        np.array([each.footprint.count for each in sample.segments], np.int32)[sample.segment_id]
        for sample in samples
    ]
    tiles = [  # [v, 2] each
        np.array([each.footprint.tiles for each in sample.segments], np.int32).reshape(-1, 2)[
            sample.segment_id
        ]
        for sample in samples
    ]
    positions = _stack([sample.positions.T for sample in samples], shape.slots)  # [B, N, 3]
    assert positions.max(initial=0) < shape.positions  # tables of IVC scores are that long
    return Layout(
        visual_index=_stack([sample.visual_slot for sample in samples], shape.visual),
        visual_valid=_mark_valid(visual_counts, shape.visual),
        # nothing is pruned yet: its own place
        visual_origin=_stack([np.arange(count) for count in visual_counts], shape.visual),
        image_id=_stack([sample.segment_id for sample in samples], shape.visual, fill=-1),
        grid=_stack([sample.grid for sample in samples], shape.visual, fill=-1),
        content=_stack([sample.content for sample in samples], shape.visual).astype(bool),
        tiles=_stack(tiles, shape.visual),
        image_count=_stack(image_count, shape.visual),
        visual_count=np.array(visual_counts, np.int32),
        text_index=_stack(text_index, shape.text),
        text_valid=_mark_valid([len(index) for index in text_index], shape.text),
        positions=np.ascontiguousarray(positions.transpose(2, 0, 1)),  # [3, B, N]
        lengths=np.array([len(sample.tokens) for sample in samples], np.int32),
        num_images=shape.images,
        visual_slots=shape.visual,
        num_positions=shape.positions,
    )


def _fill_rows(
    samples: Sequence[Arrangement], shape: Shape, config: ModelConfig, share: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the visuals into patch rows, one after the other; shared ones once.

    A visual of two rows, each as wide as two merged cells, in rows of four; `source` counts the
    cells of all rows:

        its own      0 1            row 0    0  1  -  -    another visual
                     2 3            row 1    4  5  -  -    source 0 1 2 3 becomes 4 5 8 9
                                    row 2    8  9  -  -

    Returns:
        Patches [R, P, E] float32, their (row, column) [R, P, 2] int32, and visual_source [B, V].
    """
    vision = config.vision
    patches = np.zeros((shape.rows, shape.patches, vision.patch_values), np.float32)  # [R, P, E]
    positions = np.full((shape.rows, shape.patches, 2), -1, np.int32)  # [R, P, 2]
    width = shape.patches // vision.merge_area  # merged cells of a row
    sources, free = [], 0  # rows from `free` on
    starts: dict[int, int] = {}  # visual -> its first row
    for sample in samples:
        # a sample without visuals has no cells: np.concatenate wants one array
        pieces = [np.zeros(0, np.int32)]
        for segment in sample.segments:
            taken = segment.footprint
            first = starts.get(id(segment.visual)) if share else None
            if first is None:
                first, free = free, free + taken.rows
                starts[id(segment.visual)] = first
                # A processor returns slice after slice, each without padding: [rows, p, E].
                pixels = segment.visual.patches.reshape(taken.rows, -1, vision.patch_values)
                patches[first:free, taken.slots] = pixels  # a window's padding stays 0 in between
                positions[first:free, : taken.patches] = taken.patch_positions
            row, cell = np.divmod(taken.source, taken.patches // vision.merge_area)  # [v]
            # [v], cells counted through rows of the padded width; learned tokens stay below 0
            moved = (first + row) * width + cell
            pieces.append(np.where(taken.source < 0, taken.source, moved))
        sources.append(np.concatenate(pieces))  # [v of the sample]
    return patches, positions, _stack(sources, shape.visual)
