"""Measure whether a reader declines what a picture does not show, and nothing else, on held-out pictures.

    python -m vlm.training.reader.declining --questions 300

`examples/draw_benchmark.py --declined` writes the same pictures and questions as ChartQA's authors do, for `vlm-eval`,
whose report tells how the confidence of the answers goes with their being right.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from vlm.generation.sampling import GenerationConfig
from vlm.pipeline import VLM
from vlm.training.reader.score import LONGEST_SIDES, MAX_NEW_TOKENS
from vlm.training.synthetic.charts import Chart, Question, ask, draw_chart
from vlm.training.synthetic.no_charts import ask_in_vain, draw_no_chart
from vlm.training.synthetic.questions import DECLINED
from vlm.training.synthetic.style import draw_shape

NUM_ABOUT_A_PICTURE = 4

Asked = tuple[Image.Image, list[Question]]


def held_out_sets(num_questions: int, *, seed: int = 1) -> dict[str, list[Asked]]:
    """Return three sets of held-out pictures with `num_questions` questions each.

    answerable: charts, asked what they show. not_shown: charts, asked what they do not show. no_chart: other pictures,
    asked as if they were charts.
    """
    sets: dict[str, Callable[[np.random.Generator], Asked]] = {
        "answerable": lambda rng: _about_chart(rng, share_declined=0.0),
        "not_shown": lambda rng: _about_chart(rng, share_declined=1.0),
        "no_chart": _about_no_chart,
    }
    return {
        name: list(_first(num_questions, draw, np.random.default_rng([seed, number, 0xDEC])))
        for number, (name, draw) in enumerate(sets.items())
    }


def _first(
    num_questions: int, draw: Callable[[np.random.Generator], Asked], rng: np.random.Generator
) -> Iterator[Asked]:
    """Yield pictures until there are so many questions about them."""
    while num_questions > 0:
        image, questions = draw(rng)
        if questions:
            yield image, questions[:num_questions]
            num_questions -= len(questions)


def _about_chart(rng: np.random.Generator, share_declined: float) -> Asked:
    chart: Chart = draw_chart(rng, _longest_side(rng), split="held_out")
    return chart.image, ask(rng, chart, NUM_ABOUT_A_PICTURE, wide=True, share_declined=share_declined)


def _about_no_chart(rng: np.random.Generator) -> Asked:
    shape = draw_shape(Random(int(rng.integers(2**63))), _longest_side(rng))
    picture = draw_no_chart(rng, shape, split="held_out")
    questions = ask_in_vain(rng, picture, NUM_ABOUT_A_PICTURE, split="held_out")
    return picture.image, [question for question in questions if question.kind == "declined"]


def _longest_side(rng: np.random.Generator) -> int:
    return int(rng.integers(LONGEST_SIDES[0], LONGEST_SIDES[1] + 1))


def is_declined(reply: str) -> bool:
    """Return whether a reply is the one that declines."""
    return reply.strip() == DECLINED


def shares_declined(model: VLM, num_questions: int, *, seed: int = 1) -> dict[str, float]:
    """Return for each set the share of its questions that `model` declines."""
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    sets = held_out_sets(num_questions, seed=seed)
    shares = {}
    with tqdm(total=len(sets) * num_questions, disable=None, unit="question") as bar:
        for name, asked in sets.items():
            num_declined = 0
            for image, questions in asked:
                replies = model.answer_many([(image, each.question) for each in questions], config=config)
                num_declined += sum(is_declined(reply.text) for reply in replies)
                bar.update(len(questions))
            shares[name] = num_declined / num_questions
    return shares


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="Folder of the model; the shipped one by default.")
@click.option("--questions", type=click.IntRange(1), default=300, show_default=True, help="In each of the three sets.")
def main(model: Path | None, questions: int) -> None:
    """Print how many questions are declined that should be, and that should not."""
    shares = shares_declined(VLM.from_pretrained(model), questions)
    for name, share in shares.items():
        click.echo(f"{name:<12}{questions:>6}{100 * share:>8.1f} % declined")
    click.echo(json.dumps(shares))


if __name__ == "__main__":
    main()
