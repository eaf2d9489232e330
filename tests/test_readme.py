"""The examples of methods in README and docs run as printed; their tables name every method."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.prompts import hf_arrays

import ivc_jax
from ivc_jax.engine.observe import observe
from ivc_jax.families import list_families
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import METHODS, MODIFIERS
from ivc_jax.methods.requests import AttentionRows

ROOT = Path(__file__).parent.parent
README, DOCS = ((ROOT / name).read_text() for name in ("README.md", "docs/methods.md"))


@pytest.fixture
def run_example():
    """Give a function that runs the example of a method in a text."""

    def run(text):
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        (code,) = [block for block in blocks if "class" in block]
        exec(compile(code, "example", "exec"), {"__name__": "example"})

    before = dict(METHODS)
    yield run
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="module")
def model(tiny_hf):
    return ivc_jax.load(tiny_hf(), dtype="float32")[0]


BATCH = ivc_jax.Batch.from_hf(**hf_arrays([(3, ("image", (1, 6, 8)), 5)]))  # 4 + 12 visual + 6


def top(scores, count):
    """Prompt positions kept: all text, and the visual tokens of the largest scores."""
    chosen = 4 + np.sort(np.argsort(-np.asarray(scores), kind="stable")[:count])
    return [*range(4), *chosen, *range(16, 22)]


def test_the_first_ten_lines_print_what_they_say(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    first = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in first.splitlines() if line]) <= 10
    exec(compile(first, "example", "exec"), {})
    answer, kept, size = capsys.readouterr().out.splitlines()
    assert f"# {answer}" in first
    assert kept == "262 134"
    dense, pruned = map(int, size.split())
    assert pruned < 0.6 * dense


def test_method_example_keeps_the_longest_values(run_example, model):
    run_example(README)
    method = ivc_jax.methods.parse("long_values:keep_ratio=0.25")
    kept = ivc_jax.prefill(model, BATCH, method).kept[0]
    values = ivc_jax.prefill(model, BATCH).cache[0].values[1, 0, 4:16]  # block 1, the image's slots
    np.testing.assert_array_equal(kept, top(np.linalg.norm(values, axis=(1, 2)), 3))


def test_docs_example_keeps_what_heads_disagree_about(run_example, model):
    run_example(DOCS)
    inputs = collate(BATCH, model.config)
    (rows,) = observe(model, inputs, 2, AttentionRows(1))
    method = ivc_jax.methods.parse("disputed:budget=0.75")  # 2 layers whole, 0.25 in the third
    prompt = ivc_jax.prefill(model, inputs, method)
    np.testing.assert_array_equal(prompt.kept[0], top(np.std(rows[0, :, 0, :12], axis=0), 3))
    np.testing.assert_allclose(prompt.cached_share, 0.75)


@pytest.mark.parametrize("text", [README, DOCS], ids=["README", "docs"])
def test_the_table_names_every_method(text):
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    for name in (*METHODS, *(f"+{name}" for name in MODIFIERS)):
        assert f"{name}`" in rows or name == "dense"


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert len(links) > 50
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_table_of_models_names_every_kind_of_checkpoint():
    section = README.split("## Models")[1].split("## Methods")[0]
    names = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
    names |= {"llava": "LLaVA-1.5", "deepseek_vl_v2": "DeepSeek-VL2"}
    names |= {kind: f"`{kind}`" for kind in ("internvl_chat", "internvl")}
    assert [kind for kind in list_families() if names[kind] not in section] == []
