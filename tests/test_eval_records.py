"""What passes between the parts of the harness, and the line that a prediction is in the log."""

import dataclasses
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.records import ImageRef, Prediction, Prompt, Sample
from vlm.errors import VLMError


def test_an_image_has_one_source(tmp_path):
    for sources in ({}, {"data": b"x", "path": tmp_path}, {"data": b"x", "load": lambda: b"x"}):
        with pytest.raises(ValueError, match="exactly one of path, data and load"):
            ImageRef(id="a", **sources)
    assert ImageRef(id="a", data=b"x").read() == ImageRef(id="a", load=lambda: b"x").read() == b"x"


def test_a_cluster_is_made_of_the_images_or_the_sample_itself():
    sample = Sample(id="s", task="t", images=(), question="q", targets=())
    assert sample.cluster == "s"
    images = tuple(ImageRef(id=name, data=b"x") for name in "ab")
    assert msgspec.structs.replace(sample, images=images).cluster == "a+b"


def test_two_versions_of_a_picture_are_one_cluster():
    """AI2D's diagram with letters and without; an "@" of a file's own name is left alone."""
    record = Prediction(
        **dict.fromkeys(("key", "prompt", "prediction", "token_ids", "finish_reason", "confidence", "error")),
        **{"id": "s", "task": "ai2d", "target": (), "fields": {"variant": "opaque"}},
    )
    names = ["1.png", "1.png@opaque", "chart@2x.png", "1.png@raw"]
    clusters = [dataclasses.replace(record, images=(name,)).cluster for name in names]
    assert clusters == ["1.png", "1.png", "chart@2x.png", "1.png@raw"]


def test_a_prompt_shows_every_turn():
    image = {"type": "image", "image": ImageRef(id="1.png", data=b"x")}
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [image, {"type": "text", "text": "Why?"}]},
    ]
    prompt = Prompt(messages=turns, prefill="Because", max_new_tokens=3, name="x")
    assert prompt.text() == "system:\nBe short.\n\nuser:\n<image: 1.png>Why?\n\nassistant:\nBecause"


TEXT = st.text(max_size=10)
PREDICTIONS = st.builds(
    Prediction,
    **{name: st.text(st.characters(), max_size=10) for name in ("id", "task", "key", "prompt", "question")},
    prediction=st.none() | st.text(st.characters(), max_size=10),
    token_ids=st.none() | st.lists(st.integers(0, 200_000)).map(tuple),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    confidence=st.none() | st.floats(0, 1),
    target=st.lists(TEXT).map(tuple),
    error=st.none() | TEXT,
    images=st.lists(TEXT).map(tuple),
    options=st.lists(TEXT).map(tuple),
    fields=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT),
    timings=st.none() | st.dictionaries(TEXT, st.floats(0, 1e6)),
    option_scores=st.none() | st.lists(st.none() | st.tuples(st.floats(-1e6, 0), st.integers(1, 99))).map(tuple),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(prediction=PREDICTIONS)
def test_a_prediction_is_one_line_and_comes_back(prediction):
    line = prediction.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert Prediction.from_json(line) == Prediction.from_json(line.encode()) == prediction


def test_the_first_fields_of_a_line_are_those_that_are_promised():
    names = [field.name for field in dataclasses.fields(Prediction)]
    promised = "id task key prompt prediction token_ids finish_reason confidence target error"
    assert " ".join(names[:10]) == promised


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        (b"\xff", "no JSON object"),
        ("{}", "lacks id, task, key"),
        ('{"id": "a", "x": 1}', "lacks task"),
    ],
)
def test_another_line_is_no_prediction(line, said):
    with pytest.raises(VLMError, match=said):
        Prediction.from_json(line)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction", 5),
        ("target", None),
        ("target", [5]),
        ("fields", 5),
        ("fields", {"a": [1]}),
        ("images", 7),
        ("option_scores", [[-1, 2, 3]]),
    ],
)
def test_a_field_of_another_type_is_named(name, value):
    texts = dict.fromkeys(("id", "task", "key", "prompt", "prediction", "finish_reason"), "a")
    record = {**texts, "token_ids": [1], "confidence": 1, "target": ["1"], "error": None}
    assert Prediction.from_json(json.dumps(record)).confidence == 1
    with pytest.raises(VLMError, match=f"a record of predictions has '{name}"):
        Prediction.from_json(json.dumps({**record, name: value}))


def test_an_unknown_field_of_a_prediction_is_named():
    line = Prediction(
        **dict.fromkeys(("id", "task", "key", "prompt"), "x"),
        **dict.fromkeys(("prediction", "token_ids", "finish_reason", "confidence", "error")),
        target=(),
    ).to_json()
    with pytest.raises(VLMError, match="unknown field 'more'"):
        Prediction.from_json(line[:-1] + ', "more": 1}')
