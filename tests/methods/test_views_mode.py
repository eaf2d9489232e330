"""IVC-Prune on a view of the whole and a mosaic, against the released rule written out in NumPy."""

import functools

import jax
import numpy as np
import pytest
from helpers.mosaics import CASES, to_arrays, write_prompts

import ivc_jax
from ivc_jax.engine.observe import observe
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.batch import Batch, Visual
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import Coordinates, IVCPrune, MethodError, parse
from ivc_jax.methods.controls import order_tokens
from ivc_jax.methods.coordinates import RULES
from ivc_jax.methods.requests import RopeSettings, TokenVectors, Values
from ivc_jax.methods.select import split_over_frames
from ivc_jax.methods.views import mark_coordinates

SMALL = parse_config(list_sizes()["deepseek-vl2-small"])
# (columns, rows, (height, width)): what the released processor makes of pictures of these sizes.
PICTURES = {
    "square": (1, 1, (384, 384)),
    "landscape": (2, 1, (400, 700)),
    "strip": (3, 1, (100, 800)),
    "tower": (1, 3, (900, 310)),
    "mosaic": (2, 2, (700, 760)),
}


def top(scores, count, among):
    """Return the `count` best of some tokens, the lowest index first among equals."""
    among = np.asarray(sorted(among))
    return set(among[np.argsort(-scores[among], kind="stable")[:count]].tolist())


def softmax_rows(queries, keys):
    """Return P of each query: softmax in each head, then their mean; [Q, n]."""
    logits = np.einsum("qgc,jgc->gqj", queries, keys) / np.sqrt(keys.shape[-1])
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (raised / raised.sum(axis=-1, keepdims=True)).mean(axis=0)


