"""The unpadded batch: token ids with placeholders expanded, and the visuals they stand for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


class InputError(ValueError):
    """Input that cannot be run; one line that names the sample or image and the remedy."""


def check_ids(ids: np.ndarray, vocab_size: int, name: str) -> None:
    """Refuse token ids that the embedding does not have; a gather would clip them in silence.

    Args:
        ids: [n] integers.
        vocab_size: rows of the embedding.
        name: what the error calls their owner.

    Raises:
        InputError: names the first such id.
    """
    foreign = (ids < 0) | (ids >= vocab_size)
    if foreign.any():
        raise InputError(
            f"{name}: token id {ids[foreign.argmax()]} has no embedding, vocab_size is"
            f" {vocab_size}; use the tokenizer that belongs to the checkpoint"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Visual:
    """One image or one video, cut into patches.

    Attributes:
        patches: [t * h * w, patch values] float32, in merge-block order within each slice; or
            pixels [t, channels, height, width] that nobody has cut yet.
        grid: (t, h, w) in patches, of t temporal slices or tiles; 1 for an image in one piece. Of
            pixels it is (t, height, width).
        seconds: between two temporal slices of a video; models without absolute time do not read
            them.
        tiles: (columns, rows) of the tiles that an image is cut into, a view of the whole not
            counted; (0, 0) of several if nobody says.
        size: (height, width) of the image in pixels before it was padded to a shape; None if
            nobody reads it.
        times: of each temporal slice of a video, in seconds from its start; for models whose
            prompts tell them. () where the prompt is written already.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds: float = 1.0
    tiles: tuple[int, int] = (1, 1)
    size: tuple[int, int] | None = None
    times: tuple[float, ...] = ()

    def __repr__(self) -> str:
        t, h, w = self.grid
        return f"Visual({t} x {h} x {w} {'pixels' if self.patches.ndim == 4 else 'patches'})"


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Samples on the host, before any padding.

    Which visual belongs to which sample is not stored: the placeholder ids in the tokens say so,
    once a model config gives their meaning (`layout.arrange`).

        tokens   ([<s> i i i i Q], [<s> Q], [<s> i i Q])       i: image placeholder
        images   (    4 tokens             2 tokens    )       videos ()

    Attributes:
        tokens: one int32 array [n] a sample, every placeholder repeated for each visual token.
        images: the images of all samples, in order of occurrence.
        videos: the videos of all samples, in order of occurrence.
        objects: where annotated objects are, for methods that ask: for each sample bool [v], which
            of its visual tokens, in order of occurrence, hold a part of one, or None if nobody
            says; () says nothing of any sample.
        relevance: how relevant its frames are, for methods that ask: for each sample float32 [f] in
            [0, 1], one for each image and each temporal slice of a video, in order of occurrence,
            or None if nobody says; () says nothing of any sample.
    """

    tokens: tuple[np.ndarray, ...]
    images: tuple[Visual, ...] = ()
    videos: tuple[Visual, ...] = ()
    objects: tuple[np.ndarray | None, ...] = ()
    relevance: tuple[np.ndarray | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("objects", "relevance"):
            if len(told := getattr(self, name)) not in (0, len(self.tokens)):
                raise InputError(
                    f"{name} has {len(told)} entries for {len(self.tokens)} samples; give one a"
                    " sample"
                )
        for sample, tokens in enumerate(self.tokens):
            if tokens.ndim != 1 or not tokens.size:
                raise InputError(f"sample {sample} has no tokens; give it a prompt")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        lengths = [len(tokens) for tokens in self.tokens] or [0]
        return (
            f"Batch({len(self)} samples of {min(lengths)} to {max(lengths)} tokens,"
            f" {len(self.images)} images, {len(self.videos)} videos)"
        )

    @classmethod
    def join(cls, batches: "Sequence[Batch]") -> "Batch":
        """Return the samples of several batches as one."""

        def join(name: str) -> tuple[np.ndarray | None, ...]:
            if not any(getattr(batch, name) for batch in batches):
                return ()
            told = [getattr(batch, name) or (None,) * len(batch) for batch in batches]
            return tuple(value for each in told for value in each)

        return cls(
            objects=join("objects"),
            relevance=join("relevance"),
            tokens=tuple(tokens for batch in batches for tokens in batch.tokens),
            images=tuple(visual for batch in batches for visual in batch.images),
            videos=tuple(visual for batch in batches for visual in batch.videos),
        )

    @classmethod
    def from_hf(
        cls,
        *,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        image_grid_thw: Any = None,
        pixel_values_videos: Any = None,
        video_grid_thw: Any = None,
        second_per_grid_ts: Any = None,
        mm_token_type_ids: Any = None,
        num_patches: Any = None,
        images_spatial_crop: Any = None,
        image_sizes: Any = None,
        images: Any = None,
        images_seq_mask: Any = None,
    ) -> "Batch":
        """Read the arrays that a Hugging Face processor returns (NumPy, or what becomes NumPy).

        Args:
            input_ids: [B, N], padded on either side.
            attention_mask: [B, N], 0 at padding; without it every id counts.
            pixel_values: [patches of all images, patch values], or for models whose pictures have
                one size [images or tiles, channels, height, width].
            image_grid_thw: [images, 3], (t, h, w) in patches; of the first form only.
            pixel_values_videos: [patches of all videos, patch values].
            video_grid_thw: [videos, 3].
            second_per_grid_ts: [videos], seconds from one temporal slice to the next; 1 if not
                given. Only models with absolute time (Qwen2.5-VL) read it.
            mm_token_type_ids: ignored; accepted so that a processor's output can be unpacked.
            num_patches: [images], tiles of each, for models that cut pictures into tiles.
            images_spatial_crop: [images, 2], (columns, rows) of the tiles of each, a view of the
                whole not counted; rows of zeros are padding.
            image_sizes: [images, 2], (height, width) in pixels before they were padded to a shape.
            images: [B, tiles, channels, height, width], in the place of pixel_values: the tiles of
                each sample, zeros behind them. images_spatial_crop is [B, images, 2] then.
            images_seq_mask: ignored: the placeholders say where images are.

        Raises:
            InputError: shapes that contradict each other, or a sample without a token.
        """
        del mm_token_type_ids, images_seq_mask
        if images is not None:
            pixel_values = _join_tiles(images, images_spatial_crop)
        tokens = _drop_padding(input_ids, attention_mask)
        videos = _split_patches(
            pixel_values_videos, video_grid_thw, "pixel_values_videos", "video_grid_thw"
        )
        if pixel_values is not None and np.ndim(pixel_values) == 4:
            visuals = _split_slices(pixel_values, num_patches, images_spatial_crop, image_sizes)
        else:
            visuals = _split_patches(pixel_values, image_grid_thw, "pixel_values", "image_grid_thw")
        return cls(tokens, tuple(visuals), _with_seconds(videos, second_per_grid_ts))


def _drop_padding(input_ids: Any, attention_mask: Any) -> tuple[np.ndarray, ...]:
    """Return the ids of each sample, int32 [n], without the padding on either side."""
    ids = np.asarray(input_ids)  # [B, N]
    if ids.ndim != 2:
        raise InputError(f"input_ids must be [batch, length], got shape {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"input_ids must be integers, got {ids.dtype}")
    # [B, N]
    mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask {mask.shape} must match input_ids {ids.shape}")
    rows = [row[kept] for row, kept in zip(ids, mask.astype(bool), strict=True)]  # [n] each
    for sample, row in enumerate(rows):
        # They are stored as int32, where larger ones would wrap into other tokens.
        check_ids(row, 2**31, f"sample {sample}")
    return tuple(row.astype(np.int32) for row in rows)


def _with_seconds(videos: Sequence[Visual], seconds: Any) -> tuple[Visual, ...]:
    if seconds is None:
        return tuple(videos)
    steps = np.asarray(seconds, np.float64).reshape(-1)  # [videos]
    if len(steps) != len(videos) or not (np.isfinite(steps) & (steps >= 0)).all():
        raise InputError(
            f"second_per_grid_ts {steps.tolist()} must be one number, not negative, for each of"
            f" {len(videos)} videos"
        )
    return tuple(
        dataclasses.replace(video, seconds=float(step))
        for video, step in zip(videos, steps, strict=True)
    )


def _join_tiles(images: Any, crops: Any) -> np.ndarray:
    """Join the tiles [B, tiles, ...] of all samples, without the zeros behind them."""
    images = np.asarray(images)
    if crops is None or np.ndim(crops) != 3 or images.ndim != 5 or len(crops) != len(images):
        raise InputError(
            f"images {images.shape} must be [batch, tiles, channels, height, width], with"
            " images_spatial_crop [batch, images, 2] beside it"
        )
    area = np.asarray(crops, np.int64).prod(axis=2)  # [B, images]; 0 is padding
    counts = np.where(area > 0, area + 1, 0).sum(axis=1)  # [B]: every tile, and the whole
    if (counts > images.shape[1]).any():
        raise InputError(
            f"images_spatial_crop speaks of up to {counts.max()} tiles a sample, images holds"
            f" {images.shape[1]}"
        )
    tiles = [own[:count] for own, count in zip(images, counts, strict=True)]
    return np.concatenate(tiles)


def _split_slices(pixels: Any, num_slices: Any, crops: Any, sizes: Any) -> Sequence[Visual]:
    """Cut stacked pictures or tiles [slices, channels, height, width] into visuals, as views.

    Without a word about tiles every slice is a picture.
    """
    pixels = np.asarray(pixels, np.float32)
    total, _, height, width = pixels.shape
    tiles = [(1, 1)] * total
    counts = [1] * total
    if crops is not None:
        tiles = _list_pairs(crops, "images_spatial_crop")
        area = [columns * rows for columns, rows in tiles]
        # Some show the whole once more in any case, some only if there are several tiles.
        always, cut = [n + 1 for n in area], [n + (n > 1) for n in area]
        counts = cut if sum(cut) == total else always
    if num_slices is not None:
        counts = [int(count) for count in np.asarray(num_slices).reshape(-1)]
        if crops is None:  # nobody says how several lie
            tiles = [(1, 1) if count == 1 else (0, 0) for count in counts]
    shapes: list[tuple[int, int] | None] = [None] * len(counts)
    if sizes is not None:
        shapes = _list_pairs(sizes, "image_sizes")
    if sum(counts) != total or len(tiles) != len(counts) or len(shapes) != len(counts):
        raise InputError(
            f"pixel_values holds {total} pictures or tiles; num_patches, images_spatial_crop and"
            f" image_sizes speak of {sum(counts)} in {len(counts)}, {len(tiles)} and {len(shapes)}"
            " images"
        )
    ends = np.cumsum(counts)
    return [
        Visual(pixels[end - count : end], (count, height, width), tiles=tile, size=size)
        for end, count, tile, size in zip(ends, counts, tiles, shapes, strict=True)
    ]


def _list_pairs(pairs: Any, name: str) -> list[tuple[int, int]]:
    """List the pairs of [images, 2] or [B, images, 2] without rows of zeros, which are padding."""
    found = np.asarray(pairs, np.int64)
    if found.size and (found.ndim < 2 or found.shape[-1] != 2 or (found < 0).any()):
        raise InputError(f"{name} must be [images, 2] and not negative, got {found.tolist()}")
    return [(int(first), int(second)) for first, second in found.reshape(-1, 2) if first and second]


def _split_patches(
    patches: Any, grids: Any, patches_name: str, grids_name: str
) -> Sequence[Visual]:
    """Cut concatenated patches into visuals, as views."""
    if patches is None and grids is None:
        return ()
    if patches is None or grids is None:
        missing = patches_name if patches is None else grids_name
        raise InputError(f"{missing} is missing; pass {patches_name} and {grids_name} together")
    # [patches of all visuals, patch values] and [visuals, 3]
    patches, grids = np.asarray(patches, np.float32), np.asarray(grids, np.int64)
    if grids.ndim != 2 or grids.shape[1] != 3 or (grids < 1).any():
        raise InputError(f"{grids_name} must be [visuals, 3] and positive, got {grids.tolist()}")
    counts = grids.prod(axis=1)  # [visuals], patches of each
    if patches.ndim != 2 or len(patches) != counts.sum():
        raise InputError(
            f"{patches_name} has shape {patches.shape}, but {grids_name} needs {counts.sum()}"
            " rows of patch values"
        )
    if not len(grids):
        return ()
    pieces = np.split(patches, np.cumsum(counts)[:-1])  # [t * h * w, patch values] each, no copy
    return tuple(
        Visual(piece, tuple(int(size) for size in grid))
        for piece, grid in zip(pieces, grids, strict=True)
    )
