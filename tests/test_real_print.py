"""Real print: where its characters are, what is left untold, and that pictures are varied together with it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vision_encoder.preprocess import ImageProcessor
from vlm import VLMError
from vlm.config import preset
from vlm.training.reader.real_charts import RealCharts
from vlm.training.reader.real_pictures import CANVAS, varied
from vlm.training.reader.real_print import IGNORED, PrintedPicture, RealPrint, characters_of, print_targets
from vlm.training.synthetic.boxes import Character

PROCESSOR = ImageProcessor(replace(preset("default").vision, tile_size=304))
GRID = (76, 76)
LINES = {
    "Most say the economy is good": (20, 14, 20),
    "% of U.S. adults, by age": (20, 60, 14),
    "Republican": (60, 120, 12),
    "53%": (200, 160, 16),
    "1,204.5": (300, 220, 13),
    "2009 2010": (40, 300, 12),
    "PEW RESEARCH CENTER": (20, 380, 11),
}


def _draw(draw, text, x, y, size):
    """Print a line; return its box, and the centres of its characters."""
    font = ImageFont.load_default(size)
    draw.text((x, y), text, fill="black", font=font, anchor="ls")
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    capital = -font.getbbox("H", anchor="ls")[1]
    centres = [
        Character(char, x + font.getlength(text[:place]) + font.getlength(char) / 2, y - capital / 2)
        for place, char in enumerate(text)
        if char != " "
    ]
    return [x + left, y + top, x + right, y + bottom], centres


def _folder(folder, *, size=(500, 420), extra=(), rows=None):
    """Write a folder in OpenCQA's layout with one chart; return it and the true centres."""
    (folder / "png").mkdir(parents=True)
    (folder / "bboxes").mkdir()
    image = Image.new("RGB", size, "white")
    draw, found, truth = ImageDraw.Draw(image), [], []
    for text, (x, y, height) in LINES.items():
        box, centres = _draw(draw, text, x, y + height, height)
        found.append({"sentence": text + " ", "bounding_box": box})
        truth += centres
    for text, box, drawn in extra:
        draw.rectangle(drawn, fill="grey") if drawn else None
        found.append({"sentence": text, "bounding_box": box})
    image.save(folder / "png" / "7.png")
    (folder / "bboxes" / "7.json").write_text(json.dumps(found if rows is None else rows))
    return folder, truth


def _targets(image, characters, sure, unsure=()):
    picture = PrintedPicture(image, list(characters), list(sure), list(unsure))
    return print_targets(picture, 8, GRID, 2).reshape(*GRID, 2)


def test_characters_are_found_where_they_are_printed(tmp_path):
    folder, truth = _folder(tmp_path)
    (page,) = RealPrint(folder, PROCESSOR, silent=True).pages
    assert page.text == "".join(each.char for each in truth)
    assert not len(page.unsure)
    widths = [size * 0.5 for text, (_, _, size) in LINES.items() for char in text if char != " "]
    for (x, y), true, width in zip(page.centres, truth, widths, strict=True):
        assert abs(x - true.x) < 0.4 * width, true
        assert abs(y - true.y) < 1.6, true


@pytest.mark.parametrize("path", ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf"])
def test_characters_of_other_faces_are_found_too(path):
    folder = pytest.importorskip("matplotlib").get_data_path()
    font = ImageFont.truetype(f"{folder}/fonts/ttf/{path}", 14)
    text = "Views of the economy, 2018 (in %)"
    image = Image.new("L", (400, 40), "white")
    ImageDraw.Draw(image).text((10, 28), text, fill="black", font=font, anchor="ls")
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    found = characters_of(text, (10 + left, 28 + top, 10 + right, 28 + bottom), np.asarray(image))
    true = [
        10 + font.getlength(text[:place]) + font.getlength(char) / 2 for place, char in enumerate(text) if char != " "
    ]
    assert [each.char for each in found] == list(text.replace(" ", ""))
    assert np.abs(np.array([each.x for each in found]) - true).max() < 0.4 * 14 * 0.6
    assert abs(found[0].y - (28 - 14 * 0.73 / 2)) < 1.5


def test_spaces_between_words_may_be_of_any_width():
    image = Image.new("L", (400, 40), "white")
    boxes = [_draw(ImageDraw.Draw(image), text, x, 26, 13) for text, x in (("2009", 10), ("2010", 90), ("2011", 300))]
    found = characters_of("2009 2010 2011", (10, boxes[0][0][1], boxes[2][0][2], 26), np.asarray(image))
    true = [each for _, centres in boxes for each in centres]
    assert np.abs(np.array([each.x for each in found]) - [each.x for each in true]).max() < 3


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("Café", "Cafe"),  # no ASCII
        ("Republicans and Democrats", "Republicans"),  # more than is printed
        ("Rep", "Republicans"),
        ("no", "Republicans"),
        ("yes 12 no", "yes no"),
        ("--", "--"),  # nothing to read
        ("", "Yes"),
    ],
)
def test_lines_that_are_not_what_is_printed_are_unsure(said, printed):
    image = Image.new("L", (300, 40), "white")
    box, _ = _draw(ImageDraw.Draw(image), printed, 10, 26, 13)
    assert characters_of(printed, box, np.asarray(image)) or not any(char.isalnum() for char in printed)
    assert characters_of(said, box, np.asarray(image)) == []


