"""The log of a run, its locks and its folder: what is written stays, whatever happens to the process or the disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.records import Prediction
from eval.run.folder import MANIFEST, RunFolder, replace_file
from eval.run.journal import Journal, RecordHead, read_journal, read_journals
from eval.run.manifest import FREE, RunDiffers, check_same, new_manifest
from eval.run.shards import Shard
from vlm import VLMError


def record(number: int, **named) -> Prediction:
    return Prediction(
        **{
            "id": f"q{number}",
            "task": "invented",
            "key": "k",
            "prompt": "user:\n…",
            "prediction": f"answer {number} \ud83d",
            "token_ids": (1, 2),
            "finish_reason": "stop",
            "confidence": 0.5,
            "target": ("yes",),
            "error": None,
            **named,
        }
    )


def written(path, records) -> bytes:
    with Journal(path) as journal:
        for each in records:
            journal.append(each)
    return path.read_bytes()


# The log


def test_a_journal_gives_back_what_was_written(tmp_path):
    records = [record(number) for number in range(3)]
    written(tmp_path / "predictions.jsonl", records[:2])
    written(tmp_path / "predictions.jsonl", records[2:])
    assert list(read_journal(tmp_path / "predictions.jsonl")) == records


def test_a_record_is_one_write_of_a_whole_line_and_on_the_disk_before_the_next(tmp_path, monkeypatch):
    calls = []
    real_write, real_sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *args: (calls.append(("write", args[1])), real_write(*args))[1])
    monkeypatch.setattr(os, "fsync", lambda *args: (calls.append(("fsync", None)), real_sync(*args))[1])
    content = written(tmp_path / "predictions.jsonl", [record(0), record(1, prediction="x" * 200_000)])
    assert [name for name, _ in calls] == ["write", "fsync", "write", "fsync"]
    assert [line for name, line in calls if name == "write"] == content.splitlines(keepends=True)


def test_a_torn_tail_is_cut_off_at_every_offset_and_nothing_before_it(tmp_path):
    """Cut anywhere in its last two records, the log loses what was cut and goes on as if it had never been begun."""
    path = tmp_path / "predictions.jsonl"
    records = [record(number) for number in range(4)]
    whole = written(path, records)
    lines = whole.splitlines(keepends=True)
    first_offset = len(b"".join(lines[:2]))
    for offset in range(first_offset, len(whole) + 1):
        path.write_bytes(whole[:offset])
        kept = whole[:offset].count(b"\n")
        assert list(read_journal(path)) == records[:kept]
        assert written(path, records[kept:]) == whole


@settings(deadline=None)
@given(tail=st.binary(max_size=300).filter(lambda tail: b"\n" not in tail), blocks=st.integers(0, 2))
def test_whatever_a_torn_tail_holds_the_records_before_it_stay(tmp_path_factory, tail, blocks):
    path = tmp_path_factory.mktemp("torn") / "predictions.jsonl"
    whole = written(path, [record(0)])
    path.write_bytes(whole + b"\0" * 65536 * blocks + tail)
    assert written(path, [record(1)]) == whole + record(1).to_json().encode() + b"\n"


def test_a_file_that_is_one_torn_record_becomes_empty(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b'{"id": "q0"' * 20_000)
    assert written(path, []) == b""


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    whole = written(path, [record(0), record(1), record(2)])
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][5:] + lines[2])
    with pytest.raises(VLMError, match=r"predictions\.jsonl, line 2: "):
        list(read_journal(path))


@pytest.mark.parametrize("prediction", ["plain", "half a pair \ud83d"])
def test_a_head_is_that_of_the_whole_record(prediction):
    whole = record(1, prediction=prediction)
    head = RecordHead.from_json(whole.to_json().encode() + b"\n")
    assert head == RecordHead(task=whole.task, id=whole.id, key=whole.key, error=whole.error)


@pytest.mark.parametrize("damage", [b"\xff", b"\\q", b"\\ud83", b"\x01", b'"', b"\0"])
def test_damage_is_found_also_in_what_a_head_leaves_out(tmp_path, damage):
    path = tmp_path / "predictions.jsonl"
    first, second = written(path, [record(0), record(1, prediction="plain")]).splitlines(keepends=True)
    path.write_bytes(first + second.replace(b"plain", damage))
    with pytest.raises(VLMError, match=r"predictions\.jsonl, line 2: "):
        list(read_journal(path, RecordHead.from_json))


def test_of_several_records_of_a_sample_an_answer_counts_and_the_last_one(tmp_path):
    first, second = tmp_path / "predictions-1-of-2.jsonl", tmp_path / "predictions-2-of-2.jsonl"
    failed = {"prediction": None, "token_ids": None, "finish_reason": None, "confidence": None}
    written(first, [record(0, error="x", **failed), record(1, prediction="old"), record(2, error="first", **failed)])
    written(
        second,
        [
            record(0, prediction="new"),
            record(1, prediction="newer"),
            record(1, error="x", **failed),
            record(2, error="second", **failed),
        ],
    )
    found = {each.id: each.prediction or each.error for each in read_journals([first, second])}
    assert found == {"q0": "new", "q1": "newer", "q2": "second"}


def test_a_full_disk_leaves_the_records_before_and_no_half_one(tmp_path, monkeypatch):
    path = tmp_path / "predictions.jsonl"
    real_write = os.write
    with Journal(path) as journal:
        journal.append(record(0))
        monkeypatch.setattr(os, "write", lambda descriptor, line: real_write(descriptor, line[:40]))
        with pytest.raises(VLMError, match=r"No space left on device.*run the same command again"):
            journal.append(record(1))
        monkeypatch.undo()
        journal.append(record(2))
    assert [each.id for each in read_journal(path)] == ["q0", "q2"]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    (tmp_path / "predictions.jsonl").symlink_to("/dev/full")
    with pytest.raises(VLMError, match="no regular file"):
        Journal(tmp_path / "predictions.jsonl")


# Locks


def test_a_second_process_is_refused_at_once_and_told_who_is_first(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.claimed(None):
        with pytest.raises(VLMError, match=f"process {os.getpid()} is writing to predictions.jsonl"):
            folder.claimed(None).__enter__()
        with folder.claimed(Shard(1, 2)):
            pass
    with folder.claimed(None):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = (
        "import sys, time\nfrom eval.run.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).claimed(None):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(VLMError, match=f"process {process.pid} "):
        RunFolder(tmp_path).claimed(None).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunFolder(tmp_path).claimed(None):
        assert (tmp_path / "predictions.lock").read_text() == f"{os.getpid()}\n"


def test_whoever_settles_a_folder_waits_for_the_other(tmp_path):
    order = []

    def settle():
        with RunFolder(tmp_path).settling():
            order.append("second")

    with RunFolder(tmp_path).settling():
        thread = threading.Thread(target=settle)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# The folder


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    replace_file(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VLMError, match=r"scores\.json cannot be written \(No space left on device\)"):
        replace_file(path, "new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("scores.json", "old")]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VLMError, match=r"pipe cannot be written \(no regular file\)"):
        replace_file(tmp_path / "pipe", "new")
    assert not (tmp_path / "pipe").is_file()


def test_a_journal_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "predictions.jsonl").mkdir()
    with pytest.raises(VLMError, match=r"predictions\.jsonl cannot be read \(Is a directory\)"):
        list(read_journal(tmp_path / "predictions.jsonl"))


def test_moving_aside_deletes_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    names = [MANIFEST, "predictions.jsonl"]
    for text in ("first", "second"):
        for name in names:
            (tmp_path / name).write_text(text)
        assert folder.move_aside([*names, "scores.json"]).parent == tmp_path
    assert folder.move_aside(names) is None
    found = sorted(path.read_text() for path in tmp_path.glob("earlier-*/*"))
    assert found == ["first", "first", "second", "second"]
    assert folder.journals() == []


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(VLMError, match=r"manifest\.json of .* is damaged"):
        RunFolder(tmp_path).manifest()


# The manifest


def manifest(**changed) -> dict:
    return new_manifest(
        command=("vlm-eval", "run"),
        **{
            "data": "/here",
            "model": {"weights": "a", "dtype": "float32"},
            "batch_size": 8,
            "tasks": {"t": 1},
            **changed,
        },
    )


def test_equal_runs_go_on_wherever_their_data_lies():
    check_same(manifest(data="/there", batch_size=2), json.loads(json.dumps(manifest())))


def test_every_field_that_differs_is_named_with_both_values():
    with pytest.raises(RunDiffers) as caught:
        check_same(manifest(model={"weights": "b", "dtype": "float32"}, tasks={"u": 1}), manifest())
    assert [str(each) for each in caught.value.differences] == [
        "model.weights: found 'b', expected 'a'",
        "tasks.t: found None, expected 1",
        "tasks.u: found 1, expected None",
    ]
    assert "model.weights, tasks.t, tasks.u" in caught.value.message
    assert len(caught.value.message) <= 300


@pytest.mark.parametrize("name", sorted(set(manifest()) - FREE))
def test_no_field_that_defines_the_run_is_left_out_of_the_comparison(name):
    expected = manifest()
    with pytest.raises(RunDiffers, match=name):
        check_same({**expected, name: "another"}, expected)


# Shards


@settings(deadline=None)
@given(clusters=st.lists(st.text()), count=st.integers(1, 7))
def test_every_cluster_is_in_exactly_one_shard(clusters, count):
    shards = [Shard(index, count) for index in range(1, count + 1)]
    assert all(sum(shard.holds(cluster) for shard in shards) == 1 for cluster in clusters)


def test_shards_are_of_like_size():
    counts = [sum(Shard(index, 4).holds(f"picture {number}") for number in range(2000)) for index in range(1, 5)]
    assert sum(counts) == 2000
    assert min(counts) > 400


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_what_names_no_shard_is_refused(text):
    with pytest.raises(VLMError, match="expected INDEX/COUNT"):
        Shard.parse(text)


def test_a_shard_is_named_in_its_journal(tmp_path):
    assert RunFolder(tmp_path).journal_path(Shard.parse("2/3")).name == "predictions-2-of-3.jsonl"
