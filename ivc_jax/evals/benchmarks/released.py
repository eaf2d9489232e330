"""What the released evaluation does to pictures and cells before the model sees them.

`--protocol released` does the same: VLMEvalKit as vendored by the authors of IVC-Prune
(arXiv 2602.03060), in the settings that they ran each model with.
"""

import dataclasses
import io
import string
from collections.abc import Mapping

from PIL import Image

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.resize import SmartResize

_CELL = 28 * 28  # pixels of a visual token of the published Qwen models

# What Qwen2.5-VL sees of a picture; files of RefCOCO in its frame are made for these bounds.
QWEN2_5_PICTURES = SmartResize(min_pixels=4 * _CELL, max_pixels=16384 * _CELL)

# What pandas, which reads the files there, takes for a missing value; blanks are not cut off.
_MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
_MAY_BE_MISSING = (*string.ascii_uppercase, "hint")
_WITHOUT_ALPHA = ("RGBA", "LA", "P")
_3B = 36, 2048  # blocks and width of the decoder of Qwen2.5-VL-3B


# Most tiles that InternVL cuts a picture of some tasks into; of all others it is 6.
_TILES = {
    **{"ChartQA_TEST": 12, "OCRVQA_TESTCORE": 12},
    **{"DocVQA_VAL": 18, "InfoVQA_VAL": 24, "OCRBench": 24},
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Least and largest area of a resized picture, in pixels, or the most tiles of one."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None


def find_bounds(config: ModelConfig, group: str, task: str = "") -> Bounds | None:
    """Return the bounds on pictures that a model was run with on a task of a group.

    None leaves those of the checkpoint: the other families have no such bounds.
    """
    if config.family == "internvl":
        return Bounds(max_tiles=_TILES.get(task, 6))
    if config.family == "qwen2_vl":
        return Bounds(1280 * _CELL, 16384 * _CELL)
    if config.family != "qwen2_5_vl":
        return None
    small = (config.decoder.num_layers, config.decoder.hidden_size) == _3B
    # 6384 looks like a typing error, and is what the 3B model was run with
    return Bounds(4 * _CELL, (6384 if small and group != "grounding" else 16384) * _CELL)


def drop_missing(cells: Mapping[str, str]) -> dict[str, str]:
    """Empty the options and hints that pandas takes for missing values, "None" and "N/A" too."""
    return {
        name: "" if name in _MAY_BE_MISSING and text in _MISSING else text
        for name, text in cells.items()
    }


def save_as_jpeg(picture: Image.Image) -> Image.Image:
    """Return what is left of a picture in a JPEG file of quality 75.

    Alpha is dropped, without white behind it, so that the colours of invisible pixels show.

    Raises:
        ValueError: a mode that JPEG does not have.
    """
    if picture.mode in _WITHOUT_ALPHA:
        picture = picture.convert("RGB")
    file = io.BytesIO()
    try:
        picture.save(file, "JPEG")
    except OSError as error:
        raise ValueError(f"the released evaluation cannot save it as JPEG ({error})") from None
    saved = Image.open(file)
    saved.load()
    return saved
