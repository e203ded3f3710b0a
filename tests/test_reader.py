"""The recipe of the shipped model: targets say where things stand, and training begins where it should."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from vlm.config import preset
from vlm.model import VisionLanguageModel
from vlm.prompt import Image as ImagePart
from vlm.prompt import Text, Turn, encode_prompt
from vlm.tokenizer import Tokenizer
from vlm.training.reader.model import Reader, _partner_loss, _shade_loss, seekers_of
from vlm.training.reader.sinusoids import num_position_dims, place_tile, retile, shift, sinusoids
from vlm.training.reader.start import COLOUR_LOUDNESS, NEIGHBOURS, num_shared_dims
from vlm.training.reader.targets import (
    COPY,
    FIND,
    NO_SHADE,
    SPELL,
    UNSHADED,
    PatchLinks,
    no_links,
    patch_links,
    pointer_targets,
    printed_text,
)
from vlm.training.reader.vocabulary import WORDS, reader_tokenizer
from vlm.training.reader.wires import SHADE_LOUDNESS, shade_code
from vlm.training.synthetic.charts import Character, ask, draw_chart, patch_characters, patch_mask
from vlm.training.synthetic.questions.comparing import comparison, rose, series_comparison
from vlm.training.synthetic.text_pages import draw_page

TOKENIZER = reader_tokenizer()
GRID_OF_TILE = preset("default").vision.grid
PATCH, GRID = 16, (16, 16)


@pytest.fixture(autouse=True, scope="module")
def no_denormals():
    """As in a run: what sharp attention lets underflow takes several times as long."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def asked():
    charts = [draw_chart(np.random.default_rng(seed), 256) for seed in range(12)]
    return [(chart, q) for seed, chart in enumerate(charts) for q in ask(np.random.default_rng(seed), chart, 8)]


def conversation(question) -> tuple[list[int], list[int]]:
    prompt = encode_prompt(TOKENIZER, [Turn("user", (ImagePart(None), Text(question.question)))]).ids
    return prompt, [*TOKENIZER.encode(question.answer), TOKENIZER.eot_id]


def test_words_of_questions_are_one_token_and_labels_are_spelt():
    assert len(TOKENIZER.encode("What is the highest value?")) == 6
    assert len(TOKENIZER.encode(" Kestrelia")) == len(" Kestrelia")
    assert len(TOKENIZER.encode("20178")) == 5
    assert TOKENIZER.vocab_size == preset("default").decoder.vocab_size
    assert all(len(word) > 1 for word in WORDS.split()), (
        "two bytes with the space before it would merge inside other words"
    )


def test_the_vocabulary_means_the_same_to_transformers(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    text = "What is the value of Indiana in 2017?\n\nThe titled bars, 1,204.5 %"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text, add_special_tokens=False) == TOKENIZER.encode(text)
    assert Tokenizer.from_folder(tmp_path).encode(text) == TOKENIZER.encode(text)


def test_a_page_says_where_its_characters_are():
    image, characters = draw_page(np.random.default_rng(3), (192, 256))
    assert image.size == (256, 192)
    assert len(characters) > 100
    assert all(0 < x < 256 and 0 < y < 192 for _, x, y in characters)
    blank = np.asarray(image).astype(int)
    # Around the middle of a character the page is not one colour.
    spread = [
        np.ptp(blank[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4], axis=(0, 1)).max() for _, x, y in characters
    ]
    assert np.mean(np.array(spread) > 40) > 0.97


def test_pointers_of_copied_answers_lie_on_their_characters(asked):
    checked = 0
    for chart, question in asked:
        if question.kind not in ("named_value", "series_value", "reverse", "highest", "largest_value"):
            continue
        prompt, reply = conversation(question)
        pointers = pointer_targets(TOKENIZER, chart, question, prompt, reply, PATCH, GRID)
        assert pointers.numbers.shape == (5, len(prompt) + len(reply) - 1)
        assert not pointers.places[0].any()
        pointers = pointers.places[pointers.numbers]
        codes = patch_characters(chart.characters, PATCH, GRID, 9).reshape(256, 9)
        for index, token_id in enumerate(reply[:-1]):
            letters = TOKENIZER.decode([token_id]).strip()
            spelt = pointers[SPELL.start, len(prompt) - 1 + index]
            for letter in letters[:1] if spelt.any() else ():
                assert ord(letter) in codes[spelt], (question.answer, letter)
                checked += 1
        assert not pointers[:, : prompt.index(TOKENIZER.image_marker_id)].any()
        assert pointers[FIND, len(prompt) - 1].any()
        assert pointers[COPY, len(prompt) - 1].any()
    assert checked > 100


