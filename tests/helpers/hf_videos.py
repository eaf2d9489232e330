"""Transformers' processors with their video halves, asked about video files.

    python -m helpers.hf_videos REQUESTS.json OUT_FOLDER

The video halves want torchvision, and its stand-in here would be known to all that is imported
later: so it is a program of its own. Files are decoded by transformers' PyAV reader.
"""

import enum
import importlib.machinery
import json
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# module of transformers.models, class of the processor, class of its video half, of its image half
_CLASSES = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLProcessor", "qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLProcessor", "qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLProcessor", "qwen3_vl", "Qwen3VLVideoProcessor"),
    "internvl": ("internvl", "InternVLProcessor", "internvl", "InternVLVideoProcessor"),
}


def ask_processors(
    requests: Sequence[Mapping[str, Any]], folder: Path
) -> list[dict[str, np.ndarray]]:
    """Return what transformers' processors make of each request.

    Args:
        requests: `family`, `path` of the checkpoint, `messages` without videos, `videos` (paths),
            `options` of the video processor, `more` for the whole.
        folder: to work in.
    """
    (folder / "requests.json").write_text(json.dumps(requests))
    program = [sys.executable, "-m", "helpers.hf_videos", folder / "requests.json", folder]
    subprocess.run(program, check=True, cwd=Path(__file__).parents[1])
    return [dict(np.load(folder / f"{number}.npz")) for number in range(len(requests))]


def _stand_in() -> None:
    """Give transformers the parts of torchvision that video processors use, with torch's resize."""
    import torch

    class InterpolationMode(enum.Enum):
        NEAREST, NEAREST_EXACT, BILINEAR = "nearest", "nearest-exact", "bilinear"
        BICUBIC, BOX, HAMMING, LANCZOS = "bicubic", "box", "hamming", "lanczos"

    def resize(video: Any, size: Any, interpolation: Any, antialias: bool) -> Any:
        shape = video.shape[:-2]
        flat = video.reshape(-1, *video.shape[-3:])
        found = torch.nn.functional.interpolate(
            flat, size=list(size), mode=interpolation.value, antialias=antialias
        )
        return found.reshape(*shape, *found.shape[-2:])

    def normalize(video: Any, mean: Any, std: Any, inplace: bool = False) -> Any:
        mean, std = (torch.as_tensor(each).view(-1, 1, 1) for each in (mean, std))
        return (video - mean) / std

    functions = {
        **{"InterpolationMode": InterpolationMode, "resize": resize, "normalize": normalize},
        **{"grayscale_to_rgb": lambda video: video, "pil_to_tensor": None},
    }
    names = ("", ".io", ".transforms", ".transforms.functional", ".transforms.v2")
    for name in (*names, ".transforms.v2.functional"):
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        module.__path__, module.__version__ = [], "0.26.0"
        vars(module).update(functions)
        sys.modules[module.__name__] = module
        if name:
            parent, _, own = module.__name__.rpartition(".")
            setattr(sys.modules[parent], own, module)


def _load(family: str, path: str, more: Mapping[str, Any]) -> Any:
    import transformers
    from transformers import video_processing_utils
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.video_utils import load_video

    def fetch(self: Any, videos: Any, sample_indices_fn: Any = None) -> Any:
        found = [load_video(v, backend="pyav", sample_indices_fn=sample_indices_fn) for v in videos]
        return tuple(map(list, zip(*found, strict=True)))

    video_processing_utils.BaseVideoProcessor.fetch_videos = fetch
    home, name, video_home, video_name = _CLASSES[family]
    models = "transformers.models"
    kind = getattr(importlib.import_module(f"{models}.{home}.processing_{home}"), name)
    video_module = importlib.import_module(f"{models}.{video_home}.video_processing_{video_home}")

    class Processor(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            return None

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    halves = GotOcr2ImageProcessorPil if family == "internvl" else Qwen2VLImageProcessorPil
    return Processor(
        image_processor=halves.from_pretrained(path),
        tokenizer=tokenizer,
        video_processor=getattr(video_module, video_name).from_pretrained(path),
        chat_template=tokenizer.chat_template,
        **more,
    )


def _answer(request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    processor = _load(request["family"], request["path"], request["more"])
    seen: list[Any] = []
    choose = processor.video_processor.sample_frames

    def spy(metadata: Any, **options: Any) -> Any:
        index = choose(metadata, **options)
        seen.append(index)
        return index

    processor.video_processor.sample_frames = spy
    text = processor.apply_chat_template(request["messages"], add_generation_prompt=True)
    found = processor(
        text=[text],
        videos=request["videos"],
        return_tensors="pt",
        do_sample_frames=True,
        **request["options"],
    )
    arrays = {name: np.asarray(value) for name, value in found.items() if name != "video_metadata"}
    return arrays | {f"index_{n}": np.asarray(index, np.int64) for n, index in enumerate(seen)}


def main() -> None:
    """Answer the requests of a file."""
    requests, out = Path(sys.argv[1]), Path(sys.argv[2])
    if importlib.util.find_spec("torchvision") is None:
        _stand_in()
    for number, request in enumerate(json.loads(requests.read_text())):
        np.savez(out / f"{number}.npz", **_answer(request))


if __name__ == "__main__":
    main()
