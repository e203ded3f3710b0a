"""The report without a browser: what it counts, that nothing in it is anybody's HTML, and that it stays small."""

import base64
import io
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.cli import main
from eval.records import ImageRef
from eval.report import page, page_data, write_report
from eval.report.facets import answer_kind, facets, in_order, num_tiles, question_word
from eval.report.pictures import LEVELS, NO_ROOM, _water_level, shrink
from eval.report.run import read_runs
from eval.report.samples import side_by_side
from eval.report.scores import calibration, disagreement, groups, scorers_of, scores
from eval.scorers import Verdict
from eval.scoring import score_folder, verdicts
from tests.eval_data_sets import write_ai2d
from tests.eval_reports import HOSTILE, chart, noise, some_differ, write_questions, write_records, write_run
from vision_encoder.tiling import choose_canvas
from vlm import VLMError


class Elements(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the texts in them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.texts.append((self._open[-1], data))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))


class Report:
    """A report, written and read again."""

    def __init__(self, out: Path, *folders: Path):
        write_report(folders, out)
        self.html = out.read_text(encoding="utf-8")
        self.elements = Elements(self.html)
        self.about, self.rows, self.pictures = self._data()

    def _data(self):
        blocks = re.findall(r'<script type="([a-z/]+)" id="([a-z0-9-]+)">(.*?)</script>', self.html, re.DOTALL)
        found = {name: content for _, name, content in blocks}
        pictures = {name: content for name, content in found.items() if name.startswith("picture-")}
        return json.loads(found["about"]), json.loads(found["rows"]), pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve questions on four pictures, a run with a bit of everything, and one that is right but for one."""
    path = tmp_path_factory.mktemp("report")
    write_questions(path / "data", 12)
    write_run(path / "first", path / "data", differs=some_differ)
    write_run(path / "second", path / "data", differs=lambda number: {"prediction": "0"} if number == 5 else {})
    return path


@pytest.fixture(scope="module")
def one(folder) -> Report:
    return Report(folder / "one.html", folder / "first")


@pytest.fixture(scope="module")
def both(folder) -> Report:
    return Report(folder / "both.html", folder / "first", folder / "second")


# Scores


def test_the_scores_are_those_of_scores_json(folder):
    expected = score_folder(folder / "first")["tasks"]["chartqa"]["scores"]
    found = scores(side_by_side(read_runs([folder / "first"])), 1)
    assert list(found) == list(expected)
    for name, (score,) in found.items():
        assert score.summary.mean == expected[name]["mean"]
        assert score.stderr == expected[name]["stderr"]
        assert list(score.summary.wilson) == expected[name]["wilson"]
        assert (score.summary.n, score.num_unparsed) == (expected[name]["n"], expected[name]["unparsed"])
        assert score.mean_errors_wrong == expected[name]["mean_errors_wrong"]


def test_the_table_shows_every_scorer_with_its_errors(folder, one):
    expected = score_folder(folder / "first")["tasks"]["chartqa"]["scores"]
    table = one.html[one.html.index('<table class="scores">') : one.html.index("</table>")]
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in table.split("<tr")[2:]]
    for row, (name, score) in zip(rows, expected.items(), strict=True):
        assert name in row
        for number in (score["mean"], score["stderr"], *score["wilson"], score["mean_errors_wrong"]):
            assert f"{100 * number:.1f}" in row
        assert str(score["n"]) in row


def _place(found, name: str) -> int:
    return next(place for place, names in enumerate(found.alike) if name in names)


def test_disagreement_is_counted_by_pairs(folder):
    found = disagreement(side_by_side(read_runs([folder / "first"])), 0)
    ours, pix2struct = (_place(found, name) for name in ("ours", "pix2struct"))
    # "FINAL ANSWER: 14" is right for ours and not for pix2struct; all else both see alike.
    assert found.counts[ours][pix2struct] == found.counts[pix2struct][ours] == 1
    records = [outcome.record for outcome in read_runs([folder / "first"])[0].outcomes if outcome.is_answer]
    values = [{verdict.value for verdict in verdicts(record).values() if verdict} for record in records]
    assert found.num_any == sum(len(each) > 1 for each in values)
    assert 1 <= found.num_any < len(records)
    assert all(found.counts[place][place] == 0 for place in range(len(found.alike)))


def test_scorers_that_judge_every_answer_alike_are_put_together(folder):
    samples = side_by_side(read_runs([folder / "second"]))
    found = disagreement(samples, 0)
    assert {"ours", "pix2struct", "vlmevalkit"} <= set(found.alike[0])
    assert sorted(itertools.chain(*found.alike)) == sorted(scorers_of(samples))


def test_a_scorer_that_says_nothing_of_an_answer_does_not_disagree_about_it(folder):
    (sample, *_) = side_by_side(read_runs([folder / "second"]))
    said = [{"a": 1.0, "b": None, "c": 1.0}, {"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": None}]
    samples = [replace(sample, outcomes=[judged(sample.outcomes[0], values)]) for values in said]
    found = disagreement(samples, 0)
    assert found.alike == [["a"], ["b"], ["c"]]
    assert found.counts == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert found.num_any == 1


def judged(outcome, values: dict[str, float | None]):
    said = {name: None if value is None else Verdict(value, None) for name, value in values.items()}
    return replace(outcome, verdicts=said)


def test_groups_have_the_scores_of_their_members(folder):
    samples = side_by_side(read_runs([folder / "first", folder / "second"]))
    values = [sample.record.fields["split"] for sample in samples]
    found = dict(groups(samples, "split", values, "ours", 2).rows)
    # augmented 0 2 4 6 8 10: 2 is unparsed; human 1 3 5 7 9 11: 1 is wrong and 3 is an error.
    assert [(score.n, score.mean) for score in found["augmented"]] == [(6, 5 / 6), (6, 1.0)]
    assert [(score.n, score.mean) for score in found["human"]] == [(5, 4 / 5), (6, 5 / 6)]


def test_calibration_is_reckoned_by_hand(folder):
    found = calibration(side_by_side(read_runs([folder / "first"])), 0, "ours")
    # 0.3: one wrong; 0.6: one right; 0.9: nine, of which one is unparsed.
    assert [(each.n, each.confidence, each.mean) for each in found.bins] == [
        (1, 0.3, 0.0),
        (1, 0.6, 1.0),
        (9, pytest.approx(0.9), pytest.approx(8 / 9)),
    ]
    assert found.error == pytest.approx((0.3 + 0.4 + 9 * abs(8 / 9 - 0.9)) / 11)


def test_a_scorer_that_never_applies_is_left_out(folder):
    names = scorers_of(side_by_side(read_runs([folder / "first"])))
    assert names[0] == "ours"
    assert len(names) == len(set(names)) > 3


# Side by side


def test_runs_are_put_side_by_side_sample_by_sample(both):
    by_id = {row["id"]: row for row in both.rows["rows"]}
    assert len(by_id) == len(both.rows["rows"]) == 12
    assert [outcome.get("reply") for outcome in by_id["q5"]["runs"]] == ["15", "0"]
    assert by_id["q3"]["runs"][0]["error"] == "the picture cannot be read [image_corrupt]"
    assert both.about["runs"] == ["first", "second"]


def test_a_sample_that_one_run_lacks_is_null_there(folder, tmp_path):
    write_run(tmp_path / "part", folder / "data")
    lines = (tmp_path / "part" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part" / "predictions.jsonl").write_text("".join(lines[:4]))
    report = Report(tmp_path / "report.html", folder / "first", tmp_path / "part")
    assert [row["runs"][1] is None for row in report.rows["rows"]] == [False] * 4 + [True] * 8
    assert re.search(r"not answered yet</dt><dd[^>]*>8<", report.html)


def test_another_question_under_the_same_id_is_another_sample(folder, tmp_path):
    changed = write_questions(tmp_path / "data", 12, changed={0: {"question": "Something else?"}})
    report = Report(tmp_path / "report.html", folder / "first", write_run(tmp_path / "run", changed))
    assert [row["id"] for row in report.rows["rows"]].count("q0") == 2
    assert "has another question in each run" in report.elements.text()


def test_the_comparison_is_shown(both):
    text = " ".join(both.elements.text().split())
    assert "Compared: second against first" in text
    assert "On the 11 samples that both answered." in text


def test_runs_are_called_by_the_shortest_names_that_differ(tmp_path):
    data = write_questions(tmp_path / "data", 3)
    paths = [write_run(tmp_path / name, data) for name in ("a/x", "b/x")]
    assert [run.name for run in read_runs(paths)] == ["a/x", "b/x"]
    assert [run.name for run in read_runs(paths[:1])] == ["x"]
    assert [run.name for run in read_runs([paths[0], paths[0]])] == ["x", "x (2)"]


def test_the_variant_of_the_data_is_told(one, tmp_path):
    run = write_run(tmp_path / "run", write_ai2d(tmp_path / "ai2d"), task="ai2d")
    told = Report(tmp_path / "report.html", run).elements.text()
    assert "variantopaque" in told
    assert "variantopaque" not in one.elements.text()


def test_two_tasks_lie_in_one_report(folder, tmp_path):
    choices = write_run(tmp_path / "ai2d", write_ai2d(tmp_path / "data"), task="ai2d")
    report = Report(tmp_path / "report.html", folder / "first", choices)
    assert list(report.about["scorers"]) == ["ai2d", "chartqa"]
    assert {row["task"] for row in report.rows["rows"]} == {"ai2d", "chartqa"}
    variant = report.about["pictures"][0]
    assert (variant["name"], variant["problem"], variant["size"]) == ("1.png@opaque", None, [40, 60])


# What a sample shows


def test_a_row_holds_what_was_asked_and_what_came_of_it(one):
    by_id = {row["id"]: row for row in one.rows["rows"]}
    row, ours = by_id["q4"], one.about["scorers"]["chartqa"].index("ours")
    outcome = row["runs"][0]
    assert (row["question"], row["targets"]) == ("How many in year 4?", ["14"])
    assert (outcome["reply"], outcome["finish"], outcome["confidence"]) == ("FINAL ANSWER: 14", "stop", 0.6)
    value, span = outcome["verdicts"][ours]
    assert (value, outcome["extracted"][span]) == (1.0, "14")
    assert by_id["q2"]["runs"][0]["verdicts"][ours] == [0.0, -1, "unparsed"]


def test_the_prompt_is_whole(folder, one):
    record = json.loads((folder / "first" / "predictions.jsonl").read_text().splitlines()[7])
    prompt = one.rows["rows"][7]["runs"][0]["prompt"]
    assert "\n".join(one.rows["lines"][line] for line in prompt) == record["prompt"]


@pytest.mark.parametrize(
    ("targets", "options", "kind"),
    [
        (("2014",), (), "year"),
        (("14",), (), "number"),
        (("-1,200.5",), (), "number"),
        (("45%",), (), "percentage"),
        (("Yes",), (), "yes or no"),
        (("[a, b]",), (), "list"),
        (("Germany",), (), "text"),
        (("B",), (), "letter"),
        (("B",), ("root", "12"), "number"),
        (("C",), ("root", "12"), "letter"),
        (("3", "3", "three"), (), "number"),
        ((), (), None),
    ],
)
def test_the_kind_of_answer_is_told(targets, options, kind):
    assert answer_kind(targets, options) == kind


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("How many people?", "how many"),
        ("How long is it?", "how"),
        ("WHICH one?", "which"),
        ("Is it red?", "is, does, ..."),
        ("In which year?", "other"),
        ("", "other"),
    ],
)
def test_the_way_of_asking_is_told(question, word):
    assert question_word(question) == word


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(560, 4), (448, 4), (224, 9), (100, 1)]))
def test_tiles_are_counted_as_the_model_cuts_them(height, width, tiles):
    tile_size, max_tiles = tiles
    rows, cols = choose_canvas((height, width), tile_size=tile_size, max_tiles=max_tiles)
    assert num_tiles((height, width), tile_size=tile_size, max_tiles=max_tiles) == rows * cols


def test_facets_make_groups_and_name_no_samples(folder, both):
    found = both.about["facets"]
    # All pictures have one size, all answers are numbers: these make no groups. No field with 12 values of 12 does.
    assert found["split"] == {"values": ["augmented", "human"], "of": [0, 1] * 6}
    assert "tiles" not in found
    samples = side_by_side(read_runs([folder / "first"]))
    sizes = {name: (500, 400 + 900 * (name.id == "0.png")) for sample in samples for name in sample.pictures}
    assert facets(samples, sizes, {"tile_size": 560, "max_tiles": 4})["tiles"] == ["3"] * 3 + ["1"] * 9


def test_values_are_in_the_order_of_their_numbers():
    assert in_order(["10 cm", None, "9 cm", "b", "9 cm", "a", "²"]) == ["9 cm", "10 cm", "a", "b", "²"]


# Hostile texts


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Report:
    """Every text that a model, a data set or a file name brings is hostile."""
    path = tmp_path_factory.mktemp("hostile")
    name = "<img src=x onerror=window.harmed=9>"
    data = write_questions(path / name, 21)

    def replaced(number: int) -> dict:
        text = HOSTILE[number % len(HOSTILE)]
        named = {"id": f"{number} {text}", "question": text, "target": (text,), "images": (f"{text}{number}.png",)}
        named |= {"prompt": f"user:\n{text}", "fields": {"split": text, text: text, "category": text}}
        if number % 5 == 4:
            return named | {"error": text}
        reply = "" if number == 0 else f"FINAL ANSWER: {text}"
        return named | {"prediction": reply, "finish_reason": text, "options": (text, "b") if number % 2 else ()}

    write_run(path / f"{name}1", data, differs=replaced, model={"name": name, "processor": None})
    run = write_run(
        path / f"{name}2", data, differs=replaced, model={"name": name}, tasks={"chartqa": {"prompt": [name]}}
    )
    return Report(path / "report.html", path / f"{name}1", run)


def test_hostile_texts_make_no_elements(hostile, both):
    harmless, found = both.elements, hostile.elements
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in harmless.tags}
    assert not found.attributes("img")
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_hostile_texts_arrive_as_they_were(hostile):
    shown = [row["question"] for row in hostile.rows["rows"]]
    assert set(shown) == set(HOSTILE)
    assert "<" not in "".join(re.findall(r'id="(?:rows|about)">(.*?)</script>', hostile.html, re.DOTALL))
    replies = {row["runs"][0].get("reply") for row in hostile.rows["rows"]}
    assert f"FINAL ANSWER: {HOSTILE[0]}" in replies
    assert HOSTILE[0] in hostile.elements.text()


def test_the_file_is_ascii_so_that_no_text_can_break_its_encoding(hostile):
    assert hostile.html.isascii()


# Offline


def test_the_page_asks_the_network_for_nothing(both):
    for tag, attributes in both.elements.tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), f"{tag} {name}={attributes[name]}"
    style = "".join(text for tag, text in both.elements.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_security_policy_allows_this_script_and_style_alone(both):
    policy = next(each["content"] for each in both.elements.attributes("meta") if "http-equiv" in each)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert (rules["base-uri"], rules["form-action"]) == ("'none'", "'none'")
    script = re.findall(r"<script>(.*?)</script>", both.html, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", both.html, re.DOTALL)
    assert len(script) == len(style) == 1
    assert rules["script-src"] == f"'sha256-{page._digest(script[0])}'"
    assert rules["style-src"] == f"'sha256-{page._digest(style[0])}'"
    assert both.html.index("Content-Security-Policy") < both.html.index("<style>")


def test_the_script_writes_no_html():
    source = page._files(page._SCRIPT)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert word not in source


# Pictures


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


# Size


def write_large(folder: Path, num_samples: int, size: tuple[int, int], prompt_chars: int) -> Path:
    """Write a run with a picture of chance for each sample, and long texts that are all different."""
    contents = [noise(number, size) for number in range(8)]
    pictures = {number: {"image": f"{number}.png"} for number in range(num_samples)}
    data = write_questions(folder / "data", num_samples, changed=pictures)
    for number in range(num_samples):
        (data / f"{number}.png").write_bytes(contents[number % 8])
    text = "".join(chr(ord("a") + number % 26) for number in range(prompt_chars))
    return write_run(
        folder / "run",
        data,
        differs=lambda number: {"prompt": f"{number} {text}", "prediction": f"{text} {number}\nFINAL ANSWER: 5"},
    )


def test_a_report_stays_under_its_limit_whatever_the_pictures_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(page, "_RESERVED_BYTES", 250_000)
    monkeypatch.setattr(page_data, "MAX_TEXT_BYTES", 300_000)
    report = Report(tmp_path / "report.html", write_large(tmp_path, 16, (500, 400), 15_000))
    assert 500_000 < len(report.html) < 1_000_000
    assert len(report.pictures) == 16
    assert all(outcome["reply"].endswith("FINAL ANSWER: 5") for row in report.rows["rows"] for outcome in row["runs"])
    assert "characters are shown without their middle" in report.elements.text()


@pytest.mark.full
def test_three_thousand_samples_stay_under_thirty_megabytes(tmp_path):
    run = write_large(tmp_path, 3000, (1000, 800), 3000)
    write_report([run], tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    assert 15_000_000 < size < 30_000_000


def test_what_is_left_out_of_a_text_is_its_middle(folder):
    samples = side_by_side(read_runs([folder / "first"]))
    sample = samples[0]
    record = replace(sample.outcomes[0].record, prediction="start" + "x" * 100_000 + "FINAL ANSWER: 5")
    long = replace(sample, outcomes=[replace(sample.outcomes[0], record=record)])
    found = page_data.rows([long], {"chartqa": ["ours"]}, {}, max_bytes=6_000)
    reply = json.loads(found.json)["rows"][0]["runs"][0]["reply"]
    assert reply.startswith("startx")
    assert reply.endswith("FINAL ANSWER: 5")
    assert "characters left out" in reply
    assert len(found.json) <= 6_000
    assert found.num_cut >= 1


def test_of_very_many_samples_some_are_listed_evenly(monkeypatch, tmp_path):
    monkeypatch.setattr(page_data, "MAX_LISTED", 4)
    data = write_questions(tmp_path / "data", 12)
    report = Report(tmp_path / "report.html", write_run(tmp_path / "run", data))
    assert [row["id"] for row in report.rows["rows"]] == ["q0", "q3", "q6", "q9"]
    assert report.about["facets"]["split"]["of"] == [0, 1, 0, 1]
    assert "Of 12 samples 4 are listed, evenly spread" in report.elements.text()
    assert ">12</td>" in report.html


# The file


def test_the_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    data = write_questions(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", data)
    (tmp_path / "report.html").write_text("the old one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(VLMError, match=r"report\.html cannot be written"):
        write_report([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "report.html", "run"]


def test_the_folder_of_the_file_is_made(folder, tmp_path):
    write_report([folder / "first"], tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").exists()


def test_a_folder_without_answers_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(VLMError, match="'run' holds no answers"):
        write_report([tmp_path / "run"], tmp_path / "report.html")


def test_a_run_that_has_answered_nothing_yet_has_a_report(tmp_path):
    report = Report(tmp_path / "report.html", write_records(tmp_path / "run", []))
    assert "Nothing was answered yet." in report.elements.text()
    assert report.rows["rows"] == []


def test_a_run_of_errors_alone_has_a_report(tmp_path):
    data = write_questions(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", data, differs=lambda number: {"error": "it fails"})
    report = Report(tmp_path / "report.html", run)
    assert "no score" in report.elements.text()
    assert [row["runs"][0]["error"] for row in report.rows["rows"]] == ["it fails"] * 3


def test_the_same_runs_give_the_same_file(folder, one, tmp_path):
    assert Report(tmp_path / "again.html", folder / "first").html == one.html


def test_the_command_writes_the_report(folder, tmp_path):
    arguments = [
        "report",
        str(folder / "first"),
        str(folder / "second"),
        "--out",
        str(tmp_path / "both.html"),
        "--json",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["report"] == str(tmp_path / "both.html")
    assert (tmp_path / "both.html").read_text().startswith("<!DOCTYPE html>")


def test_importing_the_report_imports_nothing_heavy():
    program = """
import sys, eval.report
print([name for name in ("torch", "PIL", "jinja2", "scipy", "numpy", "pyarrow") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found.stderr
