"""What lies under the demo page: words, heat maps, tables, conversations and cards."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conversations import refusal
from tests.image_files import encode, exif, noise_picture, smooth_pixels
from vlm import GenerationConfig, Tokenizer
from vlm.demo.desk import MAX_PICTURES, Desk
from vlm.demo.heat_map import PREVIEW_SIDE, Place, overlay, preview, strongest_place
from vlm.demo.models import SHIPPED, ModelShelf
from vlm.demo.table import MAX_ROWS, read_table
from vlm.demo.talk import Talk
from vlm.demo.words import first_number, words_of

BYTES = Tokenizer.bytes_only()
JOINED = Tokenizer(
    {bytes([value]): value for value in range(256)} | {b"ab": 256, b"a ": 257, b" b": 258, b"  ": 259},
    {name: number + 4 for name, number in BYTES.special_ids.items()},
)

# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n ", []),
        ("495", [("495", (0, 1, 2))]),
        (" né 5%\n", [("né", (1, 2, 3)), ("5%", (5, 6))]),
    ],
)
def test_words_have_the_tokens_that_spell_them(text, words):
    assert words_of(BYTES, [*text.encode()]) == words


def test_a_token_across_two_words_belongs_to_both():
    assert words_of(JOINED, [97, 258, 98]) == [("a", (0,)), ("bb", (1, 2))]
    assert words_of(JOINED, [257, 97, 259, 256]) == [("a", (0,)), ("a", (1,)), ("ab", (3,))]


def test_half_a_character_is_shown_as_unknown():
    assert words_of(BYTES, [0xC3, 32, 97]) == [("\ufffd", (0,)), ("a", (2,))]


@pytest.mark.parametrize(
    ("word", "is_number"),
    [
        *[(word, True) for word in ("495", "49.2", "1,000", "-3", "18%", "$5.", "(12)", "2017", "3:4", "€12")],
        *[(word, False) for word in ("", "a", "a1", "Q3", "%", "-", "one", "12th")],
    ],
)
def test_numbers_are_told_from_other_words(word, is_number):
    words = words_of(BYTES, [*f"x {word}".encode()])[1:]
    assert [each.is_number for each in words] == [is_number] * len(words)
    assert first_number(words) == (0 if is_number else None)


# Heat maps


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0.1, 0.1), "upper left"),
        ((0.5, 0.5), "middle"),
        ((0.9, 0.5), "lower middle"),
        ((0.4, 1.0), "middle right"),
        ((1.0, 0.0), "lower left"),
    ],
)
def test_a_place_is_told_in_words(place, words):
    assert str(Place(*place)) == words


def test_the_strongest_place_is_the_middle_of_its_patch():
    weights = np.zeros((40, 80), dtype=np.float32)
    weights[10:20, 60:70] = 1
    assert strongest_place(weights) == pytest.approx((15 / 40, 65 / 80))
    # Of two as strong, the one that comes first, not the empty middle between them.
    weights[10:20, 0:10] = 1
    assert strongest_place(weights) == pytest.approx((15 / 40, 5 / 80))
    assert strongest_place(np.zeros((1, 1))) == pytest.approx((0.5, 0.5))


def test_the_picture_is_pale_where_nothing_is_and_coloured_where_attention_is():
    picture = Image.fromarray(np.full((100, 200, 3), 90, dtype=np.uint8))
    weights = np.zeros((50, 100), dtype=np.float32)
    weights[0:20, 0:20] = 0.25
    shown = np.asarray(overlay(picture, weights, 0.25)).astype(int)
    assert shown.shape == (100, 200, 3)
    assert shown[90, 190].tolist() == [156, 156, 156]  # 255 - 0.6 (255 - 90)
    red, green, blue = shown[10, 10]
    assert red > green + 80
    assert red > blue + 80
    # Half as strong on the scale of another picture.
    paler = np.asarray(overlay(picture, weights, 0.5)).astype(int)[10, 10]
    assert paler[1] > green
    assert np.unique(np.asarray(overlay(picture, weights * 0, 0.0))).tolist() == [156]


def test_a_small_place_looks_as_strong_as_a_large_one():
    picture = Image.fromarray(np.full((192, 192, 3), 255, dtype=np.uint8))
    small, large = np.zeros((2, 192, 192), dtype=np.float32)
    small[94:98, 94:98], large[64:128, 64:128] = 0.25, 0.25
    strengths = [np.asarray(overlay(picture, weights, 0.25)).astype(int)[96, 96] for weights in (small, large)]
    assert np.abs(strengths[0] - strengths[1]).max() <= 4


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_ring_stands_out_on_light_and_on_dark(grey):
    picture = Image.fromarray(np.full((480, 480, 3), grey, dtype=np.uint8))
    empty = np.zeros((10, 10), dtype=np.float32)
    plain, marked = (np.asarray(overlay(picture, empty, 1.0, mark)).astype(int) for mark in (None, Place(0.5, 0.25)))
    changed = np.abs(marked - plain).max(-1) > 60
    rows, cols = np.nonzero(changed)
    assert rows.mean() == pytest.approx(240, abs=1)
    assert cols.mean() == pytest.approx(120, abs=1)
    assert not changed[240, 120]


def test_a_ring_at_the_edge_and_on_a_tiny_picture_is_drawn():
    for size in ((1, 1), (3, 400)):
        overlay(noise_picture(size), np.ones((2, 2), dtype=np.float32), 1.0, Place(1.0, 1.0))


def test_large_pictures_are_shown_smaller_and_kept_as_they_are():
    picture = noise_picture((100, 3000))
    shown = preview(picture)
    assert shown.size == (PREVIEW_SIDE, round(100 * PREVIEW_SIDE / 3000))
    assert picture.size == (3000, 100)
    assert preview(noise_picture((9, 9))).size == (9, 9)


# Tables


@pytest.mark.parametrize(
    ("text", "header", "rows"),
    [
        ("a|b\n1|2", ["a", "b"], [["1", "2"]]),
        ("| Year | Sales |\n|---|---:|\n| 2015 | 4 |\n| 2016 | |", ["Year", "Sales"], [["2015", "4"], ["2016", ""]]),
        ("Here:\na | b <0x0A> 1 | 2 <0x0A> 3", ["a", "b"], [["1", "2"]]),
        ("a|b|c\n1\n2|3", ["a", "b", "c"], [["2", "3", ""]]),
    ],
)
def test_tables_are_read(text, header, rows):
    assert read_table(text) == (header, rows)


@pytest.mark.parametrize("text", ["", "49.2", "a|b", "|\n", "|---|---|\n|---|---|", "one\ntwo"])
def test_what_is_no_table_is_none(text):
    assert read_table(text) is None


def test_a_table_is_bounded():
    table = read_table("\n".join(["|".join("x" * 500)] * 5000))
    assert len(table.rows) == MAX_ROWS
    assert len(table.header) == len(table.rows[0]) == 50


def test_the_file_holds_the_cells_and_no_formula():
    table = read_table('name|value\n=cmd()|-3.5\n@x|+4 %\n-1+2|a "quoted", cell')
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [["name", "value"], ["'=cmd()", "-3.5"], ["'@x", "+4 %"], ["'-1+2", 'a "quoted", cell']]


# Conversations


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """A picture, the same one turned, a wide one, and what is no picture."""
    picture = Image.fromarray(smooth_pixels((30, 40)))
    contents = [
        encode(picture, "PNG"),
        encode(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(Orientation=6)),
        encode(noise_picture((20, 50)), "JPEG"),
        b"<svg onload=alert(1)>",
    ]
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.png").write_bytes(content)
    return [str(tmp_path / f"{index}.png") for index in range(4)]


@pytest.fixture(scope="module")
def desk():
    desk = Desk()
    yield desk
    desk.close()


SHORT = GenerationConfig(max_new_tokens=6, temperature=2.0, seed=1)


def test_pictures_stand_before_the_first_question(tiny, desk, paths):
    talk = Talk(tuple(paths[:2])).asked("one?")
    *_, talk = desk.answers(tiny, talk, SHORT)
    talk = talk.asked("two?")
    first, answer, second = talk.messages(lambda path: path)
    assert first["content"] == [
        {"type": "image", "image": paths[0]},
        {"type": "image", "image": paths[1]},
        {"type": "text", "text": "one?"},
    ]
    assert answer == {"role": "assistant", "content": talk.turns[0].answer}
    assert second == {"role": "user", "content": [{"type": "text", "text": "two?"}]}
    assert talk.without_last().turns == talk.turns[:1]


def test_an_answer_grows_to_what_chat_gives(tiny, desk, paths):
    talk = Talk((paths[0],)).asked("one?")
    grown = list(desk.answers(tiny, talk, SHORT))
    expected = tiny.answer(paths[0], "one?", config=SHORT)
    assert grown[-1].reply.token_ids == expected.token_ids
    assert grown[-1].reply.confidence == pytest.approx(expected.confidence)
    assert grown[-1].reply.timings.decode_s > 0
    texts = [each.reply.text for each in grown]
    assert texts == sorted(texts, key=len)
    assert expected.text.startswith(texts[0])


def test_a_follow_up_question_encodes_nothing_anew(tiny, desk, paths, monkeypatch):
    *_, talk = desk.answers(tiny, Talk((paths[2],)).asked("one?"), SHORT)
    monkeypatch.setattr(tiny.model, "encode", None)
    *_, talk = desk.answers(tiny, talk.asked("two?"), SHORT)
    assert len(talk.turns) == 2
    desk.look(tiny, talk, 0)


def test_a_stopped_answer_computes_no_more(tiny, desk, paths):
    growing = desk.answers(tiny, Talk((paths[0],)).asked("one?"), GenerationConfig(max_new_tokens=50))
    next(growing)
    steps = []
    hook = tiny.model.decoder.register_forward_pre_hook(lambda *_: steps.append(1))
    growing.close()
    hook.remove()
    assert steps == []


def test_a_look_shows_every_picture_and_marks_numbers_only(tiny, desk, paths):
    reply = tiny.answer(paths[0], "one?", config=SHORT)
    for text, is_marked in (("495", True), ("word", False)):
        written = type(reply)(**{**reply.__dict__, "text": text, "token_ids": [*text.encode()]})
        one = desk.look(tiny, Talk((paths[1],)).asked("?").answered(written), 0)
        assert [picture.size for picture in one.pictures] == [(40, 30)]
        assert one.shares == [pytest.approx(1, abs=1e-5)]
        assert one.is_marked is is_marked
        two = desk.look(tiny, Talk((paths[0], paths[2])).asked("?").answered(written), 0, layer=1)
        assert [picture.size for picture in two.pictures] == [(40, 30), (50, 20)]
        assert sum(two.shares) == pytest.approx(1, abs=1e-5)
        assert (
            two.pictures[two.strongest].tobytes()
            != desk.look(tiny, Talk((paths[0], paths[2])).asked("?").answered(written), 0, layer=0)
            .pictures[two.strongest]
            .tobytes()
        )


def test_a_word_that_is_gone_is_refused(tiny, desk, paths):
    for talk in (Talk(), Talk((paths[0],)).asked("?")):
        assert refusal(desk.look, tiny, talk, 0).code == "invalid_request"


def test_what_is_no_picture_is_left_out_with_a_reason(tiny, desk, paths):
    good, wrong = desk.checked((paths[0], paths[3], paths[2]))
    assert good == (paths[0], paths[2])
    assert wrong.code == "image_unsupported"
    assert len(wrong.message) <= 300
    assert str(Path(paths[3]).parent) not in wrong.message
    good, wrong = desk.checked((paths[0],) * (MAX_PICTURES + 1))
    assert len(good) == MAX_PICTURES
    assert wrong.message == f"{MAX_PICTURES + 1} pictures are too many; give at most {MAX_PICTURES}"
    assert desk.checked((paths[0],)) == ((paths[0],), None)


def test_a_picture_is_encoded_before_it_is_asked_about(tiny, desk, paths):
    encodings = []
    hook = tiny.model.encoder.register_forward_pre_hook(lambda *_: encodings.append(1))
    desk.prepare(tiny, (paths[1],))
    before = len(encodings)
    [*_] = desk.answers(tiny, Talk((paths[1],)).asked("?"), SHORT)
    hook.remove()
    assert len(encodings) == before


def test_pictures_are_decoded_in_another_process(desk, paths):
    desk.read(paths[0])
    assert desk._worker.pid is not None
    assert refusal(desk.read, paths[3]).code == "image_unsupported"
    gone = refusal(desk.read, "/no/such/file.png")
    assert (gone.code, gone.message) == ("invalid_request", "this picture is not kept any longer; add it again")


# Models and their cards


@pytest.fixture
def folder(tmp_path, tiny) -> Path:
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_loaded_once_and_only_if_it_is_offered(folder):
    shelf = ModelShelf([str(folder)], ["float32", "bfloat16"], "cpu")
    assert shelf.get(str(folder), "float32") is shelf.get(str(folder), "float32")
    assert str(shelf.get(str(folder), "bfloat16").info.dtype) == "torch.bfloat16"
    for name, dtype in (("/etc", "float32"), (str(folder), "float16"), (SHIPPED, "float32")):
        with pytest.raises(KeyError, match="is not offered"):
            shelf.get(name, dtype)


def test_a_card_is_shown_without_what_the_page_does_not_serve(folder):
    shelf = ModelShelf([str(folder)], [])
    assert shelf.card(str(folder)) is None
    assert shelf.writes_tables(str(folder)) is None
    card = "---\ntags:\n- chart-to-table\n---\n# Card\n![x](http://evil/x.png) see [the log](../x) <img src=y>\n"
    (folder / "README.md").write_text(card)
    assert shelf.card(str(folder)) == "# Card\n see the log"
    assert shelf.writes_tables(str(folder)) is True


def test_the_shipped_model_has_a_card_and_says_nothing_of_tables():
    shelf = ModelShelf([], [])
    assert shelf.names == [SHIPPED]
    assert "](" not in shelf.card(SHIPPED)
    assert shelf.writes_tables(SHIPPED) is False
