"""A draft changes how soon a reply comes and nothing else, whatever it proposes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.conftest import random_model
from tests.conversations import END_OF_TURN, MIXED, changed_logits, refusal, user
from tests.draft_models import LONG, same, text_model, text_twin, writing_bytes
from vlm import VLM, GenerationConfig, Tokenizer, VLMError, native, preset
from vlm.generation import draft
from vlm.generation.draft import decode_ahead
from vlm.generation.generate import Step, decode, prefill
from vlm.generation.sampling import Sampler
from vlm.model import VisionLanguageModel
from vlm.quantization import quantize_model

needs_native = pytest.mark.skipif(native.library() is None, reason="not run: gcc, or a processor with AVX-512 VNNI")


@pytest.fixture(scope="module")
def plain() -> VLM:
    return writing_bytes(random_model(preset("tiny")))


@pytest.fixture(scope="module")
def drafted(plain) -> VLM:
    """The same model with a draft, which the tests replace by what they want proposed."""
    vlm = VLM(plain.model, Tokenizer.bytes_only(), draft=text_model())
    return vlm


@pytest.fixture(params=[None, torch.int8], ids=["float32 cache", "int8 cache"])
def cache_dtype(request, plain) -> Iterator[torch.dtype | None]:
    plain.model.kv_cache_dtype = request.param
    yield request.param
    plain.model.kv_cache_dtype = None


class Scripted:
    """Proposes what `guess(place, right)` makes of the token that comes at each place of the reply."""

    def __init__(self, written: list[int], guess: Callable[[int, int], int], most: int):
        self.written, self.guess, self.most = written, guess, most
        self.place = self.proposed = 0

    def take(self, token_ids: list[int]) -> None:
        assert token_ids == self.written[self.place : self.place + len(token_ids)]
        self.place += len(token_ids)

    def propose(self, most: int) -> list[int]:
        assert most >= 0
        coming = self.written[self.place : self.place + min(most, self.most)]
        self.proposed += len(coming)
        return [self.guess(place, right) for place, right in enumerate(coming, self.place)]


GUESSES: dict[str, Callable[[int, int], int]] = {
    "always right": lambda place, right: right,
    "always wrong": lambda place, right: (right + 1) % 256,
    "every third wrong": lambda place, right: right if place % 3 else 7,
    "every seventh wrong": lambda place, right: right if place % 7 else 511,
    "now and then right": lambda place, right: right if hash((place, 5)) % 2 else place,
}


@contextmanager
def proposing(vlm: VLM, written: list[int], guess: Callable[[int, int], int], most: int = 7) -> Iterator[Scripted]:
    """Within, a script of what to guess stands for the draft."""
    script = Scripted(written, guess, most)
    vlm._draft.begin = lambda prompt_ids, room: script
    try:
        yield script
    finally:
        del vlm._draft.begin


def chosen(vlm: VLM, messages: list[dict], count: int = 24) -> list[int]:
    """Return all ids that the model chooses after `messages`, those that end a reply or are no text too."""
    with torch.inference_mode():
        batch = vlm._requests.batch([vlm._requests.chat(messages)])
        prefilled = prefill(vlm.model, batch, batch.lengths[0] + count)
        sampler = Sampler(GenerationConfig(), [], torch.device("cpu"))
        steps = decode(vlm.model, batch, prefilled, [sampler], [count], set())
        return [step.token_id for step in steps if isinstance(step, Step)]


# The same reply


@pytest.mark.parametrize(("guess", "most"), [(guess, 7) for guess in GUESSES.values()] + [(GUESSES["always right"], 2)])
def test_every_token_is_the_models_own_whatever_is_proposed(plain, drafted, cache_dtype, guess, most):
    for messages in MIXED if guess is GUESSES["now and then right"] else MIXED[2:3]:
        with proposing(drafted, chosen(plain, messages), guess, most) as script:
            same(drafted.chat(messages, config=LONG), plain.chat(messages, config=LONG))
        assert script.proposed > 0


@pytest.mark.parametrize("right", range(8))
def test_a_run_that_is_right_up_to_any_place_is_taken_so_far(plain, drafted, right):
    """The first pass writes as many tokens as were right, and the model's own next one."""
    messages = MIXED[4]
    written = chosen(plain, messages)
    with torch.inference_mode(), proposing(drafted, written, lambda place, id: id if place <= right else 300) as script:
        batch = plain._requests.batch([plain._requests.chat(messages)])
        prefilled = prefill(plain.model, batch, batch.lengths[0] + 24)
        sampler = Sampler(LONG, [], torch.device("cpu"))
        steps = decode_ahead(plain.model, batch, prefilled, sampler, 24, set(), script)
        found = [next(steps).token_id]
        with counted(plain) as passes:
            found += [next(steps).token_id for _ in range(right + 1 if right < 7 else 8)]
    assert passes == [8]
    assert found == written[: len(found)]


