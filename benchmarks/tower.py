"""Is the vision tower as fast as torch's: one large picture, and many small ones?

    python benchmarks/tower.py [--dtype bfloat16] [--depth 32]

Towers of Qwen2-VL (full attention) and Qwen2.5-VL (windows, the last block full) of four blocks of
the released width see one picture of 64 x 64 patches. The tower of the bundled model sees 16
pictures of 32 x 32 patches, as its benchmark has them; what its usual buckets pad is in the time.
Both sides have their patches on the device as they want them. Visual tokens must agree first.
Expected on two CPU cores: two minutes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import shapes
import torch_side
from record import Row, make_parser, read_options, write_record
from timing import alternate, measure_machine, measure_share

import ivc_jax
from ivc_jax.config import ModelConfig, VisionConfig
from ivc_jax.families import list_sizes
from ivc_jax.inputs.bucket import collate
from ivc_jax.model import find_bundled

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of visual tokens whose spread is about 1
_PRESETS = {"full attention": "qwen2-vl-2b", "windows": "qwen2.5-vl-3b"}
_SMALL = (16, 32)  # pictures, patches a side


def measure(
    options: argparse.Namespace, name: str, folder: Path, pictures: int, side: int, peak: float
) -> Iterator[Row]:
    """Time the tower of a checkpoint on equal pictures of side x side patches."""
    model = ivc_jax.load(folder, dtype=options.dtype, processor=False)[0]
    config, count = model.config, side**2 // model.config.vision.merge_area
    batch, patches, grids = draw_pictures(config, pictures, side)

    inputs = jax.device_put(collate(batch, config))

    def ours() -> Any:
        return jax.block_until_ready(ivc_jax.encode(model, inputs).visual)

    runs, found = {"ours": ours}, ours()
    if not options.alone:
        other = torch_side.TorchModel(folder, options.dtype)
        arguments = other.to_tensor(patches), other.to_tensor(grids)
        runs["torch"] = lambda: other.encode(*arguments)
        check(found[:, :count], runs["torch"](), _TOLERANCE[options.dtype])
    seconds = alternate(runs, options.repeats, name)
    flops = pictures * count_flops(config.vision, side**2)
    yield Row(
        f"{name}, {pictures} x {side**2} patches", "s", seconds["ours"], seconds.get("torch", []),
        "matrix products", measure_share(flops, seconds["ours"], peak),
        {"pictures": pictures, "patches": side**2, "blocks": config.vision.depth, "flops": flops},
    )  # fmt: skip


def draw_pictures(
    config: ModelConfig, pictures: int, side: int
) -> tuple[ivc_jax.Batch, np.ndarray, np.ndarray]:
    """Draw prompts of one picture each, of side x side patches.

    Returns:
        The batch, its patches [pictures * side², values] and its grids [pictures, 3].
    """
    vision, draw = config.vision, np.random.default_rng(0)
    patches = draw.standard_normal((pictures * side**2, vision.patch_values), np.float32)
    grids = np.array([[1, side, side]] * pictures)
    image = [config.image_token_id] * (side**2 // vision.merge_area)
    prompt = [config.vision_start_id, *image, config.vision_end_id]
    batch = ivc_jax.Batch.from_hf(
        input_ids=np.array([prompt] * pictures), pixel_values=patches, image_grid_thw=grids
    )
    return batch, patches, grids


def count_flops(config: VisionConfig, patches: int) -> float:
    """Return the operations of the blocks on one picture; attention within windows where it is."""
    matrices = 4 * config.embed_dim**2
    matrices += (3 if config.gated_mlp else 2) * config.embed_dim * config.mlp_dim
    seen = [patches] * config.depth  # keys that a patch attends to, a block
    if config.window_size is not None:
        window = (config.window_size // config.patch_size) ** 2
        full = config.full_attention_blocks
        seen = [patches if i in full else min(window, patches) for i in range(config.depth)]
    return 2.0 * patches * sum(matrices + 2 * keys * config.embed_dim for keys in seen)


def check(ours: Any, theirs: Any, tolerance: float) -> None:
    """Refuse to time two sides that do not compute the same."""
    found = np.asarray(ours, np.float32).reshape(theirs.shape)
    difference = np.abs(found - theirs.float().cpu().numpy()).max()
    if difference > tolerance:
        raise SystemExit(f"visual tokens differ by {difference:.3g}, more than {tolerance}")


def choose_sizes(preset: str, depth: int, quick: bool) -> dict[str, Any]:
    """Return the `config.json` of a released tower of so many blocks under a toy decoder."""
    sizes = dict(list_sizes()[preset])
    kind = "Qwen2VL" if sizes["model_type"] == "qwen2_vl" else "Qwen2_5_VL"
    tower = {**sizes["vision_config"], "depth": depth}
    width = tower.get("out_hidden_size", tower["hidden_size"])
    if quick:
        tower |= {"num_heads": 2, "patch_size": 4}
        tower |= {"embed_dim": 32} if "embed_dim" in tower else {"hidden_size": 32}
        tower |= {"intermediate_size": 48} if "intermediate_size" in tower else {}
        tower |= {"window_size": 16} if "window_size" in tower else {}
    if "fullatt_block_indexes" in tower:
        tower["fullatt_block_indexes"] = [depth - 1]
    sizes |= {"architectures": [f"{kind}ForConditionalGeneration"], "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 64, "vision_config": tower, "hidden_size": width}
    return {**sizes, **shapes.SMALL_VOCABULARY}


def main() -> None:
    """Run and write the record."""
    parser = make_parser(__doc__)
    parser.add_argument("--depth", type=int, default=4, help="blocks of the large towers")
    options = read_options(parser)
    machine = measure_machine(options.dtype, not options.alone, options.quick)
    rows, peak = [], machine["matrix_flops"]
    for name, preset in _PRESETS.items():
        sizes = choose_sizes(preset, options.depth, options.quick)
        with shapes.keep_checkpoint(options.scratch, sizes, options.dtype) as folder:
            rows += measure(options, name, folder, 1, 8 if options.quick else 64, peak)
    pictures, side = _SMALL
    pictures = 2 if options.quick else pictures
    rows += measure(options, "bundled model", find_bundled(), pictures, side, peak)
    write_record(options, rows, machine=machine)


if __name__ == "__main__":
    main()
