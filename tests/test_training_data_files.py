"""Training data as it lies on disks: lines, arrays, tables and plain text, whole or in shards, in little memory."""

import json
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, Subset

from tests.training_rows import draw_pictures, write_jsonl
from vision_encoder.preprocess import ImageProcessor
from vlm import Tokenizer, VLMError, preset
from vlm.prompt import Image, Text
from vlm.training.data.batches import Example, Poison, Source, StepBatches
from vlm.training.data.layouts import read_sample
from vlm.training.data.order import Order
from vlm.training.data.samples import Document
from vlm.training.data.source import open_rows
from vlm.training.data.stored import Groups, Kept
from vlm.training.objectives import SupervisedReplies


def talk(question: str, **more) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
    return {"messages": turns} | more


def rows_of(path: Path | str) -> list:
    rows = open_rows(str(path))
    return [rows[place] for place in range(len(rows))]


def names_of(path: Path | str) -> list[str]:
    rows = open_rows(str(path))
    return [rows.name(place) for place in range(len(rows))]


def write_parquet(path: Path, rows: list[dict], group: int = 100) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def batches(path: Path, **settings) -> StepBatches:
    objective = SupervisedReplies(Tokenizer.bytes_only(), 512)
    settings = {"batch_size": 2, "seed": 0, "shuffle": False, "max_length": 200} | settings
    rows = open_rows(str(path))
    source = Source(rows, rows.paths[0].parent)
    return StepBatches([source], objective.rows, ImageProcessor(preset("tiny").vision), **settings)


