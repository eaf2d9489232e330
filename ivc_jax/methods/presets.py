"""Schedules as published for LLaVA-1.5-7B, whose pictures have 576 tokens: "fastv@192".

    fastv@192              what the literature's row "192 tokens" is made with
    nuwa@64:tau=0.1        a field that is given wins
    scope@128+ivc          and the IVC tokens

The number is the budget: tokens of a picture, for methods that cut inside the decoder their mean
over layers (with FastV 192 is 166 tokens behind block 2 of 32). Elsewhere a preset keeps the same
shares.
"""

from collections.abc import Mapping

_TOKENS = 576

# Tokens kept by score at the three cuts: v1.x of Gumpest/SparseVLMs (`sparse_token_list_*`).
_SPARSEVLM = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
# What their papers name, beside the three budgets of all others.
_MORE = {"fastervlm": (288, 192, 144, 128, 64, 58, 29), "vispruner": (192, 128, 64, 32)}
# The words of LLaVA-1.5-7B, vocabulary of Llama-2 (EIT-NLP/EmbedLens, README.md and its scripts).
_EMBEDLENS = "embedlens:vit_sinks=1141,llm_sinks=26673,dead=30296"
# Candidates in a region (Man-PaperRejected/Nuwa, README.md), and what leaves 336 and 48 tokens,
# 224 and 32, 112 and 16: the first share is rounded up to a token, the second down.
_NUWA = {192: (3, "0.583333/0.083334"), 128: (2, "0.388888/0.055556"), 64: (1, "0.194444/0.027778")}
# The rest of its code for LLaVA. It averages blocks 15 to 23; the last of these runs for nothing
# but this there, and not here.
_NUWA_FIELDS = (
    "layers=0/16,distance=16.73320053068151,tau=0.55,diagonal=self_one,similarity=features,"
    "first_block=15,last_block=22,text_score=attention_llava"
)


def list_presets() -> Mapping[str, str]:
    """Return specifications by the name of the preset."""
    found = {}
    for tokens in (192, 128, 64):
        share = tokens / _TOKENS
        found |= {
            f"fastv@{tokens}": f"fastv:layer=2,budget={share}",
            f"pyramiddrop@{tokens}": f"pyramiddrop:budget={share}",
            # rank by attention, as the released code does
            f"holov@{tokens}": f"holov:keep_ratio={share},alpha=0.09,inner=attention",
            f"scope@{tokens}": f"scope:keep_ratio={share}",
            f"visiondrop@{tokens}": f"visiondrop:budget={share}",
            # 162 + 30, 108 + 20 and 54 + 10 tokens
            f"visionzip@{tokens}": f"visionzip:keep_ratio={share},contextual={0.16 * share}",
            f"cdpruner@{tokens}": f"cdpruner:keep_ratio={share}",
            # the released counts: 196, 132 and 68 tokens behind block 1
            f"dart@{tokens}": f"dart:keep_ratio={share},counts=code",
            f"divprune@{tokens}": f"divprune:keep_ratio={share}",
            f"prumerge@{tokens}": f"prumerge:keep_ratio={share}",
            f"hired@{tokens}": f"hired:keep_ratio={share}",
            # 288, 192 and 96 tokens, then a third of them
            f"vscan@{tokens}": f"vscan:budget={share},rule=equal,window=6",
            f"fitprune@{tokens}": f"fitprune:budget={share}",
            f"fsr@{tokens}": f"fsr:keep_ratio={share}",
            f"embedlens@{tokens}": f"{_EMBEDLENS},keep_ratio={share}",
            # the cuts of LLaVA-NeXT; rates between those of LLaVA-OneVision
            f"vflowopt@{tokens}": f"vflowopt:layers=0/10/20,budget={share}",
        }
    # the rows of its paper, which the outliers of pictures average
    found["prumerge@32"] = f"prumerge:keep_ratio={32 / _TOKENS}"
    found["prumerge@144"] = f"prumerge:keep_ratio={144 / _TOKENS},plus=true"
    # the rule of its paper, which drops about 40 %
    found["embedlens@576"] = f"{_EMBEDLENS},keep_ratio=1,strict=true"
    found["cdpruner@32"] = f"cdpruner:keep_ratio={32 / _TOKENS}"
    found["divprune@56"] = "divprune:keep_ratio=0.098"  # what its scripts give
    for name, budgets in _MORE.items():
        found |= {f"{name}@{n}": f"{name}:keep_ratio={n / _TOKENS}" for n in budgets}
    for tokens, counts in _SPARSEVLM.items():
        ratios = "/".join(repr(count / _TOKENS) for count in counts)
        found[f"sparsevlm@{tokens}"] = f"sparsevlm:ratios={ratios}"
    for tokens, (candidates, ratios) in _NUWA.items():
        found[f"nuwa@{tokens}"] = f"nuwa:ratios={ratios},per_region={candidates},{_NUWA_FIELDS}"
    return dict(sorted(found.items(), key=lambda item: item[0].partition("@")[0]))
