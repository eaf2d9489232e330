"""The byte-level BPE tokenizer of a grid: every word of the corpus is one token.

A coordinate is a word with its bracket, so that it tells which of the four it is:
`(438` `,500)` `,(500` `,563)`.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from digit_scenes.questions import list_texts

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# An answer follows the last word of its question, which is the one that asks: behind a mark that is
# always the same, the model would have to learn to carry that word to the mark first.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'].rstrip('.?') }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'].rstrip('.?') }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}"
)

_WORDS = r"[ ,]?\(\d+|,\d+\)| ?[A-Za-z]+| ?\d+|[^\sA-Za-z\d]|\s"


def build(grid: int) -> Tokenizer:
    """Train the tokenizer; the corpus of a grid is fixed, so the result is too."""
    cut = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: merging ends when every word is one token
        min_frequency=1,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list_texts(grid), trainer)
    return tokenizer


def find_special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens by name."""
    return {name: tokenizer.token_to_id(name) for name in SPECIAL}


def save(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL[1:]),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _write(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
