"""Our model as another harness asks it, without that harness."""

import io
import logging

import pytest
from PIL import Image

from eval.harnesses.guest import Ask, Guest, generation_of
from tests.eval_data_sets import picture
from tests.eval_models import save_tiny_model
from vlm import VLM, GenerationConfig, VLMError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("guest") / "tiny")


@pytest.fixture(scope="module")
def guest(folder) -> Guest:
    return Guest(str(folder), batch_size=3)


def ask(number: int, text: str = "Why?", **generation) -> Ask:
    image = Image.open(io.BytesIO(picture(number, (40, 30))))
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return Ask([{"role": "user", "content": content}], {"max_new_tokens": 5, **generation})


def test_replies_are_the_models_own_in_the_order_of_the_questions(folder, guest):
    asks = [ask(number // 2, f"Value {number}?", max_new_tokens=4 + number // 5) for number in range(8)]
    asks.append(Ask([*ask(1).messages, {"role": "assistant", "content": "Well, "}], {"max_new_tokens": 5}))
    model = VLM.from_pretrained(folder)
    expected = [
        model.chat(
            each.messages,
            config=GenerationConfig(**each.generation),
            continue_final=each.messages[-1]["role"] == "assistant",
        ).text
        for each in asks
    ]
    assert list(guest.replies(iter(asks))) == expected
    assert len(set(expected)) > 1


def test_a_question_that_cannot_be_answered_is_empty_and_logged_and_its_neighbours_are_answered(guest, caplog):
    torn = Ask([{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}], {"max_new_tokens": 5})
    with caplog.at_level(logging.ERROR):
        replies = list(guest.replies([ask(1), torn, ask(1)]))
    assert (replies[1], bool(replies[0]), replies[0] == replies[2]) == ("", True, True)
    assert "a question got no reply: " in caplog.text


def test_likelihood_is_that_of_the_reply_and_says_whether_it_is_the_greedy_one(guest):
    messages = ask(2).messages
    greedy = guest.model.chat(messages, config=GenerationConfig(max_new_tokens=4)).text
    own, other = guest.likelihood(messages, greedy), guest.likelihood(messages, " no such thing")
    (score,) = guest.model.score(messages, ["no such thing"])
    assert other == (score.logprob, False), "a blank before it is no part of a reply"
    if list(guest.model.tokenizer.encode(greedy)) == list(guest._greedy[2][: len(greedy.encode())]):
        assert own.is_greedy
    assert own.logprob > other.logprob


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ({}, {"max_new_tokens": 9, "stop": ()}),
        ({"max_gen_toks": 7, "until": ["\n\n", ""]}, {"max_new_tokens": 7, "stop": ("\n\n",)}),
        ({"max_new_tokens": 7, "until": "Q:"}, {"max_new_tokens": 7, "stop": ("Q:",)}),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 9, "stop": ()}),
        (
            {"temperature": 0.7, "top_p": 0.9, "top_k": None},
            {"max_new_tokens": 9, "stop": (), "temperature": 0.7, "seed": 0, "top_p": 0.9},
        ),
        ({"num_beams": 1, "temperature": 0, "top_p": None}, {"max_new_tokens": 9, "stop": ()}),
    ],
)
def test_a_harness_s_keywords_are_understood(wanted, fields):
    assert generation_of(wanted, default_tokens=9) == fields
    GenerationConfig(**fields)


def test_beam_search_is_refused():
    with pytest.raises(VLMError, match="num_beams is 5; this model is greedy or draws; give num_beams=1"):
        generation_of({"num_beams": 5}, default_tokens=9)
