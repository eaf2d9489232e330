"""What models are asked: one function from the cells of a row to the text of a prompt.

Wordings are those of the released evaluations and must not change by a byte; `DETECT`, `LOCATE` and
so on are the tables by model family that `tasks.py` refers to. Pictures come first in all of them;
a released prompt may say so with the mark `PICTURE`.
"""

import re
from collections.abc import Callable, Mapping

from ivc_jax.evals.benchmarks.cells import read_text
from ivc_jax.evals.benchmarks.scorers.base import Cells
from ivc_jax.evals.benchmarks.scorers.choice import read_options

Prompt = Callable[[Cells], str]
ByFamily = Mapping[str, Prompt]

PICTURE = "<image>"
# What the released evaluation tells a model before it asks, beside what chat templates say.
SYSTEM: Mapping[str, str] = {
    "llava": (
        "A chat between a curious human and an artificial intelligence assistant. The assistant"
        " gives helpful, detailed, and polite answers to the human's questions."
    )
}

_CHINESE = re.compile("[\u4e00-\u9fff]")  # the unified ideographs
_CHINESE_LETTER = "请直接回答选项字母。"
_LETTER = "Answer with the option's letter from the given choices directly."
_SELECT = "Please select the correct answer from the options above."
_SHORT = "Answer the question using a single word or phrase."


def ask(cells: Cells) -> str:
    """Ask the question as it is."""
    return cells["question"]


def _append(ending: str) -> Prompt:
    """Ask the question with something behind it."""
    return lambda cells: cells["question"] + ending


def ask_qwen2_box(cells: Cells) -> str:
    """Ask Qwen2-VL for a box; a period at the end of the expression goes.

    The released template drops the last character, taking it for a period; captions without one
    keep theirs here.
    """
    return _detect(cells["question"].removesuffix("."))


def ask_qwen2_box_as_released(cells: Cells) -> str:
    """Ask Qwen2-VL for a box; the last character goes, whatever it is."""
    return _detect(cells["question"][:-1])


def _detect(expression: str) -> str:
    return f"\n<|object_ref_start|>Detect {expression.lower()}<|object_ref_end|>"


def _ask_qwen2_5_box(cells: Cells) -> str:
    return f"\nLocate {cells['question']} and output the bbox coordinates in JSON format."


def _ask_internvl_box(cells: Cells) -> str:
    request = "Please provide the bounding box coordinate of the region this sentence describes:"
    return f"{request} <ref>{cells['question']}</ref>"


def _ask_deepseek_box(cells: Cells) -> str:
    return f"{PICTURE}\nLocate <|ref|>{cells['question']}<|/ref|> in the given image."


def _ask_qwen_choice(cells: Cells) -> str:
    text = _label_parts(cells)
    return text + (_CHINESE_LETTER if _CHINESE.search(text) else _SELECT)


def _ask_deepseek_choice(cells: Cells) -> str:
    # the blank and the newline are in the released prompt; templates may strip them
    return f"{_label_parts(cells)}{_SELECT} \n"


def _label_parts(cells: Cells) -> str:
    hint = [f"Hint: {text}"] if (text := read_text(cells, "hint")) else []
    parts = [*hint, f"Question: {cells['question']}", "Options:", *_list_options(cells)]
    return "".join(f"{part}\n" for part in parts)


def _ask_bare_choice(cells: Cells) -> str:
    hint = [text] if (text := read_text(cells, "hint")) else []
    text = "\n".join([*hint, cells["question"], *_list_options(cells)])
    return f"{text}\n{_CHINESE_LETTER if _CHINESE.search(text) else _LETTER}"


def _list_options(cells: Cells) -> list[str]:
    return [f"{letter}. {text}" for letter, text in read_options(cells).items()]


def _assign(qwen: Prompt, internvl: Prompt, deepseek: Prompt, llava: Prompt) -> dict[str, Prompt]:
    """Name the prompt of each model family; the Qwen families share theirs."""
    return {
        "qwen2_vl": qwen,
        "qwen2_5_vl": qwen,
        "qwen3_vl": qwen,
        "internvl": internvl,
        "deepseek_vl": deepseek,
        "llava": llava,
    }


_ask_for_one_word = _append(f"\n{_SHORT}")
_ask_for_few_words = _append(
    "\nPlease try to answer the question with short words or phrases if possible."
)
_ask_yes_or_no = _append(" Please answer yes or no.")

AS_IT_IS: ByFamily = {"": ask}
GROUNDING: ByFamily = {
    "qwen2_vl": ask_qwen2_box,
    "qwen2_5_vl": _ask_qwen2_5_box,
    "qwen3_vl": _ask_qwen2_5_box,
    "internvl": _ask_internvl_box,
    "deepseek_vl": _ask_deepseek_box,
}
CHOICE: ByFamily = _assign(
    _ask_qwen_choice, _ask_bare_choice, _ask_deepseek_choice, _ask_bare_choice
)
MME: ByFamily = _assign(ask, _append(f" {_SHORT}"), ask, ask)
POPE: ByFamily = _assign(_ask_yes_or_no, ask, ask, ask)
HALLUSION: ByFamily = _assign(
    _ask_yes_or_no, _append(f" Please answer yes or no. {_SHORT}"), ask, ask
)
OPEN_ENDED: ByFamily = _assign(
    _ask_for_few_words, _ask_for_one_word, _ask_for_one_word, _ask_for_one_word
)
OCR: ByFamily = _assign(_ask_for_few_words, _ask_for_one_word, ask, ask)
