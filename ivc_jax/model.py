"""A model on its devices, and `load`, which finds one."""

import dataclasses
import importlib.util
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ivc_jax import cloud, families
from ivc_jax.config import ConfigError, ModelConfig
from ivc_jax.families import Family
from ivc_jax.inputs.batch import check_ids
from ivc_jax.inputs.processor import Processor
from ivc_jax.inputs.resize import PictureRule
from ivc_jax.inputs.rules import read_rules, refuse_options
from ivc_jax.inputs.sampling import VideoOptions
from ivc_jax.inputs.tokenizer import find_id, read_stop_ids
from ivc_jax.nn.blocks import Params, peek
from ivc_jax.nn.layers import is_quantized
from ivc_jax.weights import checkpoint, quantize
from ivc_jax.weights.load import load_safetensors, stores_head
from ivc_jax.weights.source import DTYPES, CheckpointError, has_weights, read_json

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
_HUB_FILES = ("*.json", "*.jinja", "merges.txt", "tokenizer.model")  # all but weights
BUNDLED = "bundled"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Sizes, parameters on devices, the mesh they are sharded over, and the ids that end an answer.

    Attributes:
        config: sizes and traits.
        params: {"vision", "decoder"}.
        mesh: None is one device.
        stop_ids: where answers end unless the caller says otherwise; () is nowhere.
    """

    config: ModelConfig
    params: Params
    mesh: Mesh | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        """The dtype that the model computes in; of all parameters but quantised weights."""
        return self.params["decoder"]["embed_tokens"]["embedding"].dtype

    @property
    def weights(self) -> str:
        """What the decoder's weights are stored as: "int8" or the name of a float dtype."""
        weight = peek(self.params["decoder"]["layers"])["o_proj"]["weight"]  # every block has one
        return str((weight.qvalue if is_quantized(weight) else weight).dtype)

    def __repr__(self) -> str:
        sizes, leaves = self.config.decoder, jax.tree.leaves(self.params)
        count = sum(leaf.size for leaf in leaves)
        stored = "" if self.weights == str(self.dtype) else f", {self.weights} weights"
        devices = sorted(map(str, getattr(leaves[0], "devices", set)())) or ["no device"]
        split = "".join(f", {axis}={n}" for axis, n in self.mesh.shape.items()) if self.mesh else ""
        return (
            f"Model({self.config.family}, {count / 1e6:.1f} M parameters, {sizes.num_layers} blocks"
            f" of width {sizes.hidden_size}, {self.dtype}{stored}, on {len(devices)} x"
            f" {devices[0]}{split})"
        )


