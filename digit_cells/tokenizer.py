"""The byte-level BPE tokenizer of a grid: every word of the corpus is one token.

A coordinate is a word with its bracket, so that it tells which of the four it is:
`(438` `,500)` `,(500` `,563)`.
"""

from tokenizers import Regex, Tokenizer, pre_tokenizers

from digit_cells.questions import list_texts
from digit_scenes.tokenizer import train

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
    return train(list_texts(grid), pre_tokenizers.Sequence([cut, as_bytes]))
