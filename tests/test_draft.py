"""A draft changes how soon a reply comes and nothing else, whatever it proposes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from tests.conftest import random_model
from tests.conversations import END_OF_TURN, MIXED, SMALL, changed_logits, refusal, user
from vlm import VLM, GenerationConfig, ModelConfig, Tokenizer, VLMError, draft, native, preset
from vlm.cli import main
from vlm.draft import Draft, Proposer, decode_ahead, draft_price, worthwhile
from vlm.generate import Step, decode, prefill
from vlm.model import VisionLanguageModel
from vlm.quantization import quantize_model, quantized_layers
from vlm.reply import Reply
from vlm.sampling import Sampler
from vlm.tokenizer_files.llama3 import meta_special_ids

LARGE = replace(preset("tiny").decoder, width=128, mlp_dim=256, num_extra_embeddings=0)
LONG = GenerationConfig(max_new_tokens=24)
needs_native = pytest.mark.skipif(native.library() is None, reason="not run: gcc, or a processor with AVX-512 VNNI")


def text_twin(model: VisionLanguageModel, **changes) -> VisionLanguageModel:
    """Return the model without what looks at pictures: right about every token of a text."""
    config = replace(model.config.decoder, num_extra_embeddings=0, **changes)
    twin = random_model(ModelConfig(decoder=config)).to(model.decoder.embedding.weight.dtype)
    own = [layer for layer in model.decoder.layers if not hasattr(layer, "attention_gate")]
    for layer, source in zip(twin.decoder.layers, own, strict=True):
        layer.load_state_dict(source.state_dict())
    twin.decoder.norm.load_state_dict(model.decoder.norm.state_dict())
    twin.decoder.head.load_state_dict(model.decoder.head.state_dict())
    with torch.no_grad():
        twin.decoder.embedding.weight.copy_(model.decoder.embedding.weight[: config.vocab_size])
    return twin


def writing_bytes(model: VisionLanguageModel, draft: VLM | None = None) -> VLM:
    """Return a pipeline whose model writes bytes alone, so that every reply has as many tokens as it may."""
    vlm = VLM(model, Tokenizer.bytes_only(), draft=draft)
    given = vlm.model.decoder.logits
    vlm.model.decoder.logits = lambda hidden: given(hidden) - 1e4 * (torch.arange(512) >= 256)
    return vlm


def text_model(seed: int = 1, **changes) -> VLM:
    """Return a random text-only model with the tests' vocabulary."""
    config = replace(preset("tiny").decoder, num_extra_embeddings=0, num_layers=1, **changes)
    return VLM(random_model(ModelConfig(decoder=config), seed), Tokenizer.bytes_only())


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


def same(found: Reply, expected: Reply) -> None:
    assert (found.token_ids, found.text, found.finish_reason) == (
        expected.token_ids,
        expected.text,
        expected.finish_reason,
    )
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)


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


# What is proposed


