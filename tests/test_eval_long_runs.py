"""B11: a run of a hundred thousand samples needs no more memory at its end, and is gone on with in seconds."""

import gc
import itertools
import json
import os
import tracemalloc

import pytest

from eval.backends import Answer, Asked
from eval.records import ImageRef
from eval.run.image_digests import SUFFIX, ImageDigests
from eval.run.runner import RunSettings, run
from tests.eval_data_sets import picture
from vlm import VLMError


class Numbers:
    """Answers with the number in the question, and notes now and then how much memory is in use."""

    name, batch_size, generation = "numbers", 8, {}

    def __init__(self, measure=lambda: 0, *, every: int = 100):
        self.num_asked, self.measure, self.every, self.measured = 0, measure, every, []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def describe(self) -> dict:
        return {"name": self.name}

    def answers(self, batches):
        for batch in batches:
            for each in batch:
                if self.num_asked % self.every == 0:
                    self.measured.append(self.measure())
                self.num_asked += 1
                yield Asked(each, Answer(text="".join(filter(str.isdigit, each.sample.question)), finish_reason="stop"))


def settings(folder, num_samples: int) -> RunSettings:
    """Write questions, two a picture, of pictures that were not changed lately."""
    (folder / "data").mkdir()
    with open(folder / "data" / "test.jsonl", "w") as file:
        for number in range(num_samples):
            name = f"{number // 2}.png"
            (folder / "data" / name).write_bytes(picture(number // 2))
            row = {"id": f"q{number}", "image": name, "question": f"Value {number}?", "answer": str(number)}
            file.write(json.dumps({**row, "split": "human"}) + "\n")
    return RunSettings(data={"chartqa": folder / "data"}, out=folder / "run")


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def quietly(monkeypatch) -> None:
    """Let a test write without waiting for the disk, and take files that were just written for old ones."""
    monkeypatch.setattr("eval.run.journal.os.fsync", lambda descriptor: None)
    monkeypatch.setattr("eval.run.image_digests._SETTLED_NS", -(10**12))


def test_memory_does_not_grow_with_the_answers(tmp_path, monkeypatch):
    """What a sample leaves behind in memory is less than its own line in the log, by far."""
    quietly(monkeypatch)
    monkeypatch.setattr("eval.run.image_digests.MAX_KNOWN", 64)
    tracemalloc.start()
    # Collecting also empties Python's store of freed tuples, which fills up to a limit.
    backend = Numbers(lambda: (gc.collect(), tracemalloc.get_traced_memory()[0])[1], every=500)
    run(settings(tmp_path, 2000), backend)
    tracemalloc.stop()
    # What other tests of this process left behind may need room once, but not in every stretch.
    grown = [later - earlier for earlier, later in itertools.pairwise(backend.measured[1:])]
    assert len(grown) > 1
    assert min(grown) / 500 < 40


def test_a_finished_run_is_gone_on_with_without_reading_a_picture(tmp_path, monkeypatch):
    quietly(monkeypatch)
    chosen = settings(tmp_path, 40)
    run(chosen, Numbers())
    with monkeypatch.context() as patch:
        patch.setattr(ImageRef, "read", lambda image: pytest.fail(f"{image.id} was read"))
        backend = Numbers()
        assert run(chosen, backend).num_before == 40
        assert backend.num_asked == 0
    (tmp_path / "run" / f"predictions{SUFFIX}").unlink()
    assert run(chosen, Numbers()).num_before == 40, "the notes may go at any time"


@pytest.mark.parametrize("keep", [lambda stat: None, lambda stat: (stat.st_atime_ns, stat.st_mtime_ns)])
def test_a_changed_picture_is_noticed_also_under_its_old_time(tmp_path, monkeypatch, keep):
    quietly(monkeypatch)
    chosen = settings(tmp_path, 10)
    run(chosen, Numbers())
    path = tmp_path / "data" / "3.png"
    before = path.stat()
    path.write_bytes(picture(99))
    times = keep(before)
    if times:
        os.utime(path, ns=times)
    with pytest.raises(VLMError, match="sample 'q6' of chartqa was answered with other pictures"):
        run(chosen, Numbers())


def test_a_file_that_was_only_just_written_is_not_noted(tmp_path):
    path, notes = tmp_path / "a.png", tmp_path / "notes"
    path.write_bytes(picture(1))
    digests = ImageDigests(own=notes)
    digests.of(ImageRef(id="a", path=path))
    digests.close()
    assert notes.read_text() == "", "it could change again within the same tick of the clock"


@pytest.mark.parametrize("torn", [b"", b"deadbeef", b"\xff\xfe\tx\n", b"0" * 64, b"0" * 64 + b"\t1 2"])
def test_torn_notes_are_not_believed(tmp_path, torn, monkeypatch):
    """Nor what the next process wrote behind them in the same line."""
    quietly(monkeypatch)
    path, notes = tmp_path / "a.png", tmp_path / "notes"
    path.write_bytes(picture(1))
    notes.write_bytes(torn)
    digests = ImageDigests(own=notes)
    digests.of(ImageRef(id="a", path=path))
    digests.close()
    found = ImageDigests([notes]).of(ImageRef(id="a", path=path))
    assert found == ImageDigests().of(ImageRef(id="a", data=path.read_bytes()))


@pytest.mark.full
def test_a_hundred_thousand_samples(tmp_path, monkeypatch):
    """B11 at its size, without waiting for the disk at each record."""
    quietly(monkeypatch)
    chosen = settings(tmp_path, 100_000)
    backend = Numbers(resident_bytes)
    run(chosen, backend)
    warm, last = backend.measured[100], backend.measured[-1]
    print(f"100,000 samples: {warm / 1e6:.0f} MB after 10,000, {last / 1e6:.0f} MB at the end")
    assert last < 1.05 * warm
    log = (tmp_path / "run" / "predictions.jsonl").read_bytes()
    ends = [place for place, byte in enumerate(log) if byte == 10]
    first, second = ends[9_999], ends[-1] - ends[-10_001]
    assert second < 1.1 * first, "a record is as long at the end as at the beginning"
    begun = os.times()
    assert run(chosen, Numbers()).num_before == 100_000
    used = os.times()
    print(f"gone on with after {used.elapsed - begun.elapsed:.1f} s, {used.user - begun.user:.1f} s of them computing")
