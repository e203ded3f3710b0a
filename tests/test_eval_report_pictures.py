"""The pictures of a report: each there once, shrunk as told, and a placeholder where there is none."""

import base64
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.records import ImageRef
from eval.report.pictures import LEVELS, NO_ROOM, _water_level, shrink
from tests.eval_data_sets import write_ai2d
from tests.eval_report_pages import Report
from tests.eval_reports import chart, noise, write_questions, write_run, write_two_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_two_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def both(folder) -> Report:
    return Report(folder / "both.html", folder / "first", folder / "second")


def picture_file(report: Report, place: int) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(report.pictures[f"picture-{place}"])))


def test_each_picture_is_there_once_however_many_questions_it_has(both):
    assert len(both.pictures) == 4
    assert [picture["name"] for picture in both.about["pictures"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert [row["pictures"] for row in both.rows["rows"]] == [[number // 3] for number in range(12)]
    assert picture_file(both, 2).size == (160, 120)


def test_pictures_are_shrunk_to_the_side_that_is_told(tmp_path):
    data = write_questions(tmp_path / "data", 3, picture=lambda number: chart(number, (3000, 1500)))
    report = Report(tmp_path / "report.html", write_run(tmp_path / "run", data))
    assert max(picture_file(report, 0).size) == LEVELS[0].side
    assert f"shrunk to {LEVELS[0].side} pixels on their longest side" in report.elements.text()
    assert report.about["pictures"][0]["size"] == [1500, 3000]


def test_missing_and_damaged_pictures_are_placeholders(tmp_path):
    data = write_questions(tmp_path / "data", 12)
    run = write_run(tmp_path / "run", data)
    (data / "1.png").unlink()
    (data / "2.png").write_bytes(chart(2)[:100])
    (data / "3.png").write_bytes(b"<svg onload=harm()>")
    report = Report(tmp_path / "report.html", run)
    problems = [picture["problem"] for picture in report.about["pictures"]]
    assert problems[0] is None
    assert all(problems[1:])
    assert set(report.pictures) == {"picture-0"}


@pytest.mark.parametrize("damage", ["gone", "other data", "no manifest", "odd manifest"])
def test_without_its_data_a_report_has_no_pictures_and_says_why(tmp_path, damage):
    data = write_questions(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", data)
    if damage == "gone":
        data.rename(tmp_path / "elsewhere")
    elif damage == "other data":
        for path in [*data.iterdir()]:
            path.unlink()
        write_ai2d(data / "ai2d")
    elif damage == "no manifest":
        (run / "manifest.json").unlink()
    else:
        (run / "manifest.json").write_text('{"data": 5, "tasks": [], "model": 7, "selection": null}')
    report = Report(tmp_path / "report.html", run)
    assert not report.pictures
    assert "Some pictures of chartqa are not shown: " in report.elements.text()
    assert len(report.rows["rows"]) == 3


def refs(contents: list[bytes]) -> list[ImageRef]:
    return [ImageRef(id=str(number), data=content) for number, content in enumerate(contents)]


@pytest.mark.parametrize("max_bytes", [0, 500, 20_000, 150_000, 10_000_000])
def test_pictures_stay_within_their_bytes_whatever_they_are(max_bytes):
    contents = [noise(number, (240, 180)) for number in range(6)] + [chart(number) for number in range(6)]
    found = shrink(refs(contents), max_bytes)
    assert sum(len(each.content or b"") for each in found) <= max_bytes
    assert all(each.content or each.problem == NO_ROOM for each in found)
    if max_bytes >= 20_000:
        assert all(each.content for each in found)


def test_what_pictures_like_all_others_is_not_made_smaller_for_the_sake_of_one():
    """One picture of chance among drawings: it gives way, they do not."""
    found = shrink(refs([chart(number, (600, 400)) for number in range(20)] + [noise(1, (800, 600))]), 150_000)
    assert {each.side for each in found[:-1]} == {LEVELS[0].side}
    assert 0 < found[-1].side < LEVELS[0].side


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=8), st.integers(0, 500))
def test_the_water_level_is_the_highest_that_fits(sizes, max_total):
    level = _water_level(sizes, max_total)
    assert sum(min(size, level) for size in sizes) <= max_total
    if level < max(sizes, default=0):
        assert sum(min(size, level + 1) for size in sizes) > max_total


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_every_mode_are_shown(mode):
    image = Image.linear_gradient("L")
    if mode == "I;16":
        image = image.convert("I").point(lambda value: value * 200)
    content = io.BytesIO()
    image.convert(mode).save(content, format="TIFF" if mode in ("CMYK", "I", "F") else "PNG")
    (found,) = shrink(refs([content.getvalue()]), 1_000_000)
    with Image.open(io.BytesIO(found.content)) as shown:
        assert shown.mode == "RGB"
        # Dark at the top and light at the bottom, as it was.
        assert shown.getpixel((128, 10))[0] < 60
        assert shown.getpixel((128, 245))[0] > 200


def test_transparent_pictures_stand_on_white_and_turned_ones_upright():
    content = io.BytesIO()
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(content, format="PNG")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 32), "red").save(turned, format="JPEG", exif=exif)
    clear, upright = shrink(refs([content.getvalue(), turned.getvalue()]), 100_000)
    with Image.open(io.BytesIO(clear.content)) as shown:
        assert min(shown.getpixel((5, 5))) > 250
    with Image.open(io.BytesIO(upright.content)) as shown:
        assert shown.size == (32, 64)
    assert upright.size == (64, 32)
