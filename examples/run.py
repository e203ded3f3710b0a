"""Caption the example charts and answer questions about them with the model that ships, offline.

What is printed is the model's own, right or wrong; beside each answer stands what the chart says.
"""

import json
import time
from pathlib import Path

from vlm import VLM

EXAMPLES = Path(__file__).parent


def main() -> None:
    start = time.perf_counter()
    model = VLM.from_pretrained()
    info = model.info
    print(f"loaded the shipped model, {info.num_parameters / 1e6:.1f} million parameters", end="")
    print(f", in {time.perf_counter() - start:.2f} s on {info.device}\n")
    asked = right = 0
    for chart in json.loads((EXAMPLES / "questions.json").read_text()):
        image = EXAMPLES / chart["image"]
        caption, seconds = timed(model.caption, image)
        print(f"{chart['image']}\n    {caption}   ({seconds:.2f} s, encoding included)")
        for question in chart["questions"]:
            answer, seconds = timed(model.answer, image, question["question"])
            is_right = str(answer).strip().lower() == question["answer"].lower()
            asked, right = asked + 1, right + is_right
            verdict = "right" if is_right else f"wrong: the chart says {question['answer']}"
            print(f"    {question['question']}  {answer}   ({verdict}, {seconds:.2f} s)")
        print()
    print(f"{right} of {asked} answers are right, in {time.perf_counter() - start:.1f} s altogether.")


def timed(call, *arguments):
    start = time.perf_counter()
    reply = call(*arguments)
    return reply, time.perf_counter() - start


if __name__ == "__main__":
    main()
