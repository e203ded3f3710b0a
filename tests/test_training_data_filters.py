"""Filters: what each step leaves out, what it must not, and that a run finds the same samples when it goes on."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training_rows import write_jsonl
from vlm import VLMError
from vlm.prompt import Image, Text, Turn
from vlm.training.config import Filter, TrainConfig
from vlm.training.data.batches import Source
from vlm.training.data.filters import open_filters
from vlm.training.data.samples import Conversation, Document, Preference, Sample, sample_images, sample_text
from vlm.training.data.selection import COUNTS, PLACES, select
from vlm.training.data.source import open_rows
from vlm.training.settings import build

ENGLISH = "The lighthouse stands on the northern shore and guides the ships that come home in the evening."
GERMAN = "Der Leuchtturm steht am nördlichen Ufer und leitet die Schiffe, die am Abend nach Hause kommen."
LONG = (
    "In the spring the farmer ploughs the upper field, where the soil is light, and sows barley before the rain comes. "
    "His daughter counts the sheep every evening and writes their number into a small green book. When markets open "
    "in autumn they load the cart with wool, cheese and apples, and drive for three hours along the river to the town."
)
CHINESE = "灯塔矗立在北岸，指引着傍晚归航的船只。"


def document(text: str, *images: object) -> Document:
    return Document(parts=(*map(Image, images), Text(text)))


def kept(step: Filter, *samples: Sample) -> list[int]:
    (keeps,) = open_filters([step])
    return [place for place, sample in enumerate(samples) if keeps(sample)]


def words(count: int, start: int = 0) -> str:
    return " ".join(f"word{number * number + start}" for number in range(count))


def test_all_that_a_sample_says_is_looked_at():
    question, reply = Turn("user", (Image("a.png"), Text("q"))), Turn("assistant", (Text("a"),))
    assert sample_text(Conversation(turns=(question, reply))) == "q\na"
    assert sample_text(Preference(turns=(question,), chosen="b", rejected="c")) == "q\nb\nc"
    assert sample_images(Preference(turns=(question,), chosen="b", rejected="c")) == ["a.png"]
    assert sample_images(document("x", b"1", "2")) == [b"1", "2"]


def test_length_counts_characters_with_both_limits_among_those_that_stay():
    samples = [document("é" * number) for number in range(6)]
    assert kept(Filter(name="length", min_chars=2, max_chars=4), *samples) == [2, 3, 4]
    assert kept(Filter(name="length", max_chars=0), *samples) == [0]


def test_languages_that_are_not_wanted_and_texts_too_short_to_tell_go():
    samples = [document(text) for text in (ENGLISH, GERMAN, CHINESE, "42", "")]
    assert kept(Filter(name="language", languages=("en",)), *samples) == [0]
    assert kept(Filter(name="language", languages=("de", "zh")), *samples) == [1, 2]
    assert kept(Filter(name="language", languages=("en",), min_probability=1.0), *samples) == []


def test_duplicates_are_the_same_in_words_and_pictures():
    samples = [document("a", "1.png"), document("a", "2.png"), document("a", "1.png"), document("a"), document("a ")]
    samples += [document("a"), Conversation(turns=(Turn("user", (Text("a"),)),)), document("a", b"1.png")]
    assert kept(Filter(name="duplicates"), *samples) == [0, 1, 3, 4, 6, 7]


def test_near_duplicates_go_from_the_similarity_on_that_was_asked_for():
    """One word of sixty changed: of the pieces of five characters some 97 in 100 stay the same."""
    text = words(60)
    near, far = text.replace("word900 ", "other ").upper() + "  ", words(60, start=7)
    samples = [document(text), document(near), document(far), document(text, "a.png"), document(near, "a.png")]
    assert kept(Filter(name="near_duplicates"), *samples) == [0, 2, 3]
    assert kept(Filter(name="near_duplicates", similarity=1.0), *samples) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("every", [100, 40, 12])
def test_the_similarity_is_jaccards_of_pieces_of_five_characters(every):
    """Against sets counted in full, a fifth away from the limit on either side; 128 permutations err by a twentieth."""
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 3000)
    one = "".join(letters)
    letters[::every] = "#"
    two = "".join(letters)
    pieces = [{text[start : start + 5] for start in range(len(text) - 4)} for text in (one, two)]
    jaccard = len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])
    for limit, expected in ((min(1.0, jaccard + 0.2), 2), (jaccard - 0.2, 1)):
        found = kept(Filter(name="near_duplicates", similarity=limit), document(one), document(two))
        assert len(found) == expected, (jaccard, limit)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"name": "lenght"}, "filters.*expected one of length"),
        ({"name": "length"}, "length has no limit; expected min_chars or max_chars"),
        ({"name": "length", "min_chars": 1, "similarity": 0.5}, "similarity is no key of length"),
        ({"name": "duplicates", "max_chars": 3}, "max_chars is no key of duplicates; expected none"),
        ({"name": "language", "min_probability": 0.5}, "languages is missing"),
        ({"name": "near_duplicates", "similarity": 1.5}, "similarity is 1.5; expected more than 0 and at most 1"),
    ],
)
def test_a_step_that_says_nothing_is_refused(step, words):
    values = {"out": "x", "model": {"preset": "tiny"}, "data": [{"path": "x"}], "filters": [step]}
    with pytest.raises(VLMError, match=words):
        build(TrainConfig, values)


def test_an_unknown_language_is_refused():
    with pytest.raises(VLMError, match="'klingon', which py3langid does not know"):
        open_filters([Filter(name="language", languages=("en", "klingon"))])


@pytest.mark.parametrize(
    ("step", "module"),
    [
        (Filter(name="language", languages=("en",)), "py3langid"),
        (Filter(name="near_duplicates"), "datasketch"),
    ],
)
def test_a_missing_library_is_named_with_what_to_install(monkeypatch, step, module):
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VLMError, match=f"needs {module}, which is not installed; run: pip install {module}"):
        open_filters([step])


# The pass


def sources(folder: Path) -> list[Source]:
    texts = [ENGLISH, GERMAN, "short", ENGLISH, LONG]
    write_jsonl(folder / "a.jsonl", [{"text": text} for text in texts])
    write_jsonl(folder / "b.jsonl", [{"text": ENGLISH}, {"no": "layout"}, {"text": LONG.replace("barley", "barlex")}])
    return [Source(open_rows(str(folder / name)), folder) for name in ("a.jsonl", "b.jsonl")]


STEPS = (
    Filter(name="length", min_chars=10),
    Filter(name="language", languages=("en", "de", "fr"), min_probability=0.1),
    Filter(name="duplicates"),
    Filter(name="near_duplicates", similarity=0.9),
)


def test_steps_follow_one_another_over_all_sources_and_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = select(sources(tmp_path), STEPS, tmp_path / "run")
    assert [[one.lines.name(place) for place in range(len(one.lines))] for one in found] == [
        ["a.jsonl:1", "a.jsonl:2", "a.jsonl:5"],
        ["b.jsonl:2"],
    ]
    report = json.loads((tmp_path / "run" / COUNTS).read_text())
    assert [count["left_out"] for count in report["counts"]] == [
        {"1 length": 1, "2 language": 0, "3 duplicates": 1, "4 near_duplicates": 0},
        {"1 length": 0, "2 language": 0, "3 duplicates": 1, "4 near_duplicates": 1},
    ]
    assert "a.jsonl: the filters keep 3 of 5 samples (1 length 1" in caplog.text


def test_a_run_that_goes_on_takes_what_was_found_and_other_filters_do_not(tmp_path, caplog):
    run = tmp_path / "run"
    first = select(sources(tmp_path), STEPS, run)
    caplog.clear()
    again = select(sources(tmp_path), STEPS, run)
    assert caplog.text == ""
    assert [len(one.lines) for one in again] == [len(one.lines) for one in first]
    assert len(select(sources(tmp_path), STEPS[:1], run)[0].lines) == 4
    (run / PLACES).write_bytes(b"torn")
    assert len(select(sources(tmp_path), STEPS[:1], run)[0].lines) == 4
    longer = sources(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [{"text": ENGLISH}])
    longer[0] = Source(open_rows(str(tmp_path / "a.jsonl")), tmp_path)
    assert len(select(longer, STEPS[:1], run)[0].lines) == 1


def test_filters_that_leave_nothing_are_refused(tmp_path):
    with pytest.raises(VLMError, match=r"leave none of the 5 samples of a.jsonl.*loosen them"):
        select(sources(tmp_path), [Filter(name="length", min_chars=10_000)], tmp_path / "run")