@pytest.mark.parametrize("seed", range(3))
def test_a_proposer_goes_on_as_one_that_has_read_the_same_anew(monkeypatch, seed):
    """Whatever held of what it proposed before; so its cache holds what was written, and nothing else."""
    counts = iter([3, 7, 1, 2, 0, 5, 4, 7, 1, 6])
    monkeypatch.setattr(draft, "worthwhile", lambda likelihood, price: fixed)
    model = text_twin(random_model(preset("tiny"), seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        ids = [1, 2, 3]
        proposer = Proposer(model, ids, 100, 0.1)
        for fixed in counts:
            proposed = proposer.propose(100)
            assert proposed == Proposer(model, ids, 100, 0.1).propose(100)
            assert len(proposed) == fixed
            right = int(torch.randint(0, fixed + 1, (), generator=generator))
            written = [*proposed[:right], (proposed[right] + 1) % 256 if right < fixed else 9]
            proposer.take(written)
            ids = [*ids, *written]


def test_a_draft_is_given_the_text_without_the_pictures(plain, drafted):
    marker = plain.tokenizer.image_marker_id
    ids = plain.prompt_ids(MIXED[2])
    assert ids.count(marker) == 2
    assert drafted._draft.begin(ids, 5)._ids == [token_id for token_id in ids if token_id != marker]
    bare = VLM(plain.model, Tokenizer.bytes_only(), draft=text_model())
    assert bare.complete([SMALL], config=LONG).token_ids == plain.complete([SMALL], config=LONG).token_ids


@pytest.mark.parametrize("room", [-3, -1, 0, 1, 2, 5, 11])
def test_a_draft_ends_with_its_own_context(plain, monkeypatch, room):
    monkeypatch.setattr(draft, "worthwhile", lambda likelihood, price: 4)
    context = len(plain.prompt_ids(MIXED[0])) + room
    twin = VLM(text_twin(plain.model, max_context=context), Tokenizer.bytes_only())
    vlm = VLM(plain.model, Tokenizer.bytes_only(), draft=twin)
    ends = []
    twin.model.decoder.register_forward_pre_hook(
        lambda _, inputs: ends.append(inputs[1].max_length + inputs[0].shape[1])
    )
    same(vlm.chat(MIXED[0], config=LONG), plain.chat(MIXED[0], config=LONG))
    assert max(ends, default=0) == (context if room > 0 else 0)


def test_what_pays_is_proposed():
    assert worthwhile(0.0, 0.1) == worthwhile(0.3, 0.3) == 0
    assert worthwhile(1.0, 0.3) == draft.MAX_PROPOSED
    counts = [worthwhile(likelihood / 20, 0.25) for likelihood in range(21)]
    assert counts == sorted(counts)
    assert set(counts) == set(range(draft.MAX_PROPOSED + 1))
    assert worthwhile(0.8, 0.1) > worthwhile(0.8, 0.45) > 0


def test_the_price_is_what_the_draft_reads_and_what_is_computed():
    """In 4 bits there is less to read, and as much to compute."""
    large, small = (random_model(ModelConfig(decoder=replace(LARGE, num_layers=layers))) for layers in (8, 1))
    expected = draft.DRAFT_SHARE * read_by(small) / read_by(large) + draft.POSITION_BITS / 32
    assert draft_price(small, large) == pytest.approx(expected)
    quantize_model(large, "int4")
    assert draft_price(small, large) > 4 * expected


def read_by(model: VisionLanguageModel) -> int:
    decoder = model.decoder
    return sum(weight.nbytes for part in (decoder.layers, decoder.norm, decoder.head) for weight in part.parameters())


def test_a_draft_that_is_wrong_is_asked_seldom_and_one_that_becomes_right_again():
    """With proposals at a quarter of a token 300 tokens take less than a tenth more where none is right."""
    proposer = Proposer(text_model().model, [1, 2, 3], 1000, 0.25)
    proposed, held = [], []
    with torch.inference_mode():
        for place in range(700):
            found = proposer.propose(100)
            if place < 300:
                proposed.append(len(found))
                proposer.take([(found[0] + 1) % 256 if found else 5])
            else:
                held.append(len(found))
                proposer.take([*found, 5])
            if sum(held) > 50:
                break
    assert 0 < 0.25 * sum(proposed) < 30
    assert max(held) == draft.MAX_PROPOSED


# Where it is used


def test_others_are_decoded_without(plain, drafted, monkeypatch):
    def begin(*_):
        raise AssertionError("the draft was asked")

    monkeypatch.setattr(Draft, "begin", begin)
    for config in (replace(LONG, temperature=0.5, seed=3), replace(LONG, repetition_penalty=1.2)):
        same(drafted.chat(MIXED[1], config=config), plain.chat(MIXED[1], config=config))
    for found, expected in zip(*(vlm.chat_many(MIXED, config=LONG) for vlm in (drafted, plain)), strict=True):
        same(found, expected)
    with pytest.raises(AssertionError):
        drafted.chat(MIXED[1], config=LONG)


def test_a_schema_is_decoded_without(plain, drafted, monkeypatch):
    pytest.importorskip("llguidance")
    monkeypatch.setattr(Draft, "begin", None)
    config = replace(LONG, schema={"type": "array", "items": {"type": "integer"}, "maxItems": 2})
    same(drafted.chat(MIXED[1], config=config), plain.chat(MIXED[1], config=config))


@pytest.fixture(scope="module")
def folders(plain, tmp_path_factory) -> dict[str, str]:
    """Folders of a vision model and of a text model with its vocabulary."""
    place = tmp_path_factory.mktemp("models")
    VLM(plain.model, Tokenizer.bytes_only()).save_pretrained(place / "large")
    text_model().save_pretrained(place / "draft")
    return {name: str(place / name) for name in ("large", "draft")}


def test_a_draft_is_loaded_by_name_in_the_precision_of_the_model(folders):
    assert VLM.from_pretrained(folders["large"])._draft is None
    for given in (folders["draft"], VLM.from_pretrained(folders["draft"])):
        vlm = VLM.from_pretrained(folders["large"], draft=given)
        assert vlm._draft.model.config.vision is None
    vlm = VLM.from_pretrained(folders["large"], draft=folders["draft"], quantize="int8")
    assert VLM(vlm._draft.model, vlm.tokenizer).info.quantize == "int8"


@pytest.mark.parametrize("command", ["ask", "caption", "chat"])
def test_the_commands_take_a_draft(folders, monkeypatch, command):
    given = []
    monkeypatch.setattr(VLM, "from_pretrained", lambda source, **named: given.append(named["draft"]) or 1 / 0)
    words = {"ask": ["examples/commute.png", "?"], "caption": ["examples/commute.png"], "chat": []}[command]
    CliRunner().invoke(main, [command, *words, "--model", folders["large"], "--draft", folders["draft"]])
    CliRunner().invoke(main, [command, *words, "--model", folders["large"]])
    assert given == [folders["draft"], None]


# What is refused


def test_a_vision_model_is_no_draft(plain, folders, monkeypatch):
    from vlm import checkpoint

    error = refusal(VLM, plain.model, plain.tokenizer, draft=VLM(plain.model, plain.tokenizer))
    monkeypatch.setattr(checkpoint, "load_model", None)
    same_error = refusal(VLM.from_pretrained, folders["large"], draft=folders["large"])
    assert error.message == same_error.message
    assert error.code == "invalid_request"
    assert "the draft is a vision model; expected a text-only one" in error.message


def test_a_draft_comes_in_the_models_dtype_and_as_quantised_as_it_is(folders, tmp_path):
    in_half = VLM.from_pretrained(folders["large"], dtype="bfloat16", draft=folders["draft"])
    assert in_half._draft.model.decoder.embedding.weight.dtype == torch.bfloat16
    VLM.from_pretrained(folders["draft"], quantize="int8").save_pretrained(tmp_path / "int8")
    in_four = VLM.from_pretrained(folders["large"], quantize="int4", draft=tmp_path / "int8")
    assert {layer.scheme.bits for layer in quantized_layers(in_four._draft.model).values()} == {8}
    in_four = VLM.from_pretrained(folders["large"], quantize="int4", draft=folders["draft"])
    assert quantized_layers(in_four._draft.model)


def test_a_draft_has_as_many_tokens(plain):
    smaller = text_model(vocab_size=520)
    error = refusal(VLM, plain.model, plain.tokenizer, draft=smaller)
    assert (error.code, "the draft has 520 tokens and the model 512" in error.message) == ("invalid_request", True)


@pytest.mark.parametrize("name", ["a byte", "an end", "a header", "an added word"])
def test_a_draft_has_the_same_ids(plain, name):
    ranks = {bytes([value]): value for value in range(256)}
    special_ids, text_ids = meta_special_ids(256), {}
    if name == "a byte":
        ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    elif name == "an added word":
        text_ids["<word>"] = special_ids.pop("<|reserved_special_token_5|>")
    else:
        first = "<|eot_id|>" if name == "an end" else "<|start_header_id|>"
        other = "<|reserved_special_token_5|>"
        special_ids[first], special_ids[other] = special_ids[other], special_ids[first]
    tokenizer = Tokenizer(ranks, special_ids, text_ids=text_ids)
    error = refusal(VLM, plain.model, plain.tokenizer, draft=VLM(text_model().model, tokenizer))
    assert error.code == "invalid_request"
    assert "the draft's tokenizer has other ids than the model's" in error.message
    assert len(error.report) <= 300


def test_names_that_are_reserved_may_differ(plain):
    special_ids = meta_special_ids(256)
    special_ids["<|other|>"] = special_ids.pop("<|reserved_special_token_5|>")
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)}, special_ids)
    VLM(plain.model, plain.tokenizer, draft=VLM(text_model().model, tokenizer))


@pytest.mark.parametrize("bad", ["a/folder", 5, object()])
def test_what_is_no_model_is_no_draft(plain, bad):
    error = refusal(VLM, plain.model, plain.tokenizer, draft=bad)
    assert error.code == "invalid_request"
    assert error.message.startswith("draft is ")


def test_a_folder_that_is_not_there_is_no_draft(folders):
    assert refusal(VLM.from_pretrained, folders["large"], draft="no/folder/here").code == "checkpoint_invalid"