def load(
    path: str | Path,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    weights: str | None = None,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    pad: bool | None = None,
    max_tiles: int | None = None,
    video: VideoOptions | None = None,
    processor: bool | str | Path = True,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[Model, Processor | None]:
    """Load a model and its processor.

    Args:
        path: a Hugging Face directory, a directory written by `checkpoints_convert`, a hub id, or
            "bundled" for the model that comes with this package.
        dtype: "float32", "bfloat16" or, on GPU, "float16"; by default float32 on CPU and bfloat16
            on accelerators, whatever the checkpoint holds.
        mesh: from `ivc_jax.parallel.mesh.make_mesh`; parameters are sharded while they are read.
        weights: "int8" stores the decoder's projections, its feed-forward layers and an untied
            output head in a byte a number, and multiplies them as `dtype`; needs the extra `int8`.
        min_pixels: least area of a resized picture, instead of that of preprocessor_config.json.
        max_pixels: largest area, likewise.
        pad: for checkpoints that make pictures square: lay them on a square of their mean colour,
            as LLaVA's original code does (True), or cut their middle out, as its files on the hub
            say (False); None is what the files say.
        max_tiles: most tiles that a picture is cut into, a view of the whole not counted; for
            checkpoints that cut pictures.
        video: which frames of video files are shown, and their size, instead of what the files say.
        processor: another directory or hub id to take tokenizer, chat template and picture
            settings from; False loads the weights alone, for directories without these files.
        revision: branch, tag or commit of a hub id.
        token: for hub ids that need one; by default the one that huggingface_hub has stored.

    Returns:
        The model and its processor, or None in its place for `processor=False`.

    Raises:
        CheckpointError: no such path, unreadable or unfitting files.
        ConfigError: an architecture or setting that is not supported.
        InputError: bounds on pictures that are impossible, or that the checkpoint does not have.
        ValueError: unknown dtype or weights, or a dtype that the devices do not compute.
        ImportError: int8 weights without the library behind them.
    """
    chosen = _choose_dtype(dtype, mesh)
    quantize.check(weights)
    if not processor:
        refuse_options(min_pixels, max_pixels, pad=pad, max_tiles=max_tiles, video=video)
    folder = find_folder(path, revision, token)
    home = folder
    if processor and processor is not True:
        home = find_folder(processor, None, token, weights=False)
    config, family = read_config(folder, home), find_family(folder)
    # Its files are small: a broken tokenizer shows before the weights are read.
    made = None
    if processor:
        made = load_processor(home, config, family).bound(min_pixels, max_pixels, max_tiles)
        made = made if pad is None else made.pad(pad)
        made = made if video is None else made.sample(video)
        config = _with_pixels(config, made.images)
    elif rules := read_rules(folder, config, family.read_pictures):
        config = _with_pixels(config, rules[0])
    stops = _find_stops(folder, config, family, made)
    params = load_params(folder, config, chosen, mesh, weights)
    return Model(config, params, mesh, stops), made


def read_config(folder: Path, home: Path | None = None) -> ModelConfig:
    """Read the model sizes from `folder/config.json`.

    Whether the output head is the embedding, the weights beside it decide if they are there: one
    that differs is the model's own, whatever the file says.

    Args:
        folder: the checkpoint.
        home: where its tokenizer is, if not there too; some files leave the id of the placeholder
            of images to it.

    Raises:
        CheckpointError: no readable config.json, or unreadable weights.
        ConfigError: an architecture or a setting that is not supported.
        InputError: a damaged tokenizer, where it is asked.
    """
    content = read_json(folder / "config.json")
    config = families.parse_config(content | _find_placeholder(content, home or folder))
    if not config.decoder.tie_embeddings:
        return config
    if checkpoint.is_converted(folder):
        untied = checkpoint.stores_head(folder)
    else:
        untied = has_weights(folder) and stores_head(folder, find_family(folder).rules)
    if not untied:
        return config
    _log.warning(
        "%s: config.json ties the output head to the embedding, but the weights hold a head of its"
        " own; it is used",
        folder,
    )
    return dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, tie_embeddings=False)
    )


def _find_placeholder(content: Mapping[str, Any], home: Path) -> dict[str, int]:
    """Ask the tokenizer for the `image_token_id` that a config.json does not state."""
    token = families.find_family(content.get("model_type")).image_token
    if token is None or content.get("image_token_id") is not None:
        return {}
    number = find_id(home, token)
    if number is None:
        raise ConfigError(
            f"config.json states no image_token_id, and no tokenizer of {home} knows {token}; copy"
            " the tokenizer files that belong to the checkpoint"
        )
    return {"image_token_id": number}


def find_family(folder: Path) -> Family:
    """Return the family that `folder/config.json` names; raises as `read_config`."""
    return families.find_family(read_json(folder / "config.json"))


def load_processor(folder: Path, config: ModelConfig, family: Family) -> Processor:
    """Load the processor of a directory.

    Raises:
        InputError: missing or damaged files, or settings that do not fit the model.
    """
    return Processor.from_pretrained(
        folder,
        config,
        read_pictures=family.read_pictures,
        write_visual=family.write_visual,
        word_pattern=family.word_pattern,
        chat_template=family.chat_template,
        end_token=family.end_token,
        frame_text=family.frame_text,
        sampling=family.sampling,
    )


