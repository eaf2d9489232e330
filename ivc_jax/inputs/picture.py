"""Opening pictures of any kind as RGB, with errors that name them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ivc_jax.inputs.batch import InputError

Picture = Image.Image | np.ndarray | str | Path | bytes


def load_picture(source: Picture, name: str = "image", convert: bool = True) -> Image.Image:
    """Open a picture and bring it to RGB.

    A file is turned upright by its EXIF orientation, as transformers does; a picture that was
    opened elsewhere is left as it lies, as there. Transparency is laid over white, the current
    frame of an animation is taken. Grey values of 16 bits are scaled to 8 (Hugging Face clips them
    at 255, which leaves a white page).

    Args:
        source: PIL image, path, bytes of a file, or uint8 array [height, width] or [height, width,
            1, 3 or 4].
        name: what errors call it.
        convert: without it, a picture that is not RGB is an error.

    Raises:
        InputError: missing, empty, truncated, too large to decode safely, or no image at all.
    """
    called = "it" if isinstance(source, bytes) else source
    try:
        if isinstance(source, str | Path | bytes):
            if _is_empty(source):
                raise InputError(f"{name}: {called} is an empty file; save it again")
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            # reads the header; `_load` decodes before the file closes
            with Image.open(file) as picture:
                ImageOps.exif_transpose(picture, in_place=True)
                return _load(picture, name, convert)
        return _load(_from_memory(source, name), name, convert)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: there is no file {source}; correct the path") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: {called} is not an image; use PNG, JPEG or another") from None
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name} is too large to decode safely; shrink it or raise PIL.Image.MAX_IMAGE_PIXELS"
            f" ({error})"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        # PIL reports damage in any of these, and unknown modes as ValueError.
        raise InputError(f"{name} cannot be read ({error}); save it again") from None


def _is_empty(source: str | Path | bytes) -> bool:
    if isinstance(source, bytes):
        return not source
    return Path(source).is_file() and not Path(source).stat().st_size


def _load(picture: Image.Image, name: str, convert: bool) -> Image.Image:
    if 0 in picture.size:
        raise InputError(f"{name} is empty ({picture.width} x {picture.height}); leave it out")
    picture.load()  # here, so that damage is found under the picture's name
    if picture.mode != "RGB" and not convert:
        raise InputError(f"{name} has mode {picture.mode}; set do_convert_rgb or convert it")
    return _to_rgb(picture)


def _from_memory(source: Picture, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        # [h, w] or [h, w, 1]
        grey = source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 1)
        colour = source.ndim == 3 and source.shape[2] in (3, 4)
        if source.dtype != np.uint8 or not (grey or colour):
            raise InputError(
                f"{name} is an array {source.dtype} {list(source.shape)}; pass uint8"
                " [height, width, 3]"
            )
        if 0 in source.shape:
            raise InputError(f"{name} is empty {list(source.shape)}; leave it out")
        return Image.fromarray(source.reshape(source.shape[:2]) if grey else source)
    raise InputError(
        f"{name} is a {type(source).__name__}, not an image; pass a PIL image, a path or an array"
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and picture.info.get("transparency") is None:
        return picture
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)  # [h, w]
        # Mode I holds 32 bits: read it as 8-bit grey unless a value does not fit.
        if picture.mode != "I" or values.max() > 255:
            values = (values + 128) // 257  # 257 = 65535 / 255, rounded
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        # convert("RGB") alone would show what hides behind transparent pixels
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
