"""Draw the diagrams of `benchmark/ai2d` with their questions: `python examples/draw_diagrams.py [--out FOLDER]`.

The layout is AI2D's own, as the Allen Institute publishes it: pictures without letters, questions with four options,
and annotations that say which letter takes the place of which word; whoever uses the data draws the letters.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from diagrams.creatures import CREATURES
from diagrams.cycles import CYCLES
from diagrams.questions import Asked, Diagram
from diagrams.sections import SECTIONS
from diagrams.webs import WEBS

FOLDER = Path(__file__).parent / "benchmark" / "ai2d"
SEED = 4


def diagrams(seed: int = SEED) -> Iterator[Diagram]:
    """Yield all diagrams; the seed decides letters and questions, not what is drawn."""
    for name, draw in (CREATURES | SECTIONS | CYCLES | WEBS).items():
        yield draw(Random(f"{seed} {name}"))


def four_options(asked: Asked, place: int, random: Random) -> list[str]:
    """Return the answer at `place` among three wrong ones."""
    options = random.sample(list(asked.others), 3)
    options.insert(place, asked.answer)
    return options


def write(out: Path, pages: Sequence[Diagram], seed: int = SEED) -> int:
    """Write AI2D's layout into a folder; return how many questions there are."""
    for name in ("images", "questions", "annotations"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    random = Random(seed)
    places: list[int] = []
    total = 0
    for number, page in enumerate(pages, start=1):
        name = f"{number}.png"
        page.sheet.finish().save(out / "images" / name, optimize=True)
        questions = {}
        for asked in page.asked:
            # Each of the four places is used once before any is used again.
            places = places or random.sample(range(4), 4)
            place = places.pop()
            questions[asked.question] = {
                "abcLabel": asked.lettered,
                "answerTexts": four_options(asked, place, random),
                "correctAnswer": place,
                "questionId": f"{name}-{len(questions)}",
            }
        total += len(questions)
        _write_json(out / "questions" / f"{name}.json", {"imageName": name, "questions": questions})
        _write_json(out / "annotations" / f"{name}.json", {"text": _text_boxes(page)})
    (out / "ai2d_test_ids.csv").write_text("".join(f"{number}\n" for number in range(1, len(pages) + 1)))
    return total


def _text_boxes(page: Diagram) -> dict[str, dict]:
    return {
        f"T{number}": {
            "rectangle": [[left, top], [right, bottom]],
            "replacementText": page.letters[label],
            "value": label,
        }
        for number, (label, (left, top, right, bottom)) in enumerate(page.sheet.boxes.items())
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: examples/benchmark/ai2d")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    pages = list(diagrams(given.seed))
    total = write(given.out, pages, given.seed)
    print(f"{total} questions about {len(pages)} diagrams in {given.out}")


if __name__ == "__main__":
    main()
