"""Stage two: the decoder, taught the answers of packed questions by plain cross entropy.

Nothing is taught about attention, and nothing but the rotary embedding tells it where a cell lies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from digit_scenes import optimiser
from digit_scenes.loop import Params, Stage
from digit_scenes.packed import compute_answer_logits
from digit_scenes.packing import Encoder, Plan, draw
from digit_scenes.questions import TASKS
from digit_scenes.scenes import Cells, arrange
from digit_scenes.setting import Lesson, Setting
from ivc_jax.config import DecoderConfig, ModelConfig
from ivc_jax.nn import decoder

# Questions of each task, in the order of `TASKS`, that are packed behind a picture.
QUESTIONS = (5, 6, 8, 4, 2, 2)
_TESTS = 12  # batches of held-out scenes


def lay_out(setting: Setting, side: int | None = None) -> Plan:
    """Lay out a packed sequence behind the top left `side` x `side` cells, or the whole picture."""
    pairs = zip(TASKS, QUESTIONS, strict=True)
    tasks = tuple(task for task, count in pairs for _ in range(count))
    line = setting.kind == "line"
    return Plan(tasks, side or setting.grid, line, whole=setting.grid)


def init_decoder(config: ModelConfig, key: jax.Array) -> Params:
    """Draw a decoder whose residual branches start silent and whose words have unit length."""
    params = decoder.init_params(config, key)["decoder"]

    def soften(block: Params) -> Params:
        silent = jax.tree.map(jnp.zeros_like, (block["o_proj"], block["mlp"]["down_proj"]))
        return {**block, "o_proj": silent[0], "mlp": {**block["mlp"], "down_proj": silent[1]}}

    table = params["embed_tokens"]["embedding"]
    table = table / jnp.linalg.norm(table, axis=1, keepdims=True)
    layers = tuple(map(soften, params["layers"]))
    return {**params, "embed_tokens": {"embedding": table}, "layers": layers}


def make_stage(
    setting: Setting,
    config: ModelConfig,
    tokenizer: Tokenizer,
    bank: tuple[Cells, np.ndarray],
    held_out: tuple[Cells, np.ndarray],
    lesson: Lesson,
    seed: int,
) -> Stage:
    """Describe a lesson; a bank is cells and their visual tokens [n, D]."""
    plan = lay_out(setting, lesson.side)
    encode = Encoder(tokenizer, plan)

    def batch(
        random: np.random.Generator, bank: tuple[Cells, np.ndarray] = bank
    ) -> dict[str, np.ndarray]:
        counts = random.integers(lesson.digits[0], lesson.digits[1] + 1, setting.rows).tolist()
        drawn = [arrange(random, bank[0], n, setting.grid, lesson.side) for n in counts]
        asked = encode([draw(random, scene, plan) for scene, _ in drawn])
        return {**asked, "visual": bank[1][np.stack([picks for _, picks in drawn])]}

    loss = functools.partial(_loss, config.decoder, plan)
    random = np.random.default_rng(11)
    tests = [batch(random, held_out) for _ in range(_TESTS)]
    measure = jax.jit(lambda params, batch: loss(params, batch)[1])

    def evaluate(params: Params) -> dict[str, float]:
        found = [measure(params, test) for test in tests]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    whole = lesson.side == setting.grid
    return Stage(
        name="decoder" if whole else f"decoder-{lesson.side}",
        steps=lesson.steps,
        batch=batch,
        loss=loss,
        evaluate=evaluate,
        optimiser=optimiser.build(lesson.steps, falls=whole),
        trained=("decoder",),
        seed=seed,
    )


def _loss(
    config: DecoderConfig, plan: Plan, params: Params, batch: dict[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return cross entropy over all answer tokens, and the share of right answers by task.

    An answer is right if each of its tokens is, predicted behind the true ones before it.
    """
    logits = compute_answer_logits(
        config, params["decoder"], plan, batch["tokens"], batch["visual"]
    )
    answers = batch["answers"]  # [B, A]
    learnt, safe = answers >= 0, answers.clip(0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, safe)  # [B, A]
    value = (each * learnt).sum() / learnt.sum().clip(1)
    owner = jax.nn.one_hot(plan.answer_task, len(plan.tasks))  # [A, Q]
    asked = (learnt @ owner) > 0  # [B, Q]
    right = ((logits.argmax(-1) != safe) & learnt) @ owner == 0  # [B, Q]
    metrics = {}
    for task in TASKS:
        mine = asked & np.array([name == task for name in plan.tasks])
        metrics[task] = (right * mine).sum() / mine.sum().clip(1)
    return value, metrics
