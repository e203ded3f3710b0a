"""Draw the charts of `benchmark/chartqa` with their questions: `python examples/draw_benchmark.py`.

The full-size benchmark is drawn the same way, in about a minute:

    python examples/draw_benchmark.py --questions 1000 --out DIR

Charts and questions are the held-out ones of the shipped model (see `vlm/training/reader/score.py`): no word, number,
bar colour or font of theirs was in its training. They are laid out as ChartQA's authors do. The fonts are those that
come with matplotlib, whatever else the machine has, so that everybody draws the same.

    python examples/draw_benchmark.py --declined --questions 300 --out DIR

draws three folders instead, each with so many questions: `answerable` about what charts show, `not_shown` about what
they do not show, and `no_chart` about pictures that are no charts. The last two are right only when declined.
"""

import argparse
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from PIL import Image

from vlm.training.reader.declining import held_out_sets
from vlm.training.reader.score import held_out_questions
from vlm.training.synthetic import fonts
from vlm.training.synthetic.charts import Question

FOLDER = Path(__file__).parent / "benchmark" / "chartqa"
NUM_QUESTIONS = 250
SEED = 1


@contextlib.contextmanager
def only_matplotlibs_fonts() -> Iterator[None]:
    """Keep charts from being drawn with fonts of the system."""
    system_fonts = fonts.SYSTEM_FONTS
    fonts.SYSTEM_FONTS = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")
    fonts.find_fonts.cache_clear()
    try:
        yield
    finally:
        fonts.SYSTEM_FONTS = system_fonts
        fonts.find_fonts.cache_clear()


def charts(num_questions: int = NUM_QUESTIONS, seed: int = SEED) -> list[tuple[Image.Image, list[Question]]]:
    """Return held-out charts with `num_questions` questions in all."""
    with only_matplotlibs_fonts():
        return held_out_questions(num_questions, seed=seed)


def declined_sets(num_questions: int, seed: int = SEED) -> dict[str, list[tuple[Image.Image, list[Question]]]]:
    """Return the folders of `--declined`, with `num_questions` questions each."""
    with only_matplotlibs_fonts():
        return held_out_sets(num_questions, seed=seed)


def write(out: Path, drawn: list[tuple[Image.Image, list[Question]]]) -> None:
    """Write ChartQA's layout into a folder."""
    pictures = out / "test" / "png"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    rows = []
    for number, (image, questions) in enumerate(drawn, start=1):
        name = f"{number:04}.png"
        image.save(pictures / name, optimize=True)
        rows += [{"imgname": name, "query": each.question, "label": each.answer} for each in questions]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    (out / "test" / "test_augmented.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=NUM_QUESTIONS, help=f"default: {NUM_QUESTIONS}")
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: examples/benchmark/chartqa")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--declined", action="store_true", help="draw what should be declined, and what should not")
    given = parser.parse_args()
    if given.declined and given.out == FOLDER:
        parser.error("--declined needs --out: the benchmark's own folder is for the charts it has")
    for name, drawn in declined_sets(given.questions, given.seed).items() if given.declined else ():
        write(given.out / name, drawn)
        print(f"{given.questions} questions about {len(drawn)} pictures in {given.out / name}")
    if given.declined:
        return
    drawn = charts(given.questions, given.seed)
    write(given.out, drawn)
    print(f"{given.questions} questions about {len(drawn)} charts in {given.out}")


if __name__ == "__main__":
    main()
