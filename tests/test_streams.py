"""Replies piece by piece, and several at once: streams, threads, and the caller's gradient mode."""

import threading

import pytest
import torch

from tests.conversations import END_OF_TURN, MIXED, changed_logits, forced, refusal, user
from vlm import VLM, GenerationConfig, Tokenizer, VLMError

SHORT = GenerationConfig(max_new_tokens=5)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_joined_are_the_text(tiny, seed):
    """The random model writes random bytes: characters cut through, and stop texts across tokens."""
    for stop in ((), ("\x05", "a", "\ufffd\ufffd"), ("\ufffd",)):
        config = GenerationConfig(max_new_tokens=40, temperature=1.5, seed=seed, stop=stop)
        reply = tiny.chat(MIXED[seed], config=config)
        pieces = list(tiny.stream(MIXED[seed], config=config))
        assert "".join(pieces) == reply.text
        assert all(pieces)
        assert not any(text in reply.text for text in stop)


def test_a_stream_never_splits_a_character_nor_shows_a_stop_text(tiny):
    written = [*"é€😀x ST".encode(), *b"OP", 97]
    with changed_logits(tiny, forced(written)):
        pieces = list(tiny.stream(user("x"), config=GenerationConfig(stop=["STOP", "STEP"])))
    assert pieces == ["é", "€", "😀", "x", " "]
    with changed_logits(tiny, forced([*b"ST", 0xF0, 0x9F, END_OF_TURN])):
        pieces = list(tiny.stream(user("x"), config=GenerationConfig(stop=["STOP"])))
    assert pieces == ["ST\ufffd"]


def test_a_stream_says_what_is_wrong_before_it_begins(tiny):
    """A server can still answer with a status of its own then."""
    assert refusal(tiny.stream, user("a" * 600)).code == "context_length_exceeded"
    assert refusal(tiny.stream, user(b"nonsense")).code == "image_unsupported"
    assert refusal(tiny.stream, [{"role": "tool", "content": "x"}]).code == "invalid_request"
    assert refusal(tiny.stream, user("a"), config={"seed": 1}).code == "invalid_request"


def test_a_stream_computes_no_more_than_is_asked_for(tiny):
    steps = []
    hook = tiny.model.decoder.register_forward_pre_hook(lambda _, inputs: steps.append(inputs[0].shape[1]))
    stream = tiny.stream(user("x"), config=GenerationConfig(max_new_tokens=50, stop="\x00"))
    assert steps == []
    next(stream)
    taken = len(steps)
    assert taken < 12
    stream.close()
    assert next(stream, None) is None
    hook.remove()
    assert len(steps) == taken


def test_a_stream_leaves_the_callers_gradient_mode_alone(tiny):
    stream = tiny.stream(user("x"), config=SHORT)
    with torch.enable_grad():
        for _ in stream:
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            weight = torch.ones(1, requires_grad=True)
            (weight * 2).backward()
    stream = tiny.stream(user("x"), config=SHORT)
    with torch.no_grad():
        next(stream)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    with pytest.raises(VLMError):
        tiny.chat(user("a" * 600))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_streams_may_be_read_in_turn(tiny):
    config = GenerationConfig(max_new_tokens=8)
    streams = [tiny.stream(messages, config=config) for messages in MIXED[:3]]
    texts = ["", "", ""]
    for _ in range(9):
        for place, stream in enumerate(streams):
            texts[place] += next(stream, "")
    assert texts == [tiny.chat(messages, config=config).text for messages in MIXED[:3]]


def test_threads_answer_as_if_alone(tiny_model):
    shared = VLM(tiny_model, Tokenizer.bytes_only())
    config = GenerationConfig(max_new_tokens=6, temperature=1, seed=1)
    expected = [shared.chat(messages, config=config).token_ids for messages in MIXED]
    fresh = VLM(tiny_model, Tokenizer.bytes_only(), cache_bytes=200_000)
    found = [[] for _ in range(4)]

    def work(place: int) -> None:
        for step in range(len(MIXED)):
            messages = MIXED[(step + 2 * place) % len(MIXED)]
            if place % 2:
                found[place].append("".join(fresh.stream(messages, config=config)))
            else:
                found[place].append(fresh.chat(messages, config=config).token_ids)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, replies in enumerate(found):
        turned = [expected[(step + 2 * place) % len(MIXED)] for step in range(len(MIXED))]
        assert replies == ([shared.tokenizer.decode(ids) for ids in turned] if place % 2 else turned)
