"""Options that several commands have, in the groups that their help shows."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from ivc_jax.commands.cli import option
from ivc_jax.commands.settings import RunConfig
from ivc_jax.inputs.sampling import VideoOptions

_CONFIGS = "the config's"
_CHECKPOINT = "the checkpoint's"
Tables = Annotated[tuple[Literal["csv", "latex"], ...] | None, option("csv latex", "none")]
Plugin = Annotated[tuple[str, ...] | None, option("FILE ...", "none")]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Weights and devices.

    Attributes:
        model: checkpoint folder or hub name; without a config's, the bundled checkpoint.
        dtype: of the weights; without a config's, float32 on CPU and bfloat16 elsewhere.
        weights: int8 keeps the decoder's matrices in 8 bits.
        mesh: devices, such as data=8,model=4; without a config's, one, or data over all of several
            processes.
        min_pixels: least area of a resized picture, instead of that of preprocessor_config.json.
        max_pixels: largest area, likewise.
        max_tiles: most tiles of a picture, for models that cut pictures.
        pad: lay pictures on a square, or cut their middle out, for models that take squares.
    """

    model: Annotated[str | None, option("PATH", _CONFIGS)] = None
    dtype: Annotated[str | None, option("TYPE", _CONFIGS)] = None
    weights: Annotated[str | None, option("TYPE", _CONFIGS)] = None
    mesh: Annotated[str | None, option("data=N,model=N", _CONFIGS)] = None
    min_pixels: Annotated[int | None, option("N", _CONFIGS)] = None
    max_pixels: Annotated[int | None, option("N", _CONFIGS)] = None
    max_tiles: Annotated[int | None, option("N", _CONFIGS)] = None
    pad: Annotated[bool | None, option("True|False", _CONFIGS)] = None


@dataclasses.dataclass(frozen=True)
class FrameOptions:
    """What is shown of video files, instead of what the files of the checkpoint say.

    Attributes:
        fps: frames a second.
        num_frames: frames of every video, instead.
        min_frames: least frames of a video, by --fps.
        max_frames: most frames, likewise.
        min_video_pixels: least area of a resized frame, or of all frames together where the
            checkpoint counts them so (Qwen3-VL).
        max_video_pixels: largest area, likewise.
    """

    fps: Annotated[float | None, option("N", _CHECKPOINT)] = None
    num_frames: Annotated[int | None, option("N", _CHECKPOINT)] = None
    min_frames: Annotated[int | None, option("N", _CHECKPOINT)] = None
    max_frames: Annotated[int | None, option("N", _CHECKPOINT)] = None
    min_video_pixels: Annotated[int | None, option("N", _CHECKPOINT)] = None
    max_video_pixels: Annotated[int | None, option("N", _CHECKPOINT)] = None

    def choose(self) -> VideoOptions:
        """Return them as the library takes them.

        Raises:
            InputError: options that are impossible, or exclude each other.
        """
        given = vars(self)
        pixels = {f"{end}_pixels": given[f"{end}_video_pixels"] for end in ("min", "max")}
        counts = ("fps", "num_frames", "min_frames", "max_frames")
        return VideoOptions(**pixels, **{name: given[name] for name in counts})