@contextmanager
def counted(vlm: VLM) -> Iterator[list[int]]:
    """Within, how many positions each pass of the model has is written down."""
    passes = []
    hook = vlm.model.decoder.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[1]))
    try:
        yield passes
    finally:
        hook.remove()


@pytest.mark.parametrize("guess", GUESSES.values(), ids=GUESSES)
def test_what_did_not_hold_leaves_no_trace_in_the_cache(plain, drafted, cache_dtype, guess):
    messages, kept = MIXED[2], []
    with torch.inference_mode(), proposing(drafted, chosen(plain, messages), guess) as script:
        for decoding in (lambda *rest: decode(*rest[:3], [rest[3]], [24], set()), None):
            batch = plain._requests.batch([plain._requests.chat(messages)])
            prefilled = prefill(plain.model, batch, batch.lengths[0] + 24)
            sampler = Sampler(LONG, [], torch.device("cpu"))
            parts = (plain.model, batch, prefilled, sampler)
            steps = list(decoding(*parts) if decoding else decode_ahead(*parts, 24, set(), script))
            assert len(steps) == 24
            length = batch.lengths[0] + 23
            kept.append([part[:, :, :, :length].float() for part in prefilled.cache.parts])
    for found, expected in zip(*kept, strict=True):
        # A number between two codes may become either.
        torch.testing.assert_close(found, expected, atol=1.01 if cache_dtype else 1e-4, rtol=1e-4)


