"""What is not shown is declined: what is named stands nowhere, in words of the split, and points nowhere."""

import math
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from vlm.training.reader import declining
from vlm.training.reader.targets import pointer_targets
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.synthetic.charts import ask, draw_chart
from vlm.training.synthetic.no_charts import _DRAW, ask_in_vain, draw_no_chart
from vlm.training.synthetic.questions import DECLINED
from vlm.training.synthetic.questions import declined as declined_questions
from vlm.training.synthetic.questions.absent import absent_name, near_miss
from vlm.training.synthetic.spec import bare_number
from vlm.training.synthetic.style import COLOURS
from vlm.training.synthetic.words import YEARS, phrase_in_split

TOKENIZER = reader_tokenizer()
SPLITS = ("train", "held_out")


@pytest.fixture(scope="module")
def charts():
    return [
        draw_chart(
            np.random.default_rng(seed),
            256,
            split=SPLITS[seed % 2],
            several_series=seed % 4 < 2,
            wide=seed % 6 == 0,
        )
        for seed in range(80)
    ]


@pytest.fixture(scope="module")
def declined(charts):
    return [
        (chart, question)
        for seed, chart in enumerate(charts)
        for question in ask(np.random.default_rng(seed), chart, 8, wide=True, share_declined=1.0)
    ]


def test_the_reply_is_one_token_a_word_and_no_other_answer_begins_with_its_first(charts):
    ids = TOKENIZER.encode(DECLINED)
    assert [TOKENIZER.decode([token]) for token in ids] == ["The", " picture", " does", " not", " show", " this", "."]
    for seed, chart in enumerate(charts):
        for question in ask(np.random.default_rng(seed), chart, 12, wide=True):
            assert TOKENIZER.encode(question.answer)[0] != ids[0]


def test_only_what_is_declined_has_the_reply(charts):
    for seed, chart in enumerate(charts):
        for question in ask(np.random.default_rng(seed), chart, 6, wide=True, share_declined=0.5):
            assert (question.answer == DECLINED) == (question.kind == "declined")


def test_most_charts_can_be_asked_in_vain(charts, declined):
    assert len(declined) > 6 * len(charts)
    assert {question.answer for _, question in declined} == {DECLINED}
    assert all(question.find_boxes == question.copy_boxes == () for _, question in declined)


def test_a_declined_question_names_a_label_series_value_or_colour_that_is_not_there(charts, monkeypatch):
    absent, kinds = [], Counter()
    monkeypatch.setattr(
        declined_questions, "absent_name", lambda *given: absent.append(absent_name(*given)) or absent[-1]
    )
    for seed, chart in enumerate(charts):
        values = {float(bare_number(mark.value)) for mark in chart.marks}
        colours = {*COLOURS[chart.spec.split]} - {mark.colour for mark in chart.marks}
        for question in ask(np.random.default_rng(seed), chart, 8, wide=True, share_declined=1.0):
            text, names = question.question, [name for name in absent if name]
            if any(is_named(name, text) for name in names):
                kinds["name"] += 1
            elif any(is_named(colour, text) for colour in colours):
                kinds["colour"] += 1
            else:
                numeral = re.sub(r"(?<=\d)[ ,](?=\d)", "", text).split("has")[-1].split("was")[-1]
                assert float(re.search(r"-?\d[\d.]*", numeral)[0].rstrip(".")) not in values, text
                kinds["value"] += 1
        absent.clear()
    assert min(kinds.values()) > 20
    assert kinds["name"] > kinds.total() / 2


def test_an_absent_colour_is_unlike_every_colour_shown(charts):
    asked = 0
    for seed, chart in enumerate(charts * 6):
        question = declined_questions._about_absent_colour(Random(seed), chart)
        for colour, shades in COLOURS[chart.spec.split].items() if question else ():
            if is_named(colour, question.question):
                assert min(math.dist(mark.shade, shade) for mark in chart.marks for shade in shades) > 80
                asked += 1
    assert asked > 60


def test_a_year_that_a_line_leads_over_is_not_called_absent():
    chart = draw_chart(np.random.default_rng(0), 224)
    spec = replace(chart.spec, labels=("1990", "2000", "2010"), label_kind="year")
    for kind, is_within in (("line", False), ("bar", True)):
        names = {absent_name(Random(seed), replace(chart, kind=kind, spec=spec), "2000", "year") for seed in range(60)}
        assert any("1990" < name < "2010" for name in names if name) == is_within


def test_a_value_that_is_not_printed_is_not_called_absent(charts):
    """Where only the ends of a line have their values, any other may be in the middle."""
    for chart in charts:
        some = replace(chart, marks=chart.marks[:-1])
        assert declined_questions._about_absent_value(Random(0), some) is None


def is_named(name, text):
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


