"""Prompts and pictures to a `Batch`, with the files of one checkpoint."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import Batch, InputError, Visual
from ivc_jax.inputs.bucket import Size, measure_sample
from ivc_jax.inputs.clips import Video, list_per_sample, list_rates, load_clip
from ivc_jax.inputs.footprint import Footprint, measure_visual
from ivc_jax.inputs.frames import interleave
from ivc_jax.inputs.layout import arrange
from ivc_jax.inputs.messages import Messages, find_conversations, split_visuals
from ivc_jax.inputs.objects import Box, mark_samples
from ivc_jax.inputs.picture import Picture
from ivc_jax.inputs.prompt import ChatTemplate, PromptWriter
from ivc_jax.inputs.relevance import list_relevance
from ivc_jax.inputs.resize import PictureRule, process_image, process_video
from ivc_jax.inputs.rules import read_rules, read_settings
from ivc_jax.inputs.sampling import FrameSampling, SampleStarts, VideoOptions
from ivc_jax.inputs.tokenizer import Tokenizer, read_stop_ids
from ivc_jax.inputs.video import Clip, VideoFile

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Processor:
    """Makes batches for a model and reads its answers.

    Attributes:
        config: of the model.
        writer: renders, tokenizes and expands prompts.
        images: settings for images.
        videos: settings for videos.
        stop_ids: ids that end an answer.
        sampling: which frames of a video file are shown.
    """

    config: ModelConfig
    writer: PromptWriter
    images: PictureRule
    videos: PictureRule
    stop_ids: tuple[int, ...]
    sampling: FrameSampling = dataclasses.field(default_factory=SampleStarts)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        config: ModelConfig,
        *,
        read_pictures: Callable[[Mapping[str, Any], ModelConfig], PictureRule],
        write_visual: Callable[[Footprint, str], str],
        word_pattern: str | None = None,
        chat_template: str | None = None,
        end_token: str | None = None,
        frame_text: str | None = None,
        sampling: type[FrameSampling] = SampleStarts,
    ) -> "Processor":
        """Read tokenizer, chat template and image settings from a checkpoint directory.

        Args:
            path: the directory.
            config: of the model.
            read_pictures: turns image settings into a rule; this and the rest are a family's.
            write_visual: the text that takes the place of a visual's placeholder.
            word_pattern: see `Tokenizer.from_pretrained`.
            chat_template: for a directory without one that writes pictures.
            end_token: see `read_stop_ids`.
            frame_text: what stands before a frame of a video, where frames are pictures.
            sampling: how frames of video files are chosen.

        Raises:
            InputError: missing or damaged files, or settings that do not fit the model.
        """
        path = Path(path)
        tokenizer = Tokenizer.from_pretrained(path, word_pattern)
        if beyond := tokenizer.list_beyond(config.decoder.vocab_size):
            _log.warning(
                "%s: %d added tokens have no embedding (vocab_size %d), from %r on; prompts that"
                " hold one are refused",
                *(path, len(beyond), config.decoder.vocab_size, beyond[0]),
            )
        template = ChatTemplate.from_pretrained(path, tokenizer.special_tokens)
        if chat_template is not None and (template is None or not template.shows_pictures):
            template = ChatTemplate(chat_template, tokenizer.special_tokens)
        rules = read_rules(path, config, read_pictures)
        if rules is None:
            raise InputError(f"{path} has no preprocessor_config.json; copy it from the checkpoint")
        images, videos = rules
        if frame_text is not None:
            videos = videos.limit(1)  # a frame is one tile
        return cls(
            config=config,
            writer=PromptWriter(tokenizer, template, config, write_visual, frame_text),
            images=images,
            videos=videos,
            stop_ids=read_stop_ids(path, tokenizer, end_token),
            sampling=sampling.from_hf(read_settings(path)[1], videos.temporal_patch_size),
        )

    def bound(
        self, min_pixels: int | None, max_pixels: int | None, max_tiles: int | None = None
    ) -> "Processor":
        """Return a processor that resizes pictures within other bounds; None leaves one as it is.

        Videos follow where they have no settings of their own. Tiles are those of a picture, a view
        of the whole not counted.

        Raises:
            InputError: bounds that are impossible, or that this checkpoint does not have.
        """
        images, videos = self.images.bound(min_pixels, max_pixels), self.videos
        if max_tiles is not None:
            return dataclasses.replace(self, images=images.limit(max_tiles))
        return dataclasses.replace(
            self, images=images, videos=images if videos == self.images else videos
        )

    def sample(self, options: VideoOptions) -> "Processor":
        """Return a processor that shows other frames of video files, or in another size.

        Raises:
            InputError: bounds that this checkpoint does not have.
        """
        videos = self.videos.bound(options.min_pixels, options.max_pixels)
        return dataclasses.replace(self, videos=videos, sampling=self.sampling.change(options))

    def read_video(self, source: str | Path | bytes | VideoFile, name: str = "video") -> Clip:
        """Decode those frames of a video file that the model is shown, and say when they are.

        Args:
            source: path, or the bytes of a file.
            name: what errors call it.

        Raises:
            InputError: a file that cannot be read, or PyAV is not installed.
        """
        return load_clip(source, None, self.sampling, name)

    def pad(self, pad: bool) -> "Processor":
        """Return a processor that pads pictures to their square, or cuts their middle out.

        Raises:
            InputError: this checkpoint does not make pictures square.
        """
        return dataclasses.replace(self, images=self.images.pad(pad), videos=self.videos.pad(pad))

    def __call__(
        self,
        prompts: Sequence[str] | Messages | Sequence[Messages],
        images: Sequence[Sequence[Picture] | None] | None = None,
        videos: Sequence[Sequence[Video] | None] | None = None,
        chat: bool = True,
        fps: float | Sequence[Sequence[float] | None] | None = None,
        objects: Sequence[Sequence[Sequence[Box]] | None] | None = None,
        relevance: Sequence[Sequence[float] | None] | None = None,
    ) -> Batch:
        """Make a batch; every list has one entry a sample.

        Args:
            prompts: strings that may hold `<image>` and `<video>` marks (visuals without marks come
                first); or chat messages as transformers takes them, one conversation or a list of
                them, with the pictures in them (`inputs.messages`).
            images: for each sample a list of images (PIL, path or uint8 array), or None.
            videos: for each sample a list of videos, or None: paths or bytes of video files, of
                which `sampling` chooses frames, or frames, all of which are shown: lists, uint8
                arrays [frames, height, width, 3], clips (`read_video`).
            chat: wrap each prompt in the chat template; False leaves it as it is, marks aside.
            fps: frames a second of the videos as they are shown: one number, or for each sample a
                list with one a video. So many are taken of files (None: what `sampling` says);
                of frames it says when they are (None: 2 a second), which only models with absolute
                time or time stamps read. A clip knows its own.
            objects: for methods that ask where objects are: for each sample a list with the boxes
                of each of its images (x1, y1, x2, y2 in its own pixels), or None.
            relevance: for methods that ask how relevant frames are (`ivc_jax.rate_frames`): for
                each sample a number in [0, 1] for each of its images and each temporal slice of its
                videos, in the order of the prompt, or None.

        Raises:
            InputError: names the sample, the visual and the remedy.
        """
        if isinstance(prompts, str):  # a string is a sequence too: it would be a batch of letters
            raise InputError("prompts must be a list of strings, one a sample; got one string")
        if (conversations := find_conversations(prompts)) is not None:
            if images is not None or videos is not None or not chat:
                raise InputError(
                    "messages hold their images and videos and go through the chat template; leave"
                    " out images, videos and chat"
                )
            prompts, (images, videos) = conversations, split_visuals(conversations)
        picture_lists = list_per_sample(images, len(prompts), "image")
        video_lists = list_per_sample(videos, len(prompts), "video")
        if self.config.video_token_id is None and self.writer.frame_text is None:
            _refuse_videos(video_lists)
        rates = list_rates(fps, video_lists)
        # Visuals of all samples lie one behind the other; the placeholders say whose they are.
        tokens, flat_images, flat_videos = [], [], []
        for sample, prompt in enumerate(prompts):
            pictures = self._cut_images(picture_lists[sample], sample)
            clips = self._cut_videos(video_lists[sample], rates[sample], sample)
            written, pictures, clips = self._write(prompt, pictures, clips, sample, chat)
            tokens.append(written)
            flat_images += pictures
            flat_videos += clips
        marks = mark_samples(objects, picture_lists, video_lists, self.images, self.config)
        told = list_relevance(relevance, len(prompts))
        return Batch(tuple(tokens), tuple(flat_images), tuple(flat_videos), marks, told)

    def _write(
        self,
        prompt: str | Messages,
        pictures: list[Visual],
        clips: list[Visual],
        sample: int,
        chat: bool,
    ) -> tuple[np.ndarray, list[Visual], list[Visual]]:
        """Write the ids [n] of one sample; return its images and videos as the model takes them."""
        pictures, clips, num_frames = self._show_frames(prompt, pictures, clips, sample)
        footprints = {
            kind: [measure_visual(each, kind, self.config) for each in cut]
            for kind, cut in (("image", pictures), ("video", clips))
        }
        tokens = self.writer.write(prompt, footprints, sample, chat, num_frames)
        return tokens, pictures, clips

    def _show_frames(
        self, prompt: str | Messages, pictures: list[Visual], clips: list[Visual], sample: int
    ) -> tuple[list[Visual], list[Visual], list[int]]:
        """Where videos are shown as images, put their frames among these; count those of each."""
        if self.writer.frame_text is None or not clips:
            return pictures, clips, []
        counts = {"image": len(pictures), "video": len(clips)}
        kinds = self.writer.list_kinds(prompt, counts, sample)
        return interleave(kinds, pictures, clips), [], [clip.grid[0] for clip in clips]

    def _cut_images(self, pictures: Sequence[Picture], sample: int) -> list[Visual]:
        rule = self.images.share(len(pictures))
        return [
            process_image(picture, rule, f"sample {sample}, image {index}")
            for index, picture in enumerate(pictures)
        ]

    def _cut_videos(
        self, videos: Sequence[Video], rates: Sequence[float | None], sample: int
    ) -> list[Visual]:
        found, depth = [], self.videos.temporal_patch_size  # frames of a temporal slice
        for index, (video, rate) in enumerate(zip(videos, rates, strict=True)):
            name = f"sample {sample}, video {index}"
            clip = load_clip(video, rate, self.sampling, name)
            cut = process_video(clip.frames, self.videos, name)
            seconds, times = depth / clip.shown_rate, clip.time_slices(depth)
            found.append(dataclasses.replace(cut, seconds=seconds, times=times))
        return found

    def measure(
        self,
        prompt: str | Messages,
        sizes: Sequence[tuple[int, int]],
        chat: bool = True,
        videos: Sequence[VideoFile] = (),
    ) -> Size:
        """Say what a prompt with images of these (width, height) in pixels will take up.

        No pixel is needed for it.

        Args:
            prompt: as for a call.
            sizes: of its images.
            chat: as for a call.
            videos: files of its videos, looked into.

        Raises:
            InputError: as a call with that prompt and such images; does not name a sample.
        """
        pictures = [self._outline(index, *size, len(sizes)) for index, size in enumerate(sizes)]
        clips = [self._outline_video(index, video) for index, video in enumerate(videos)]
        tokens, pictures, clips = self._write(prompt, pictures, clips, 0, chat)
        (sample,) = arrange(Batch((tokens,), tuple(pictures), tuple(clips)), self.config)
        footprints = [segment.footprint for segment in sample.segments]
        return measure_sample(len(tokens), footprints, sample.next_position, self.config)

    def _outline(self, index: int, width: int, height: int, count: int) -> Visual:
        """Return an image without pixels, of as many as there are."""
        rule = self.images.share(count)
        try:
            grid, tiles = rule.find_grid(width, height), rule.find_tiles(width, height)
        except InputError as error:
            raise InputError(f"image {index}: {error}") from None
        return self._empty(grid, tiles=tiles, size=(height, width) if rule.pads else None)

    def _outline_video(self, index: int, video: VideoFile) -> Visual:
        """Return a video without pixels."""
        rule, depth = self.videos, self.videos.temporal_patch_size
        try:
            clip = video.outline(self.sampling)
            height, width = rule.find_frame_size(len(clip), video.width, video.height)
        except InputError as error:
            raise InputError(f"video {index}: {error}") from None
        grid = -(-len(clip) // depth), height // rule.patch_size, width // rule.patch_size
        return self._empty(grid, seconds=depth / clip.shown_rate, times=clip.time_slices(depth))

    def _empty(self, grid: tuple[int, int, int], **traits: Any) -> Visual:
        """Return a visual of zeros, which take no memory."""
        shape = grid[0] * grid[1] * grid[2], self.config.vision.patch_values
        return Visual(np.broadcast_to(np.float32(0), shape), grid, **traits)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts as they stand, such as answers for `ivc_jax.score`.

        Special tokens written in a text are recognised, none are added.
        """
        encode = self.writer.tokenizer.encode
        return [encode(text, add_special_tokens=False) for text in texts]

    def decode(self, tokens: Any, lengths: Any) -> list[str]:
        """Return the text of each row of `tokens` [B, T] up to its length; special tokens skipped.

        Args:
            tokens: ids, NumPy or on device.
            lengths: [B], valid ids of each row.
        """
        rows = zip(np.asarray(tokens), np.asarray(lengths), strict=True)
        return [self.writer.tokenizer.decode(row[: int(length)]) for row, length in rows]


def _refuse_videos(video_lists: list[list]) -> None:
    for sample, clips in enumerate(video_lists):
        if clips:
            raise InputError(f"sample {sample}: this model takes no videos; leave them out")