@pytest.mark.parametrize("reference", ["meta", "transformers"])
@pytest.mark.parametrize("fixed", [1, 4, 7])
def test_a_real_draft_changes_no_reply(monkeypatch, reference, fixed):
    """Of a random one nothing is right, of the model's own text twin everything where there is no picture."""
    monkeypatch.setattr(draft, "worthwhile", lambda likelihood, price: fixed)
    model = random_model(preset("tiny").with_reference(reference))
    twin = VLM(text_twin(model), Tokenizer.bytes_only())
    plain = VLM(model, Tokenizer.bytes_only())
    for beside in (text_model(), twin):
        vlm = VLM(model, Tokenizer.bytes_only(), draft=beside)
        for messages in MIXED[:4] if fixed == 4 else MIXED[:1]:
            same(vlm.chat(messages, config=LONG), plain.chat(messages, config=LONG))
    with counted(plain) as passes:
        assert vlm.chat(MIXED[0], config=LONG).finish_reason == "length"
    # The prompt gives the first token.
    assert len(passes) == 1 + -(-23 // (fixed + 1))


@needs_native
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("cache", [None, torch.int8], ids=["bfloat16 cache", "int8 cache"])
def test_in_bfloat16_our_products_and_attention_give_the_same_to_the_bit(quantize, cache):
    """Those serve for as many positions as are ever proposed, and the token before them."""
    plain = writing_bytes(wide_model(quantize))
    plain.model.kv_cache_dtype = cache
    vlm = VLM(plain.model, Tokenizer.bytes_only(), draft=text_model())
    for messages in MIXED[:2]:
        written, expected = chosen(plain, messages), plain.chat(messages, config=LONG)
        for guess in (GUESSES["every third wrong"], GUESSES["now and then right"]):
            with proposing(vlm, written, guess, draft.MAX_PROPOSED) as script:
                found = vlm.chat(messages, config=LONG)
            assert (found.token_ids, found.confidence) == (expected.token_ids, expected.confidence)
            assert script.proposed > 10


def wide_model(quantize: str | None) -> VisionLanguageModel:
    """Return a model in bfloat16 whose matrices and heads are of widths that are multiplied in C."""
    tiny = preset("tiny")
    decoder = replace(tiny.decoder, width=128, num_heads=2, num_kv_heads=1, mlp_dim=8704)
    model = random_model(replace(tiny, decoder=decoder)).bfloat16()
    if quantize:
        quantize_model(model, quantize)
    return model


# Where it ends


def test_a_reply_ends_at_its_length(plain, drafted):
    """The cache has room for the reply and no more: writing past it would fail."""
    messages = MIXED[1]
    written = chosen(plain, messages)
    for length in range(1, 14):
        config = GenerationConfig(max_new_tokens=length)
        with proposing(drafted, written, GUESSES["every seventh wrong"]):
            found = drafted.chat(messages, config=config)
        same(found, plain.chat(messages, config=config))
        assert (len(found.token_ids), found.finish_reason) == (length, "length")


@pytest.mark.parametrize("left", [1, 2, 8, 9, 20])
def test_a_reply_ends_at_the_context(plain, drafted, left):
    messages = user("a" * (489 - left))
    with proposing(drafted, chosen(plain, messages, left), GUESSES["always right"]):
        found = drafted.chat(messages)
    same(found, plain.chat(messages))
    assert (len(found.token_ids), found.finish_reason) == (left, "length")


def test_stop_texts_and_ending_tokens_inside_a_run_end_the_reply(plain, drafted):
    messages = MIXED[0]
    text, written = plain.chat(messages, config=LONG).text, chosen(plain, messages)
    for place in range(1, 12, 2):
        config = replace(LONG, stop=text[place : place + 2])
        expected = plain.chat(messages, config=config)
        for guess in GUESSES.values():
            with proposing(drafted, written, guess):
                same(drafted.chat(messages, config=config), expected)
            assert expected.finish_reason == "stop"
    for place in (0, 1, 4, 11):
        # Where this byte would be likeliest, the reply ends.
        pair = [written[place], END_OF_TURN]
        with changed_logits(plain, lambda logits, pair=pair: exchanged(logits, *pair)):
            expected, ending = plain.chat(messages, config=LONG), chosen(plain, messages)
            assert (expected.finish_reason, len(expected.token_ids) <= place) == ("stop", True)
            for guess in GUESSES.values():
                with proposing(drafted, ending, guess):
                    same(drafted.chat(messages, config=LONG), expected)


def exchanged(logits: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Return the logits with those of two ids exchanged."""
    order = torch.arange(logits.shape[-1])
    order[first], order[second] = second, first
    return logits[..., order]


def test_a_stream_gives_the_same_pieces_and_can_be_closed_early(plain, drafted):
    messages = MIXED[5]
    pieces = list(plain.stream(messages, config=LONG))
    with proposing(drafted, chosen(plain, messages), GUESSES["every seventh wrong"]):
        assert list(drafted.stream(messages, config=LONG)) == pieces
    for taken in (0, 1, 3, 5):
        with proposing(drafted, chosen(plain, messages), GUESSES["always right"]), counted(plain) as passes:
            stream = drafted.stream(messages, config=LONG)
            assert [next(stream) for _ in range(taken)] == pieces[:taken]
            stream.close()
            assert next(stream, None) is None
        assert sum(passes) <= len(plain.prompt_ids(messages)) + 16
        assert stream.reply.text == "".join(pieces[:taken])
        assert stream.reply.token_ids == chosen(plain, messages)[: len(stream.reply.token_ids)]


def test_timings_are_told(drafted):
    timings = drafted.chat(MIXED[0], config=LONG).timings
    assert min(timings.prefill_s, timings.decode_s) > 0
    assert timings.tokens_per_s == pytest.approx(24 / timings.decode_s)


# Numbers that are none


@pytest.mark.parametrize("guess", GUESSES.values(), ids=GUESSES)
@pytest.mark.parametrize("place", [0, 1, 5, 12])
def test_a_reply_that_breaks_breaks_where_it_would_without(plain, drafted, guess, place):
    """The row of the embedding that a token of the reply reads is damaged."""
    messages = MIXED[3]
    written = chosen(plain, messages)
    with broken_row(plain, written[place]):
        pieces = []
        for vlm in (plain, drafted):
            with proposing(drafted, written, guess):
                stream = vlm.stream(messages, config=LONG)
                pieces.append([])
                with pytest.raises(VLMError, match="not finite") as caught:
                    pieces[-1].extend(piece for piece in stream)
            assert caught.value.code == "checkpoint_invalid"
            assert refusal(vlm.chat, messages, config=LONG).code == "checkpoint_invalid"
    assert pieces[0] == pieces[1]


@contextmanager
def broken_row(vlm: VLM, token_id: int) -> Iterator[None]:
    weight = vlm.model.decoder.embedding.weight
    kept = weight[token_id].detach().clone()
    with torch.no_grad():
        weight[token_id] = float("nan")
    try:
        yield
    finally:
        with torch.no_grad():
            weight[token_id] = kept


@pytest.mark.parametrize("places", [(0,), (1, 2), (3, 9, 17), range(24)], ids=str)
def test_a_wrong_proposal_whose_row_is_broken_breaks_nothing(plain, drafted, cache_dtype, places):
    """511 is never written: behind a mask its numbers, which are none, still reach what stands before them."""
    messages = MIXED[2]
    written = chosen(plain, messages)
    with broken_row(plain, 511), proposing(drafted, written, lambda place, right: 511 if place in places else right):
        same(drafted.chat(messages, config=LONG), plain.chat(messages, config=LONG))


def test_a_draft_that_gives_no_numbers_breaks_nothing(plain, monkeypatch):
    monkeypatch.setattr(draft, "worthwhile", lambda likelihood, price: 3)
    damaged = text_model()
    with torch.no_grad():
        damaged.model.decoder.norm.weight.fill_(float("nan"))
    vlm = VLM(plain.model, Tokenizer.bytes_only(), draft=damaged)
    same(vlm.chat(MIXED[1], config=LONG), plain.chat(MIXED[1], config=LONG))
