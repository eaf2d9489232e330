"""What models are asked: one function from the cells of a row to the text of a prompt.

Wordings are those of the released evaluations and must not change by a byte; `DETECT`, `LOCATE` and
so on are the tables by model family that `tasks.py` refers to. A prompt without an `<image>` mark
has its images in front.
"""

import re
from collections.abc import Callable, Mapping

from ivc_jax.evals.benchmarks.choice import options
from ivc_jax.evals.benchmarks.scoring import Cells

Prompt = Callable[[Cells], str]
ByFamily = Mapping[str, Prompt]

_CHINESE = re.compile("[\u4e00-\u9fff]")
_CHINESE_LETTER = "请直接回答选项字母。"
_SHORT = "Answer the question using a single word or phrase."


def question(cells: Cells) -> str:
    """Return the question as it is."""
    return cells["question"]


def _then(ending: str) -> Prompt:
    """Append something to the question."""
    return lambda cells: cells["question"] + ending


def qwen2_detect(cells: Cells) -> str:
    """Ask Qwen2-VL for a box; a period at the end of the expression goes.

    The released template drops the last character, taking it for a period; captions without one
    keep theirs here.
    """
    return _detect(cells["question"].removesuffix("."))


def qwen2_detect_official(cells: Cells) -> str:
    """Ask Qwen2-VL for a box as released: the last character goes, whatever it is."""
    return _detect(cells["question"][:-1])


def _detect(expression: str) -> str:
    return f"\n<|object_ref_start|>Detect {expression.lower()}<|object_ref_end|>"


def _qwen2_5_locate(cells: Cells) -> str:
    return f"\nLocate {cells['question']} and output the bbox coordinates in JSON format."


def _internvl_box(cells: Cells) -> str:
    request = "Please provide the bounding box coordinate of the region this sentence describes:"
    return f"{request} <ref>{cells['question']}</ref>"


def _deepseek_locate(cells: Cells) -> str:
    return f"<image>\nLocate <|ref|>{cells['question']}<|/ref|> in the given image."


def _listed_options(cells: Cells) -> list[str]:
    return [f"{letter}. {text}" for letter, text in options(cells).items()]


def _hint(cells: Cells) -> str:
    return cells.get("hint", "").strip() and cells["hint"]


def _labelled_choice(cells: Cells) -> str:
    hint = f"Hint: {_hint(cells)}\n" if _hint(cells) else ""
    listed = "".join(f"{line}\n" for line in _listed_options(cells))
    return f"{hint}Question: {cells['question']}\nOptions:\n{listed}"


def _qwen_choice(cells: Cells) -> str:
    text = _labelled_choice(cells)
    if _CHINESE.search(text):
        return text + _CHINESE_LETTER
    return f"{text}Please select the correct answer from the options above."


def _deepseek_choice(cells: Cells) -> str:
    # the blank and the newline are in the released prompt; templates may strip them
    return f"{_labelled_choice(cells)}Please select the correct answer from the options above. \n"


def _bare_choice(cells: Cells) -> str:
    hint = f"{_hint(cells)}\n" if _hint(cells) else ""
    text = hint + "\n".join([cells["question"], *_listed_options(cells)])
    if _CHINESE.search(text):
        return f"{text}\n{_CHINESE_LETTER}"
    return f"{text}\nAnswer with the option's letter from the given choices directly."


def _families(qwen: Prompt, internvl: Prompt, deepseek: Prompt, llava: Prompt) -> dict[str, Prompt]:
    """Name the prompt of each model family; both Qwen families share theirs."""
    return {
        "qwen2_vl": qwen,
        "qwen2_5_vl": qwen,
        "internvl": internvl,
        "deepseek_vl": deepseek,
        "llava": llava,
    }


_single_word = _then(f"\n{_SHORT}")
_short_words = _then("\nPlease try to answer the question with short words or phrases if possible.")
_yes_or_no = _then(" Please answer yes or no.")

AS_IT_IS: ByFamily = {"": question}
GROUNDING: ByFamily = {
    "qwen2_vl": qwen2_detect,
    "qwen2_5_vl": _qwen2_5_locate,
    "internvl": _internvl_box,
    "deepseek_vl": _deepseek_locate,
}
CHOICE: ByFamily = _families(_qwen_choice, _bare_choice, _deepseek_choice, _bare_choice)
MME: ByFamily = _families(question, _then(f" {_SHORT}"), question, question)
POPE: ByFamily = _families(_yes_or_no, question, question, question)
HALLUSION: ByFamily = _families(
    _yes_or_no, _then(f" Please answer yes or no. {_SHORT}"), question, question
)
OPEN_ENDED: ByFamily = _families(_short_words, _single_word, _single_word, _single_word)
OCR: ByFamily = _families(_short_words, _single_word, question, question)
