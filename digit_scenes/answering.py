"""Stage two and three: the decoder on cached visual tokens, then both halves together."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from digit_scenes import dense, optimiser, packing, tower
from digit_scenes.loop import Params, Stage
from digit_scenes.model import NUM_BINS, STEP, draw_codes, make_decoder_config
from digit_scenes.packed import compute_answer_logits
from digit_scenes.packing import Plan
from digit_scenes.questions import TASKS
from digit_scenes.scenes import COLOUR_NAMES, Scene
from digit_scenes.setting import Setting
from ivc_jax.config import VisionConfig

Batch = dict[str, Any]

# Questions of each task, in the order of `TASKS`, that are packed behind a picture.
QUESTIONS = (6, 2, 8, 4, 2, 2)
COUNTING_QUESTIONS = (5, 3, 5, 4, 3, 8)
_ANCHOR = 4.0  # weight of the start mark when counting, beside 1 for every digit


def init_embedding(tokenizer: Tokenizer, key: jax.Array, width: int) -> jax.Array:
    """Draw unit-length word embeddings that share a code where words share a meaning."""
    table = np.array(jax.random.normal(key, (tokenizer.get_vocab_size(), width)))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    code = draw_codes(width)
    named = [(str(n), code["number"][n // STEP]) for n in range(STEP, 1001, STEP)]
    for index, label in enumerate(code["label"][:10]):
        named += [(str(index), label), (f"Ġ{index}", label)]
    for name, colour in zip(COLOUR_NAMES, code["colour"], strict=False):
        named += [(name, colour), (f"Ġ{name}", colour)]
    for word, meaning in named:
        index = tokenizer.token_to_id(word)
        own = 0.0 if word.isdigit() and int(word) >= STEP else 0.4  # tells 'red' from ' red'
        mixed = meaning + own * table[index]
        table[index] = mixed / np.linalg.norm(mixed)
    return jnp.asarray(table)


def init_decoder(tokenizer: Tokenizer, params: Params, key: jax.Array) -> Params:
    """Prepare freshly drawn decoder parameters for fast learning.

    Residual branches start silent, so that words and visual tokens are heard; queries start equal
    to keys, so that a word looks at what resembles it.
    """

    def soften(block: Params) -> Params:
        silent = jax.tree.map(jnp.zeros_like, (block["o_proj"], block["mlp"]["down_proj"]))
        mlp = {**block["mlp"], "down_proj": silent[1]}
        return {**block, "o_proj": silent[0], "mlp": mlp, "k_proj": block["q_proj"]}

    layers = tuple(map(soften, params["layers"]))
    width = params["embed_tokens"]["embedding"].shape[1]
    embedding = init_embedding(tokenizer, key, width)
    return {**params, "embed_tokens": {"embedding": embedding}, "layers": layers}


def normalise(config: VisionConfig, vision: Params, pixels: jax.Array) -> Params:
    """Scale the merger's last layer so that visual tokens have about unit length, like words."""
    tokens = tower.encode(config, vision, pixels)
    size = jnp.sqrt(jnp.mean(jnp.sum(tokens**2, axis=-1)))
    merger = {**vision["merger"]}
    merger["mlp"] = {
        **merger["mlp"],
        "fc2": jax.tree.map(lambda p: p / size, merger["mlp"]["fc2"]),
    }
    return {**vision, "merger": merger}


