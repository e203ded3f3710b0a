"""The model in its own process: what it answers, and what samples that harm it leave behind."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain

import pytest

from adapters.lora import LoRAConfig, add_adapter
from eval.backends import Answer, Failure
from eval.backends.checkpoint_model import CheckpointModel, describe
from eval.backends.local import LocalBackend, _Images
from eval.backends.model_answers import OUT_OF_MEMORY, ModelAnswers, Request
from eval.backends.worker import WorkerLost
from eval.records import ImageRef
from eval.run.batches import planned
from tests.eval_models import HarmfulModel, image, picture, question, save_tiny_model
from vlm import VLM, GenerationConfig, VLMError
from vlm.checkpoint.peft import save_adapter

NUM = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder) -> VLM:
    return VLM.from_pretrained(folder)


def messages(asked) -> list[dict]:
    """Return what the model is asked, without the beginning of the reply."""
    parts = [
        {**part, "image": part["image"].read()} if part["type"] == "image" else part
        for part in asked.prompt.messages[0]["content"]
    ]
    return [{"role": "user", "content": parts}]


def alone(model: VLM, asked, **generation) -> str:
    """Return the answer to one question by itself, straight from the model."""
    turns = messages(asked)
    if asked.prompt.prefill:
        turns.append({"role": "assistant", "content": asked.prompt.prefill})
    config = GenerationConfig(max_new_tokens=asked.prompt.max_new_tokens, **generation)
    return model.chat(turns, config=config, continue_final=bool(asked.prompt.prefill)).text


def answered(backend: LocalBackend, questions, batch_size: int = 4) -> dict:
    """Return what came of each question by its id; none comes twice."""
    outcomes = {}
    with backend:
        for asked, outcome in backend.answers(planned(questions, batch_size)):
            assert asked.sample.id not in outcomes
            outcomes[asked.sample.id] = outcome
    return outcomes


def assert_only_these_fail(outcomes: dict, model: VLM, questions, **reasons: str) -> None:
    """Each of `reasons` is part of its question's failure; all other questions have the answers they get alone."""
    assert set(outcomes) == {each.sample.id for each in questions}
    for each in questions:
        outcome = outcomes[each.sample.id]
        if each.sample.id in reasons:
            assert isinstance(outcome, Failure)
            assert reasons[each.sample.id] in outcome.reason
        else:
            assert isinstance(outcome, Answer)
            assert outcome.text == alone(model, each)


# In a process of its own


def test_answers_are_those_of_the_model_and_bad_samples_leave_their_neighbours_alone(folder, model, tmp_path):
    """B4, with text alone, several pictures and half-written replies among them."""
    bad = [
        question(1, images=(ImageRef(id="gone", path=tmp_path / "gone.png"),)),
        question(2, images=(ImageRef(id="torn", data=picture()[:100]),)),
        question(4, "x" * 10**7),
        question(7, images=(ImageRef(id="text", data=b"no picture"),)),
        question(8, images=(ImageRef(id="empty", data=b""),)),
    ]
    more = [
        question(NUM, images=()),
        question(NUM + 1, images=(image(1), image(2))),
        question(NUM + 2, prefill="Let", max_new_tokens=7),
        question(NUM + 3, "half a pair: \ud83d"),
    ]
    questions = {each.sample.id: each for each in [*map(question, range(NUM)), *more, *bad]}.values()
    outcomes = answered(LocalBackend(CheckpointModel(source=str(folder))), questions)
    codes = {
        "q1": "invalid_request",
        "q2": "image_",
        "q4": "context_length_exceeded",
        "q7": "image_",
        "q8": "image_empty",
    }
    assert_only_these_fail(outcomes, model, questions, **codes)


@pytest.mark.slow
def test_a_sample_that_ends_a_real_process_is_tried_once_more_and_alone(folder, model, tmp_path):
    """B5: killed, crashed and hung, the last sample of all among them."""
    calls = tmp_path / "calls"
    questions = [question(number) for number in range(NUM)]
    questions[1], questions[5], questions[9] = question(1, "KILL"), question(5, "HANG"), question(9, "CRASH")
    outcomes = answered(LocalBackend(HarmfulModel(source=str(folder), calls=calls), timeout_s=40), questions)
    reasons = {"q1": "SIGKILL", "q5": "no answer within", "q9": "raises ZeroDivisionError"}
    assert_only_these_fail(outcomes, model, questions, **reasons)
    # Each batch, then its questions one by one.
    assert calls.read_text().split() == ["4", *"1111", "4", *"1111", "2", *"11"]


@pytest.mark.slow
def test_a_real_process_that_ends_at_once_stops_the_run(folder, tmp_path):
    """B7: three new starts, then the end; the questions that were being answered are left for the next run."""
    calls = tmp_path / "calls"
    model_that_dies = HarmfulModel(source=str(folder), calls=calls, dies_after=0)
    with LocalBackend(model_that_dies) as backend:
        answers = backend.answers(planned([question(number) for number in range(NUM)], 4))
        with pytest.raises(VLMError, match="4 times in a row") as caught:
            next(answers)
    assert caught.value.code == "device_unavailable"
    assert len(calls.read_text().split()) == 4