@pytest.mark.parametrize("split", SPLITS)
def test_absent_names_are_of_the_split_and_stand_nowhere(split):
    random, near = Random(0), 0
    for seed in range(40):
        chart = draw_chart(np.random.default_rng(seed), 224, split=split)
        printed = "".join(character.char for character in chart.characters).casefold()
        texts = [*chart.spec.labels, *chart.spec.series_names, chart.title]
        for label in chart.spec.labels:
            name = absent_name(random, chart, label, chart.spec.label_kind)
            if name is None:
                continue
            assert not any(name.casefold() in text.casefold() for text in texts)
            assert name not in chart.series.get("", {})
            if chart.spec.label_kind == "year":
                years = [int(year) for year in re.findall(r"\d{4}", name)]
                assert all(YEARS[split][0] <= year <= YEARS[split][1] for year in years)
                assert len(name) == len(label)
            elif chart.spec.label_kind not in ("month", "quarter", "day"):
                assert phrase_in_split(name, split)
                assert name.replace(" ", "").casefold() not in printed
                near += len(name) == len(label) and sum(a != b for a, b in zip(name, label, strict=True)) in (1, 2)
    assert near > 20


def test_a_near_miss_differs_in_two_letters_and_keeps_its_capitals():
    random = Random(1)
    found = [near_miss(random, "Kestrel Bay", "train") for _ in range(60)]
    assert any(found)
    for name in filter(None, found):
        assert sum(a != b for a, b in zip(name, "Kestrel Bay", strict=True)) == 2
        assert name[0].isupper()
        assert name[8].isupper()
        assert phrase_in_split(name, "train")
    assert near_miss(random, "2014", "train") == ""


def test_a_declined_question_points_nowhere(declined):
    for chart, question in declined[:60]:
        prompt, reply = TOKENIZER.encode(question.question), [*TOKENIZER.encode(DECLINED), TOKENIZER.eot_id]
        pointers = pointer_targets(TOKENIZER, chart, question, prompt, reply, 8, (32, 32))
        assert not pointers.numbers.any()
        assert pointers.places.shape == (1, 1024)


@pytest.mark.parametrize("kind", sorted(_DRAW))
@pytest.mark.parametrize("shape", [(120, 200), (301, 257)])
def test_a_picture_without_print_has_its_shape(kind, shape):
    image, caption = _DRAW[kind](np.random.default_rng(3), *shape)
    assert (image.height, image.width) == shape
    assert image.mode == "RGB"
    assert caption.endswith(".")


def test_pictures_that_are_no_charts_come_in_all_kinds_and_are_functions_of_their_seed():
    drawn = [draw_no_chart(np.random.default_rng(seed), 160) for seed in range(50)]
    assert len({picture.caption for picture in drawn}) == len(_DRAW) + 2
    for seed in (0, 1, 2):
        again = draw_no_chart(np.random.default_rng(seed), 160)
        assert again.image.tobytes() == drawn[seed].image.tobytes()
        assert again.characters == drawn[seed].characters
    for picture in drawn:
        assert picture.image.size == (160, 160)
        assert bool(picture.characters) == (picture.caption in ("A page of print.", "A diagram."))


def test_all_that_is_asked_of_no_chart_is_declined_but_what_it_is():
    described = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        picture = draw_no_chart(rng, 120)
        for question in ask_in_vain(rng, picture, 6):
            is_description = "escribe this image" in question.question
            assert question.answer == (picture.caption if is_description else DECLINED)
            described += is_description
    assert described > 0


def test_the_sets_to_measure_with_are_held_out_and_of_their_size():
    sets = declining.held_out_sets(9, seed=3)
    assert list(sets) == ["answerable", "not_shown", "no_chart"]
    for name, asked in sets.items():
        questions = [question for _, questions in asked for question in questions]
        assert len(questions) == 9
        assert {question.answer == DECLINED for question in questions} == {name != "answerable"}
        assert not re.search(r"\b(19[7-9]\d|20\d\d)\b", " ".join(question.question for question in questions))
    again = declining.held_out_sets(9, seed=3)
    assert [image.tobytes() for image, _ in again["no_chart"]] == [image.tobytes() for image, _ in sets["no_chart"]]


class Parrot:
    """A model that declines everything, or nothing."""

    def __init__(self, text):
        self.text = text

    def answer_many(self, asked, config):
        return [self for _ in asked]


@pytest.mark.parametrize(("text", "share"), [(f" {DECLINED}\n", 1.0), ("The picture", 0.0), ("No", 0.0)])
def test_shares_declined_are_counted(text, share):
    assert declining.shares_declined(Parrot(text), 5) == {"answerable": share, "not_shown": share, "no_chart": share}


def test_the_script_writes_what_the_harness_reads(tmp_path, monkeypatch):
    from eval.tasks import find

    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    import draw_benchmark

    monkeypatch.setattr(sys, "argv", ["draw", "--declined", "--questions", "6", "--out", str(tmp_path)])
    draw_benchmark.main()
    for name in ("answerable", "not_shown", "no_chart"):
        samples = list(find("chartqa").load(tmp_path / name))
        assert len(samples) == 6
        assert all((sample.targets == (DECLINED,)) == (name != "answerable") for sample in samples)
    monkeypatch.setattr(sys, "argv", ["draw", "--declined"])
    with pytest.raises(SystemExit):
        draw_benchmark.main()
