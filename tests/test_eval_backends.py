"""The model in its own process: what it answers, and what samples that harm it leave behind."""

import os
import signal
import time

import pytest

from eval.backends import Answer, Failure
from eval.backends.checkpoint_model import CheckpointModel
from eval.backends.local import LocalBackend
from eval.batching import planned
from eval.records import ImageRef
from tests.eval_models import HarmfulModel, image, picture, question, save_tiny_model
from vlm import VLM, GenerationConfig, VLMError

NUM = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder) -> VLM:
    return VLM.from_pretrained(folder)


def alone(model: VLM, asked) -> str:
    """Return the answer to one question by itself, straight from the model."""
    parts = [
        {**part, "image": part["image"].read()} if part["type"] == "image" else part
        for part in asked.prompt.messages[0]["content"]
    ]
    messages = [{"role": "user", "content": parts}]
    if asked.prompt.prefill:
        messages.append({"role": "assistant", "content": asked.prompt.prefill})
    config = GenerationConfig(max_new_tokens=asked.prompt.max_new_tokens)
    return model.chat(messages, config=config, continue_final=bool(asked.prompt.prefill)).text


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


def test_answers_are_those_of_the_model(folder, model):
    questions = [question(number) for number in range(NUM)]
    questions.append(question(NUM, images=()))
    questions.append(question(NUM + 1, images=(image(1), image(2))))
    questions.append(question(NUM + 2, prefill="Let", max_new_tokens=7))
    assert_only_these_fail(answered(LocalBackend(CheckpointModel(source=str(folder))), questions), model, questions)


def test_generation_settings_reach_the_model(folder):
    drawn = {"temperature": 1.5, "seed": 3, "top_p": 0.9}
    questions = [question(0, max_new_tokens=20)]
    first, again, other, greedy = (
        answered(LocalBackend(CheckpointModel(source=str(folder)), generation=generation), questions)["q0"].text
        for generation in (drawn, drawn, {**drawn, "seed": 4}, {})
    )
    assert first == again
    assert len({first, other, greedy}) == 3


def test_a_description_names_what_decides_the_answers(folder, tmp_path):
    with LocalBackend(CheckpointModel(source=str(folder), dtype="bfloat16")) as backend:
        found = backend.describe()
    assert (found["name"], found["dtype"], found["device"], found["reference"]) == ("tiny", "bfloat16", "cpu", "meta")
    other = save_tiny_model(tmp_path / "tiny", seed=1)
    with LocalBackend(CheckpointModel(source=str(other), dtype="bfloat16")) as backend:
        assert backend.describe()["weights"] != found["weights"]


def test_a_model_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(VLMError, match="there is no folder"), LocalBackend(CheckpointModel(source="no model")) as backend:
        backend.describe()


def test_bad_samples_leave_their_neighbours_alone(folder, model, tmp_path):
    questions = [question(number) for number in range(NUM)]
    bad = {
        1: question(1, images=(ImageRef(id="gone", path=tmp_path / "gone.png"),)),
        2: question(2, images=(ImageRef(id="torn", data=picture()[:100]),)),
        4: question(4, "x" * 10**7),
        7: question(7, images=(ImageRef(id="text", data=b"no picture"),)),
        8: question(8, images=(ImageRef(id="empty", data=b""),)),
    }
    for number, each in bad.items():
        questions[number] = each
    outcomes = answered(LocalBackend(CheckpointModel(source=str(folder))), questions)
    codes = {"q1": "invalid_request", "q2": "image_", "q4": "context_length_exceeded", "q7": "image_", "q8": "image_empty"}
    assert_only_these_fail(outcomes, model, questions, **codes)


def test_a_sample_that_kills_or_crashes_the_process_is_the_only_one_to_fail(folder, model):
    questions = [question(number) for number in range(NUM)]
    questions[1], questions[6] = question(1, "KILL"), question(6, "CRASH")
    outcomes = answered(LocalBackend(HarmfulModel(source=str(folder))), questions)
    assert_only_these_fail(outcomes, model, questions, q1="SIGKILL", q6="raises ZeroDivisionError")


def test_a_sample_that_hangs_costs_no_more_than_the_timeout(folder, model):
    questions = [question(number) for number in range(NUM)]
    questions[5] = question(5, "HANG")
    backend, timeout_s = LocalBackend(HarmfulModel(source=str(folder)), timeout_s=4), 4
    outcomes = answered(backend, questions)
    assert_only_these_fail(outcomes, model, questions, q5="no answer within")


