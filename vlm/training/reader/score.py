"""Measure a reader on drawn charts whose words, numbers, colours and fonts were held out of its training.

    python -m vlm.training.reader.score --questions 1000

Charts come in the sizes people have, from 224 to 576 pixels, and half or more of the questions ask for a named value.
"""

import json
import math
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from vlm.generation.sampling import GenerationConfig
from vlm.pipeline import VLM
from vlm.training.synthetic.charts import Question, ask, draw_chart

MAX_NEW_TOKENS = 128
MAX_SHARE = {"title": 0.1, "count": 0.1, "comparison": 0.1}
LONGEST_SIDES = (224, 576)


def relaxed_match(answer: str, target: str) -> bool:
    """Say whether a number is within 5 % of the target's, or any other text equal but for case and outer blanks."""
    answer, target = answer.strip().lower(), target.strip().lower()
    try:
        return abs(float(answer) - float(target)) <= 0.05 * abs(float(target))
    except ValueError:
        return answer == target


def held_out_questions(num_questions: int, *, seed: int = 1) -> list[tuple[Image.Image, list[Question]]]:
    """Return charts of the held-out split with their questions, `num_questions` in all, none of a kind too often."""
    rng = np.random.default_rng([seed, 0x5C0])
    charts: list[tuple[Image.Image, list[Question]]] = []
    asked: dict[str, int] = defaultdict(int)
    while sum(asked.values()) < num_questions:
        chart = draw_chart(rng, int(rng.integers(LONGEST_SIDES[0], LONGEST_SIDES[1] + 1)), split="held_out")
        kept = []
        for question in ask(rng, chart):
            room = math.ceil(MAX_SHARE.get(question.kind, 1.0) * num_questions)
            if asked[question.kind] < room and sum(asked.values()) < num_questions:
                asked[question.kind] += 1
                kept.append(question)
        if kept:
            charts.append((chart.image, kept))
    return charts


def score(model: VLM, *, num_questions: int, seed: int = 1) -> dict[str, dict[str, float]]:
    """Return for each kind of question: how many, and the share answered exactly, within 5 %, and without a picture."""
    rows = defaultdict(list)
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    with tqdm(total=num_questions, disable=None, unit="question") as bar:
        for image, questions in held_out_questions(num_questions, seed=seed):
            blank = Image.new("RGB", image.size, "white")
            seen = model.answer_many([(image, question.question) for question in questions], config=config)
            blind = model.answer_many([(blank, question.question) for question in questions], config=config)
            for question, reply, blind_reply in zip(questions, seen, blind, strict=True):
                exact = reply.text.strip().lower() == question.answer.strip().lower()
                without = relaxed_match(blind_reply.text, question.answer)
                rows[question.kind].append((exact, relaxed_match(reply.text, question.answer), without))
            bar.update(len(questions))
    rows["all"] = [row for kind in list(rows) for row in rows[kind]]
    return {kind: _shares(rows[kind]) for kind in sorted(rows, key=lambda kind: (kind == "all", kind))}


def _shares(rows: list[tuple[bool, bool, bool]]) -> dict[str, float]:
    exact, relaxed, blank = np.mean(rows, axis=0)
    return {"n": len(rows), "exact": float(exact), "relaxed": float(relaxed), "blank": float(blank)}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="Folder of the model; the shipped one by default.")
@click.option("--questions", type=click.IntRange(1), default=1000, show_default=True)
def main(model: Path | None, questions: int) -> None:
    """Print the accuracy on held-out drawn charts, by kind of question."""
    found = score(VLM.from_pretrained(model), num_questions=questions)
    click.echo(f"{'kind':<16}{'n':>6}{'exact':>8}{'relaxed':>9}{'blank':>8}")
    for kind, shares in found.items():
        percents = "".join(f"{100 * shares[name]:>{width}.1f}" for name, width in (("exact", 8), ("relaxed", 9)))
        click.echo(f"{kind:<16}{shares['n']:>6}{percents}{100 * shares['blank']:>8.1f}")
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