def random_json(rng: random.Random, depth: int):
    kind = rng.randrange(5 if depth else 3)
    if kind == 0:
        return "".join(rng.choice('a"\\[]{}:,é\n😀') for _ in range(rng.randrange(8)))
    if kind < 3:
        return rng.choice([None, True, -1.5e3, 7])
    inside = [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    return inside if kind == 3 else {f'k"[{place}': one for place, one in enumerate(inside)}


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_gives_what_a_parser_of_all_of_it_gives(tmp_path, ascii_only, indent):
    rng = random.Random(0)
    expected = [{"id": number, "value": random_json(rng, 4)} for number in range(200)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(expected, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    assert rows_of(path) == expected
    assert names_of(path)[:2] == ["data.json[0]", "data.json[1]"]


@pytest.mark.parametrize("content", ['[{"a": 1}, {"b": ', '[{"a": 1}', '[{"a": "x]}'])
def test_an_array_that_is_cut_off_is_refused_as_a_whole(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(VLMError, match="is not closed"):
        open_rows(str(tmp_path / "data.json"))


def test_lines_may_be_named_json_too(tmp_path):
    rows = [talk("a"), talk("b")]
    assert rows_of(write_jsonl(tmp_path / "data.json", rows)) == rows
    (tmp_path / "data.json").write_text("\ufeff[" + json.dumps(rows[0]) + "]", encoding="utf-8")
    assert rows_of(tmp_path / "data.json") == rows[:1]


# Plain text


def test_passages_are_the_text_in_its_order_and_end_at_blank_lines(tmp_path):
    rng = random.Random(1)
    paragraphs = [f"{number} " + "wörd " * rng.randrange(1, 90) for number in range(60)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    passages = [row["text"] for row in rows_of(path)]
    assert "\n\n".join(passages) == "\n\n".join(paragraphs)
    assert all(1000 <= len((passage + "\n\n").encode()) < 1600 for passage in passages[:-1])
    first_line_of_second = 1 + path.read_text(encoding="utf-8").index(passages[1])
    assert names_of(path)[1] == f"book.txt:{path.read_text(encoding='utf-8')[:first_line_of_second].count(chr(10)) + 1}"


def test_a_text_without_blank_lines_is_cut_between_lines(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("\n".join(f"line {number}" for number in range(2000)))
    passages = [row["text"] for row in rows_of(path)]
    assert "\n".join(passages) == path.read_text()
    assert max(map(len, passages)) < 4020


def test_blank_text_holds_nothing_and_no_utf8_is_poison(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n" * 3000)
    assert len(open_rows(str(tmp_path / "blank.txt"))) == 0
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(VLMError, match=r"no UTF-8.*convert"):
        rows_of(tmp_path / "latin.txt")


# Tables


def test_a_table_says_what_the_lines_say(tmp_path):
    draw_pictures(tmp_path, {"a.png": 40})
    content = (tmp_path / "a.png").read_bytes()
    rows = [
        {"id": "x", "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}],
         "image": {"bytes": content, "path": "elsewhere.png"}},
        {"id": "y", "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}],
         "image": {"bytes": None, "path": "a.png"}},
        {"id": "z", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "image": None},
    ]  # fmt: skip
    found = rows_of(write_parquet(tmp_path / "data.parquet", rows, group=2))
    assert [row.get("image") for row in found] == [content, "a.png", None]
    samples = [read_sample(row, tmp_path) for row in found]
    assert samples[0].turns[0].parts == (Image(content), Text("q"))
    assert samples[1].turns[0].parts == (Image(tmp_path / "a.png"), Text("q"))
    assert samples[2].turns[0].parts == (Text("q"),)
    read = [batches(tmp_path / "data.parquet").read(0, place) for place in range(3)]
    assert [one.id for one in read] == ["x", "y", "z"]
    pixels = [one.rows[0].images[0].pixels for one in read[:2]]
    assert (pixels[0] == pixels[1]).all()


def test_parts_of_messages_in_a_table_lose_the_keys_that_they_do_not_use(tmp_path):
    content = [{"type": "image", "image": {"bytes": b"png", "path": None}}, {"type": "text", "text": "q"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    (row,) = rows_of(write_parquet(tmp_path / "data.parquet", [{"messages": turns}]))
    assert read_sample(row, tmp_path).turns[0].parts == (Image(b"png"), Text("q"))


def test_a_damaged_group_is_poison_and_spoils_no_other(tmp_path):
    rows = [talk(f"{number} " + "x" * 50) for number in range(12)]
    path = write_parquet(tmp_path / "data.parquet", rows, group=4)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    kinds = [type(one) for one in batches(path).every()]
    assert kinds == [Example] * 4 + [Poison] * 4 + [Example] * 4
    assert batches(path).read(0, 5).id == "data.parquet[5]"


def test_no_more_groups_are_in_memory_than_the_order_needs(tmp_path):
    """Twelve groups of two megabytes each are read whole and shuffled, with room for eight."""
    rng = random.Random(0)
    shards = [tmp_path / f"shard-{number}.parquet" for number in range(3)]
    for number, path in enumerate(shards):
        rows = [{"id": number * 80 + place, "text": rng.randbytes(50_000).hex()} for place in range(80)]
        write_parquet(path, rows, group=20)
    rows = open_rows(str(tmp_path / "*.parquet"))
    order = Order([len(rows)], [1], seed=0, groups=[rows.groups])
    before, most, loads = pa.total_allocated_bytes(), 0, 0
    held: set = set()
    for place in range(len(rows)):
        assert rows[order[place][1]]["id"] == order[place][1]
        loads += len(set(rows._held) - held)
        held = set(rows._held)
        most = max(most, pa.total_allocated_bytes() - before)
    assert loads == 12
    assert most < 10 * 2 * 2**20
    assert names_of(tmp_path)[80] == "shard-1.parquet[0]"


def test_an_index_of_lines_takes_little_memory(tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps({"text": "x" * 4000})
    path.write_text(f"{line}\n" * 5000)
    tracemalloc.start()
    rows = open_rows(str(path))
    for place in range(0, 5000, 50):
        assert len(rows[place]["text"]) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak < 600_000


# Shards


def test_shards_are_one_source_in_the_order_of_their_names(tmp_path):
    rows = [talk(str(number)) for number in range(7)]
    write_jsonl(tmp_path / "b.jsonl", rows[3:])
    (tmp_path / "a.json").write_text(json.dumps(rows[:3]))
    (tmp_path / "README").write_text("no data")
    for path in (tmp_path, tmp_path / "*.json*", tmp_path / "**" / "*.json*"):
        assert rows_of(path) == rows
    assert names_of(tmp_path)[2:4] == ["a.json[2]", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.csv", b"a,b", "of no known kind"),
        ("data.parquet", b"no table at all", "damaged, or no parquet file"),
        ("nothing/", None, "no file is there"),
        ("missing.jsonl", None, "no file is there"),
        ("*.parquet", None, "no file is there"),
    ],
)
def test_a_path_without_samples_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    with pytest.raises(VLMError, match=words) as caught:
        open_rows(str(tmp_path / name))
    assert str(tmp_path) not in caught.value.message


def test_tables_beside_lines_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [talk("a")])
    write_jsonl(tmp_path / "b.jsonl", [talk("b")])
    with pytest.raises(VLMError, match="mixes parquet"):
        open_rows(str(tmp_path))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [talk("a")])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(VLMError, match="needs pyarrow, which is not installed"):
        open_rows(str(path))


# Order by groups


def test_groups_are_shuffled_and_so_are_the_samples_of_those_held_together():
    groups = Groups(np.array([5, 1, 7, 3, 0, 4, 6]), at_once=2)
    order = Order([26], [1], seed=4, groups=[groups])
    epochs = [[order[place][1] for place in range(start, start + 26)] for start in (0, 26)]
    assert all(sorted(epoch) == list(range(26)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    owners = [group for group, size in enumerate(groups.sizes) for _ in range(size)]
    seen = [owners[place] for place in epochs[0]]
    open_at = [set(seen[: place + 1]) & set(seen[place:]) for place in range(26)]
    assert max(map(len, open_at)) == 2
    assert [Order([26], [1], seed=4, groups=[groups])[place][1] for place in (25, 40)] == [epochs[0][25], epochs[1][14]]


def test_kept_samples_keep_their_names_and_their_groups(tmp_path):
    rows = open_rows(str(write_parquet(tmp_path / "a.parquet", [talk(str(place)) for place in range(9)], group=4)))
    kept = Kept(rows, np.array([1, 2, 7, 8]))
    assert kept.groups.sizes.tolist() == [2, 1, 1]
    assert [kept[place] for place in range(4)] == [talk("1"), talk("2"), talk("7"), talk("8")]
    assert kept.name(2) == "a.parquet[7]"


# Poison, and processes


def test_a_source_that_is_all_poison_stops_before_the_run(tmp_path):
    path = write_jsonl(tmp_path / "bad.jsonl", [{"text": "a"}] * 3)
    with pytest.raises(VLMError, match=r"none of the first 3 samples of bad.jsonl can be used.*document"):
        batches(path).refuse_poison()
    write_jsonl(path, [{"text": "a"}] * 3 + [talk("good")])
    batches(path).refuse_poison()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": {"a": 1}}]}]},
        {"conversations": [None]},
        {"conversations": {"from": "human"}},
        {"conversations": [{"from": ["human"], "value": 3}]},
        {"instruction": "a", "output": ["b"]},
        {"instruction": "a", "input": 3, "output": "b"},
        {"instruction": "a", "output": "b", "history": "ab"},
        {"instruction": "a", "output": "b", "history": True},
        {"instruction": "a", "output": "b", "system": ["c"]},
        {"prompt": {}, "chosen": "a", "rejected": "b"},
        {"messages": [{"role": "user", "content": "q"}], "chosen": [], "rejected": [{}]},
        {"text": "a", "image": {"a": 1}},
        {"text": "\ud800" * 3},
        {"messages": 3, "id": {"a": 1}},
        talk("q", videos=["a.mp4"]),
        talk("q", kto_tag=False),
        talk("q", tools="[{}]"),
        talk("q", images=["../../etc/passwd\x00"]),
        talk("<image>q", images=["\x00"]),
        talk("<image>q", images=["http://127.0.0.1/a.png"]),
        "text",
        None,
        12,
    ],
)
def test_no_row_kills_the_run(tmp_path, row):
    path = write_jsonl(tmp_path / "data.jsonl", [row, talk("good")])
    found = list(batches(path).every())
    assert [type(one) for one in found] == [Poison, Example]
    assert found[0].id == "data.jsonl:1"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "tables"])
def test_processes_that_read_ahead_change_nothing(tmp_path, kind):
    rows = [talk(f"{number} " * (60 if number % 5 == 0 else 3), id=str(number)) for number in range(40)]
    path = tmp_path / ("data.parquet" if kind == "tables" else "data.jsonl")
    write_parquet(path, rows, group=6) if kind == "tables" else write_jsonl(path, rows)

    def steps(workers: int, start: int = 0) -> list:
        data = batches(path, shuffle=True, batch_size=3, max_length=150)
        data.refuse_poison()
        loader = DataLoader(Subset(data, range(start, 30)), batch_size=None, collate_fn=lambda one: one,
                            num_workers=workers)  # fmt: skip
        return [([one.id for one in step.examples], [one.id for one in step.poison]) for step in loader]

    alone = steps(0)
    assert any(poison for _, poison in alone)
    assert steps(2) == alone
    assert steps(3, start=17) == alone[17:]


def test_documents_with_images_come_from_tables(tmp_path):
    rows = [{"text": "a dog", "image": {"bytes": b"x", "path": None}}]
    (row,) = rows_of(write_parquet(tmp_path / "a.parquet", rows))
    assert read_sample(row, tmp_path) == Document(parts=(Image(b"x"), Text("a dog")))


def test_a_file_that_goes_away_is_poison_and_no_crash(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [talk("a")])
    data = batches(path)
    os.unlink(path)
    assert "cannot be read" in data.read(0, 0).reason
