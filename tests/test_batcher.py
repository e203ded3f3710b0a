"""Continuous batching: whoever joins or leaves beside it, a reply is what it would be alone."""

import random

import pytest
import torch

from tests.conftest import random_model
from tests.conversations import FOUR_TILES, MIXED, SMALL, changed_logits, forced, user
from vlm import VLM, GenerationConfig, Tokenizer, VLMError, preset
from vlm.batch import JoinedImages
from vlm.images.cache import ImageCache
from vlm.serving.model_process import batcher as module
from vlm.serving.model_process import running_batch
from vlm.serving.model_process.batcher import Batcher
from vlm.serving.model_process.job import Failed, Finished, Job, Piece, Started
from vlm.serving.model_process.job_reader import JobReader
from vlm.serving.settings import EngineOptions


@pytest.fixture(scope="module")
def plain() -> VLM:
    """A pipeline whose model writes bytes alone, so that every reply has as many tokens as it may."""
    vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    given = vlm.model.decoder.logits
    vlm.model.decoder.logits = lambda hidden: given(hidden) - 1e4 * (torch.arange(512) >= 256)
    return vlm


@pytest.fixture(autouse=True, params=[True, False], ids=["row by row", "together"])
def rows(request, monkeypatch):
    """How rows are decoded: small models one by one, others together."""
    monkeypatch.setattr(running_batch, "rows_go_alone", lambda _: request.param)


class Bench:
    """A batcher with what makes rows of jobs, by hand and in one thread."""

    def __init__(self, vlm: VLM, num_slots: int = 4, **options):
        self.vlm = vlm
        self.batcher = Batcher(vlm.model, vlm.tokenizer, num_slots)
        self.reader = JobReader(vlm, EngineOptions(num_slots=num_slots, **options), None)
        self.reader._picture = lambda image: image
        self.events: dict[int, list] = {}

    def add(self, key: int, job: Job) -> None:
        self.events[key] = []
        self.batcher.add(self.reader._row(key, job))

    def step(self) -> None:
        for key, event in self.batcher.step():
            self.events[key].append(event)

    def finish(self) -> None:
        while not self.batcher.is_idle:
            self.step()

    def ids(self, key: int) -> list[int]:
        return self.events[key][-1].token_ids


def job(messages: list[dict], max_new_tokens: int = 10, *, top_logprobs: int | None = None, **settings) -> Job:
    config = GenerationConfig(max_new_tokens=max_new_tokens, **settings)
    return Job(messages=messages, config=config, top_logprobs=top_logprobs)


def some_jobs() -> list[Job]:
    """Every mix, of unequal lengths; some sampled, each with a seed of its own; some that stop at a text."""
    jobs = [job(messages, 3 + 5 * place % 11) for place, messages in enumerate(MIXED)]
    jobs += [job(messages, 9, temperature=1.2, top_p=0.9, seed=seed) for seed, messages in enumerate(MIXED)]
    jobs += [job(messages, 12, stop=["a", "e", "\x05"], repetition_penalty=1.3) for messages in MIXED[:4]]
    return [*jobs, job(user(SMALL, "n")), job(user(SMALL, "m")), job(user("b" * 300), 20)]


@pytest.fixture(scope="module")
def alone(plain) -> list[list[int]]:
    return [plain.chat(each.messages, config=each.config).token_ids for each in some_jobs()]


# As if alone


