"""What a run is made of, and where named configurations live."""

import ast
import dataclasses
import importlib.util
import pathlib

from ivc_jax.inputs.sampling import VideoOptions
from ivc_jax.nearest import suggest
from ivc_jax.studies.study import Study, list_methods

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_OPTIONS = (  # fields that the command line has options of
    *("model", "dtype", "weights", "mesh", "min_pixels", "max_pixels", "max_tiles", "pad"),
    *("fps", "num_frames", "min_frames", "max_frames", "min_video_pixels", "max_video_pixels"),
    *("tasks", "data_dir", "limit", "methods", "batch_size"),
    *("buckets", "max_new_tokens", "seed", "protocol", "out"),
)
PROTOCOLS = ("own", "released")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and the choices."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Settings of one run; the command line overrides single fields.

    Attributes:
        methods: specifications such as "ivc:layer=3,keep_ratio=0.5".
        tasks: names from `ivc_jax.evals.benchmarks.tasks.TASKS`.
        model: checkpoint folder or hub name; None is the bundled checkpoint.
        data_dir: folder of TSV files; tasks of the bundled benchmark need none.
        limit: rows of each task, None for all.
        seed: of the methods that draw lots.
        out: result folder.
        num_scenes: scenes of each seed of the bundled benchmark where it has to be drawn; more of
            them if `limit` needs them.
        data_seeds: of the scenes of the bundled benchmark; 0 is its release.
        data_split: "test", or "calibration" for choosing settings (`digit_scenes.tsv`).
        share_tower: run the vision tower once for all methods; the times of a prefill leave it out,
            but for what a method asks the tower.
        buckets: most padded shapes; which ones, the data decide.
        max_new_tokens: other bounds on answers than those of the tasks: "64" for all, or
            "ChartQA_TEST=32" for one.
        mesh: devices as "data=4,model=2"; None is one device, or `data` over all of several
            processes.
        weights: "int8" to keep the decoder's matrices in 8 bits.
        min_pixels: least area of a resized picture, instead of that of preprocessor_config.json.
        max_pixels: largest area, likewise.
        max_tiles: most tiles of a picture, for models that cut pictures.
        pad: lay pictures on a square (True) or cut their middle out, for models that take squares.
        fps: frames that are shown of each second of a video file, instead of what the checkpoint
            says.
        num_frames: frames of every video file, instead.
        min_frames: least frames of a video, by `fps`.
        max_frames: most frames, likewise.
        min_video_pixels: least area of a resized frame, or of all frames together where the
            checkpoint counts them so.
        max_video_pixels: largest area, likewise.
        protocol: "released" treats pictures and cells as the released evaluation does
            (`evals.benchmarks.released`) and asks with its prompts; bounds on pictures that are
            given win over its own. "own" reads everything as it is.
        fixed_relaxed_accuracy: take ChartQA's error relative to the reference, not to the answer.
        official_prompts: ask Qwen2-VL with the released prompt, which cuts the last character.
        skip_unreachable: leave out methods whose budget the model is too shallow for.
        skip_without_objects: where a file does not say where objects are, leave out the methods
            that ask, and run the others.
        studies: ablations that the report has a table and a figure of.
        skip_missing_files: leave out tasks whose file the data folder lacks, if it holds one.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    model: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    batch_size: int = 16
    seed: int = 0
    out: str = "runs/default"
    num_scenes: int = 80
    data_seeds: tuple[int, ...] = (0,)
    data_split: str = "test"
    share_tower: bool = False
    dtype: str | None = None
    buckets: int = 6
    max_new_tokens: tuple[str, ...] = ()
    mesh: str | None = None
    weights: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    pad: bool | None = None
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_video_pixels: int | None = None
    max_video_pixels: int | None = None
    protocol: str = "own"
    fixed_relaxed_accuracy: bool = False
    official_prompts: bool = False
    studies: tuple[Study, ...] = ()
    skip_missing_files: bool = False
    skip_unreachable: bool = False
    skip_without_objects: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_scenes", "buckets"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.protocol not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise SettingsError(f"unknown protocol {self.protocol!r}; known: {known}")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit must be at least 1, got {self.limit}")
        for name in ("methods", "tasks"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is empty: name at least one")
        _ = self.video  # impossible ones show here

    @property
    def video(self) -> VideoOptions:
        """What is shown of video files.

        Raises:
            InputError: options that are impossible, or exclude each other.
        """
        return VideoOptions(
            fps=self.fps,
            num_frames=self.num_frames,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            min_pixels=self.min_video_pixels,
            max_pixels=self.max_video_pixels,
        )


def ablation(
    name: str, studies: tuple[Study, ...], *, limit: int, num_scenes: int, **fields: bool
) -> RunConfig:
    """Return the run that serves studies of the bundled model, on scenes of three seeds.

    Args:
        name: of the result folder.
        limit: rows of each task.
        num_scenes: scenes of each seed, enough for the limit; a larger `--limit` draws more.
        fields: others of `RunConfig`.
    """
    return RunConfig(
        methods=list_methods(studies),
        studies=studies,
        tasks=("grounding", "reading", "relations", "existence", "colour", "counting"),
        batch_size=32,
        limit=limit,
        num_scenes=num_scenes,
        data_seeds=(0, 1, 2),  # the release and two more, for narrower intervals
        share_tower=True,
        out=f"runs/{name}",
        **fields,
    )


def list_configs() -> dict[str, str]:
    """List the configurations: the question that each asks, by name."""
    paths = sorted(_find_configs().glob("*.py"))
    # parsed, not run: the list needs the first line alone
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in paths}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def load_config(name: str) -> RunConfig:
    """Load a configuration by name, or from a path that ends in .py.

    Raises:
        SettingsError: there is none of that name, or the file defines none.
    """
    path = pathlib.Path(name) if name.endswith(".py") else _find_configs() / f"{name}.py"
    if not path.is_file():
        known = list_configs()
        raise SettingsError(
            f"unknown config {name!r}; known: {', '.join(known)}{suggest(name, known)}"
        )
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # a config is Python: it is run, not parsed
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "CONFIG", None), RunConfig):
        raise SettingsError(f"{path} defines no CONFIG = RunConfig(...); see config forkme")
    return module.CONFIG


def write_config(name: str) -> str:
    """Write the settings of a configuration as options of the command line."""
    values = dataclasses.asdict(load_config(name))
    written = [
        f"--{field.replace('_', '-')} {_write(values[field])}"
        for field in _OPTIONS
        if values[field] not in (None, ())
    ]
    return ", ".join(written)


def _write(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _find_configs() -> pathlib.Path:
    """Return the folder of the configurations: a wheel carries that of a checkout."""
    carried = _PACKAGE / "configs"
    return carried if carried.is_dir() else _PACKAGE.parent / "experiments" / "configs"
