"""One image or video, one prompt: the dense answer beside the pruned ones, and what each keeps.

    ivc-jax inspect                          # bundled model and a drawn scene
    ivc-jax inspect photo.jpg --model DIR --prompt "What is on the table?" \
        --methods dense ivc:keep_ratio=0.5 fastv --out kept.png
    ivc-jax inspect --serve --model DIR      # a page that takes pictures
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
from ivc_jax.commands.inspect_server import check_server, serve
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
        repeats: warm runs of each method whose median times are shown; 0 shows no times.
        out: PNG file to write; the page with sliders lies beside it, with the ending .html.
    """

    prompt: Annotated[
        str | None, option("TEXT", "the place of a digit, or what is in the picture")
    ] = None
    methods: Annotated[tuple[str, ...], option("SPEC ...")] = ("dense", "ivc", "fastv", "random")
    plugin: Plugin = None
    max_new_tokens: Annotated[int, option("N")] = 64
    repeats: Annotated[int, option("N")] = 3
    out: Annotated[str, option("PNG")] = "runs/inspect.png"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare pruning methods on one image or video and draw the tokens that they keep.

    Attributes:
        image: picture or video file.
        serve: ask in a page of this machine instead, which takes pictures, until Ctrl-C.
        port: of that page; 0 takes one that is free.
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
    serve: bool = False
    port: Annotated[int, option("N")] = 8765
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
    from ivc_jax.studies.inspection.prompt import Inspector

    load_plugins(arguments.run.plugin)
    use_compile_cache()
    named = arguments.run.methods
    if arguments.serve and named == RunOptions.methods:
        named = ("dense",)  # beside the one that is asked for
    methods = list(dict.fromkeys(map(ivc_jax.methods.parse, named)))
    if not methods:
        raise ValueError("methods is empty: name at least one")
    check_counts(arguments.run, "max_new_tokens")
    if arguments.run.repeats < 0:
        raise ValueError(f"repeats must not be negative, got {arguments.run.repeats}")
    if arguments.serve:
        check_server(arguments)
    frames = arguments.video.choose()
    if not arguments.serve:
        shown, question = _find_subject(arguments)
        files = _choose_files(arguments.run.out)
    path = find_model(arguments.model.model)
    console.print(f"loading {path}", markup=False)
    model, processor = arguments.model.load(path, video=frames)
    for method in methods:
        # layers and stages fit, or it raises: before anything is answered
        make_plan(model.config.decoder.num_layers, method.resolve(model.config))
    given = arguments.model.model
    name = pathlib.PurePath(given).name if given else "the bundled one"
    inspector = Inspector(model, processor, name)
    if arguments.serve:
        serve(inspector, methods, arguments, console)
    else:
        found = _inspect(inspector, shown, question, methods, arguments.run, console)
        _write(inspector, *found, files, console)


def _choose_files(out: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return where the figure and the page go; make their folder."""
    figure, page = pathlib.Path(out), pathlib.Path(out).with_suffix(".html")
    page.parent.mkdir(parents=True, exist_ok=True)
    return (page.with_suffix(".png") if figure == page else figure), page


def _inspect(
    inspector: Any, shown: Any, question: str, methods: list[Any], run: RunOptions, console: Console
) -> tuple[Any, Any]:
    """Answer about one picture or video, print the table; return the prompt and what was found."""
    from ivc_jax.inputs.video import VideoFile
    from ivc_jax.studies.inspection.prompt import Prompt

    if isinstance(shown, VideoFile):
        prompt = Prompt(question, video=inspector.processor.read_video(shown))
    else:
        prompt = Prompt(question, (shown,))
    with console.status("") as status:
        found = inspector.inspect(
            prompt, methods, run.max_new_tokens, run.repeats, lambda doing: status.update(doing)
        )
    console.print(_make_table(question, found.answers, run.repeats))
    return prompt, found


def _write(
    inspector: Any,
    prompt: Any,
    found: Any,
    files: tuple[pathlib.Path, pathlib.Path],
    console: Console,
) -> None:
    """Write the figure and the page."""
    from ivc_jax.evals.running.records import write_atomically
    from ivc_jax.reports import inspector as pages
    from ivc_jax.reports import kept, kept_frames

    out, page = files
    if prompt.video is not None:
        depth = inspector.processor.videos.temporal_patch_size
        kept_frames.save_frames(out, prompt.video, depth, prompt.question, found.answers)
    else:
        reader = inspector.answerer.make_reader()
        kept.save_prompt(out, prompt.pictures[0], prompt.question, found.answers, reader)
    write_atomically(page, pages.render(found))
    console.print(f"kept tokens: {out}", markup=False)
    console.print(f"layers and keep ratios: {page}", markup=False)


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
    scene, pixels = scenes.render(draw, digits.load("test"), _SCENE_DIGITS)
    question = arguments.run.prompt or f"Locate the {questions.list_unique(scene)[0].name}."
    return Image.fromarray(pixels), question


def _make_table(question: str, answers: dict[str, Any], repeats: int) -> Table:
    """Lay out the answers, one row a method; times are medians of warm runs, or left out."""
    from rich.text import Text

    table = Table(title=Text(question.strip()))
    for name in ("method", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("kept tokens", "KV", *(("prefill", "per token") if repeats else ())):
        table.add_column(name, justify="right")
    for spec, answer in answers.items():
        times = (
            f"{answer.prefill_ms:.1f} ms",
            f"{answer.decode_ms / max(answer.decode_steps, 1):.2f} ms",
        )
        table.add_row(
            Text(spec),
            Text(answer.error or " ".join(answer.text.split()) or "(nothing)"),
            f"{len(answer.kept)} of {answer.visual_tokens}",
            f"{answer.kv_bytes / 1024:.0f} KiB",
            *(times if repeats else ()),
        )
    if repeats:
        table.caption = f"times: median of {repeats} warm runs"
    return table
