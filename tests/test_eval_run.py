"""A run: what it writes, how it goes on after any end, what it refuses, and what it asks together."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from eval.backends.rows import Halving, rows_on_cpu, rows_that_fit
from eval.run.answer_log import MAX_TEXT_OF_ERROR
from eval.run.batches import planned
from eval.run.folder import RunFolder
from eval.run.journal import read_journals
from eval.run.manifest import RunDiffers
from eval.run.runner import Outcome, RunSettings, run
from eval.run.selection import Selection
from eval.run.shards import Shard
from eval.scoring import score_folder
from tests.eval_models import EchoBackend, picture, question, write_chart_questions
from vlm import VLMError

NUM = 20


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    return RunSettings(data={"chartqa": write_chart_questions(tmp_path / "data", NUM)}, out=tmp_path / "run")


def records(out: Path) -> list[dict]:
    return [json.loads(line) for path in RunFolder(out).journals() for line in path.read_text().splitlines()]


def ids(out: Path) -> list[str]:
    return [record["id"] for record in records(out)]


def stopped(settings: RunSettings, after: int, **named) -> None:
    """Run until so many records are written."""
    with pytest.raises(KeyboardInterrupt):
        run(settings, EchoBackend(stops_after=after, **named))


# Records and resuming


def test_every_sample_gets_one_record_with_what_is_promised(settings):
    assert run(settings, EchoBackend()) == Outcome(NUM, 0, 0, None)
    assert sorted(ids(settings.out)) == sorted(f"q{number}" for number in range(NUM))
    first = records(settings.out)[0]
    promised = "id task key prompt prediction token_ids finish_reason confidence target error"
    assert list(first)[:10] == promised.split()
    assert first["prediction"] == "0"
    assert first["target"] == ["0"]
    assert "<image: 0.png>Value 0?" in first["prompt"]


@pytest.mark.parametrize("after", [0, 1, 4, 6, NUM - 1])
def test_a_run_goes_on_where_it_stopped_and_ends_as_if_it_never_had(settings, after):
    run(replace(settings, out=settings.out.parent / "whole"), EchoBackend())
    stopped(settings, after)
    assert len(records(settings.out)) == after
    second = EchoBackend()
    assert run(settings, second) == Outcome(NUM, after, 0, None)
    assert sum(map(len, second.asked)) - (NUM - after) < second.batch_size
    for name in ("predictions.jsonl", "scores.json"):
        for out in (settings.out, settings.out.parent / "whole"):
            score_folder(out)
        whole, resumed = (
            sorted((out / name).read_bytes().splitlines()) for out in (settings.out.parent / "whole", settings.out)
        )
        assert resumed == whole


def test_a_finished_run_asks_nothing(settings):
    run(settings, EchoBackend())
    again = EchoBackend()
    assert run(settings, again) == Outcome(NUM, NUM, 0, None)
    assert again.asked == []


def test_what_is_left_of_a_batch_is_asked_in_the_same_company(settings):
    """In other company the last bits of a computation would be others."""
    whole, second = EchoBackend(), EchoBackend()
    run(replace(settings, out=settings.out.parent / "whole"), whole)
    stopped(settings, 6)
    run(settings, second)
    assert second.asked == whole.asked[1:]


def test_a_torn_record_is_asked_again(settings):
    stopped(settings, 6)
    journal = settings.out / "predictions.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    assert run(settings, EchoBackend()).num_before == 5
    assert sorted(ids(settings.out)) == sorted(f"q{number}" for number in range(NUM))


def test_a_sample_that_fails_is_recorded_and_not_asked_again_until_that_is_wanted(settings):
    changed = {3: {"question": "FAIL 3?"}, 4: {"image": "gone.png"}}
    write_chart_questions(settings.data["chartqa"].parent, NUM, changed=changed)
    assert run(settings, EchoBackend()) == Outcome(NUM, 0, 2, None)
    failed = {record["id"]: record["error"] for record in records(settings.out) if record["error"]}
    assert failed == {"q3": "it fails", "q4": "image file 'gone.png' is missing"}
    scores = score_folder(settings.out)["tasks"]["chartqa"]
    assert (scores["n"], scores["answered"], scores["errors"]) == (NUM, NUM - 2, 2)
    assert scores["scores"]["ours"]["mean"] == 1
    assert scores["scores"]["ours"]["mean_errors_wrong"] == (NUM - 2) / NUM
    again = EchoBackend()
    assert run(settings, again) == Outcome(NUM, NUM, 2, None)
    assert again.asked == []
    run(replace(settings, retry_errors=True), again)
    assert any("q3" in batch for batch in again.asked)
    assert len(list(read_journals(RunFolder(settings.out).journals()))) == NUM


def test_a_failed_sample_is_not_computed_again_with_its_batch(settings):
    write_chart_questions(settings.data["chartqa"].parent, NUM, changed={1: {"question": "FAIL 1?"}})
    stopped(settings, 2)
    again = EchoBackend()
    run(settings, again)
    assert again.asked[0] == ["q0", "q2", "q3"]


def test_an_endless_question_does_not_make_an_endless_record(settings):
    changed = {0: {"question": "FAIL" + "x" * 10**6}}
    write_chart_questions(settings.data["chartqa"].parent, NUM, changed=changed)
    run(settings, EchoBackend())
    (failed,) = [record for record in records(settings.out) if record["error"]]
    assert len(json.dumps(failed)) < 3 * MAX_TEXT_OF_ERROR
    assert failed["question"].endswith("(1000004 characters)")


# What is not the same run


def asked_with(name: str, settings: RunSettings) -> tuple[RunSettings, EchoBackend]:
    """Return settings and a backend in which one thing is another."""
    folder = settings.data["chartqa"].parent
    if name == "tasks.chartqa.samples":
        write_chart_questions(folder, NUM, changed={7: {"answer": "8"}})
    if name == "tasks.chartqa.prompts":
        write_chart_questions(folder, NUM, changed={7: {"question": "Value 8?"}})
    changed = {
        "tasks.chartqa.prompt": {"prompt": "lmms-eval"},
        "tasks.chartqa.max_new_tokens": {"max_new_tokens": 5},
        "selection.limit": {"selection": Selection(limit=5)},
        "selection.images": {"selection": Selection(blank_images=True)},
    }
    backends = {
        "model.weights": EchoBackend(weights="others"),
        "model.name": EchoBackend(name="another"),
        "generation.temperature": EchoBackend(generation={"temperature": 1}),
    }
    return replace(settings, **changed.get(name, {})), backends.get(name, EchoBackend())


DIFFERING = [
    "tasks.chartqa.samples",
    "tasks.chartqa.prompts",
    "tasks.chartqa.prompt",
    "tasks.chartqa.max_new_tokens",
    "selection.limit",
    "selection.images",
    "model.weights",
    "model.name",
    "generation.temperature",
]


@pytest.mark.parametrize("name", DIFFERING)
def test_with_anything_changed_it_refuses_and_names_the_field(settings, name):
    stopped(settings, 6)
    before = {path.name: path.read_bytes() for path in settings.out.iterdir()}
    changed, backend = asked_with(name, settings)
    with pytest.raises(RunDiffers) as caught:
        run(changed, backend)
    assert name in [difference.field for difference in caught.value.differences]
    assert backend.asked == []
    assert {path.name: path.read_bytes() for path in settings.out.iterdir()} == before


def test_another_length_of_replies_is_another_run(settings):
    stopped(settings, 6)
    with pytest.raises(RunDiffers, match=r"tasks\.chartqa\.prompts"):
        run(replace(settings, max_new_tokens=5), EchoBackend())


def test_a_new_run_moves_the_old_answers_aside(settings):
    stopped(settings, 6)
    before = (settings.out / "predictions.jsonl").read_bytes()
    outcome = run(replace(settings, new_run=True, prompt="lmms-eval"), EchoBackend())
    assert outcome.num_before == 0
    assert (outcome.moved_to / "predictions.jsonl").read_bytes() == before
    assert len(records(settings.out)) == NUM
    assert RunFolder(settings.out).manifest()["tasks"]["chartqa"]["prompt"] == ["lmms-eval"]


def test_other_pixels_under_the_same_name_are_noticed(settings):
    stopped(settings, 6)
    (settings.data["chartqa"].parent / "1.png").write_bytes(picture(77))
    with pytest.raises(VLMError, match="sample 'q3' of chartqa was answered with other pictures"):
        run(settings, EchoBackend())


def test_answers_without_a_manifest_are_not_gone_on_with(settings):
    stopped(settings, 6)
    (settings.out / "manifest.json").unlink()
    with pytest.raises(VLMError, match="holds answers and no manifest"):
        run(settings, EchoBackend())


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "q1", "question": "Value 8?"},
        {"id": "other"},
        {"image": "2.png"},
    ],
)
def test_the_key_of_a_record_is_of_all_that_decides_the_answer(tmp_path, changed):
    keys = []
    for fields in ({}, changed):
        data = write_chart_questions(tmp_path / f"data{len(keys)}", NUM, changed={1: fields})
        out = tmp_path / f"run{len(keys)}"
        run(RunSettings(data={"chartqa": data}, out=out), EchoBackend())
        keys.append({record["prompt"]: record["key"] for record in records(out)})
    different = set(keys[0].values()) ^ set(keys[1].values())
    assert len(different) == 2


def test_two_runs_in_one_folder_exclude_each_other(settings):
    settings.out.mkdir()
    with RunFolder(settings.out).claimed(None), pytest.raises(VLMError, match="is writing to predictions"):
        run(settings, EchoBackend())


def test_a_full_disk_ends_the_run_and_loses_nothing(settings, monkeypatch):
    from eval.run import journal as module

    real_write, count = module.os.write, 0

    def full(descriptor, line):
        nonlocal count
        count += line.startswith(b'{"id"')
        return real_write(descriptor, line[: len(line) // 2] if count > 6 else line)

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(VLMError, match="No space left"):
        run(settings, EchoBackend())
    monkeypatch.undo()
    assert len(records(settings.out)) == 6
    assert run(settings, EchoBackend()) == Outcome(NUM, 6, 0, None)


# Shards


@pytest.mark.parametrize("count", [1, 3])
def test_shards_together_are_the_whole_and_keep_pictures_together(settings, count):
    shards = [Shard(index, count) for index in range(1, count + 1)]
    outcomes = [run(replace(settings, shard=shard), EchoBackend()) for shard in shards]
    assert sum(outcome.num_samples for outcome in outcomes) == NUM
    assert sorted(ids(settings.out)) == sorted(f"q{number}" for number in range(NUM))
    pictures = [
        {json.loads(line)["images"][0] for line in path.read_text().splitlines()}
        for path in RunFolder(settings.out).journals()
    ]
    assert sum(map(len, pictures)) == len(set().union(*pictures))
    whole = replace(settings, out=settings.out.parent / "whole")
    run(whole, EchoBackend())
    assert score_folder(settings.out) == score_folder(whole.out)
    (again,) = [run(settings, backend := EchoBackend())]
    assert (again.num_before, backend.asked) == (NUM, [])


def test_a_shard_s_new_run_leaves_the_other_shards_alone(settings):
    for index in (1, 2):
        run(replace(settings, shard=Shard(index, 2)), EchoBackend())
    kept = (settings.out / "predictions-2-of-2.jsonl").read_bytes()
    outcome = run(replace(settings, shard=Shard(1, 2), new_run=True), EchoBackend())
    assert outcome.num_before == 0
    assert (settings.out / "predictions-2-of-2.jsonl").read_bytes() == kept
    with RunFolder(settings.out).claimed(Shard(2, 2)), pytest.raises(VLMError, match="is writing"):
        run(replace(settings, shard=Shard(1, 2), new_run=True, prompt="lmms-eval"), EchoBackend())


# Batches


@limits(deadline=None)
@given(
    pictures=st.lists(st.integers(0, 4), max_size=30),
    batch_size=st.integers(1, 9),
    prefills=st.lists(st.booleans(), max_size=30),
)
def test_a_plan_holds_every_question_once_and_batches_agree(pictures, batch_size, prefills):
    prefills += [False] * len(pictures)
    questions = [
        question(3 * shown, id=f"q{number}", prefill="So" if prefills[number] else "")
        for number, shown in enumerate(pictures)
    ]
    batches = list(planned(questions, batch_size))
    flat = [each.sample.id for batch in batches for each in batch]
    assert sorted(flat) == sorted(each.sample.id for each in questions)
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(len({each.prompt.prefill for each in batch}) == 1 for batch in batches)
    clusters = [each.sample.cluster for batch in batches for each in batch]
    changes = sum(a != b for a, b in pairwise(clusters))
    assert changes == max(0, len(set(clusters)) - 1)


class TooMany(Exception):
    pass


@limits(deadline=None)
@given(num_rows=st.integers(0, 40), room=st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_halving_computes_every_row_once_and_in_order(num_rows, room):
    """However the memory changes from call to call, as long as one row fits."""
    calls = iter(room * 100)
    computed = []

    def call(rows):
        if len(rows) > next(calls):
            raise TooMany
        computed.extend(rows)
        return [row * row for row in rows]

    halving = Halving(call, out_of_memory=lambda error: isinstance(error, TooMany), free=lambda: None)
    rows = list(range(num_rows))
    assert halving(rows, "failed") == [row * row for row in rows]
    assert computed == rows


def test_halving_stays_small_and_grows_back():
    sizes, limit = [], 2

    def call(rows):
        sizes.append(len(rows))
        if len(rows) > limit:
            raise TooMany
        return rows

    halving = Halving(call, out_of_memory=lambda error: isinstance(error, TooMany), free=lambda: None)
    for _ in range(4):
        halving(list(range(8)), None)
    assert sizes[:6] == [8, 4, 2, 2, 2, 2]
    assert sizes.count(8) == 1
    limit = 8
    for _ in range(10):
        halving(list(range(8)), None)
    assert sizes[-1] == 8


def test_halving_passes_on_other_errors():
    def call(rows):
        raise ValueError("another")

    halving = Halving(call, out_of_memory=lambda error: isinstance(error, TooMany), free=lambda: None)
    with pytest.raises(ValueError, match="another"):
        halving([1], None)


def test_rows_are_as_many_as_fit():
    sizes = {"token_bytes": 1000, "image_bytes": 10**6}
    counts = [rows_that_fit(free_bytes=free, **sizes) for free in (0, 10**7, 10**8, 10**12)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[2] == int(0.6 * 10**8 / (1536 * 1000 + 2 * 10**6))
    assert counts[3] == 64


def test_a_small_model_takes_more_rows_on_a_cpu():
    assert rows_on_cpu(15 * 10**6) > rows_on_cpu(2 * 10**9) > 1
