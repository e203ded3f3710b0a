"""The benchmark in examples/benchmark: it is what its scripts draw, it is fair, and the harness reads it."""

import importlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.tasks import find
from vlm.training.reader import score as reader_score
from vlm.training.synthetic import words as chart_words

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "examples" / "benchmark"
CHARTS, DIAGRAMS = BENCHMARK / "chartqa" / "test", BENCHMARK / "ai2d"
NUM_FIRST = 4
"""How many charts are drawn again; the rest costs too much for every run."""
UNAVOIDABLE = {"new"}
"""Words of the diagrams that training charts may print: nobody calls the new moon otherwise."""


@pytest.fixture(scope="module")
def script():
    """Return what imports a script of examples/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield importlib.import_module


@pytest.fixture(scope="module")
def pages(script):
    return list(script("draw_diagrams").diagrams())


@pytest.fixture(scope="module")
def chart_questions():
    return json.loads((CHARTS / "test_augmented.json").read_bytes())


@pytest.fixture(scope="module")
def diagram_questions():
    """Return (page number, question, record) of all diagrams."""
    found = []
    for number in range(1, len(list((DIAGRAMS / "questions").iterdir())) + 1):
        page = json.loads((DIAGRAMS / "questions" / f"{number}.png.json").read_bytes())
        found += [(number, question, record) for question, record in page["questions"].items()]
    return found


def letters(number: int) -> dict[str, str]:
    """Return which label each letter of a diagram stands for."""
    boxes = json.loads((DIAGRAMS / "annotations" / f"{number}.png.json").read_bytes())["text"].values()
    return {box["replacementText"]: box["value"] for box in boxes}


def assert_looks_the_same(image: Image.Image, path: Path) -> None:
    """Fonts are rendered a little differently by other versions of FreeType."""
    committed = Image.open(path)
    assert image.size == committed.size, path.name
    once, again = (np.asarray(each.convert("RGB"), dtype=float) for each in (image, committed))
    assert np.abs(once - again).mean() < 2, path.name


class Enough(Exception):
    pass


def test_the_charts_are_those_that_the_script_draws(script, chart_questions, monkeypatch):
    drawn, ask = [], reader_score.ask

    def ask_and_keep(rng, chart):
        questions = ask(rng, chart)
        if questions:
            drawn.append((chart.image, questions))
        if len(drawn) == NUM_FIRST:
            raise Enough
        return questions

    monkeypatch.setattr(reader_score, "ask", ask_and_keep)
    with pytest.raises(Enough):
        script("draw_benchmark").charts()
    for number, (image, questions) in enumerate(drawn, start=1):
        name = f"{number:04}.png"
        committed = [(row["query"], row["label"]) for row in chart_questions if row["imgname"] == name]
        assert committed == [(each.question, each.answer) for each in questions]
        assert_looks_the_same(image, CHARTS / "png" / name)


@pytest.mark.full
def test_the_chart_script_writes_the_committed_folder(script, tmp_path, chart_questions):
    draw = script("draw_benchmark")
    draw.write(tmp_path, draw.charts())
    assert json.loads((tmp_path / "test" / "test_augmented.json").read_bytes()) == chart_questions
    for path in (CHARTS / "png").iterdir():
        assert_looks_the_same(Image.open(tmp_path / "test" / "png" / path.name), path)


def test_the_diagram_script_writes_the_committed_folder(script, pages, tmp_path):
    script("draw_diagrams").write(tmp_path, pages)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert written == sorted(path.relative_to(DIAGRAMS) for path in DIAGRAMS.rglob("*") if path.is_file())
    for path in written:
        if path.suffix == ".png":
            assert_looks_the_same(Image.open(tmp_path / path), DIAGRAMS / path)
        elif path.parent.name == "questions":
            assert (tmp_path / path).read_bytes() == (DIAGRAMS / path).read_bytes()


def test_another_seed_gives_other_letters(script, pages):
    others = list(script("draw_diagrams").diagrams(seed=5))
    assert sum(page.letters != other.letters for page, other in zip(pages, others, strict=True)) > len(pages) / 2


def test_system_fonts_are_found_again_after_drawing(script):
    from vlm.training.synthetic.fonts import find_fonts

    before = find_fonts((), True)
    with script("draw_benchmark").only_matplotlibs_fonts():
        assert all("matplotlib" in path for path in find_fonts((), True))
        assert len(find_fonts((), True)) > 1
    assert find_fonts((), True) == before


def test_every_chart_question_has_its_picture_and_answer(chart_questions):
    assert len(chart_questions) == 250
    assert {row["imgname"] for row in chart_questions} == {path.name for path in (CHARTS / "png").iterdir()}
    assert all(row["query"].strip() and row["label"].strip() for row in chart_questions)
    assert len({(row["imgname"], row["query"]) for row in chart_questions}) == 250


def test_no_one_answer_is_right_often(chart_questions):
    (_, often) = Counter(row["label"].lower() for row in chart_questions).most_common(1)[0]
    assert often <= 0.05 * len(chart_questions)


def test_the_benchmark_is_small():
    assert sum(path.stat().st_size for path in BENCHMARK.rglob("*") if path.is_file()) < 2_500_000


def test_four_different_options_are_offered(diagram_questions):
    for _, question, record in diagram_questions:
        options = [option.casefold().strip() for option in record["answerTexts"]]
        assert len(set(options)) == len(options) == 4, question
        assert all(options), question
        assert 0 <= record["correctAnswer"] < 4


def test_right_answers_are_spread_evenly_over_the_letters(diagram_questions):
    counts = Counter(record["correctAnswer"] for _, _, record in diagram_questions)
    assert max(counts.values()) - min(counts[place] for place in range(4)) <= 1


def test_questions_about_letters_are_marked_and_right(diagram_questions):
    checked = Counter()
    for number, question, record in diagram_questions:
        labels = letters(number)
        answer = record["answerTexts"][record["correctAnswer"]]
        assert record["abcLabel"] == ("letter" in question), question
        if "Which letter" in question:
            assert set(record["answerTexts"]) <= set(labels), question
        named = re.fullmatch(r"Which letter (?:marks|stands for) the (.+)\?", question)
        if named and named[1] in labels.values():
            assert labels[answer] == named[1]
            checked["letter"] += 1
        if shown := re.fullmatch(r"What does the letter (.) mark\?", question):
            assert labels[shown[1]] == answer
            checked["label"] += 1
    assert checked["letter"] > 20
    assert checked["label"] >= 10


def test_what_is_not_labelled_is_not_labelled(diagram_questions):
    asked = [each for each in diagram_questions if each[1] == "Which of these is not labelled in the diagram?"]
    assert len(asked) >= 9
    for number, _, record in asked:
        missing = [option for option in record["answerTexts"] if option not in letters(number).values()]
        assert missing == [record["answerTexts"][record["correctAnswer"]]]


def test_boxes_of_letters_lie_in_the_picture_and_apart(pages):
    for page in pages:
        boxes = list(page.sheet.boxes.values())
        assert len(set(page.letters.values())) == len(boxes) == len(page.letters)
        for place, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= page.sheet.width
            assert 0 <= top < bottom <= page.sheet.height
            for other in boxes[:place]:
                assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


@pytest.fixture(scope="module")
def training_words():
    """Return the listed words that charts of the training split may print."""
    phrases = [phrase for kind in chart_words._LISTS for phrase in chart_words.words(kind, "train")]
    phrases += chart_words.months("train")
    return {word.lower() for phrase in phrases for word in phrase.split()} - chart_words.SHARED_WORDS


def test_no_word_of_the_diagrams_was_listed_for_training(pages, training_words):
    assert {"january", "energy"} <= training_words
    printed = {word.lower() for page in pages for text in page.sheet.printed for word in text.split()}
    assert len(printed) > 100
    assert printed & training_words <= UNAVOIDABLE


def test_the_harness_reads_the_charts(chart_questions):
    samples = list(find("chartqa").load(BENCHMARK))
    assert [(sample.question, sample.targets) for sample in samples] == [
        (row["query"], (row["label"],)) for row in chart_questions
    ]
    assert {sample.fields["split"] for sample in samples} == {"augmented"}
    assert all(sample.problem is None and Path(sample.images[0].path).is_file() for sample in samples)


@pytest.mark.parametrize("variant", ["opaque", "transparent", "raw"])
def test_the_harness_reads_the_diagrams(variant, diagram_questions):
    samples = list(find("ai2d").load(BENCHMARK, variant=variant))
    assert len(samples) == len(diagram_questions)
    for sample, (_, question, record) in zip(samples, diagram_questions, strict=True):
        assert sample.problem is None
        assert (sample.question, list(sample.options)) == (question, record["answerTexts"])
        assert sample.targets == ("ABCD"[record["correctAnswer"]],)
        assert sample.fields["option_is_label"] == record["answerTexts"][0].isupper()
    kinds = Counter((sample.fields["abc_label"], sample.fields["option_is_label"]) for sample in samples)
    assert min(kinds[True, True], kinds[True, False], kinds[False, False]) >= 10


def test_letters_stand_in_the_pictures_that_are_asked_about(diagram_questions):
    shown = {
        variant: [sample.images[0].read() for sample in find("ai2d").load(BENCHMARK, variant=variant, limit=6)]
        for variant in ("opaque", "transparent", "raw")
    }
    for (_, _, record), *pictures in zip(diagram_questions, *shown.values(), strict=False):
        assert len(set(pictures)) == (3 if record["abcLabel"] else 1)
