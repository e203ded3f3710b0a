"""Small data sets in the layouts that people have on disk, invented, for the tests of the harness."""

import base64
import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""What Hugging Face stores pictures as."""


def picture(number: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a PNG; another number gives another picture."""
    out = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, 77)).save(out, "PNG")
    return out.getvalue()


def embedded(number: int) -> dict:
    """Return a picture as a parquet cell holds it."""
    return {"bytes": picture(number), "path": None}


def write_parquet(path: Path, rows: list[dict], *, group: int = 100, types: dict | None = None, **how) -> Path:
    """Write rows as Hugging Face does; columns whose name says image hold pictures."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = (types or {}).get(name) or (IMAGE if "image" in name and isinstance(values[0], dict | None) else None)
        columns[name] = pa.array(values, type=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group, **how)
    return path


def write_tsv(path: Path, rows: list[dict]) -> Path:
    """Write rows as pandas does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def base64_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_pictures(folder: Path, *names: str) -> None:
    """Write a picture under each name; they differ."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number + 1))


def write_chartqa(folder: Path, part: str = "test", num: int = 3) -> Path:
    """Write ChartQA's own layout: `num` charts with a question of each half."""
    write_pictures(folder / "png", *(f"{part}_{number}.png" for number in range(num)))
    for half in ("human", "augmented"):
        rows = [
            {"imgname": f"{part}_{number}.png", "query": f"{half} question {number}?", "label": str(number)}
            for number in range(num)
        ]
        (folder / f"{part}_{half}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def write_ai2d(folder: Path) -> Path:
    """Write AI2D's own layout: 1.png has questions about letters and is in test, as 3.png is; 2.png is in train."""
    for name in ("questions", "images", "annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "ai2d_test_ids.csv").write_text("1\n3\n")
    for number in (1, 2, 3):
        Image.new("RGB", (60, 40), "navy").save(folder / "images" / f"{number}.png")
    lettered = {
        "What is A?": {
            "abcLabel": True,
            "answerTexts": ["root", "leaf", "{}", "b"],
            "correctAnswer": 1,
            "questionId": "1.png-0",
        },
        "How many parts?": {
            "abcLabel": False,
            "answerTexts": ["1", "2", "3", "4"],
            "correctAnswer": 3,
            "questionId": "1.png-1",
        },
    }
    plain = {"Eats what?": {"abcLabel": False, "answerTexts": ["a", "c"], "correctAnswer": 0, "questionId": "x"}}
    for number, questions in ((1, lettered), (2, plain), (3, plain)):
        questions = {
            text: record | {"questionId": f"{number}.png-{place}"}
            for place, (text, record) in enumerate(questions.items())
        }
        page = {"imageName": f"{number}.png", "questions": questions}
        (folder / "questions" / f"{number}.png.json").write_text(json.dumps(page))
    boxes = {
        "T0": {"rectangle": [[10, 10], [40, 30]], "replacementText": "A", "value": "leaf"},
        "T1": {"rectangle": [[50, 35], [55, 35]], "replacementText": "B", "value": "flat"},
    }
    (folder / "annotations" / "1.png.json").write_text(json.dumps({"text": boxes}))
    return folder
