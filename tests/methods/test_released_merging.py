"""Methods that merge or choose before the decoder, walked by hand on transformers' tiny LLaVA.

What they take of the tower, the class token, the projector and the renumbered prompt are those of
the reference; which tokens stay and what they become follows the released steps.
"""

import numpy as np
import pytest
from families.llava import ID, TOKENS, hf_arrays

import ivc_jax

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from helpers import parity

STEPS, SIDE = 8, 6
BEFORE, BEHIND = 5, 9


@pytest.fixture(scope="module")
def shown(tiny_hf, load_torch):
    """Our model, the reference, a prompt with a picture, and what its tower tells."""
    path = tiny_hf(family="llava", num_hidden_layers=4)
    model, reference = ivc_jax.load(path, dtype="float32")[0], load_torch(path)
    arrays = hf_arrays([(BEFORE, "image", BEHIND)], seed=3)
    tower = reference.model.vision_tower
    blocks = [part for name, part in tower.named_modules() if name.split(".")[-2:-1] == ["layers"]]
    with torch.no_grad():
        out = tower(
            torch.from_numpy(arrays["pixel_values"]),
            output_attentions=True,
            output_hidden_states=True,
        )
        seen = blocks[-2].layer_norm1(out.hidden_states[-3])
        attention = blocks[-2].self_attn
        keys, queries = attention.k_proj(seen)[0].numpy(), attention.q_proj(seen)[0].numpy()
    rows = [each[0, :, 0, 1:].mean(axis=0).numpy() for each in out.attentions]  # class token's
    features = out.hidden_states[-2][0].numpy()  # [1 + P, E]
    return model, reference, arrays, {
        "early": rows[0], "late": rows[-2], "keys": keys, "query": queries[0], "features": features
    }  # fmt: skip


def answer(reference, arrays, visual):
    """Return logits and greedy tokens of the prompt with these visual tokens [K, D]."""
    ids = torch.from_numpy(arrays["input_ids"])
    words = reference.get_input_embeddings()(ids)[0]
    start = int((ids[0] == ID["<image>"]).nonzero()[0])
    embedded = torch.cat([words[:start], visual, words[start + TOKENS :]])[None]
    seen = torch.ones(embedded.shape[:2], dtype=torch.long)
    with torch.no_grad():
        logits = reference(inputs_embeds=embedded, attention_mask=seen).logits[:, -1]
        tokens = reference.generate(
            inputs_embeds=embedded,
            attention_mask=seen,
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=None,
        )
    return logits.numpy(), tokens.numpy()