def test_what_is_named_alone_both_heads_find_and_a_legend_entry_is_found_by_its_first_characters(asked):
    alone = entries = 0
    for chart, question in asked:
        if question.kind not in ("named_value", "series_value"):
            continue
        prompt, reply = conversation(question)
        numbers, places = pointer_targets(TOKENIZER, chart, question, prompt, reply, 8, (32, 32))
        found = places[numbers[FIND, len(prompt) - 1]]
        alone += len(question.find_boxes) == 1
        assert len(question.find_boxes) == 2 or np.array_equal(*found)
        shade = patch_links(chart, 8, (32, 32)).shade
        for place, box in zip(found, question.find_boxes, strict=False):
            if box in {mark.series_box for mark in chart.marks}:
                spots = printed_text(chart, box)[1]
                patches = [int(y // 8) * 32 + int(x // 8) for y, x in spots]
                first = set(patches[:4])
                assert set(np.flatnonzero(place)) == first
                assert (shade[sorted(first)] != NO_SHADE).all()
                others = {int(y // 8) * 32 + int(x // 8) for _, x, y in chart.characters if (y, x) not in spots}
                further = sorted(set(patches) - first - others)
                assert (shade[further] == NO_SHADE).all()
                entries += bool(further)
    assert alone > 5
    assert entries > 1


def test_links_join_each_value_to_its_own_label(asked):
    checked = checked_sides = 0
    for chart in {id(chart): chart for chart, _ in asked}.values():
        links = patch_links(chart, PATCH, GRID)
        for index, label in enumerate(chart.spec.labels, 1):
            own = [mark for mark in chart.marks if mark.label == label]
            values = patch_mask(chart.characters, [mark.value_box for mark in own], PATCH, GRID)
            linked = (links.label_beside == index) | (links.label_below == index)
            # Where print is dense a patch can hold two values; the later one has it.
            assert linked[values].any()
            assert not linked[~values].any()
            (y0, y1), (x0, x1) = (sorted((own[0].label_box[i], own[0].value_box[i])) for i in (1, 0))
            if len(own) == 1 and max(y1 - y0, x1 - x0) > 3 * min(y1 - y0, x1 - x0) + 20:
                seeks = links.label_beside if x1 - x0 > y1 - y0 else links.label_below
                assert (seeks == index).any(), (own[0].label_box, own[0].value_box)
                checked_sides += 1
            assert (links.label == index)[patch_mask(chart.characters, [own[0].label_box], PATCH, GRID)].any()
            checked += 1
    assert checked > 30
    assert checked_sides > 10


def test_the_order_of_a_patch_is_that_of_its_first_character(asked):
    right = checked = 0
    for chart in {id(chart): chart for chart, _ in asked}.values():
        order = patch_links(chart, PATCH, GRID).order
        for mark in chart.marks:
            x0, y0, x1, y1 = mark.value_box
            printed = [(x, y) for _, x, y in chart.characters if x0 <= x <= x1 and y0 <= y <= y1]
            begun = {}
            for index, (x, y) in enumerate(printed, 1):
                begun.setdefault(int(y // PATCH) * GRID[1] + int(x // PATCH), index)
            right += sum(order[patch] == index for patch, index in begun.items())
            checked += len(begun)
            # A patch between two texts is told of one of them.
            assert all(order[patch] > 0 for patch in begun)
    assert right > 0.8 * checked > 50


def test_positions_differ_by_the_same_wherever_two_patches_lie():
    rows, cols = torch.tensor([0, 3, 20, 23]), torch.tensor([5, 7, 11, 13])
    table = sinusoids(rows, cols, 64)
    assert torch.allclose(table[0] @ table[1], table[2] @ table[3], atol=1e-4)
    assert not torch.allclose(table[0] @ table[1], table[0] @ table[2], atol=1e-2)


def test_a_shift_takes_one_position_to_another():
    position = sinusoids(torch.tensor([5, 3, 6]), torch.tensor([7, 8, 4]), 96)[:, -num_position_dims(96) :]
    for index, (rows, cols) in enumerate(((2, -1), (-1, 3)), 1):
        assert torch.allclose(shift(rows, cols, 96) @ position[0], position[index], atol=1e-4)
    assert not torch.allclose(shift(1, 0, 96) @ position[0], position[0], atol=0.1)


@pytest.fixture(scope="module")
def untrained_attention():
    """What each head of an untrained reader looks at on blank paper, from every patch: [layer, h, p, p]."""
    torch.manual_seed(0)
    model = Reader(preset("default")).model
    retile(model, replace(model.config.vision, max_tiles=1))
    place_tile(model.encoder, (3, 5))
    seen, side = [], model.config.vision.tile_size
    for layer in (*model.encoder.local_layers, *model.encoder.global_layers):
        layer.attention.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0])))
    with torch.no_grad():
        model.encode(torch.full((1, 1, 3, side, side), 1.9), [(1, 1)])
        weights = []
        for attention, x in seen:
            q, k = (
                projection(x)[0, 1 : 1 + GRID_OF_TILE**2].unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
                for projection in (attention.q_proj, attention.k_proj)
            )
            weights.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1))
    return torch.stack(weights)