@pytest.mark.parametrize("num_slots", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_whoever_joins_or_leaves_a_reply_is_what_it_would_be_alone(plain, alone, num_slots, seed, monkeypatch):
    """N1, N2: newcomers come at random steps, and prompts are read in small chunks in between."""
    monkeypatch.setattr(module, "PREFILL_TOKENS", 120)
    monkeypatch.setattr(module, "PREFILL_TOKENS_BETWEEN", 40)
    jobs, chance, bench = some_jobs(), random.Random(seed), Bench(plain, num_slots)
    for place in chance.sample(range(len(jobs)), len(jobs)):
        bench.add(place, jobs[place])
        for _ in range(chance.choice([0, 0, 1, 4])):
            bench.step()
    bench.finish()
    assert [bench.ids(place) for place in range(len(jobs))] == alone


def test_the_other_reference_writes_in_a_batch_what_it_writes_alone():
    """There, text before the first image attends to missing tiles, which must stay each row's own."""
    vlm = VLM(random_model(preset("tiny").with_reference("transformers")), Tokenizer.bytes_only())
    bench = Bench(vlm, 3)
    for place, messages in enumerate(MIXED):
        bench.add(place, job(messages, 6))
        bench.step()
    bench.finish()
    config = GenerationConfig(max_new_tokens=6)
    assert [bench.ids(place) for place in range(8)] == [vlm.chat(each, config=config).token_ids for each in MIXED]


def test_with_keys_and_values_in_int8_too(monkeypatch):
    """The memory grows, rows leave gaps, and prompts are read in small chunks."""
    monkeypatch.setattr(module, "PREFILL_TOKENS", 120)
    monkeypatch.setattr(module, "PREFILL_TOKENS_BETWEEN", 40)
    vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    vlm.model.kv_cache_dtype = torch.int8
    bench = Bench(vlm, 4)
    for place, messages in enumerate(MIXED):
        bench.add(place, job(messages, 3 + 5 * place % 11))
        bench.step()
    assert bench.batcher._running._memory.keys.dtype == torch.int8
    bench.finish()
    for place, messages in enumerate(MIXED):
        config = GenerationConfig(max_new_tokens=3 + 5 * place % 11)
        assert bench.ids(place) == vlm.chat(messages, config=config).token_ids


def test_pieces_joined_are_the_text_and_the_end_tells_what_was_promised(plain):
    bench = Bench(plain)
    for place, messages in enumerate(MIXED):
        bench.add(place, job(messages, 30, temperature=1.5, seed=place, stop=["\x05", "ab"]))
    bench.finish()
    for place, messages in enumerate(MIXED):
        started, *pieces, finished = bench.events[place]
        config = GenerationConfig(max_new_tokens=30, temperature=1.5, seed=place, stop=["\x05", "ab"])
        expected = plain.chat(messages, config=config)
        assert started == Started(len(plain.prompt_ids(messages)))
        assert "".join(piece.text for piece in pieces) == expected.text
        assert (finished.token_ids, finished.finish_reason) == (expected.token_ids, expected.finish_reason)
        assert finished.num_tokens == len(expected.token_ids)
        assert finished.confidence == pytest.approx(expected.confidence, abs=1e-5)
        assert min(finished.timings.encode_s, finished.timings.prefill_s, finished.timings.decode_s) > 0


def test_completions_and_turns_that_go_on_are_read_as_such(tiny):
    bench, config = Bench(tiny), GenerationConfig(max_new_tokens=5)
    begun = [*user("x"), {"role": "assistant", "content": "so"}]
    bench.add(0, Job(parts=["The ", SMALL], config=config))
    bench.add(1, Job(messages=begun, config=config, continue_final=True))
    bench.finish()
    assert bench.ids(0) == tiny.complete(["The ", SMALL], config=config).token_ids
    assert bench.ids(1) == tiny.chat(begun, config=config, continue_final=True).token_ids


# Log-probabilities


def test_log_probabilities_are_those_of_teacher_forcing(plain):
    bench = Bench(plain)
    bench.add(0, job(MIXED[1], 6, top_logprobs=3, temperature=1.5, seed=3))
    bench.add(1, job(MIXED[0], 6))
    bench.add(2, job(MIXED[3], 6, top_logprobs=0))
    bench.finish()
    found = [logprob for event in bench.events[0][1:-1] for logprob in event.logprobs]
    ids = bench.ids(0)
    assert len(found) == len(ids) == 6
    # The model's own text may be no UTF-8, so the reply is read as ids.
    prompt = plain._requests.batch([plain._requests.chat(MIXED[1])])
    visible = torch.cat([prompt.visible, prompt.visible[:, -1:].expand(-1, 6, -1)], dim=1)
    whole = prompt._replace(ids=torch.tensor([[*prompt.ids[0].tolist(), *ids]]), visible=visible)
    with torch.inference_mode():
        rows = plain.model(whole.ids, whole.image, whole.mask(0, whole.ids.shape[1]))[0].log_softmax(-1)
    for token_id, logprob, row in zip(ids, found, rows[len(prompt.ids[0]) - 1 :], strict=False):
        assert logprob.token_bytes == bytes([token_id])
        assert logprob.token == bytes([token_id]).decode(errors="replace")
        assert logprob.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        assert [alternative[2] for alternative in logprob.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert [alternative[1] for alternative in logprob.top] == [bytes([place]) for place in row.topk(3).indices]
    assert not any(event.logprobs for event in bench.events[1] if isinstance(event, Piece))
    assert [logprob.top for event in bench.events[2][1:-1] for logprob in event.logprobs] == [[]] * 6


def test_tokens_that_are_no_text_leave_no_trace(tiny):
    """P6."""
    bench = Bench(tiny)
    with changed_logits(tiny, forced([104, 262, 267, 511, 105, 265])):
        bench.add(0, job(user("x"), top_logprobs=1))
        bench.finish()
    assert [piece.text for piece in bench.events[0][1:-1]] == ["h", "i"]
    assert [len(piece.logprobs) for piece in bench.events[0][1:-1]] == [1, 1]
    assert (bench.ids(0), bench.events[0][-1].finish_reason) == ([104, 105], "stop")


# Joining and leaving


def test_a_cancelled_row_costs_no_step_more_and_its_neighbours_go_on(plain, alone):
    jobs, bench = some_jobs(), Bench(plain, 3)
    fed = []
    hook = plain.model.decoder.register_forward_pre_hook(lambda _, inputs: fed.append(tuple(inputs[0].shape)))
    for place in (7, 4, 1, 6, 3):
        bench.add(place, jobs[place])
    bench.step()
    bench.step()
    # One that is being written, and one that waits.
    bench.batcher.cancel(4)
    bench.batcher.cancel(6)
    events = list(bench.events[4])
    fed.clear()
    bench.step()
    assert sum(num_rows for num_rows, num_new in fed if num_new == 1) == 2
    bench.finish()
    hook.remove()
    assert bench.events[4] == events
    assert bench.events[6] == []
    assert [bench.ids(place) for place in (7, 1, 3)] == [alone[place] for place in (7, 1, 3)]


def test_a_prompt_that_is_being_read_can_be_cancelled(plain, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_TOKENS", 50)
    bench = Bench(plain)
    fed = []
    hook = plain.model.decoder.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape))
    bench.add(0, job(user("b" * 300)))
    bench.step()
    assert len(fed) == 1
    bench.batcher.cancel(0)
    assert bench.batcher.is_idle
    assert bench.batcher.step() == []
    hook.remove()
    assert len(fed) == 1
    # One of two that are read together, in two chunks: the other goes on alone.
    monkeypatch.setattr(module, "PREFILL_TOKENS_BETWEEN", 30)
    bench.add(3, job(user("x"), 12))
    bench.step()
    for key in (1, 2):
        bench.add(key, job(user("ab")))
    bench.step()
    bench.batcher.cancel(1)
    bench.finish()
    assert bench.events[1] == []
    assert bench.ids(2) == plain.chat(user("ab"), config=GenerationConfig(max_new_tokens=10)).token_ids


def test_a_long_prompt_holds_up_the_others_for_a_chunk_at_most(plain, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_TOKENS_BETWEEN", 32)
    bench = Bench(plain)
    bench.add(0, job(user("x"), 40))
    bench.step()
    bench.add(1, job(user("b" * 300)))
    fed = []
    hook = plain.model.decoder.register_forward_pre_hook(lambda _, inputs: fed.append(tuple(inputs[0].shape)))
    for _ in range(5):
        bench.step()
    hook.remove()
    assert fed == [(1, 1), (1, 32)] * 5


def test_memory_that_grows_for_a_newcomer_keeps_what_the_others_have(plain):
    bench, jobs = Bench(plain, 8), [job(user("x"), 30), job(user(SMALL, "y"), 30), job(user("b" * 300), 20)]
    shapes = []
    for key in range(3):
        bench.add(key, jobs[key])
        bench.step()
        shapes.append(bench.batcher._running._memory.keys.shape[1:4:2])
    # A row alone takes no memory for all the slots.
    assert [tuple(shape) for shape in shapes] == [(1, 256), (2, 256), (4, 512)]
    bench.finish()
    assert [bench.ids(key) for key in range(3)] == [plain.chat(j.messages, config=j.config).token_ids for j in jobs]


def test_newcomers_with_short_prompts_are_read_together(plain):
    bench = Bench(plain, 8)
    fed = []
    hook = plain.model.decoder.register_forward_pre_hook(lambda _, inputs: fed.append(len(inputs[0])))
    for key in range(10):
        bench.add(key, job(user("x" * key)))
    bench.step()
    hook.remove()
    assert fed == [8]


def test_no_row_is_copied_where_all_ask_about_one_picture(plain):
    """The keys and values of a picture are held once; rows of other pictures get copies of their own, written once."""
    shared, other = (
        plain._requests.ready(plain._requests.chat(user(image, "?"))).images for image in (SMALL, FOUR_TILES)
    )
    joined = JoinedImages(4)
    together = joined.arrange([shared, list(shared), list(shared)])
    assert together.keys.data_ptr() == shared[0].kv.keys.data_ptr()
    assert together.keys.stride(1) == 0
    mixed = joined.arrange([shared, other, []])
    own = shared[0].kv.keys.shape[3]
    assert torch.equal(mixed.keys[:, 0, :, :own], shared[0].kv.keys[:, 0])
    assert torch.equal(mixed.values[:, 1], other[0].kv.values[:, 0])
    assert not mixed.keys[:, 0, :, own:].any()
    assert not mixed.keys[:, 2].any()
    # Marked, to see that what stands there is not written again.
    mixed.keys[:, 1] = 7
    further = joined.arrange([[], other, shared, shared])
    assert further.keys.data_ptr() == mixed.keys.data_ptr()
    assert (further.keys[:, 1] == 7).all()
    assert not further.keys[:, 0].any()
    assert torch.equal(further.keys[:, 3, :, :own], shared[0].kv.keys[:, 0])


def test_a_picture_is_encoded_once_for_all_who_ask_about_it(tiny_model):
    vlm = VLM(tiny_model, Tokenizer.bytes_only())
    encoded = []
    hook = tiny_model.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    bench = Bench(vlm)
    for key in range(4):
        bench.add(key, job(user(SMALL, "x" * key)))
    bench.finish()
    hook.remove()
    assert len(encoded) == 1


# What goes wrong


def test_a_row_without_numbers_fails_alone_and_leaves_nothing_behind(plain, alone):
    """N6: the id Z reads a broken row of the embedding; those who get its place in memory must not."""
    jobs, weight = some_jobs(), plain.model.decoder.embedding.weight
    for value in (float("nan"), float("inf")):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[ord("Z")] = value
        try:
            # The place of the long broken row goes to a short one, beside a neighbour that is long.
            bench = Bench(plain, 2)
            bench.add(4, jobs[4])
            bench.add(100, job(user("Z" + "b" * 90)))
            for key in (3, 0, 1):
                bench.add(key, jobs[key])
            bench.add(101, job(user(SMALL, "Z")))
            for key in (2, 5):
                bench.add(key, jobs[key])
            bench.finish()
        finally:
            with torch.no_grad():
                weight.copy_(kept)
        for key in (100, 101):
            (event,) = bench.events[key]
            assert isinstance(event, Failed)
            assert event.code == "checkpoint_invalid"
        assert [bench.ids(key) for key in range(6)] == alone[:6]


def test_a_row_that_breaks_in_the_middle_ends_with_an_error(tiny):
    is_whole = iter([True, True, False])
    bench = Bench(tiny)
    with changed_logits(tiny, lambda logits: logits.where(torch.tensor(next(is_whole)), float("nan"))):
        bench.add(0, job(MIXED[0]))
        bench.finish()
    assert isinstance(bench.events[0][0], Started)
    assert bench.events[0][-1].code == "checkpoint_invalid"


@pytest.mark.parametrize("place", ["batch", "room"])
def test_without_memory_for_all_each_is_tried_alone_and_one_that_never_fits_is_refused(
    plain, alone, monkeypatch, place
):
    """H5: another time it may fit, or at another server; it is no fault of this one."""
    jobs, bench = some_jobs(), Bench(plain)
    never = plain.prompt_ids(jobs[1].messages)
    owner, name = (module, "build_batch") if place == "batch" else (module.RunningRows, "make_room")
    given = getattr(owner, name)

    def allocate(*arguments):
        rows = arguments[0] if place == "batch" else [row.prompt for row in arguments[1]]
        if len(rows) > 1 or rows[0].ids == never:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return given(*arguments)

    monkeypatch.setattr(owner, name, allocate)
    for key in range(4):
        bench.add(key, jobs[key])
    bench.finish()
    assert [bench.ids(key) for key in (0, 2, 3)] == [alone[key] for key in (0, 2, 3)]
    assert bench.events[1] == [Failed("device_unavailable", module._NO_MEMORY)]


def test_other_faults_are_not_taken_for_a_lack_of_memory(plain, monkeypatch):
    def make_room(self, newcomers):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(module.RunningRows, "make_room", make_room)
    bench = Bench(plain)
    bench.add(0, job(user("x")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        bench.step()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (job(user("a" * 600)), "context_length_exceeded"),
        (job(user("a" * 100), 390), "context_length_exceeded"),
        (job([{"role": "tool", "content": "x"}]), "invalid_request"),
        (Job(parts=[], config=GenerationConfig()), "invalid_request"),
        (job(user(b"no image", "x")), "image_unsupported"),
    ],
)
def test_what_cannot_be_read_is_refused(tiny, given, code):
    """T4."""
    with pytest.raises(VLMError) as caught:
        Bench(tiny).add(0, given)
    assert caught.value.code == code


def test_the_server_bounds_how_much_may_be_asked_for(plain):
    bench = Bench(plain, max_new_tokens=7)
    with pytest.raises(VLMError, match="8 new tokens were asked for; this server allows at most 7"):
        bench.add(0, job(user("x"), 8))
    bench.add(1, Job(messages=user("x"), config=GenerationConfig()))
    bench.add(2, job(user("x"), 6))
    bench.finish()
    assert (len(bench.ids(1)), len(bench.ids(2))) == (7, 6)


def test_memory_is_given_back_when_nobody_is_left(plain):
    bench = Bench(plain)
    for key, each in enumerate(some_jobs()[:5]):
        bench.add(key, each)
    bench.finish()
    assert isinstance(bench.events[0][-1], Finished)
    running = bench.batcher._running
    assert (running._memory, running._parts, running._joined._joined) == (None, [], None)


def test_bounded_cache_still_gives_right_answers(tiny_model, tiny):
    vlm = VLM(tiny_model, Tokenizer.bytes_only())
    vlm.images.cache = ImageCache(0)
    bench = Bench(vlm, 2)
    for key, messages in enumerate(MIXED):
        bench.add(key, job(messages, 4))
    bench.finish()
    config = GenerationConfig(max_new_tokens=4)
    assert [bench.ids(key) for key in range(8)] == [tiny.chat(each, config=config).token_ids for each in MIXED]
