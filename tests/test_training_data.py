"""Training data: its layouts, its order, and what becomes of samples that cannot be used."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.training_rows import draw_pictures, write_jsonl
from vision_encoder.preprocess import ImageProcessor
from vlm import Tokenizer, VLMError, preset
from vlm.prompt import Image, Text, Turn
from vlm.training.data.batches import Example, Poison, Source, StepBatches
from vlm.training.data.layouts import read_sample
from vlm.training.data.order import Order
from vlm.training.data.samples import Conversation, Document, Preference
from vlm.training.data.text_files import JsonLines
from vlm.training.objectives import NextToken, SupervisedReplies

TOKENIZER = Tokenizer.bytes_only()
FOLDER = Path("pictures")
A, B = Image(FOLDER / "a.png"), Image(FOLDER / "b.png")
QUESTION = Turn("user", (A, Text("what?")))
ANSWER = Turn("assistant", (Text("that"),))
TALK = Conversation(turns=(QUESTION, ANSWER))


def openai(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "that"}]


LAYOUTS = {
    "ours": (
        {"id": 7, "messages": openai({"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"})},
        TALK,
    ),
    "messages with images apart": (
        {"messages": openai({"type": "text", "text": "<image>what?"}), "images": ["a.png"]},
        TALK,
    ),
    "messages of plain text": (
        {
            "messages": [{"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": "that"}],
            "images": ["a.png"],
        },
        TALK,
    ),
    "llava": (
        {
            "id": "x",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}],
        },
        TALK,
    ),
    "llava, image last": (
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "what?\n<image>"}, {"from": "gpt", "value": "that"}],
        },
        Conversation(turns=(Turn("user", (Text("what?"), A)), ANSWER)),
    ),
    "sharegpt with two images and a system text": (
        {
            "conversations": [{"from": "human", "value": "<image>and<image>?"}, {"from": "gpt", "value": "that"}],
            "images": ["a.png", "b.png"],
            "system": "be kind",
        },
        Conversation(turns=(Turn("system", (Text("be kind"),)), Turn("user", (A, Text("and"), B, Text("?"))), ANSWER)),
    ),
    "alpaca": (
        {
            "instruction": "<image>what?",
            "input": "now",
            "output": "that",
            "history": [["hi", "yes"]],
            "images": ["a.png"],
        },
        Conversation(
            turns=(
                Turn("user", (Text("hi"),)),
                Turn("assistant", (Text("yes"),)),
                Turn("user", (A, Text("what?\nnow"))),
                ANSWER,
            )
        ),
    ),
    "the placeholder is text where no image is named": (
        {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "that"}]},
        Conversation(turns=(Turn("user", (Text("<image>?"),)), ANSWER)),
    ),
    "alpaca with the whole prompt beside it": (
        {"instruction": "what?", "input": "", "output": "that", "text": "### Instruction: what? ### Response: that"},
        Conversation(turns=(Turn("user", (Text("what?"),)), ANSWER)),
    ),
    "messages with the whole prompt beside them": (
        {"messages": openai({"type": "text", "text": "what?"}), "text": "<user> what? <assistant> that"},
        Conversation(turns=(Turn("user", (Text("what?"),)), ANSWER)),
    ),
    "text beside an empty column": ({"text": "once", "messages": None}, Document(parts=(Text("once"),))),
    "text": ({"text": "once"}, Document(parts=(Text("once"),))),
    "caption": ({"image": "a.png", "text": "a dog"}, Document(parts=(A, Text("a dog")))),
    "images inside a text": (
        {"images": ["a.png", "b.png"], "text": "see <image> or <image>."},
        Document(parts=(Text("see "), A, Text(" or "), B, Text("."))),
    ),
    "preference": (
        {"messages": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"},
        Preference(turns=(Turn("user", (Text("q"),)),), chosen="yes", rejected="no"),
    ),
    "preference of turns": (
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
        Preference(turns=(Turn("user", (Text("q"),)),), chosen="yes", rejected="no"),
    ),
    "preference of sharegpt": (
        {
            "conversations": [{"from": "human", "value": "<image>q"}],
            "images": ["a.png"],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        Preference(turns=(Turn("user", (A, Text("q"))),), chosen="yes", rejected="no"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_of_each_layout_is_read_without_being_told(layout):
    row, expected = LAYOUTS[layout]
    assert read_sample(row, FOLDER) == expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "JSON list"),
        ({}, "expected messages"),
        ({"question": "a"}, "the row has question"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "tool"),
        ({"conversations": [{"from": "cat", "value": "q"}]}, "cat"),
        ({"conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "a"}],
          "image": "a.png"}, "2 <image> for 1 images"),
        ({"conversations": [{"from": "human", "value": "no"}, {"from": "gpt", "value": "a"}], "image": "a.png"},
         "0 <image> for 1 images"),
        ({"messages": [{"role": "user", "content": "q"}], "chosen": "a"}, "rejected is missing"),
        ({"text": 3}, "no string"),
        ({"text": "a", "images": [3]}, "no list of paths"),
    ],
)  # fmt: skip
def test_a_row_that_says_nothing_is_refused(row, words):
    with pytest.raises(VLMError, match=words) as caught:
        read_sample(row, FOLDER)
    assert caught.value.code == "invalid_request"
    assert len(caught.value.message) <= 300


# Order


def test_every_sample_comes_once_before_any_comes_again():
    order = Order([7], [1], seed=3)
    drawn = [order[place][1] for place in range(21)]
    epochs = [drawn[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_that_of_the_seed_from_wherever_it_is_asked():
    order, again = Order([50, 9], [1, 3], seed=1), Order([50, 9], [1, 3], seed=1)
    ahead = [again[place] for place in range(40_000, 40_020)]
    assert [order[place] for place in range(40_020)][40_000:] == ahead
    other = Order([50, 9], [1, 3], seed=2)
    assert [other[place] for place in range(20)] != [order[place] for place in range(20)]


def test_without_weights_every_sample_of_all_sources_comes_once_before_any_comes_again():
    sizes = [5, 40_000, 1]
    order, again = Order(sizes, None, seed=3), Order(sizes, None, seed=3)
    epochs = [[order[place] for place in range(start, start + sum(sizes))] for start in (0, sum(sizes))]
    everything = [(source, place) for source, size in enumerate(sizes) for place in range(size)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != everything
    assert [again[place] for place in range(40_000, 40_020)] == (epochs[0] + epochs[1])[40_000:40_020]
    one = Order([7], None, seed=3)
    assert [one[place] for place in range(20)] == [Order([7], [1], seed=3)[place] for place in range(20)]
    plain = Order([2, 3], None, seed=0, shuffle=False)
    assert [plain[place] for place in range(7)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 0), (0, 1)]


def test_sources_are_drawn_by_their_weights():
    order = Order([1000, 10], [1, 3], seed=0)
    counts = Counter(order[place][0] for place in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.75, abs=0.03)
    taken = [index for source, index in (order[place] for place in range(4000)) if source == 1]
    assert max(Counter(taken).values()) - min(Counter(taken).values()) <= 1


def test_without_shuffling_lines_come_as_they_stand():
    order = Order([3], [1], seed=0, shuffle=False)
    assert [order[place][1] for place in range(5)] == [0, 1, 2, 0, 1]


# Batches


def batches(path: Path, **settings) -> StepBatches:
    objective = SupervisedReplies(TOKENIZER, 512)
    settings = {"batch_size": 2, "seed": 0, "shuffle": False, "max_length": 100} | settings
    source = Source(JsonLines(path), path.parent, 1.0)
    return StepBatches([source], objective.rows, ImageProcessor(preset("tiny").vision), **settings)


def test_poison_is_named_and_leaves_its_neighbours_alone(tmp_path):
    draw_pictures(tmp_path, {"a.png": 9})
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    good = {"image": "a.png", "conversations": LAYOUTS["llava"][0]["conversations"]}
    path = tmp_path / "data.jsonl"
    lines = [
        json.dumps(good | {"id": "first"}),
        "",
        json.dumps(good | {"id": "bad picture", "image": "broken.png"}),
        json.dumps(good | {"image": "missing.png"}),
        "{no json",
        json.dumps({"id": "long", "messages": openai({"type": "text", "text": "x" * 200})}),
        json.dumps({"id": "kind", "text": "a document"}),
        json.dumps(good),
    ]
    path.write_text("\n".join(lines))
    data = batches(path, batch_size=7)
    step = data[0]
    assert [example.id for example in step.examples] == ["first", "data.jsonl:8"]
    assert [sample.id for sample in step.poison] == ["bad picture", "data.jsonl:4", "data.jsonl:5", "long", "kind"]
    reasons = " ".join(sample.reason for sample in step.poison)
    assert "no JSON" in reasons
    assert "max_length 100" in reasons
    assert "is a document" in reasons
    assert str(tmp_path) not in reasons
    assert [type(one) for one in data.every()].count(Poison) == 5


def test_sources_without_weights_are_gone_through_and_one_with_a_weight_is_drawn(tmp_path):
    lines = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}] * 3) for name in "ab"]
    for weight, is_drawn in ((None, False), (2.0, True)):
        sources = [Source(JsonLines(path), tmp_path, one) for path, one in zip(lines, (weight, None), strict=True)]
        data = StepBatches(sources, NextToken(TOKENIZER, 512, 9).rows, None, batch_size=6, seed=0, max_length=9)
        assert (data.order.shares is not None) == is_drawn
    assert data.order.shares.tolist() == [0.4, 0.6]


def test_a_step_is_the_same_whichever_came_before_it(tmp_path):
    rows = [{"id": str(place), "messages": openai({"type": "text", "text": f"{place}"})} for place in range(11)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    straight = batches(path, shuffle=True)
    ids = [[example.id for example in straight[step].examples] for step in range(8)]
    assert [[e.id for e in batches(path, shuffle=True)[step].examples] for step in (7, 2)] == [ids[7], ids[2]]
    assert all(isinstance(straight.read(0, place), Example) for place in range(11))


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), ("\n\n", "no sample lies in")])
def test_a_file_without_samples_is_refused(tmp_path, content, words):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(VLMError, match=words):
        batches(path)