def test_turned_text_and_boxes_without_print_are_unsure():
    image = Image.new("L", (100, 30), "white")
    _draw(ImageDraw.Draw(image), "Percent", 10, 20, 13)
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_90))
    x, y = np.flatnonzero((turned < 128).any(0)), np.flatnonzero((turned < 128).any(1))
    assert characters_of("Percent", (x[0], y[0], x[-1] + 1, y[-1] + 1), turned) == []
    assert characters_of("Percent", (5, 5, 60, 20), np.full((30, 100), 200, dtype=np.uint8)) == []
    assert characters_of("Percent", (5, 5, 7, 20), np.asarray(image)) == []
    assert characters_of("Percent", (70, 5, 130, 20), np.asarray(image)) == []


def test_only_sure_print_and_flat_ground_teach():
    image = Image.new("RGB", (500, 420), "white")
    draw = ImageDraw.Draw(image)
    box, centres = _draw(draw, "Yes", 40, 60, 14)
    missed, _ = _draw(draw, "missed", 200, 60, 14)
    doubted, _ = _draw(draw, "doubted", 320, 60, 14)
    draw.rectangle((100, 200, 203, 299), fill="navy")
    targets = _targets(image, centres, [box], [doubted])
    for each in centres:
        place = targets[int(each.y // 8), int(each.x // 8)]
        assert ord(each.char) - 31 in place
    for x0, y0, x1, y1 in (missed, doubted):
        row = targets[int((y0 + y1) / 2 // 8), int(x0 // 8) + 1 : int(x1 // 8)]
        assert (row == IGNORED).all()
    assert (targets[27:36, 14:25] == 0).all()  # inside the bar
    assert (targets[25:37, 12] == IGNORED).all()  # its edge
    assert (targets[:, 62 + 1 :] == 0).all()  # beyond the picture
    assert (targets[45:, :] == 0).all()
    assert set(np.unique(targets[targets > 0])) == {ord(char) - 31 for char in "Yes"}


def test_sure_print_in_an_unsure_box_is_ignored():
    image = Image.new("RGB", (500, 420), "white")
    box, centres = _draw(ImageDraw.Draw(image), "Yes", 40, 60, 14)
    targets = _targets(image, centres, [box], [(0, 30, 200, 80)])
    assert (targets <= 0).all()
    assert (targets == IGNORED).any()


def test_the_print_of_a_varied_picture_stays_on_its_ink_and_fills_its_canvas(tmp_path):
    folder, _ = _folder(tmp_path, extra=[("Unsure", [300, 100, 420, 140], (300, 100, 420, 140))])
    real = RealPrint(folder, PROCESSOR, silent=True)
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(12):
        picture = real.choose(rng)
        height, width = picture.image.height, picture.image.width
        assert PROCESSOR.placement((height, width)) == (CANVAS, (height, width))
        sizes.add((height, width))
        grey = np.asarray(picture.image.convert("L")).astype(int)
        ground = grey[0, 0]
        for char, x, y in picture.characters:
            around = grey[round(y) - 6 : round(y) + 8, round(x) - 2 : round(x) + 3]
            assert ground - around.min() > 60, char
        classes = print_targets(picture, 8, GRID, 2)
        assert classes.dtype == np.int64
        assert classes.shape == (76 * 76, 2)
        assert (classes > 0).sum() > 0.9 * len(picture.characters)
        assert len(picture.unsure) == 1
    assert len(sizes) > 6


def test_small_pictures_are_enlarged_and_those_that_never_fill_the_canvas_left_out(tmp_path):
    folder, _ = _folder(tmp_path / "a", size=(400, 400))
    assert RealPrint(folder, PROCESSOR, silent=True).pages[0].enlarge == (1.0, pytest.approx(608 / 400))
    image = Image.open(folder / "png" / "7.png").crop((0, 0, 270, 210))
    image.save(folder / "png" / "7.png")
    rows = json.loads((folder / "bboxes" / "7.json").read_bytes())[:3]
    (folder / "bboxes" / "7.json").write_text(json.dumps(rows))
    real = RealPrint(folder, PROCESSOR, silent=True)
    assert 1.4 < real.pages[0].enlarge[0] < 1.6
    picture = real.choose(np.random.default_rng(0))
    assert PROCESSOR.placement((picture.image.height, picture.image.width))[0] == CANVAS
    image.crop((0, 0, 270, 100)).save(folder / "png" / "7.png")
    (folder / "bboxes" / "7.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(VLMError, match=r"none of 1 charts in a has print whose place is sure and fills 2 by 2 tiles"):
        RealPrint(folder, PROCESSOR, silent=True)


@pytest.mark.parametrize("size", [(800, 557), (557, 800), (400, 390), (309, 160 + 2), (1600, 830), (3000, 2000)])
def test_varied_pictures_keep_their_canvas(size):
    rng = np.random.default_rng(0)
    image = Image.new("RGB", size, (250, 240, 230))
    enlarge = 608 / max(size) if size[1] < 200 else 1.0
    for _ in range(20):
        picture, scale, shift = varied(image, rng, PROCESSOR, enlarge)
        assert PROCESSOR.placement((picture.height, picture.width)) == (CANVAS, (picture.height, picture.width))
        assert picture.size == tuple(round(size[axis] * scale[axis]) + shift[axis] for axis in (0, 1))
        assert len(picture.getcolors()) == 1  # moved by its own ground


def test_a_real_chart_is_never_seen_twice_the_same_and_is_a_function_of_its_generator(tmp_path):
    folder, _ = _folder(tmp_path)
    (folder / "train.json").write_text(json.dumps([{"imgname": "7.png", "query": "How much?", "label": "53%"}]))
    real = RealCharts(folder, PROCESSOR, silent=True)
    rng = np.random.default_rng(0)
    (first, asked), (second, _) = real.choose(rng), real.choose(rng)
    assert asked == [("How much?", "53%")]
    assert first.tobytes() != second.tobytes()
    assert real.choose(np.random.default_rng(0))[0].tobytes() == first.tobytes()


ROW = {"sentence": "Yes", "bounding_box": [1, 2, 30, 12]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"rows": []}, r"7\.json is of type dict; expected a list of rows with sentence and bounding_box, .*; mend it"),
        ([ROW, 3], r"row 1 of 7\.json is 3; expected"),
        ([{"bounding_box": [1, 2, 3, 4]}], r"sentence of row 0 of 7\.json is missing; expected"),
        ([ROW | {"sentence": 7}], r"sentence of row 0 of 7\.json is 7; expected"),
        ([{"sentence": "Yes"}], r"bounding_box of row 0 of 7\.json is missing"),
        ([ROW | {"bounding_box": "1 2 3 4"}], r"bounding_box of row 0 of 7\.json is '1 2 3 4'"),
        ([ROW | {"bounding_box": [1, 2, 3]}], r"bounding_box of row 0 of 7\.json is of type list"),
        ([ROW | {"bounding_box": [1, 2, True, 4]}], r"bounding_box of row 0 of 7\.json is of type list"),
        ([ROW | {"bounding_box": [1, 2, float("inf"), 4]}], r"bounding_box of row 0 of 7\.json is of type list"),
        ([ROW, ROW | {"bounding_box": [1, 2, -(10**400), 4]}], r"bounding_box of row 1 of 7\.json is of type list"),
        (
            [ROW | {"bounding_box": [30, 2, 1, 12]}],
            r"is \[30, 2, 1, 12\] of a picture of 500 by 420; expected .* pixels",
        ),
        ([ROW | {"bounding_box": [600, 2, 640, 12]}], r"is \[600, 2, 640, 12\] of a picture of 500 by 420; expected"),
        ([ROW | {"bounding_box": [-9, 2, -1, 12]}], r"is \[-9, 2, -1, 12\] of a picture of 500 by 420; expected"),
    ],
)
def test_malformed_boxes_are_told_by_file_and_row(tmp_path, rows, said):
    folder, _ = _folder(tmp_path, rows=rows)
    with pytest.raises(VLMError, match=said) as caught:
        RealPrint(folder, PROCESSOR, silent=True)
    assert caught.value.code == "invalid_request"
    assert str(tmp_path) not in caught.value.message


def test_missing_folders_pictures_and_broken_files_are_told(tmp_path):
    with pytest.raises(VLMError, match=r"^gone holds no text boxes; expected bboxes/\*\.json and png/ as in OpenCQA"):
        RealPrint(tmp_path / "gone", PROCESSOR, silent=True)
    folder, _ = _folder(tmp_path / "a")
    (folder / "bboxes" / "7.json").write_text('[{"sentence": ')
    with pytest.raises(VLMError, match=r"^7\.json is no JSON \(.*\); expected .*; download it again, or take it out"):
        RealPrint(folder, PROCESSOR, silent=True)
    (folder / "png" / "7.png").unlink()
    with pytest.raises(VLMError, match=r"^png/7\.png: found no file"):
        RealPrint(folder, PROCESSOR, silent=True)