def test_a_suspect_is_tried_once_more_and_alone(folder, tmp_path):
    calls = tmp_path / "calls"
    questions = [question(0), question(1, "KILL"), question(2), question(3), question(4)]
    answered(LocalBackend(HarmfulModel(source=str(folder), calls=calls)), questions)
    # The batch, its four questions one by one, and the batch after it.
    assert calls.read_text().split() == ["4", "1", "1", "1", "1", "1"]


def test_the_last_sample_of_all_may_be_the_bad_one(folder, model):
    questions = [question(0), question(1, "KILL")]
    assert_only_these_fail(
        answered(LocalBackend(HarmfulModel(source=str(folder))), questions), model, questions, q1="SIGKILL"
    )


def test_a_device_that_is_gone_is_no_sample_s_fault(folder, model, tmp_path):
    """Three starts, then the end; the questions that were being answered are left for the next run."""
    calls = tmp_path / "calls"
    questions = [question(number) for number in range(NUM)]
    model_that_dies = HarmfulModel(source=str(folder), calls=calls, dies_after=0)
    outcomes = {}
    with pytest.raises(VLMError, match="4 times in a row") as caught, LocalBackend(model_that_dies) as backend:
        for asked, outcome in backend.answers(planned(questions, 4)):
            outcomes[asked.sample.id] = outcome
    assert caught.value.code == "device_unavailable"
    assert outcomes == {}
    assert len(calls.read_text().split()) == 4


def test_a_process_that_dies_now_and_then_is_started_again(folder, model):
    questions = [question(number) for number in range(NUM)]
    outcomes = answered(LocalBackend(HarmfulModel(source=str(folder), dies_after=2)), questions, batch_size=1)
    assert_only_these_fail(outcomes, model, questions)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5])
def test_batches_are_halved_when_the_memory_runs_out(folder, model, tmp_path, max_rows):
    calls = tmp_path / "calls"
    questions = [question(number) for number in range(NUM)]
    outcomes = answered(
        LocalBackend(HarmfulModel(source=str(folder), max_rows=max_rows, calls=calls)), questions, batch_size=NUM
    )
    assert_only_these_fail(outcomes, model, questions)
    rows = [int(line) for line in calls.read_text().split()]
    assert sum(count for count in rows if count <= max_rows) == NUM
    assert [count for count in rows if count > max_rows] == [10, 5, 2][: sum(count > max_rows for count in rows)]


def test_a_sample_too_large_by_itself_is_the_only_one_to_fail(folder, model):
    questions = [question(number) for number in range(NUM)]
    questions[2] = question(2, "HUNGRY")
    outcomes = answered(LocalBackend(HarmfulModel(source=str(folder))), questions)
    assert_only_these_fail(outcomes, model, questions, q2="the memory ran out for this sample alone")


def test_the_process_ends_with_its_parent(folder):
    """A run that is killed leaves nothing that could go on computing."""
    from eval.backends.worker import Worker

    started = os.fork()
    if started == 0:
        worker = Worker(CheckpointModel(source=str(folder)), identify=False)
        with open(folder.parent / "pid", "w") as file:
            file.write(f"{worker._process.pid}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(started, 0)
    pid = int((folder.parent / "pid").read_text())
    deadline = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kind", ["options", "letters"])
def test_likelihood_is_that_of_the_model(folder, model, kind):
    import json

    options = ("a tree", "the sea", "two")
    asked = question(0, options=options, prefill="Well, ")
    plain = question(1)
    outcomes = answered(LocalBackend(CheckpointModel(source=str(folder)), likelihood=kind), [asked, plain])
    texts = list(options) if kind == "options" else ["A", "B", "C"]
    parts = [
        {**part, "image": part["image"].read()} if part["type"] == "image" else part
        for part in asked.prompt.messages[0]["content"]
    ]
    expected = [[score.logprob, score.num_tokens] for score in model.score([{"role": "user", "content": parts}], texts)]
    found = json.loads(outcomes["q0"].option_scores)
    assert [score for pair in found for score in pair] == pytest.approx([score for pair in expected for score in pair])
    assert outcomes["q1"].option_scores is None
