"""Files of questions about real charts, in ChartQA's layout: what is not as there is told by file and row."""

import json

import pytest

from vlm import VLMError
from vlm.training.reader.real_charts import read_questions

GOOD = {"imgname": "a.png", "query": "How much?", "label": 7}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '[{"imgname": ',
            r"train\.json is no JSON \(Expecting value: line 1 column 14 \(char 13\)\); expected .*; download",
        ),
        (b"\xff\xfe\xfa", r"train\.json is no JSON \('utf-16-le' codec"),
        ("[" * 100_000, r"train\.json is no JSON \("),
        (
            {"rows": [GOOD]},
            r"train\.json is of type dict; expected a list of rows with imgname, query and label, .*mend it",
        ),
        ([GOOD, ["a.png"]], r"row 1 of train\.json is of type list; expected .*; mend it or take it out"),
        ([GOOD, GOOD, {"imgname": "a.png", "label": "7"}], r"query of row 2 of train\.json is missing; expected"),
        ([GOOD | {"imgname": 3}], r"imgname of row 0 of train\.json is 3; expected"),
        ([GOOD | {"query": None}], r"query of row 0 of train\.json is None; expected"),
        ([GOOD | {"label": ["7"]}], r"label of row 0 of train\.json is of type list; expected"),
        ([GOOD | {"label": " "}], r"label of row 0 of train\.json is ' '; expected .* two texts"),
        ([GOOD | {"label": float("nan")}], r"label of row 0 of train\.json is nan; expected"),
        ([GOOD | {"label": True}], r"label of row 0 of train\.json is True; expected"),
        ([GOOD | {"query": ""}], r"query of row 0 of train\.json is ''; expected"),
        ([GOOD | {"imgname": "../a.png"}], r"imgname of row 0 of train\.json is '\.\./a\.png'; .* a file of png/"),
        ([GOOD | {"imgname": "/a.png"}], r"imgname of row 0 of train\.json is '/a\.png'; expected"),
        ([GOOD | {"imgname": "a\x1b.png"}], r"imgname of row 0 of train\.json is 'a\\x1b\.png'; expected"),
    ],
)
def test_malformed_questions_are_told_by_file_and_row(tmp_path, content, said):
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    (tmp_path / "train.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VLMError, match=said) as caught:
        read_questions(tmp_path)
    assert caught.value.code == "invalid_request"
    assert caught.value.message == caught.value.report
    assert str(tmp_path) not in caught.value.message


def test_a_label_may_be_a_number(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([GOOD, GOOD | {"label": 7.5}]))
    assert read_questions(tmp_path) == {"a.png": [("How much?", "7"), ("How much?", "7.5")]}
