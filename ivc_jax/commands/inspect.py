"""One image or video, one prompt: the dense answer beside the pruned ones, and what each keeps.

    ivc-jax inspect                          # bundled model and a drawn scene
    ivc-jax inspect photo.jpg --model DIR --prompt "What is on the table?" \
        --methods dense ivc:keep_ratio=0.5 fastv --out kept.png
    ivc-jax inspect film.mp4 --model DIR --prompt "When does it fall?" --fps 1 --max-frames 16
"""

import dataclasses
import mimetypes
import pathlib
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ivc_jax.commands.cli import SCRIPT, option, run_command
from ivc_jax.commands.options import FrameOptions, Plugin, WeightOptions, check_counts, load_plugins

_SCENE_SEED = 7  # the same scene every time, so that answers compare
_SCENE_DIGITS = 5
_MATROSKA = ".mkv"  # a video that Python's table of types lacks


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What is asked, of which methods, and where the picture goes.

    Attributes:
        prompt: question.
        methods: such as dense or "ivc:layer=3,keep_ratio=0.5"; own.py:Class takes a method from a
            file.
        plugin: Python files whose methods are known by their names.
        max_new_tokens: bound on the answers.
        out: PNG file to write.
    """

    prompt: Annotated[
        str | None, option("TEXT", "the place of a digit, or what is in the picture")
    ] = None
    methods: Annotated[tuple[str, ...], option("SPEC ...")] = ("dense", "ivc", "fastv", "random")
    plugin: Plugin = None
    max_new_tokens: Annotated[int, option("N")] = 64
    out: Annotated[str, option("PNG")] = "runs/inspect.png"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare pruning methods on one image or video and draw the tokens that they keep.

    Attributes:
        image: picture or video file.
        traceback: show where an error came from.
    """

    image: Annotated[
        tyro.conf.Positional[str | None], option("IMAGE", "a scene of handwritten digits")
    ] = None
    model: tyro.conf.OmitArgPrefixes[WeightOptions] = dataclasses.field(
        default_factory=WeightOptions
    )
    video: tyro.conf.OmitArgPrefixes[FrameOptions] = dataclasses.field(default_factory=FrameOptions)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()
    traceback: bool = False


def main(arguments: list[str] | None = None, program: str = f"{SCRIPT} inspect") -> int:
    """Run from the command line; return the exit code."""
    return run_command(Arguments, _run, arguments, program)


def _run(arguments: Arguments, _command: str, console: Console) -> None:
    """Check everything that is cheap to check, then load, answer, print and draw."""
    # Imported late, so that a wrong option or --help does not wait for JAX.
    import ivc_jax
    from ivc_jax.commands.compile_cache import use_compile_cache
    from ivc_jax.commands.origin import find_model
    from ivc_jax.engine.plan import make_plan
    from ivc_jax.evals.running.answerer import ModelAnswerer
    from ivc_jax.inputs.bucket import collate
    from ivc_jax.inputs.video import VideoFile
    from ivc_jax.reports import kept, kept_frames

    load_plugins(arguments.run.plugin)
    use_compile_cache()
    methods = list(dict.fromkeys(map(ivc_jax.methods.parse, arguments.run.methods)))
    if not methods:
        raise ValueError("methods is empty: name at least one")
    check_counts(arguments.run, "max_new_tokens")
    frames = arguments.video.choose()
    shown, question = _find_subject(arguments)
    out = pathlib.Path(arguments.run.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = find_model(arguments.model.model)
    console.print(f"loading {path}", markup=False)
    model, processor = arguments.model.load(path, video=frames)
    for method in methods:
        # layers and stages fit, or it raises: before anything is answered
        make_plan(model.config.decoder.num_layers, method.resolve(model.config))
    answerer = ModelAnswerer(model, processor)
    kind = "images"
    if isinstance(shown, VideoFile):
        kind, shown = "videos", processor.read_video(shown)
    batch = processor(prompts=[question], **{kind: [[shown]]})
    prepared = answerer.place({0: collate(batch, model.config)})  # one shard: number 0
    answers = {}
    for method in methods:
        spec = ivc_jax.methods.describe(method)
        with console.status(spec):
            answerer.answer(prepared, method, arguments.run.max_new_tokens)  # compiles
            (answers[spec],) = answerer.answer(prepared, method, arguments.run.max_new_tokens)
    console.print(_make_table(question, answers))
    if kind == "videos":
        depth = processor.videos.temporal_patch_size
        kept_frames.save_frames(out, shown, depth, question, answers)
    else:
        kept.save_prompt(out, shown, question, answers, answerer.make_reader())
    console.print(f"kept tokens: {out}", markup=False)


def _find_subject(arguments: Arguments) -> tuple[Any, str]:
    """Return the picture, or the video file, and the question."""
    if arguments.image is not None:
        from ivc_jax.inputs.picture import load_picture
        from ivc_jax.inputs.video import open_video

        mime = mimetypes.guess_type(arguments.image)[0] or ""
        if mime.startswith("video/") or arguments.image.lower().endswith(_MATROSKA):
            return open_video(arguments.image), arguments.run.prompt or "What is in this video?"
        return load_picture(arguments.image), arguments.run.prompt or "What is in this picture?"
    import numpy as np
    from PIL import Image

    from digit_scenes import digits, questions, scenes

    draw = np.random.default_rng(_SCENE_SEED)
    scene = scenes.render(draw, digits.load("test"), _SCENE_DIGITS)
    question = arguments.run.prompt or f"Locate the {questions.list_unique(scene)[0].name}."
    return Image.fromarray(scene.pixels), question


def _make_table(question: str, answers: dict[str, Any]) -> Table:
    """Lay out the answers, one row a method."""
    from rich.text import Text

    table = Table(title=Text(question.strip()))
    for name in ("method", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("kept tokens", "KV", "prefill", "per token"):
        table.add_column(name, justify="right")
    for spec, answer in answers.items():
        table.add_row(
            Text(spec),
            Text(answer.error or " ".join(answer.text.split()) or "(nothing)"),
            f"{len(answer.kept)} of {answer.visual_tokens}",
            f"{answer.kv_bytes / 1024:.0f} KiB",
            f"{answer.prefill_ms:.1f} ms",
            f"{answer.decode_ms / max(answer.decode_steps, 1):.2f} ms",
        )
    return table
