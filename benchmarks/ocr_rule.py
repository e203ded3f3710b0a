"""A rule in place of a model: read a chart with tesseract, find the label that is asked about, take the number nearest.

What a few lines without any learning reach on real charts; the shipped model is measured beside it.

    python -m benchmarks.ocr_rule FOLDER      # in ChartQA's layout; needs Debian's tesseract-ocr
"""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import click
from tqdm import tqdm

from eval import score
from eval.statistics import summarise
from eval.tasks import find

NUMBER = re.compile(r"[$€£]?-?\d{1,3}(?:[ ,]?\d{3})*(?:\.\d+)?%?$")


class Word(NamedTuple):
    """A word that OCR found and the middle of its box in pixels."""

    text: str
    x: float
    y: float


def read_words(image: bytes) -> list[Word]:
    """Return the words of a picture as tesseract finds them scattered over it."""
    command = ["tesseract", "stdin", "stdout", "--psm", "11", "tsv"]
    done = subprocess.run(command, input=image, capture_output=True, check=True)
    rows = csv.DictReader(io.StringIO(done.stdout.decode()), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [
        Word(row["text"], int(row["left"]) + int(row["width"]) / 2, int(row["top"]) + int(row["height"]) / 2)
        for row in rows
        if row["text"].strip()
    ]


def answer(words: list[Word], question: str) -> str:
    """Return the number nearest to the word that question and chart share; years and long words come first."""
    asked = set(re.findall(r"[\w&'.-]*\w", question.lower()))
    shared = [word for word in words if word.text.lower().strip("*,.:") in asked and len(word.text) > 2]
    numbers = [word for word in words if NUMBER.fullmatch(word.text) and word.text not in asked]
    if not numbers:
        return ""
    if not shared:
        return bare(numbers[0].text)
    label = max(shared, key=lambda word: (bool(re.fullmatch(r"(19|20)\d\d\*?", word.text)), len(word.text), word.y))
    # Values stand above or beside their label: a step across a column costs more than one along it.
    return bare(min(numbers, key=lambda word: min(_far(word, label, 1, 4), _far(word, label, 4, 1))).text)


def _far(one: Word, other: Word, down: float, across: float) -> float:
    return math.hypot(down * (one.y - other.y), across * (one.x - other.x))


def bare(number: str) -> str:
    return re.sub(r"[^\d.-]", "", number)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def main(folder: Path) -> None:
    """Score the rule on the questions in FOLDER."""
    if shutil.which("tesseract") is None:
        raise click.ClickException("not run: tesseract-ocr; install it with `apt-get install tesseract-ocr`")
    read: dict[str, list[Word]] = {}
    verdicts, clusters = [], []
    for sample in tqdm(list(find("chartqa").load(folder)), disable=None, unit="question"):
        image = sample.images[0]
        if image.id not in read:
            read[image.id] = read_words(image.read())
        verdicts.append(score("chartqa", "pix2struct", answer(read[image.id], sample.question), list(sample.targets)))
        clusters.append(sample.cluster)
    found = summarise(verdicts, clusters)
    low, high = found.wilson
    click.echo(f"{found.n} questions, {100 * found.mean:.1f} % relaxed (95 %: {100 * low:.1f} to {100 * high:.1f})")
    click.echo(json.dumps({"n": found.n, "relaxed": found.mean}))


if __name__ == "__main__":
    main()