def list_valid(size, side, pixels, cell):
    """List the cells of the view that meet the picture, as offsets of tokens."""
    height, width = size
    scale = min(pixels / width, pixels / height)
    shown = int(width * scale), int(height * scale)
    left, upper = ((pixels - length) // 2 for length in shown)
    return [
        row * (side + 1) + column
        for row in range(side)
        for column in range(side)
        if max(cell * column, left) < min(cell * (column + 1), left + shown[0])
        and max(cell * row, upper) < min(cell * (row + 1), upper + shown[1])
    ]


def keep_released(visual, text, first, tiles, size, config):
    """Return the tokens of one picture that the released rule keeps, as offsets.

    Args:
        visual: values of its tokens, [L, G, C].
        text: of the text that asks, [Q, G, C].
        first: position id of its first token.
        tiles: (columns, rows).
        size: (height, width) in pixels.
        config: of the model.
    """
    vision, rope = config.vision, config.decoder.rope
    side = -(-vision.table_side // 2)
    view, (columns, rows) = side * (side + 1), tiles
    angles = (first + np.arange(len(visual)))[:, None] * rope.frequencies
    cosine, sine = np.cos(angles).sum(axis=1), np.sin(angles).sum(axis=1)
    valid = list_valid(size, side, vision.view_size, vision.patch_size * 2)

    asked = softmax_rows(text, visual[:view])
    seeds = top(asked.mean(axis=0), round(0.01 * len(valid)), valid)
    both = [asked, softmax_rows(visual[sorted(seeds)], visual[:view])]
    foreground = np.concatenate(both).mean(axis=0)

    marked = top(cosine, round(0.1 * view), range(view)) | top(sine, round(0.1 * view), range(view))
    room = max(1, round(0.5 * view) - len(marked))
    shown = seeds | top(foreground, room, set(valid) - marked)

    width, start = columns * side + 1, view + 1
    kept = shown | marked | {view}
    kept |= {row * (side + 1) + side for row in range(side)}
    for row in range(rows * side):
        line = range(start + row * width, start + (row + 1) * width)
        count = round(0.15 * width)
        kept |= top(cosine, count, line) | top(sine, count, line) | {line[-1]}
    for row, column in (divmod(token, side + 1) for token in shown):
        for down in range(row * rows, (row + 1) * rows):
            for across in range(column * columns, (column + 1) * columns):
                kept.add(start + down * width + across)
    return sorted(kept)


def count_tokens(columns, rows, side=14):
    return side * (side + 1) + 1 + side * rows * (side * columns + 1)


def make_batch(prompts):
    """Make a batch of text lengths and pictures; pixels do not matter."""
    tokens, images = [], []
    for parts in prompts:
        ids = []
        for part in parts:
            if isinstance(part, int):
                ids += [5] * part
                continue
            columns, rows, size = part
            ids += [SMALL.image_token_id] * count_tokens(columns, rows)
            count = 1 + columns * rows
            patches = np.broadcast_to(np.float32(0), (count * 27 * 27, SMALL.vision.patch_values))
            images.append(Visual(patches, (count, 27, 27), tiles=(columns, rows), size=size))
        tokens.append(np.array(ids, np.int32))
    return Batch(tuple(tokens), tuple(images))


@functools.partial(jax.jit, static_argnums=(0, 1))
def select(method, num_keep, layout, values):
    stage = method.stages[0]
    signals = {Values(stage.layer - 1): values, RopeSettings(): SMALL.decoder.rope}
    return method.select(signals, layout, stage, num_keep)


def run(prompts, spec="ivc:layer=1", seed=0):
    """Select with random values; return the kept tokens of each sample, and what was random."""
    layout = collate(make_batch(prompts), SMALL).layout
    draw = np.random.default_rng(seed)
    (B, V), T = layout.visual_index.shape, layout.text_index.shape[1]
    visual, text = (
        draw.standard_normal((B, slots, 3, 8)).astype(np.float32) * 1.5 for slots in (V, T)
    )
    method = parse(spec).resolve(SMALL)
    stage = method.stages[0]
    capacity = min(method.capacity(stage, layout.visual_slots, layout.num_images), V)
    found = select(method, capacity, layout, TokenVectors(visual, text))
    kept = [np.asarray(i)[np.asarray(v)] for i, v in zip(found.index, found.valid, strict=True)]
    return kept, (visual, text), capacity


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_kept_as_released(name):
    columns, rows, size = PICTURES[name]
    (kept,), (visual, text), capacity = run([(6, PICTURES[name], 9)])
    L = count_tokens(columns, rows)
    # the first slot of text behind the picture does not ask
    wanted = keep_released(visual[0, :L], text[0, 7:15], 6, (columns, rows), size, SMALL)
    assert kept.tolist() == wanted
    assert len(kept) <= capacity <= 0.75 * L
    share = len(kept) / L
    assert 0.50 < share < 0.58 or (name == "strip" and 0.36 < share < 0.39)


def test_offsets_of_learned_tokens_are_the_released_ones():
    (kept,), _, _ = run([(3, PICTURES["landscape"], 4)])
    rows = range(14)
    learned = {15 * row + 14 for row in rows} | {210} | {211 + (row + 1) * 29 - 1 for row in rows}
    assert learned <= set(kept.tolist())


def test_pictures_of_a_batch_are_pruned_alone():
    prompts = [
        (2, PICTURES["strip"], 4, PICTURES["square"], 7),
        (11,),
        (5, PICTURES["landscape"], 6),
    ]
    kept, (visual, text), _ = run(prompts)
    strip, square = (count_tokens(*PICTURES[name][:2]) for name in ("strip", "square"))
    # of the first picture all text behind it asks, that behind the second one too
    first = keep_released(visual[0, :strip], text[0, 3:13], 2, (3, 1), (100, 800), SMALL)
    second = keep_released(
        *(visual[0, strip : strip + square], text[0, 7:13], 6 + strip),
        *((1, 1), (384, 384), SMALL),
    )
    assert kept[0].tolist() == [*first, *(strip + np.array(second))]
    assert not len(kept[1])
    columns, rows, size = PICTURES["landscape"]
    L = count_tokens(columns, rows)
    third = keep_released(visual[2, :L], text[2, 6:11], 5, (columns, rows), size, SMALL)
    assert kept[2].tolist() == third


def test_a_narrow_picture_has_no_seed():
    """Of 42 valid cells 1 % are none: the text alone decides."""
    (kept,), (visual, text), _ = run([(4, (1, 1, (60, 384)), 8)])
    L = count_tokens(1, 1)
    wanted = keep_released(visual[0, :L], text[0, 5:12], 4, (1, 1), (60, 384), SMALL)
    assert kept.tolist() == wanted


def test_other_methods_split_what_they_keep_over_both_views():
    """Views are frames of several sizes: what is kept of a picture is kept of it, no token more."""
    layout = collate(make_batch([(2, PICTURES["landscape"], 3, (1, 1, (9, 9)))]), SMALL).layout
    layout = jax.tree.map(jax.numpy.asarray, layout)
    counts = np.arange(layout.visual_slots + 1) // 3
    target = np.asarray(split_over_frames(layout, counts))[0]
    number, frame = np.asarray(layout.image_id)[0], np.asarray(layout.grid)[0, :, 0]
    for image, L in enumerate((count_tokens(2, 1), count_tokens(1, 1))):
        of_view, of_mosaic = (target[(number == image) & (frame == each)] for each in (0, 1))
        assert len(set(of_view)) == len(set(of_mosaic)) == 1
        assert of_view[0] + of_mosaic[0] == L // 3
        assert of_view[0] == L // 3 * 211 // L


def test_other_coordinates_are_as_many_in_views_rows_and_pictures():
    """Also with the separator, which is alone in the last row of its view."""
    layout = collate(make_batch([(2, PICTURES["landscape"], 3, (1, 1, (9, 9)))]), SMALL).layout
    layout = jax.tree.map(jax.numpy.asarray, layout)
    number, (frame, row, _) = np.asarray(layout.image_id)[0], np.asarray(layout.grid)[0].T

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def mark(layout):
        rules = [Coordinates(rule=rule) for rule in RULES]
        rope = SMALL.decoder.rope
        return [(mark_coordinates(each, layout, rope), each.mark(layout, rope)) for each in rules]

    released, *others = [[np.asarray(part)[0] for part in both] for both in mark(layout)]
    for other in others:
        assert (released[0] != other[0]).any()
        assert (released[1] != other[1]).any()
        for image in (0, 1):
            own = number == image
            assert released[1][own].sum() == other[1][own].sum() > 0
            places = [own & (frame == 0)]
            places += [own & (frame == 1) & (row == line) for line in range(row[own].max() + 1)]
            for place in places:
                assert released[0][place].sum() == other[0][place].sum()


@pytest.mark.parametrize(
    ("control", "mirrored"),
    [
        ("mirror_ud", [(0, 0, 0), (0, 12, 2), (1, 13, 13)]),
        ("mirror_lr", [(0, 1, 12), (0, 13, 14), (1, 0, 15)]),
    ],
)
def test_mirror_images_lie_within_their_view(control, mirrored):
    """The separator stands below the view and has none: the nearest token to it is taken."""
    layout = collate(make_batch([(2, (2, 1, (200, 400)), 3)]), SMALL).layout
    layout = jax.tree.map(jax.numpy.asarray, layout)
    grid = np.asarray(layout.grid)[0]  # 14 x 15 and 14 x 29 tokens, the last of a row a line end
    cells = [(0, 1, 2), (0, 14, 0), (1, 0, 13)]
    chosen = np.isin(np.arange(len(grid)), [grid.tolist().index([*cell]) for cell in cells])[None]
    found = order_tokens(control, layout, jax.numpy.asarray(chosen), layout.visual_valid, 0)
    assert list(map(tuple, grid[np.asarray(found)[0] > 0].tolist())) == mirrored


@pytest.mark.parametrize("family", ["deepseek_vl2", "deepseek_vl2_tiny"])
def test_a_model_prunes_by_its_own_values(tiny_hf, family):
    model, _ = ivc_jax.load(tiny_hf(family=family), processor=False)
    prompts = CASES["ragged batch"]
    inputs = collate(Batch.from_hf(**to_arrays(write_prompts(prompts))), model.config)
    (values,) = observe(model, inputs, 2, Values(1))
    prompt = ivc_jax.prefill(model, inputs, "ivc:layer=2")
    for row, parts in enumerate(prompts):
        wanted, visual, position, text = [], 0, 0, 0
        count = sum(part for part in parts if isinstance(part, int))
        for part in parts:
            if isinstance(part, int):
                wanted += range(position, position + part)
                position, text = position + part, text + part
                continue
            columns, rows, size = part
            L = 4 * 5 + 1 + 4 * rows * (4 * columns + 1)
            found = keep_released(
                *(np.asarray(values.visual[row, visual : visual + L], np.float64),),
                *(np.asarray(values.text[row, text + 1 : count], np.float64),),
                *(position, (columns, rows), size, model.config),
            )
            wanted += [position + token for token in found]
            position, visual = position + L, visual + L
        assert prompt.kept[row].tolist() == wanted, (family, row)


def test_where_there_is_no_mosaic_it_is_refused():
    qwen = parse_config(list_sizes()["qwen2.5-vl-7b"])
    with pytest.raises(MethodError, match="combine=views needs a view of the whole beside a mosa"):
        IVCPrune(combine="views").resolve(qwen)
    with pytest.raises(MethodError, match="combine=views keeps what its fractions say"):
        IVCPrune(combine="views", budget=0.5)
    with pytest.raises(MethodError, match="combine=views prunes every image alone"):
        IVCPrune(combine="views", per_frame=True)


def test_it_is_the_default_of_its_family_alone():
    method = parse("ivc").resolve(SMALL)
    assert (method.combine, method.layer, method.foreground_rule.query_offset) == ("views", 17, 1)
    assert method.foreground_fraction == 0.5
    # which is a share of this rule; a union takes the paper's 0.4
    (stage,) = parse("ivc:combine=union").resolve(SMALL).stages
    assert stage.keep_ratio == pytest.approx(0.1 + 0.1 + 0.4)
    # another share can be met by filling up alone
    assert parse("ivc:keep_ratio=0.3").resolve(SMALL).combine == "fill"
    assert parse("ivc:budget=0.4").resolve(SMALL).combine == "fill"
