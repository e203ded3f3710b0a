"""Measure a reader on drawn charts whose words, numbers, colours and fonts were held out of its training.

python -m vlm.training.reader_score --questions 1000
"""

import json
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from vlm.pipeline import VLM
from vlm.sampling import GenerationConfig
from vlm.training.charts import ask, draw_chart

MAX_NEW_TOKENS = 128


def relaxed_match(answer: str, target: str) -> bool:
    """Say whether a number is within 5 % of the target's, or any other text equal but for case and outer blanks."""
    answer, target = answer.strip().lower(), target.strip().lower()
    try:
        return abs(float(answer) - float(target)) <= 0.05 * abs(float(target))
    except ValueError:
        return answer == target


def score(model: VLM, *, num_questions: int, seed: int = 1) -> dict[str, dict[str, float]]:
    """Return for each kind of question: how many, and the share answered exactly, within 5 %, and without a picture."""
    rows = defaultdict(list)
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    rng = np.random.default_rng([seed, 0x5C0])
    num_asked = 0
    with tqdm(total=num_questions, disable=None, unit="question") as bar:
        while num_asked < num_questions:
            chart = draw_chart(rng, model.info.tile_size, split="held_out")
            questions = ask(rng, chart)[: num_questions - num_asked]
            blank = Image.new("RGB", chart.image.size, "white")
            seen = model.answer_many([(chart.image, question.question) for question in questions], config=config)
            blind = model.answer_many([(blank, question.question) for question in questions], config=config)
            for question, reply, blind_reply in zip(questions, seen, blind, strict=True):
                exact = reply.text.strip().lower() == question.answer.strip().lower()
                without = relaxed_match(blind_reply.text, question.answer)
                rows[question.kind].append((exact, relaxed_match(reply.text, question.answer), without))
            num_asked += len(questions)
            bar.update(len(questions))
    rows["all"] = [row for kind in list(rows) for row in rows[kind]]
    return {kind: _shares(rows[kind]) for kind in sorted(rows, key=lambda kind: (kind == "all", kind))}


def _shares(rows: list[tuple[bool, bool, bool]]) -> dict[str, float]:
    exact, relaxed, blank = np.mean(rows, axis=0)
    return {"n": len(rows), "exact": float(exact), "relaxed": float(relaxed), "blank": float(blank)}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="Folder of the model; the shipped one by default.")
@click.option("--questions", type=int, default=1000, show_default=True)
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
