"""Folders of runs that never were, for the tests of the report."""

import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from eval import tasks
from eval.records import Prediction, Sample
from eval.run.journal import Journal

HOSTILE = (
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 2'>",
    "<!-- <script> --> ]]> &lt;b&gt; &amp; {{ 7 * 7 }} ${7 * 7}",
    '" autofocus onfocus="window.harmed = 3" style="position:fixed" \'',
    "javascript:window.harmed=4",
    "line\u2028and paragraph\u2029separators, \x00 zero, \ud800 half a pair, \u202e turned, \x1b[31m",
    "</textarea></style></title><svg onload=window.harmed=5>",
)


def chart(number: int, size: tuple[int, int] = (160, 120)) -> bytes:
    """Return a PNG of a bar chart, (width, height) in pixels; each number has its own."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for bar in range(5):
        height = (number * 37 + bar * 53) % (size[1] - 20)
        left = 10 + bar * (size[0] - 20) // 5
        draw.rectangle((left, size[1] - 10 - height, left + size[0] // 8, size[1] - 10), (number % 200, 90, bar * 50))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def noise(number: int, size: tuple[int, int] = (1200, 900)) -> bytes:
    """Return a JPEG that cannot be made small: every pixel is chance."""
    pixels = random.Random(number).randbytes(size[0] * size[1] * 3)
    content = io.BytesIO()
    Image.frombytes("RGB", size, pixels).save(content, format="JPEG", quality=80)
    return content.getvalue()


def write_questions(
    folder: Path, num_samples: int, *, picture: Callable[[int], bytes] = chart, changed: dict[int, dict] | None = None
) -> Path:
    """Write questions as JSON lines, three a picture, and return the folder. changed: fields of some, by number."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_samples):
        name = f"{number // 3}.png"
        if number % 3 == 0:
            (folder / name).write_bytes(picture(number // 3))
        row = {"id": f"q{number}", "image": name, "question": f"How many in year {number}?", "answer": str(10 + number)}
        row["split"] = "human" if number % 2 else "augmented"
        lines.append(json.dumps({**row, **(changed or {}).get(number, {})}))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def answered(sample: Sample, number: int, **named) -> Prediction:
    """Return the record of a sample, by default of a right answer; `named` are fields of it that are different."""
    task = tasks.find(sample.task)
    prompt = task.prompt(sample).text()
    common = {"id": sample.id, "task": sample.task, "key": f"k{number}", "prompt": prompt, "target": sample.targets}
    answer = {"prediction": sample.targets[0], "token_ids": (1, 2), "finish_reason": "stop", "confidence": 0.9}
    if named.get("error") is not None:
        answer = dict.fromkeys(answer)
    asked = {"question": sample.question, "options": sample.options, "fields": sample.fields}
    images = tuple(image.id for image in sample.images)
    return Prediction(**{**common, **answer, "error": None, "images": images, **asked, **named})


def write_run(
    folder: Path, data: Path, *, task: str = "chartqa", differs: Callable[[int], dict] = lambda number: {}, **manifest
) -> Path:
    """Write the folder of a run on all samples of `data`, each answered right but for what `differs` returns."""
    samples = tasks.find(task).load(data)
    records = [answered(sample, number, **differs(number)) for number, sample in enumerate(samples)]
    return write_records(folder, records, data=str(data), **manifest)


def write_records(folder: Path, records: Iterable[Prediction], **manifest) -> Path:
    """Write the folder of a run from its records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = list(records)
    with Journal(folder / "predictions.jsonl") as journal:
        for each in records:
            journal.append(each)
    counts = {name: sum(record.task == name for record in records) for name in {record.task for record in records}}
    described = {name: {"prompt": ["direct"], "num_samples": count} for name, count in counts.items()}
    processor = {"tile_size": 560, "max_tiles": 4, "patch_size": 14}
    content = {
        "format": 2,
        "tasks": described,
        "selection": {"options": {}, "images": "as they are"},
        "model": {"name": "invented", "processor": processor},
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def some_differ(number: int) -> dict:
    """What is not right in a run with a bit of everything: wrong, unparsed, cut off, an error, scorers that differ."""
    by_number = {
        1: {"prediction": "999", "confidence": 0.3},
        2: {"prediction": "I look at the chart.\nIt has bars.\nI do not know.", "finish_reason": "length"},
        3: {"error": "the picture cannot be read [image_corrupt]"},
        4: {"prediction": "FINAL ANSWER: 14", "confidence": 0.6},
    }
    return by_number.get(number, {})


def write_two_runs(folder: Path) -> Path:
    """Write twelve questions on four pictures, a run with a bit of everything, and one that is right but for one."""
    write_questions(folder / "data", 12)
    write_run(folder / "first", folder / "data", differs=some_differ)
    write_run(folder / "second", folder / "data", differs=lambda number: {"prediction": "0"} if number == 5 else {})
    return folder
