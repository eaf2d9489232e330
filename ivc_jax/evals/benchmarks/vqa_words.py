"""How the VQA scripts rewrite an answer before it is compared: punctuation, numbers, articles."""

from ivc_jax.evals.benchmarks.parsers import without_punctuation

_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
# Words that are also recognised with one of their apostrophes missing. The list of the scripts, as
# far as it matters after lower-casing: "i'm" and "she's" are not in it.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


# the scripts take an apostrophe out of "somebody'd" instead of putting one in
_REWRITTEN = {"somebody'd": "somebodyd"} | {
    variant: word for word in _CONTRACTIONS.split() for variant in _without_one_apostrophe(word)
}


def normalized(text: str) -> str:
    """Return an answer in the form in which VQA answers are compared, on one line.

    Punctuation goes by `parsers.without_punctuation`, number words up to ten become digits,
    articles go, and contractions get the apostrophe that they lack.
    """
    line = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in without_punctuation(line).lower().split()]
    return " ".join(_REWRITTEN.get(word, word) for word in words if word not in _ARTICLES)