def test_untrained_heads_look_at_their_neighbours_and_along_their_axes(untrained_attention):
    row, col = 5, 6
    patch = row * GRID_OF_TILE + col
    for layer, neighbours in enumerate(NEIGHBOURS):
        for head, (rows, cols) in enumerate(neighbours):
            assert untrained_attention[layer, head, patch, (row + rows) * GRID_OF_TILE + col + cols] > 0.8
    along_rows, along_cols = untrained_attention[-1].unflatten(-1, (GRID_OF_TILE,) * 2)[:2, patch]
    assert along_rows.sum(1).argmax() == row
    assert along_cols.sum(0).argmax() == col
    # As if it were even over most of the row or column, however long that is.
    for shares in (along_rows.sum(0), along_cols.sum(1)):
        assert 1 / shares.square().sum() > 0.7 * GRID_OF_TILE


def test_training_leaves_positions_and_colours_alone():
    reader = Reader(preset("default"))
    encoder = reader.model.encoder
    kept = num_shared_dims(encoder)
    weights = []
    for layer in (*encoder.local_layers, *encoder.global_layers):
        weights += [layer.fc2.weight, layer.attention.o_proj.weight, layer.fc2.bias]
    sum(weight.sum() for weight in weights).backward()
    for weight in weights:
        assert not weight[kept:].any()
        assert not weight.grad[kept:].any()
        assert weight.grad[:kept].all()


def test_the_mean_colour_of_a_patch_is_told_in_dims_of_its_own():
    encoder = Reader(preset("default")).model.encoder
    size = encoder.config.patch_size
    patch = torch.randn(3, size, size)
    told = encoder.patch_embedding.weight @ patch.flatten()
    colours = slice(num_shared_dims(encoder), num_shared_dims(encoder) + 3)
    assert torch.allclose(told[colours], COLOUR_LOUDNESS * patch.mean((1, 2)), atol=1e-5)
    assert not told[colours.stop :].any()
    assert encoder.config.width - colours.stop == num_position_dims(encoder.config.width)


def test_shades_are_told_of_values_entries_and_labels(asked):
    several = 0
    for chart in {id(chart): chart for chart, _ in asked}.values():
        shade = patch_links(chart, PATCH, GRID).shade
        printed = np.zeros(len(shade), dtype=bool)
        for mark in chart.marks:
            of_label, of_value = (
                patch_mask(chart.characters, [box], PATCH, GRID) for box in (mark.label_box, mark.value_box)
            )
            printed |= of_label | of_value
            assert (shade[of_value] == mark.shade).all(-1).any()
            if mark.series_box:
                entry = patch_mask(chart.characters, [mark.series_box], PATCH, GRID)
                printed |= entry
                assert (shade[entry] == mark.shade).all(-1).any()
                several += 1
            told = UNSHADED if mark.series_box else mark.shade
            assert (shade[of_label] == told).all(-1).any()
        assert (shade[~printed] == NO_SHADE).all()
    assert several > 3


def test_the_loss_of_shades_is_that_of_their_codes():
    shades = torch.full((1, 4, 3), NO_SHADE)
    told = torch.randn(1, 4, 6)
    assert _shade_loss(told, shades) == 0
    shades[0, 1], shades[0, 2] = torch.tensor([255, 0, 51]), UNSHADED
    told[0, 1] = SHADE_LOUDNESS * shade_code(torch.tensor([1.0, 0.0, 0.2]))
    told[0, 2] = 0
    assert _shade_loss(told, shades) < 1e-10
    told[0, 1] = SHADE_LOUDNESS * shade_code(torch.tensor([0.0, 1.0, 0.2]))
    assert _shade_loss(told, shades) > 0.3


def test_the_more_like_one_another_two_shades_are_the_closer_are_their_codes():
    shades = torch.linspace(0, 1, 11)[:, None].expand(-1, 3)
    likeness = shade_code(shades) @ shade_code(shades[:1]).T
    assert (likeness.diff(dim=0) < 0).all()