@dataclasses.dataclass(frozen=True)
class WeightOptions:
    """The weights of a command that has no config.

    Attributes:
        model: checkpoint folder or hub name.
        dtype: of the weights.
        min_pixels: least area of a resized picture.
        max_pixels: largest area, likewise.
    """

    model: Annotated[str | None, option("PATH", "the bundled checkpoint")] = None
    dtype: Annotated[str | None, option("TYPE", "float32 on CPU, bfloat16 elsewhere")] = None
    min_pixels: Annotated[int | None, option("N", "preprocessor_config.json's")] = None
    max_pixels: Annotated[int | None, option("N", "preprocessor_config.json's")] = None

    def load(self, path: str, **more: Any) -> tuple[Any, Any]:
        """Load the model that lies at a path; return it and its processor.

        Args:
            path: what `origin.find_model` makes of `model`.
            more: further arguments of `ivc_jax.load`.
        """
        import ivc_jax  # waits for JAX

        bounds = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return ivc_jax.load(path, self.dtype, **bounds, **more)


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """Pictures.

    Attributes:
        images: folder of pictures, all about the same question.
        limit: pictures to calibrate on.
        held_out: pictures that results are measured on; of a folder, those behind the others.
        batch_size: pictures that run together.
    """

    images: Annotated[str | None, option("DIR", "scenes of the bundled benchmark")] = None
    limit: Annotated[int, option("N")] = 200
    held_out: Annotated[int, option("N")] = 60
    batch_size: Annotated[int, option("B")] = 20

    def check(self) -> None:
        """Refuse counts that are none.

        Raises:
            ValueError: one of them is below 1.
        """
        check_counts(self, "limit", "held_out", "batch_size")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Questions and pictures.

    Attributes:
        tasks: such as grounding or RefCOCO_testA.
        data_dir: folder of the TSV files; the bundled benchmark is drawn where it is missing.
        limit: rows of each task.
    """

    tasks: Annotated[tuple[str, ...] | None, option("NAME ...", _CONFIGS)] = None
    data_dir: Annotated[str | None, option("DIR", _CONFIGS)] = None
    limit: Annotated[int | None, option("N", _CONFIGS)] = None


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What runs, how, and where its results go.

    Attributes:
        methods: such as dense, "ivc:layer=3,keep_ratio=0.5" or fastv:budget=0.5; own.py:Class
            takes a method from a file.
        plugin: Python files whose methods are known by their names.
        batch_size: examples that run together, on all devices.
        buckets: most padded shapes; which ones, the data decide.
        protocol: released treats pictures and cells as the released evaluation does; own reads
            them as they are.
        max_new_tokens: bounds on answers: N for all tasks, TASK=N for one.
        seed: of the methods that draw lots.
        out: result folder.
        no_resume: set earlier records in the result folder aside and start over.
        no_compile_cache: do not keep compiled programs for later runs.
    """

    methods: Annotated[tuple[str, ...] | None, option("SPEC ...", _CONFIGS)] = None
    plugin: Plugin = None
    batch_size: Annotated[int | None, option("B", _CONFIGS)] = None
    buckets: Annotated[int | None, option("N", _CONFIGS)] = None
    protocol: Annotated[Literal["own", "released"] | None, option("NAME", _CONFIGS)] = None
    max_new_tokens: Annotated[tuple[str, ...] | None, option("N | TASK=N ...", _CONFIGS)] = None
    seed: Annotated[int | None, option("N", _CONFIGS)] = None
    out: Annotated[str | None, option("DIR", _CONFIGS)] = None
    no_resume: bool = False
    no_compile_cache: bool = False


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """Other processes of the same run.

    Attributes:
        distributed: join the other processes of a TPU pod or a cluster, which are found by
            themselves.
        coordinator: address:port of process 0, where they are not found.
        num_processes: how many processes there are, with a coordinator.
        process_id: number of this one, with a coordinator.
    """

    distributed: bool = False
    coordinator: Annotated[str | None, option("ADDRESS:PORT", "none")] = None
    num_processes: Annotated[int | None, option("N", "none")] = None
    process_id: Annotated[int | None, option("N", "none")] = None


SeveralHosts = Annotated[
    HostOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="several hosts")
]


def check_counts(options: Any, *names: str) -> None:
    """Refuse options that count something and are below 1.

    Raises:
        ValueError: names the first of them.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")


def load_plugins(files: Sequence[str] | None) -> None:
    """Let specifications name the methods that files define."""
    if files:
        from ivc_jax.methods import load_file  # waits for JAX

        for file in files:
            load_file(file)


def override(config: RunConfig, *groups: Any) -> RunConfig:
    """Return a configuration with the fields that groups of options give."""
    names = {field.name for field in dataclasses.fields(RunConfig)}
    given = {  # None is "not given": the config's value stays
        name: value
        for group in groups
        for name, value in vars(group).items()
        if name in names and value is not None
    }
    return dataclasses.replace(config, **given)