def check(shown, spec, rows, project=True):
    """Compare with tokens {slot: feature}, which may have to be projected."""
    model, reference, arrays, _ = shown
    slots = sorted(rows)
    visual = torch.from_numpy(np.stack([rows[slot] for slot in slots]).astype(np.float32))
    with torch.no_grad():
        visual = reference.model.multi_modal_projector(visual) if project else visual
    prompt = parity.check_answers(model, arrays, *answer(reference, arrays, visual), spec)
    start = int(np.flatnonzero(arrays["input_ids"][0] == ID["<image>"])[0])
    kept = prompt.kept[0]
    inside = (kept >= start) & (kept < start + TOKENS)
    assert (kept[inside] - start).tolist() == slots


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_visionzip(shown):
    told = shown[3]
    x, keys = told["features"][1:], told["keys"][1:]
    keys = unit(keys.reshape(len(keys), 2, -1).mean(axis=1))
    # 18 tokens, three of them contextual: 14 patches and the class token are dominant
    dominant = sorted(np.argsort(-told["late"])[:14].tolist())
    rest = [token for token in range(TOKENS) if token not in dominant]
    targets = rest[:: len(rest) // 3][:3]
    goes = {
        token: int(np.argmax(keys[targets] @ keys[token])) for token in rest if token not in targets
    }
    rows = {token: x[token] for token in dominant}
    for number, target in enumerate(targets):
        group = [token for token, goal in goes.items() if goal == number]
        rows[target] = x[target] + (x[group].mean(axis=0) if group else 0)
    rows[min(goes)] = told["features"][0]
    assert len(rows) == 18
    check(shown, "visionzip:keep_ratio=0.5,contextual=0.1", rows)


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge(shown, plus):
    told = shown[3]
    x, keys = told["features"][1:], unit(told["keys"][1:])
    logits = told["keys"] @ told["query"] / np.sqrt(len(told["query"]))
    raised = np.exp(logits - logits.max())
    given = (raised / raised.sum())[1:]
    # nine tokens: eight selected, and the extra one
    strided = [int((j + 0.5) * TOKENS / 4) for j in range(4)] if plus else []
    best = [token for token in np.argsort(-given).tolist() if token not in strided]
    selected = [*best[: 8 - len(strided)], *strided]
    rest = [token for token in range(TOKENS) if token not in selected]
    rows = {}
    for token in selected:
        others = [other for other in range(TOKENS) if other != token]
        near = np.array(others)[np.argsort(-(keys[others] @ keys[token]))[:5]]
        rows[token] = x[token] + given[near] @ x[near]
    rows[max(rest, key=lambda token: given[token])] = given[rest] @ x[rest]
    check(shown, f"prumerge:keep_ratio=0.25,neighbours=5,plus={str(plus).lower()}", rows)


def test_vscan(shown):
    """The first cut; the second drops nothing."""
    _, reference, arrays, told = shown
    with torch.no_grad():
        pixels = torch.from_numpy(arrays["pixel_values"])
        hidden = reference.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        x = reference.model.multi_modal_projector(hidden[-2][:, 1:])[0].numpy()
    # 18 tokens: two of each of four windows of 3 x 3, ten others
    places = np.arange(TOKENS).reshape(SIDE, SIDE)
    local = []
    for row in (0, 3):
        for column in (0, 3):
            window = places[row : row + 3, column : column + 3].ravel()
            local += window[np.argsort(-told["early"][window])[:2]].tolist()
    others = np.where(np.isin(np.arange(TOKENS), local), 0, told["late"])
    kept = sorted([*local, *np.argsort(-others)[:9].tolist()])
    groups = {token: [token] for token in kept}
    for token in set(range(TOKENS)) - set(kept):
        groups[kept[int(np.argmax(unit(x)[kept] @ unit(x)[token]))]].append(token)
    rows = {token: x[group].mean(axis=0) for token, group in groups.items()}
    check(shown, "vscan:ratios=0.5/0.5,rule=equal,window=3", rows, project=False)


@pytest.mark.parametrize(
    ("spec", "keep"), [("fastervlm:keep_ratio=0.2", 7), ("hired:keep_ratio=0.4", 14)]
)
def test_fastervlm_and_hired(shown, spec, keep):
    """The class token's choice: 7.2 and 14.4 of 36."""
    told = shown[3]
    x = told["features"][1:]
    check(shown, spec, {token: x[token] for token in np.argsort(-told["late"])[:keep].tolist()})


def test_vispruner(shown):
    told = shown[3]
    x = told["features"][1:]
    order = np.argsort(-told["late"]).tolist()
    # 16 tokens, two of them important, so that the list of 34 is even
    kept, rest = order[:2], order[2:]
    while len(rest) > 14:
        even, odd = rest[::2], rest[1::2]
        nearest = (unit(x)[even] @ unit(x)[odd].T).max(axis=1)
        by_nearest = np.argsort(-nearest, kind="stable")[min(8, len(rest) - 14) :]
        rest = [even[place] for place in by_nearest] + odd
    check(
        shown,
        f"vispruner:keep_ratio={16.5 / TOKENS},important_ratio=0.15",
        {token: x[token] for token in [*kept, *rest]},
    )
