"""Decoding: alone and in a batch, against whole passes, to its limits, and with numbers that are none."""

import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.conftest import random_model
from tests.conversations import END_OF_TURN, FOUR_TILES, HEADER, META_IMAGE, MIXED, SMALL, changed_logits, forced, user
from vlm import VLM, GenerationConfig, ModelConfig, Tokenizer, VLMError, preset
from vlm.config import DecoderConfig
from vlm.generation.generate import prefill


@contextmanager
def changed_weight(weight: torch.Tensor, place, value: float):
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[place] = value
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.fixture(scope="module")
def plain() -> VLM:
    """A pipeline whose model writes bytes alone, so that every reply has as many tokens as it may."""
    vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    given = vlm.model.decoder.logits
    vlm.model.decoder.logits = lambda hidden: given(hidden) - 1e4 * (torch.arange(512) >= 256)
    return vlm


@pytest.fixture(scope="module")
def alone(plain) -> list:
    config = GenerationConfig(max_new_tokens=12)
    return [plain.chat(messages, config=config) for messages in MIXED]


# Alone and together


def test_a_reply_is_what_whole_passes_would_choose(plain, alone):
    """The slow twin: no cache, one token at a time, from the logits of prompt and reply."""
    decoder = plain.model.decoder
    for messages, reply in zip(MIXED, alone, strict=True):
        prompt = plain._requests.ready(plain._requests.chat(messages))
        assert len(reply.token_ids) == 12
        with torch.inference_mode():
            batch = plain._requests.batch([plain._requests.chat(messages)])
            ids = prompt.ids + reply.token_ids
            visible = torch.cat([batch.visible, batch.visible[:, -1:].expand(-1, 12, -1)], dim=1)
            whole = batch._replace(ids=torch.tensor([ids]), visible=visible)
            hidden = decoder(whole.ids, None, whole.image, whole.mask(0, len(ids))).hidden
            logits = decoder.logits(hidden)[0, len(prompt.ids) - 1 : -1]
        probabilities = logits.softmax(-1)
        assert logits.argmax(-1).tolist() == reply.token_ids
        assert reply.confidence == pytest.approx(probabilities.max(-1).values.mean().item(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("turned", [False, True])
def test_a_batch_of_any_mix_equals_singles(plain, alone, batch_size, turned):
    """N1, N2: every slot, on either side of every kind of neighbour."""
    order = MIXED[::-1] if turned else MIXED
    replies = plain.chat_many(order, config=GenerationConfig(max_new_tokens=12), batch_size=batch_size)
    for reply, expected in zip(replies[::-1] if turned else replies, alone, strict=True):
        assert reply.token_ids == expected.token_ids
        assert reply.text == expected.text
        assert reply.confidence == pytest.approx(expected.confidence, abs=1e-5)


def test_the_other_reference_writes_in_a_batch_what_it_writes_alone():
    """There, text before the first image attends to missing tiles, which must stay each row's own."""
    vlm = VLM(random_model(preset("tiny").with_reference("transformers")), Tokenizer.bytes_only())
    config = GenerationConfig(max_new_tokens=6)
    together = vlm.chat_many(MIXED, config=config)
    assert [vlm.chat(messages, config=config).token_ids for messages in MIXED] == [r.token_ids for r in together]


def test_rows_that_end_early_leave_the_others_alone(plain, alone):
    """Each row stops at another token: at its own first one of these."""
    stops = [alone[0].text[2], alone[1].text[5]]
    config = GenerationConfig(max_new_tokens=12, stop=stops)
    singles = [plain.chat(messages, config=config).token_ids for messages in MIXED]
    assert len({len(ids) for ids in singles}) > 2
    assert [reply.token_ids for reply in plain.chat_many(MIXED, config=config)] == singles


def test_a_row_without_room_ends_and_its_neighbours_go_on(plain):
    """What room is left is each row's own; the longest row must not bound, nor break, the shortest."""
    conversations = [user("a" * 480), user("b" * 440), user(SMALL, "c" * 460)]
    replies = plain.chat_many(conversations)
    for messages, reply in zip(conversations, replies, strict=True):
        assert reply.token_ids == plain.chat(messages).token_ids
        assert len(reply.token_ids) == 512 - len(plain.prompt_ids(messages))
        assert reply.finish_reason == "length"


@pytest.mark.parametrize("chunk", [1, 3, 16, 2048])
def test_a_prompt_read_in_chunks_is_read_the_same(plain, chunk):
    """N9."""
    with torch.inference_mode():
        batch = plain._requests.batch([plain._requests.chat(messages) for messages in MIXED[:4]])
        found = prefill(plain.model, batch, 200, chunk)
        whole = [logits[-1] for logits in plain.logits_many(MIXED[:4])]
        logits = plain.model.decoder.logits(found.hidden)
    torch.testing.assert_close(logits, torch.stack(whole), atol=1e-4, rtol=1e-4)
    assert found.cache.lengths.tolist() == batch.lengths


@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_logits_of_a_batch_equal_those_alone(tiny, reference):
    vlm = tiny if reference == "meta" else VLM(random_model(preset("tiny").with_reference(reference)), tiny.tokenizer)
    for messages, together in zip(MIXED, vlm.logits_many(MIXED), strict=True):
        single = vlm.logits(messages)
        assert single.shape == (len(vlm.prompt_ids(messages)), 512)
        assert single.dtype == torch.float32
        torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)


# Sampling in replies


def test_a_seed_gives_the_same_reply_in_every_run_and_every_slot(tiny):
    conversations = MIXED[:5]
    config = GenerationConfig(max_new_tokens=6, temperature=1.3, top_p=0.95, seed=11)
    alone = [tiny.chat(messages, config=config).token_ids for messages in conversations]
    assert [tiny.chat(messages, config=config).token_ids for messages in conversations] == alone
    for order in (conversations, conversations[::-1]):
        replies = tiny.chat_many(order, config=config, batch_size=3)
        by_conversation = {id(messages): reply.token_ids for messages, reply in zip(order, replies, strict=True)}
        assert [by_conversation[id(messages)] for messages in conversations] == alone
    other = GenerationConfig(max_new_tokens=6, temperature=1.3, top_p=0.95, seed=12)
    assert [tiny.chat(messages, config=other).token_ids for messages in conversations] != alone
    unseeded = GenerationConfig(max_new_tokens=10, temperature=5)
    assert tiny.chat(MIXED[0], config=unseeded).token_ids != tiny.chat(MIXED[0], config=unseeded).token_ids


def test_confidence_is_of_temperature_1_before_filters(plain):
    config = GenerationConfig(max_new_tokens=6, temperature=3, top_k=9, repetition_penalty=1.5, seed=3)
    reply = plain.chat(MIXED[1], config=config)
    with torch.inference_mode():
        batch = plain._requests.batch([plain._requests.chat(MIXED[1])])
        hidden, cache = prefill(plain.model, batch, 100)
        probabilities = []
        for token_id in reply.token_ids:
            probabilities.append(plain.model.decoder.logits(hidden)[0].softmax(-1)[token_id].item())
            output = plain.model.decoder(torch.tensor([[token_id]]), cache, batch.image, batch.reply_mask())
            hidden, cache = output.hidden[:, -1], output.cache
    assert reply.confidence == pytest.approx(sum(probabilities) / len(probabilities), abs=1e-5)


def test_repetition_penalty_counts_prompt_and_reply(tiny):
    """With the largest penalty no token comes twice, and none of the prompt, as long as there are others."""
    config = GenerationConfig(max_new_tokens=30, repetition_penalty=1e3)
    messages = user("abc", SMALL)

    def raised(logits):
        return logits - logits.amin(-1, keepdim=True) + 1

    with changed_logits(tiny, raised):
        reply = tiny.chat(messages, config=config)
    assert len(set(reply.token_ids)) == len(reply.token_ids)
    assert not set(reply.token_ids) & set(tiny.prompt_ids(messages))


PROGRAM = """
import torch
from tests.conftest import random_model
from tests.conversations import MIXED
from vlm import VLM, GenerationConfig, Tokenizer, preset
vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
for temperature in (0, 1.3):
    config = GenerationConfig(max_new_tokens=12, temperature=temperature, seed=5)
    print([reply.token_ids for reply in vlm.chat_many(MIXED, config=config)])
"""


def test_another_process_with_more_threads_gives_the_same_ids(tiny):
    """N8."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    program = PROGRAM + "assert torch.get_num_threads() == 1; torch.set_num_threads(2)\n"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    expected = []
    for temperature in (0, 1.3):
        config = GenerationConfig(max_new_tokens=12, temperature=temperature, seed=5)
        expected.append([reply.token_ids for reply in tiny.chat_many(MIXED, config=config)])
    assert printed.stdout.splitlines() == [str(ids) for ids in expected], printed.stderr


def test_twenty_runs_give_the_same_ids(tiny):
    config = GenerationConfig(max_new_tokens=3, temperature=1, seed=2)
    assert len({tuple(tiny.chat(MIXED[2], config=config).token_ids) for _ in range(20)}) == 1


# Ends


def test_max_new_tokens_counts_to_the_end(plain, alone):
    for count in (1, 2, 5):
        reply = plain.chat(MIXED[1], config=GenerationConfig(max_new_tokens=count))
        assert reply.token_ids == alone[1].token_ids[:count]
        assert reply.finish_reason == "length"


def test_the_default_length_is_512_or_the_room_that_is_left():
    decoder = DecoderConfig(
        width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_dim=8, vocab_size=512, max_context=600
    )
    vlm = VLM(random_model(ModelConfig(decoder=decoder)), Tokenizer.bytes_only())
    with changed_logits(vlm, lambda logits: torch.zeros_like(logits).index_fill(-1, torch.tensor([97]), 1.0)):
        for num_chars, expected in [(1, 512), (560, 17), (576, 1)]:
            messages = user("a" * num_chars)
            assert len(vlm.prompt_ids(messages)) == 23 + num_chars
            assert vlm.chat(messages).text == "a" * expected
        exact = GenerationConfig(max_new_tokens=17)
        assert len(vlm.chat(user("a" * 560), config=exact).token_ids) == 17
    for num_chars, expected in [(65, 512), (66, 511)]:
        assert vlm._requests.room(vlm._requests.chat(user("a" * num_chars)), None) == expected


def test_past_the_context_both_numbers_are_named(tiny):
    """T4."""
    calls = [
        lambda messages, config: tiny.chat(messages, config=config),
        lambda messages, config: tiny.stream(messages, config=config),
        lambda messages, config: tiny.complete([messages[0]["content"][0]["text"] + "a" * 22], config=config),
        lambda messages, config: tiny.chat_many([user("x"), messages], config=config),
    ]
    for call in calls:
        with pytest.raises(VLMError, match=r"prompt has 523 tokens, the context 512") as caught:
            call(user("a" * 500), None)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(VLMError, match=r"prompt has 123 tokens and 390 more were asked for, the context 512"):
            call(user("a" * 100), GenerationConfig(max_new_tokens=390))
    with pytest.raises(VLMError, match="the prompt has 512 tokens, the context 512"):
        tiny.chat(user("a" * 489))
    assert tiny.logits(user("a" * 489)).shape == (512, 512)
    assert len(tiny.chat(user("a" * 488)).token_ids) == 1
    for call in (tiny.logits, lambda messages: tiny.score(messages, ["x"])):
        with pytest.raises(VLMError) as caught:
            call(user("a" * 490))
        assert caught.value.code == "context_length_exceeded"
    tiny.score(user("a" * 488), ["x"])
    with pytest.raises(VLMError, match="511 tokens and 2 more"):
        tiny.score(user("a" * 488), ["x", "xy"])


def test_a_prompt_too_long_costs_no_encoding(tiny):
    tiny.images.cache = type(tiny.images.cache)(2**30)
    with pytest.raises(VLMError):
        tiny.chat(user(FOUR_TILES, "a" * 600))
    assert len(tiny.images.cache) == 0


@pytest.mark.parametrize("end", [257, 264, 265])
def test_ending_tokens_end_with_stop(tiny, end):
    with changed_logits(tiny, forced([104, 105, end])):
        reply = tiny.chat(user("x"))
    assert (reply.text, reply.token_ids, reply.finish_reason) == ("hi", [104, 105], "stop")


def test_special_tokens_inside_are_not_text(tiny):
    """P6."""
    written = [104, HEADER, META_IMAGE, 511, 105, END_OF_TURN]
    with changed_logits(tiny, forced(written)):
        reply = tiny.chat(user("x", SMALL))
    assert (reply.text, reply.token_ids, reply.finish_reason) == ("hi", [104, 105], "stop")
    with changed_logits(tiny, forced(written)):
        assert list(tiny.stream(user("x", SMALL))) == ["h", "i"]
    with changed_logits(tiny, forced([HEADER] * 4)):
        reply = tiny.chat(user("x"), config=GenerationConfig(max_new_tokens=4))
    assert (reply.text, reply.token_ids, reply.finish_reason, reply.confidence) == ("", [], "length", 1.0)


def test_an_empty_reply_is_a_reply(tiny):
    with changed_logits(tiny, forced([END_OF_TURN])):
        reply = tiny.chat(user("x"))
    assert (reply.text, reply.token_ids, reply.finish_reason, reply.confidence) == ("", [], "stop", 1.0)
    assert str(reply) == ""


def test_a_stop_text_that_is_the_whole_reply_leaves_nothing(tiny):
    with changed_logits(tiny, forced([*b"END", 97])):
        reply = tiny.chat(user("x"), config=GenerationConfig(stop="END"))
    assert (reply.text, reply.token_ids, reply.finish_reason) == ("", [*b"END"], "stop")


# Numbers that are none


def test_a_broken_weight_fails_the_rows_that_read_it_alone(plain, alone):
    """N6: the id Z reads a broken row of the embedding; the padding of the other rows must not."""
    broken = user("Z")
    for value in (float("nan"), float("inf")):
        with changed_weight(plain.model.decoder.embedding.weight, ord("Z"), value):
            conversations = [broken, *MIXED[:3], broken, MIXED[3], user(SMALL, "Z")]
            config = GenerationConfig(max_new_tokens=12)
            replies = plain.chat_many(conversations, config=config, return_errors=True)
            for place in (0, 4, 6):
                assert isinstance(replies[place], VLMError)
                assert replies[place].code == "checkpoint_invalid"
            found = [reply.token_ids for reply in replies if not isinstance(reply, VLMError)]
            assert found == [reply.token_ids for reply in alone[:4]]
            for call in (plain.chat, lambda messages: plain.score(messages, ["x"]), lambda m: list(plain.stream(m))):
                with pytest.raises(VLMError, match="not finite") as caught:
                    call(broken)
                assert caught.value.code == "checkpoint_invalid"
            with pytest.raises(VLMError):
                plain.chat_many(conversations, config=config)


def test_what_pads_a_row_is_its_own(plain, alone):
    """Id 0 stands in no prompt; padding with it would let its broken row in behind the masks."""
    with changed_weight(plain.model.decoder.embedding.weight, 0, float("nan")):
        replies = plain.chat_many(MIXED, config=GenerationConfig(max_new_tokens=12))
        scores = plain.score(MIXED[1], ["a", "abc"])
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in alone]
    assert scores == plain.score(MIXED[1], ["a", "abc"])


def test_a_reply_that_breaks_in_the_middle_is_an_error_and_the_stream_says_so(tiny):
    is_whole = iter([True, True, False])
    with changed_logits(tiny, lambda logits: logits.where(torch.tensor(next(is_whole)), float("nan"))):
        stream = tiny.stream(MIXED[0])
        with pytest.raises(VLMError) as caught:
            list(stream)
    assert caught.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("part", ["encoder", "projector"])
def test_an_encoder_that_gives_no_numbers_fails_its_row(tiny_model, part):
    vlm = VLM(tiny_model, Tokenizer.bytes_only())
    weight = next(getattr(tiny_model, part).parameters())
    with changed_weight(weight, 0, float("nan")):
        replies = vlm.chat_many(
            [user(SMALL, "a"), user("b")], config=GenerationConfig(max_new_tokens=2), return_errors=True
        )
        assert replies[0].code == "checkpoint_invalid"
        assert "encoder" in replies[0].message
        assert len(replies[1].token_ids) == 2
        # Nothing broken is remembered.
        assert len(vlm.images.cache) == 0


# Scores


@pytest.mark.parametrize("place", range(len(MIXED)))
def test_scores_are_the_sums_that_teacher_forcing_gives(tiny, place):
    """The slow twin reads prompt and reply as one turn that goes on."""
    texts = ["Yes", "No", "é€😀", "a", "longer than all the others", "<|eot_id|>"]
    messages = MIXED[place]
    prompt = tiny.prompt_ids(messages)
    for text, score in zip(texts, tiny.score(messages, texts), strict=True):
        ids = tiny.tokenizer.encode(text)
        whole = [*messages, {"role": "assistant", "content": text}]
        assert tiny.prompt_ids(whole, continue_final=True) == prompt + ids
        rows = tiny.logits(whole, continue_final=True).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = rows[torch.arange(len(ids)), ids].double().sum().item()
        assert score.logprob == pytest.approx(expected, abs=2e-4)
        assert score.num_tokens == len(ids) == tiny.tokenizer.count(text)
        assert score.mean_logprob == pytest.approx(score.logprob / len(ids))
        assert score.text == text
        assert score.logprob < 0


def test_scores_do_not_depend_on_their_company(tiny):
    texts = [f"text {'x' * (number % 7)}" for number in range(20)] + ["a" * 300]
    together = tiny.score(MIXED[1], texts)
    for text, score in zip(texts, together, strict=True):
        assert tiny.score(MIXED[1], [text])[0].logprob == pytest.approx(score.logprob, rel=1e-5)
    assert tiny.score(MIXED[1], []) == []
    assert tiny.score(MIXED[1], (text for text in ["a", "b"])) == tiny.score(MIXED[1], ["a", "b"])


def test_scores_of_a_turn_that_goes_on(tiny):
    begun = [*MIXED[1], {"role": "assistant", "content": "The answer is "}]
    whole, first, rest = (
        tiny.score(MIXED[1], ["The answer is 7"])[0],
        tiny.score(MIXED[1], ["The answer is "])[0],
        tiny.score(begun, ["7"], continue_final=True)[0],
    )
    assert whole.logprob == pytest.approx(first.logprob + rest.logprob, abs=1e-3)


@pytest.mark.parametrize("texts", ["Yes", [""], ["a", None], [1], None, 5, {"a": 1}, [b"a"]])
def test_texts_that_are_none_are_refused(tiny, texts):
    with pytest.raises(VLMError, match="texts") as caught:
        tiny.score(user("x"), texts)
    assert caught.value.code == "invalid_request"


def test_the_greedy_reply_scores_what_its_confidence_says(plain, alone):
    for messages, reply in zip(MIXED, alone, strict=True):
        if plain.tokenizer.encode(reply.text) == reply.token_ids:
            mean = plain.score(messages, [reply.text])[0].mean_logprob
            assert np.exp(mean) <= reply.confidence + 1e-5