def test_a_patch_of_a_text_tells_how_the_text_begins(asked):
    for chart, _ in asked:
        beginning = patch_links(chart, PATCH, GRID).beginning
        for mark in chart.marks:
            text, places = printed_text(chart, mark.value_box) if mark.value_box else ("", [])
            patches = [int(y // PATCH) * GRID[1] + int(x // PATCH) for y, x in places]
            told = ["".join(chr(code + 31) for code in beginning[patch] if code) for patch in patches]
            # Another text may have the same patch.
            assert not told or text[:4] in told


def test_what_a_label_or_value_holds_tells_where_its_partner_is():
    """The loss is that of the attention from codes of positions to the positions themselves."""
    nothing = PatchLinks(*(torch.from_numpy(part)[None] for part in no_links((2, 3))))
    links = PatchLinks(*(part.clone() for part in nothing))
    links.label[0, 1], links.label_beside[0, 4] = 1, 1
    positions = torch.eye(6)[None] * 9
    x = torch.cat([torch.zeros(1, 1, 8), torch.cat([torch.randn(1, 6, 2), positions], -1)], 1)
    told = torch.zeros(1, 6, 6)
    told[0, 1, 4] = told[0, 4, 1] = 9
    assert _partner_loss(told, x, seekers_of(links), 1) < 1e-3
    assert _partner_loss(told.flip(1), x, seekers_of(links), 1) > 3
    assert _partner_loss(told, x, seekers_of(nothing), 1) == 0


def test_a_tile_of_a_canvas_lies_where_a_single_tile_is_put():
    config = replace(preset("default"), vision=replace(preset("default").vision, tile_size=64, max_tiles=4))
    several, single = VisionLanguageModel(config), VisionLanguageModel(config)
    retile(several, config.vision)
    retile(single, replace(config.vision, max_tiles=1))
    grid = config.vision.grid
    canvas_id = 1 + config.vision.canvases.index((2, 2))
    positions = several.encoder.patch_position(torch.tensor([canvas_id]), 4, 0)[0]
    for tile, (row, col) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        place_tile(single.encoder, (row * grid, col * grid))
        assert torch.allclose(positions[tile], single.encoder.patch_position.embedding, atol=1e-6)
    assert several.encoder.missing_tiles_equal


def test_the_mean_colour_of_a_patch_does_not_move_its_embedding():
    weight = Reader(preset("default")).model.encoder.patch_embedding.weight
    strokes = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    (weight @ (strokes + 5)).sum().backward()
    colours = weight.grad.unflatten(1, (3, -1))
    assert colours.mean(-1).abs().max() < 1e-5
    assert torch.allclose(colours[0], (strokes.view(3, -1) - strokes.view(3, -1).mean(-1, keepdim=True)), atol=1e-5)


def test_of_two_that_are_compared_the_greater_is_pointed_at_first_where_the_answer_is_yes():
    checked = Counter()
    for seed in range(90):
        chart = draw_chart(np.random.default_rng(seed), 256, several_series=seed % 3 == 0)
        numbers = {mark.value_box: mark.number for mark in chart.marks}
        asked = [ask_one(Random(seed), chart) for ask_one in (comparison, rose, series_comparison)]
        for question in filter(None, asked):
            prompt, reply = conversation(question)
            pointers = pointer_targets(TOKENIZER, chart, question, prompt, reply, 8, (32, 32))
            values = [numbers[box] for box in question.copy_boxes]
            if values[0] == values[1]:
                continue
            # Which of the two that are named has to be pointed at first.
            first = int((values[1] > values[0]) == (question.answer == "Yes"))
            assert question.turned == bool(first)
            for boxes, rows in ((question.find_boxes, FIND), (question.copy_boxes, COPY)):
                places = pointers.places[pointers.numbers[rows, len(prompt) - 1]]
                for place, which in zip(places, (first, 1 - first), strict=True):
                    # Of a legend entry only the first characters are looked for.
                    assert not (place & ~patch_mask(chart.characters, [boxes[which]], 8, (32, 32))).any()
            checked[question.kind, question.answer, question.turned] += 1
    assert len(checked) == 12
    assert min(checked.values()) > 1, checked


def test_a_table_is_spelt_cell_by_cell():
    checked = 0
    for seed in range(30):
        chart = draw_chart(np.random.default_rng(seed), 256, several_series=seed % 2 == 0)
        questions = ask(np.random.default_rng(seed), chart, 30, wide=True)
        for question in (each for each in questions if each.kind == "table"):
            prompt, reply = conversation(question)
            pointers = pointer_targets(TOKENIZER, chart, question, prompt, reply, 8, (32, 32))
            spelt = (pointers.numbers[SPELL.start, len(prompt) - 1 :] > 0).tolist()
            text = "".join(TOKENIZER.decode([token]) for token in reply[:-1])
            assert text == question.answer
            body = len(TOKENIZER.encode(question.answer.split("\n")[0]))
            cells = [index for index in range(body, len(reply) - 1) if TOKENIZER.decode([reply[index]]) not in " |\n"]
            assert np.mean([spelt[index] for index in cells]) > 0.95
            checked += 1
    assert checked > 5


def test_print_on_the_rim_of_an_unevenly_shrunk_sheet_lies_in_its_last_patch():
    rim = [Character("7", 57.9, 31.99)]
    assert patch_characters(rim, 4.0, (7, 14))[6, 13, 0] == ord("7")