def load_params(
    folder: Path,
    config: ModelConfig,
    dtype: np.dtype,
    mesh: Mesh | None = None,
    weights: str | None = None,
) -> Params:
    """Load the parameters of a Hugging Face or a converted directory, told apart by content.

    Args:
        weights: "int8" for quantised weights, as in `load`.

    Raises:
        CheckpointError: unreadable or unfitting files.
    """
    if checkpoint.is_converted(folder):
        return checkpoint.restore_params(folder, config, dtype, mesh, weights)
    family = find_family(folder)
    return load_safetensors(
        *(folder, config, dtype, mesh, weights), rules=family.rules, excused=family.excused
    )


def find_folder(
    path: str | Path, revision: str | None = None, token: str | None = None, weights: bool = True
) -> Path:
    """Return the local directory of a checkpoint, fetched if it is in a bucket or on the hub.

    Args:
        path: as for `load`.
        revision: as for `load`.
        token: as for `load`.
        weights: False leaves the weights on the hub.

    Raises:
        CheckpointError: no directory, bucket or hub id, or the hub cannot be reached.
        RemoteError: the bucket cannot be read.
    """
    if path == BUNDLED:
        return find_bundled()
    if cloud.is_remote(path):
        return cloud.pull_folder(str(path), cloud.find_cache(str(path), "models"))
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{path} is a local directory and has no revision {revision!r}")
        return folder
    if folder.exists():
        raise CheckpointError(f"{path} is a file; give the directory that holds config.json")
    if not isinstance(path, str) or not _HUB_ID.fullmatch(path):
        raise CheckpointError(f"{path} is neither a directory nor a hub id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{path} is no local directory; to fetch it from the hub, pip install huggingface_hub"
        ) from None
    files = [*_HUB_FILES, "*.safetensors"] if weights else list(_HUB_FILES)
    try:
        return Path(snapshot_download(path, allow_patterns=files, revision=revision, token=token))
    except Exception as error:  # network, access and naming errors share no base class
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is no local directory, and fetching it from the hub failed: {reason}"
        ) from error


def find_bundled() -> Path:
    """Return the directory of the bundled model.

    Raises:
        CheckpointError: it is not installed.
    """
    # Found, not imported: the package that trained the model stands above this one.
    spec = importlib.util.find_spec("digit_scenes")
    if spec is None or spec.origin is None:
        raise CheckpointError("the bundled model is not installed; install this package anew")
    return Path(spec.origin).resolve().with_name("checkpoint")


def check_dtype(name: str, platform: str) -> None:
    """Refuse a dtype that the devices do not compute in.

    Raises:
        ValueError: float16 anywhere but on GPU.
    """
    # Attention multiplies halves and adds them up in float32, which XLA has on GPU only.
    if name == "float16" and platform != "gpu":
        raise ValueError(f"float16 is not computed on {platform}; use dtype bfloat16 or float32")


def _find_stops(
    folder: Path, config: ModelConfig, family: Family, made: Processor | None
) -> tuple[int, ...]:
    """Find the ids that end an answer: those of the checkpoint, else of the processor."""
    stops = read_stop_ids(folder, end_token=family.end_token) or (made.stop_ids if made else ())
    # An answer would never end at one that cannot be generated.
    check_ids(np.array(stops, np.int64), config.decoder.vocab_size, f"{folder}, end tokens")
    return stops


def _with_pixels(config: ModelConfig, images: PictureRule) -> ModelConfig:
    """Note how the processor scales pixels, for methods that undo it."""
    # as if nothing were normalised
    mean, std = (0.0,) * config.vision.in_channels, (1.0,) * config.vision.in_channels
    if images.do_normalize:
        mean, std = tuple(images.image_mean), tuple(images.image_std)
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, pixel_mean=mean, pixel_std=std)
    )


def _choose_dtype(dtype: str | None, mesh: Mesh | None) -> np.dtype:
    platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
    if dtype is None:
        # XLA's CPU back end multiplies bfloat16 matrices by vectors about 25 times slower.
        dtype = "float32" if platform == "cpu" else "bfloat16"
        _log.info("loading in %s, the default on %s", dtype, platform)
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    check_dtype(name, platform)
    return DTYPES[name]