@pytest.mark.slow
def test_a_real_process_that_dies_now_and_then_is_started_again(folder, model):
    """More often than it may in a row; and whole batches that do not get through are asked in smaller ones."""
    questions = [question(number) for number in range(5)]
    outcomes = answered(LocalBackend(HarmfulModel(source=str(folder), dies_after=1), max_restarts=1), questions, 1)
    assert_only_these_fail(outcomes, model, questions)


def test_a_model_that_cannot_be_opened_is_refused():
    backend = LocalBackend(CheckpointModel(source="no model"))
    with backend, pytest.raises(VLMError, match="there is no folder"):
        backend.describe()


@pytest.mark.slow
def test_the_process_ends_with_its_parent(folder, tmp_path):
    """A run that is killed leaves nothing that goes on computing."""
    program = (
        "import os, signal, sys\nfrom eval.backends.checkpoint_model import CheckpointModel\n"
        "from eval.backends.worker import Worker\n"
        "worker = Worker(CheckpointModel(source=sys.argv[1]), identify=False)\n"
        "print(worker._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120)
    assert found.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while os.path.exists(f"/proc/{int(found.stdout)}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# With a stand-in for the process


LOST_AT = {"KILL": "ended its process (SIGKILL)", "HANG": "gave no answer", "CRASH": "raises ZeroDivisionError"}


class StandIn:
    """Takes the place of a process: answers with what is asked, and is lost where a real one would be."""

    started_s = 0.0

    def __init__(self, monkeypatch, *, dies_after: int | None = None):
        """dies_after: it is lost at every request after so many since its start."""
        self.rows: list[int] = []
        self.waits: list[float] = []
        self.num_starts = self._since_start = 0
        self._dies_after = dies_after
        monkeypatch.setattr("eval.backends.local.Worker", self)

    def __call__(self, model, *, identify: bool) -> "StandIn":
        self.num_starts, self._since_start = self.num_starts + 1, 0
        return self

    def ready(self) -> dict:
        return {"model": {}, "rows": 4}

    def ask(self, request: Request, timeout_s: float) -> list[dict]:
        self.rows.append(len(request.conversations))
        self.waits.append(timeout_s)
        self._since_start += 1
        texts = [messages[0]["content"][-1]["text"] for messages in request.conversations]
        for word, reason in LOST_AT.items():
            if any(word in text for text in texts):
                raise WorkerLost(reason)
        if self._dies_after is not None and self._since_start > self._dies_after:
            raise WorkerLost("ended its process (SIGKILL)")
        return [{"text": text, "token_ids": [1], "finish_reason": "stop", "confidence": 1.0} for text in texts]

    def stop(self) -> None:
        pass


def assert_answered(outcomes: dict, questions, **reasons: str) -> None:
    """Each question has its own words as its answer, but for those with a reason to fail."""
    assert set(outcomes) == {each.sample.id for each in questions}
    for each in questions:
        outcome = outcomes[each.sample.id]
        if each.sample.id in reasons:
            assert reasons[each.sample.id] in outcome.reason
        else:
            assert outcome.text == each.prompt.messages[0]["content"][-1]["text"]


def test_a_sample_that_ends_the_process_is_tried_once_more_and_alone(monkeypatch):
    """B5: killed, hung and crashed, the last sample of all among them."""
    process = StandIn(monkeypatch)
    questions = [question(number) for number in range(NUM)]
    questions[1], questions[5], questions[9] = question(1, "KILL"), question(5, "HANG"), question(9, "CRASH")
    outcomes = answered(LocalBackend(timeout_s=40), questions)
    reasons = {"q1": "SIGKILL", "q5": "gave no answer", "q9": "raises ZeroDivisionError"}
    assert_answered(outcomes, questions, **reasons)
    # Each batch, then its questions one by one.
    assert process.rows == [4, 1, 1, 1, 1, 4, 1, 1, 1, 1, 2, 1, 1]
    assert process.num_starts == 7
    assert process.waits[5] + process.waits[7] == 40, "a sample that hangs costs the time-out in all"


def test_a_device_that_is_gone_is_no_sample_s_fault(monkeypatch):
    """B7: three new starts, then the end; the questions that were being answered are left for the next run."""
    process = StandIn(monkeypatch, dies_after=0)
    with LocalBackend() as backend:
        answers = backend.answers(planned([question(number) for number in range(NUM)], 4))
        with pytest.raises(VLMError, match="4 times in a row") as caught:
            next(answers)
    assert caught.value.code == "device_unavailable"
    assert process.num_starts == 4


def test_a_process_that_dies_now_and_then_is_started_again(monkeypatch):
    """More often than it may in a row."""
    process = StandIn(monkeypatch, dies_after=1)
    questions = [question(number) for number in range(5)]
    assert_answered(answered(LocalBackend(max_restarts=1), questions, 1), questions)
    assert process.num_starts == 5


# In this process


def requested(questions, **named) -> Request:
    """Return what the process is sent for `questions`."""
    backend, images = LocalBackend(**named), _Images()
    for each in questions:
        images.read(each)
    return backend._request(questions, images)


def test_generation_settings_reach_the_model(model):
    drawn = {"temperature": 1.5, "seed": 3, "top_p": 0.9}
    request = requested([question(0, max_new_tokens=20)], generation=drawn)
    (outcome,) = ModelAnswers(model)(request)
    assert outcome["text"] == alone(model, question(0, max_new_tokens=20), **drawn)
    assert outcome["text"] != alone(model, question(0, max_new_tokens=20))


def test_a_description_names_what_decides_the_answers(folder, tmp_path):
    opened = CheckpointModel(source=str(folder), dtype="bfloat16")
    found = {**opened.identity(), **describe(opened.open())}
    assert (found["name"], found["dtype"], found["device"], found["reference"]) == ("tiny", "bfloat16", "cpu", "meta")
    assert found["processor"] == {"tile_size": 28, "max_tiles": 4, "patch_size": 7}
    other = CheckpointModel(source=str(save_tiny_model(tmp_path / "tiny", seed=1))).identity()
    assert other["weights"] != found["weights"] == CheckpointModel(source=str(folder)).identity()["weights"]


def test_an_adapter_is_part_of_the_model(folder, tmp_path):
    opened = CheckpointModel(source=str(folder)).open()
    for name in "01":
        add_adapter(opened.model, LoRAConfig(rank=2, targets=("q_proj",)), name=name)
        save_adapter(opened.model, tmp_path / name, name)
    plain, one, both = (
        CheckpointModel(source=str(folder), adapters=tuple(str(tmp_path / name) for name in names)).identity()
        for names in ("", "0", "01")
    )
    assert plain["weights"] == one["weights"]
    assert (set(one) - set(plain), set(both) - set(one)) == ({"adapter 1"}, {"adapter 2"})
    assert both["adapter 1"] == one["adapter 1"] != both["adapter 2"]


@pytest.mark.parametrize("name", ["a.gguf", "consolidated.00.pth", "model.safetensors", "original/tokenizer.model"])
def test_a_changed_file_of_a_checkpoint_is_another_model(tmp_path, name):
    """B9."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"one")
    model = CheckpointModel(source=str(tmp_path))
    before = model.identity()
    assert model.identity() == before
    path.write_bytes(b"two")
    assert model.identity() != before


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5])
def test_batches_are_halved_when_the_memory_runs_out(folder, model, tmp_path, max_rows):
    """B6."""
    calls = tmp_path / "calls"
    questions = [question(number) for number in range(NUM)]
    starved = HarmfulModel(source=str(folder), max_rows=max_rows, calls=calls).open()
    outcomes = ModelAnswers(starved)(requested(questions))
    assert [outcome["text"] for outcome in outcomes] == [alone(model, each) for each in questions]
    rows = [int(line) for line in calls.read_text().split()]
    assert sum(count for count in rows if count <= max_rows) == NUM
    assert [count for count in rows if count > max_rows] == [10, 5, 2][: sum(count > max_rows for count in rows)]


def test_a_sample_too_large_by_itself_is_the_only_one_to_fail(folder, model):
    questions = [question(number, "HUNGRY" if number == 2 else "Why?") for number in range(NUM)]
    outcomes = ModelAnswers(HarmfulModel(source=str(folder)).open())(requested(questions))
    assert outcomes.pop(2) == OUT_OF_MEMORY
    assert [outcome["text"] for outcome in outcomes] == [
        alone(model, each) for each in questions if each is not questions[2]
    ]


def test_an_image_is_encoded_once_for_all_its_questions(folder):
    opened = CheckpointModel(source=str(folder)).open()
    encode, count = opened.model.encode, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return encode(*arguments)

    opened.model.encode = counted
    answers = ModelAnswers(opened)
    for batch in planned([question(number) for number in range(NUM)], 4):
        answers(requested(batch))
    assert count == len({question(number).sample.cluster for number in range(NUM)})


@pytest.mark.parametrize("kind", ["options", "letters"])
def test_likelihood_is_that_of_the_model(model, kind):
    options = ("a tree", "", "the sea", "two")
    asked, plain = question(0, options=options, prefill="Well, "), question(1, prefill="Well, ")
    measured, other = ModelAnswers(model)(requested([asked, plain], likelihood=kind))
    texts = ["a tree", "the sea", "two"] if kind == "options" else ["A", "C", "D"]
    expected = [[score.logprob, score.num_tokens] for score in model.score(messages(asked), texts)]
    assert measured["option_scores"].pop(1) is None, "a letter that is not offered"
    assert [*chain(*measured["option_scores"])] == pytest.approx([*chain(*expected)])
    assert "option_scores" not in other