class Objective:
    """Loss and accuracies of packed questions, every task counting alike."""

    def __init__(
        self,
        setting: Setting,
        tokenizer: Tokenizer,
        plan: Plan,
        look_weight: float = 0.0,
        count_weight: float = 0.0,
    ) -> None:
        self.config = make_decoder_config(setting, tokenizer.get_vocab_size())
        self.taught = {"look_layer": setting.look_layer, "compare_layer": setting.compare_layer}
        self.plan = plan
        self.look_weight, self.count_weight = look_weight, count_weight
        words = [str(n * STEP) for n in range(NUM_BINS)]
        self.number_ids = np.array([tokenizer.token_to_id(word) for word in words])
        value = np.full(self.config.vocab_size, -1.0, np.float32)
        value[self.number_ids] = np.arange(NUM_BINS)
        value[self.number_ids[0]] = -1  # the word 0 is a digit; no box starts at 0
        self.value = value
        self.tasks = tuple(TASKS)

    def __call__(
        self, params: Params, batch: Batch, visual: jax.Array, spread: float
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return (loss, metrics); `spread` smooths coordinates over neighbouring words."""
        logits, rows, ends = compute_answer_logits(
            self.config, params, self.plan, batch["tokens"], visual, **self.taught
        )
        value, metrics = self.score(logits, batch, spread)
        missed = self._missed(rows[..., 1:], batch["look"])
        confused = self._confused(ends, batch["apart"])
        miscounted = self._miscounted(rows, batch["share"])
        value = value + self.look_weight * (missed + confused) + self.count_weight * miscounted
        extra = {"missed": missed, "confused": confused, "miscounted": miscounted}
        return value, {**metrics, **extra}

    def _miscounted(self, rows: jax.Array, share: jax.Array) -> jax.Array:
        """Divergence of the third head's attention from shares that add up to the count.

        Every digit asked for has weight 1, spread over its visual tokens, against `_ANCHOR` for the
        start mark of the picture: what the head brings home then tells how many there are.
        """
        asked = np.array([t == "counting" for t in self.plan.tasks])[self.plan.look_question]
        share = share[:, self.plan.look_question[asked]]  # [B, C, W]
        wanted = jnp.pad(share, ((0, 0), (0, 0), (1, 0)), constant_values=_ANCHOR)
        wanted = wanted / wanted.sum(-1, keepdims=True)
        found = jnp.log(rows[:, 2, asked] + 1e-9)  # [B, C, 1 + W]
        return (jax.scipy.special.xlogy(wanted, wanted) - wanted * found).sum(-1).mean()

    def _confused(self, ends: jax.Array, apart: jax.Array) -> jax.Array:
        """Cross entropy of reading off which of two digits is further right, and further down."""
        ends = ends / jnp.sqrt(jnp.mean(ends**2, axis=-1, keepdims=True) + 1e-6)
        readout = draw_codes(ends.shape[-1])["axis"]
        asked = jnp.abs(apart) > 0.05  # [B, Q, 2]; nearer ones are not told apart
        loss = jax.nn.softplus(-jnp.sign(apart) * (ends @ readout.T))
        return (loss * asked).sum() / asked.sum().clip(1)

    def _missed(self, rows: jax.Array, look: jax.Array) -> jax.Array:
        """Minus the log of the attention that the first two heads pay to the right digits."""
        wanted = look[:, self.plan.look_question].swapaxes(1, 2)  # [B, 2, K, W]
        asked = wanted.any(-1)  # [B, 2, K]: relations alone have a second digit
        loss = -jnp.log((rows[:, :2] * wanted).sum(-1) + 1e-4)
        return (loss * asked).sum() / asked.sum().clip(1)

    def score(
        self, logits: jax.Array, batch: Batch, spread: float
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compare logits [B, A, vocab] with the answers."""
        answers, plan = batch["answers"], self.plan
        learnt, safe = answers >= 0, answers.clip(0)  # [B, A]
        log_p = jax.nn.log_softmax(logits)
        # coordinates are learnt from their neighbours too, other words alone: [B, A]
        each = -jnp.take_along_axis(log_p, safe[..., None], axis=-1)[..., 0]
        place = jnp.asarray(self.value)[safe]
        numeric = (place >= 0) & learnt
        bins = jnp.arange(NUM_BINS)
        soft = jax.nn.softmax(-(((bins - place[..., None]) / spread) ** 2) / 2)  # [B, A, bins]
        smooth = -(soft * log_p[..., self.number_ids]).sum(-1)
        each = jnp.where(numeric, smooth, each)
        right = (logits.argmax(-1) == answers) | ~learnt

        owner = jax.nn.one_hot(plan.answer_task, len(plan.tasks))  # [A, Q]
        asked = (learnt @ owner) > 0  # [B, Q]
        question_loss = ((each * learnt) @ owner) / (learnt @ owner).clip(1)  # [B, Q]
        question_right = (~right @ owner) == 0  # every token of the answer
        overlap = self._overlap(logits, batch["box"])
        metrics, total = {}, 0.0
        for task in self.tasks:
            mine = asked & np.array([t == task for t in plan.tasks])
            mean = lambda x: (x * mine).sum() / mine.sum().clip(1)  # noqa: B023, E731
            value = mean(question_loss) * (4.0 if task == "grounding" else 1.0)
            total = total + value
            metrics[f"{task}_loss"] = value
            metrics[task] = mean(overlap >= 0.5 if task == "grounding" else question_right)
            if task == "grounding":
                metrics["overlap"] = mean(overlap)
        return total / len(self.tasks), metrics

    def _overlap(self, logits: jax.Array, box: jax.Array) -> jax.Array:
        """Intersection over union of the best box, [B, Q]; 0 for other tasks."""
        result = jnp.zeros(box.shape[:2])
        starts = np.searchsorted(self.plan.answer_task, np.arange(len(self.plan.tasks)))
        questions = [i for i, task in enumerate(self.plan.tasks) if task == "grounding"]
        if not questions:
            return result
        where = starts[questions][:, None] + np.array([1, 3, 5, 7])  # ( x , y ),( x , y )
        found = logits[:, where][..., self.number_ids].argmax(-1).astype(jnp.float32)
        true = box[:, np.array(questions)]
        low, high = (
            jnp.maximum(found[..., :2], true[..., :2]),
            jnp.minimum(found[..., 2:], true[..., 2:]),
        )
        inner = (high - low).clip(0).prod(-1)
        area = lambda b: (b[..., 2:] - b[..., :2]).clip(0).prod(-1)  # noqa: E731
        overlap = inner / (area(found) + area(true) - inner).clip(1e-6)
        return result.at[:, np.array(questions)].set(overlap)


def lay_out(grid: int, counts: tuple[int, ...] = QUESTIONS) -> Plan:
    """Lay out a packed sequence with that many questions of each task of `TASKS`."""
    pairs = zip(TASKS, counts, strict=True)
    return Plan(tuple(task for task, count in pairs for _ in range(count)), grid)


def pack(
    random: np.random.Generator, tokenizer: Tokenizer, layout: Plan, scenes: list[Scene]
) -> Batch:
    """Ask fresh questions about scenes of one size."""
    asked = [packing.draw(random, scene, layout) for scene in scenes]
    return packing.encode(tokenizer, layout, asked, scenes[0].size)


class Cache:
    """Scenes with the visual tokens that a frozen tower gives them.

    The tokens are kept in `path`: a resumed run reads them back.
    """

    def __init__(
        self,
        setting: Setting,
        vision: Params,
        scenes: list[Scene],
        path: pathlib.Path,
        rows: int = 16,
    ) -> None:
        self.scenes = scenes
        if path.exists():
            self.visual = np.load(path, mmap_mode="r")
            if len(self.visual) != len(scenes):
                raise ValueError(
                    f"{path} holds the tokens of {len(self.visual)} scenes, not of {len(scenes)};"
                    " delete it to encode them again"
                )
            return
        encode = jax.jit(functools.partial(tower.encode, setting.vision))
        partial = path.with_suffix(".part.npy")
        shape = (len(scenes), setting.grid**2, setting.width)
        stored = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        for start in range(0, len(scenes), rows):
            chunk = [s.pixels for s in scenes[start : start + rows]]
            chunk += [chunk[-1]] * (rows - len(chunk))
            part = np.asarray(encode(vision, np.stack(chunk)))
            stored[start : start + rows] = part[: len(scenes) - start]
        stored.flush()
        partial.rename(path)  # a killed run leaves no half a file under this name
        self.visual = np.load(path, mmap_mode="r")

    def batch(
        self, random: np.random.Generator, rows: int, tokenizer: Tokenizer, layout: Plan
    ) -> Batch:
        """Draw scenes and ask fresh questions about them."""
        pick = random.integers(len(self.scenes), size=rows)
        asked = pack(random, tokenizer, layout, [self.scenes[i] for i in pick])
        return {**asked, "visual": self.visual[pick]}


def make_frozen_stage(
    setting: Setting,
    name: str,
    steps: int,
    tokenizer: Tokenizer,
    cache: Cache,
    held_out: Cache,
    questions: tuple[int, ...] = QUESTIONS,
    scale: float = 1.0,
    decay: float = 0.25,
    spread: float = 1.5,
    look_weight: float = 0.5,
    count_weight: float = 0.0,
    seed: int = 1,
) -> Stage:
    """Describe the decoder's training on cached visual tokens."""
    layout, rows = lay_out(setting.grid, questions), setting.rows
    objective = Objective(setting, tokenizer, layout, look_weight, count_weight)

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        return objective(params["decoder"], batch, batch["visual"], spread)

    random = np.random.default_rng(11)
    tests = [held_out.batch(random, rows, tokenizer, layout) for _ in range(8)]
    measure = jax.jit(lambda params, batch: loss(params, batch)[1])
    return Stage(
        name=name,
        steps=steps,
        batch=functools.partial(cache.batch, rows=rows, tokenizer=tokenizer, layout=layout),
        loss=loss,
        evaluate=functools.partial(_average, measure, tests),
        optimiser=optimiser.build(steps, scale=scale, decay=decay),
        trained=("decoder",),
        seed=seed,
    )


def make_joint_stage(
    setting: Setting,
    name: str,
    steps: int,
    tokenizer: Tokenizer,
    scale: float = 0.05,
    spread: float = 1.5,
    seed: int = 2,
) -> Stage:
    """Describe the training of tower and decoder together on realistic scenes."""
    layout, rows = lay_out(setting.grid), setting.rows_together
    objective = Objective(setting, tokenizer, layout)

    def batch(random: np.random.Generator, split: str = "train") -> Batch:
        scenes = setting.make_scenes(random, rows, setting.digits, split)
        return {
            **pack(random, tokenizer, layout, scenes),
            "pixels": np.stack([s.pixels for s in scenes]),
            "targets": dense.make_targets(scenes, setting.cell, setting.cues),
        }

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        visual = tower.encode(setting.vision, params["vision"], batch["pixels"])
        value, metrics = objective(params["decoder"], batch, visual, spread)
        # The dense loss keeps the tower from forgetting what the questions of a step do not touch.
        seen = dense.read(params["heads"], visual)
        extra, _ = dense.loss(seen, batch["targets"], absolute=setting.cues)
        return value + 0.2 * extra, metrics

    random = np.random.default_rng(11)
    tests = [batch(random, "test") for _ in range(48 // rows)]
    measure = jax.jit(lambda params, batch: loss(params, batch)[1])
    return Stage(
        name=name,
        steps=steps,
        batch=batch,
        loss=loss,
        evaluate=functools.partial(_average, measure, tests),
        optimiser=optimiser.build(steps, scale=scale),
        trained=("vision", "heads", "decoder"),
        seed=seed,
    )


def _average(measure: Any, tests: list[Batch], params: Params) -> dict[str, float]:
    found = [measure(params, batch) for batch in tests]
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}
