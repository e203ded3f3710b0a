"""Prompts as named presets: how Meta, lmms-eval and VLMEvalKit ask, word for word, and a direct way.

A preset renders a sample: it decides the words, where images stand, how options are listed, what is put into the
model's mouth and how many tokens the reply may have. Which presets a task offers stands in the task.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from eval.records import Prompt, Sample
from eval.stitching import side_by_side

IMAGE_MARKER = re.compile(r"<image (\d+)>")
"""How MMMU's questions and options refer to their images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A way to ask; called with a sample, it returns the prompt."""

    name: str
    template: str | Callable[[Sample], str]
    """The text, with {question} and {options} in it; or what returns it for a sample."""
    max_new_tokens: int
    prefill: str = ""
    option: str = "{letter}. {text}"
    """How an option is listed, one a line, with {letter}, {number} (from 1) and {text}."""
    question: Callable[[Sample], str] = attrgetter("question")
    images: Literal["first", "last", "inline", "stitched"] = "first"
    """Before the text, after it, where the text says `<image 1>`, or before the text and several as one picture."""

    def __call__(self, sample: Sample) -> Prompt:
        template = self.template(sample) if callable(self.template) else self.template
        text = template.format(question=self.question(sample), options=list_options(sample, self.option))
        return Prompt(
            messages=[{"role": "user", "content": self._parts(sample, text)}],
            prefill=self.prefill,
            max_new_tokens=self.max_new_tokens,
            name=self.name,
        )

    def _parts(self, sample: Sample, text: str) -> list[dict]:
        shown = sample.images
        if self.images == "stitched" and len(shown) > 1:
            shown = (side_by_side(shown),)
        images = [{"type": "image", "image": image} for image in shown]
        words = [{"type": "text", "text": text}] if text else []
        if self.images == "inline" and IMAGE_MARKER.search(text):
            return _inline(text, images)
        return words + images if self.images == "last" else images + words


def list_options(sample: Sample, form: str) -> str:
    """Return the options, one a line; a letter without a text is not offered."""
    if not sample.options:
        return ""
    lines = [
        form.format(letter=chr(ord("A") + place), number=place + 1, text=text)
        for place, text in enumerate(sample.options)
        if text
    ]
    return "\n".join(lines)


def _inline(text: str, images: list[dict]) -> list[dict]:
    """Return text and images in turn; the markers stand for the images in the order of their numbers."""
    numbers = sorted({int(number) for number in IMAGE_MARKER.findall(text)})
    pieces = IMAGE_MARKER.split(text)
    parts = [{"type": "text", "text": pieces[0]}]
    for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        place = numbers.index(int(number))
        if place < len(images):
            parts.append(images[place])
        parts.append({"type": "text", "text": piece})
    shown = [images[place] for place in range(len(numbers), len(images))]
    return shown + [part for part in parts if part.get("text") != ""]


# Direct: the question, and the options where there are some, without a word more.

DIRECT = Preset(name="direct", template="{question}", max_new_tokens=64)
DIRECT_CHOICE = replace(DIRECT, template=lambda sample: "{question}\n{options}" if sample.options else "{question}")

# lmms-eval. Source: its package on PyPI, lmms_eval/tasks/*/*.yaml, `lmms_eval_specific_kwargs` and
# `generation_kwargs`; the length of a reply differs between tasks.

LMMS_WORD = Preset(name="lmms-eval", template="{question}\nAnswer the question with a single word.", max_new_tokens=16)
LMMS_PHRASE = Preset(
    name="lmms-eval", template="{question}\nAnswer the question using a single word or phrase.", max_new_tokens=32
)
LMMS_CHOICE = Preset(
    name="lmms-eval",
    template="{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
    max_new_tokens=16,
)

# VLMEvalKit, for a model without a prompt of its own. Source: vlmeval/dataset/image_vqa.py and image_mcq.py
# (`build_prompt`); the lengths are those of vlmeval/vlm/llama_vision.py.

VLMEVALKIT_PHRASE = replace(LMMS_PHRASE, name="vlmevalkit", max_new_tokens=512)
VLMEVALKIT_CHOICE = Preset(
    name="vlmevalkit",
    template="Question: {question}\nOptions:\n{options}\nPlease select the correct answer from the options above. \n",
    max_new_tokens=128,
)

# Meta, for the instruct models. Source: meta-llama/llama-models, models/llama3_2/eval_details.md, which calls these
# system prompts; they begin with the image and are what the user says. Where it writes `<cot_start>`, the reply most
# likely begins with the words that follow: that is `prefill`, and the -newline presets put them into the user's text
# after a line break, as lm-evaluation-harness does (lm_eval/tasks/chartqa/chartqa_llama.yaml).

_STEP_BY_STEP = "Let's think step by step."

META_CHARTQA_11B = Preset(
    name="meta-11b",
    template=(
        "You are provided a chart image and will be asked a question. You have to think through your answer and "
        "provide a step-by-step solution. Once you have the solution, write the final answer in at most a few words at "
        'the end with the phrase "FINAL ANSWER:". The question is: {question}'
    ),
    prefill=_STEP_BY_STEP,
    max_new_tokens=512,
)
META_CHARTQA_90B = Preset(
    name="meta-90b",
    template=(
        "You are provided a chart image and will be asked a question. Follow these steps carefully:\n"
        " Step 1: Analyze the question to understand what specific data or information is being asked for. Focus on "
        "whether the question is asking for a specific number or category from the chart image.\n"
        " Step 2: Identify any numbers, categories, or groups mentioned in the question and take note of them. Focus "
        "on detecting and matching them directly to the image. \n"
        "Step 3: Study the image carefully and find the relevant data corresponding to the categories or numbers "
        "mentioned. Avoid unnecessary assumptions or calculations; simply read the correct data from the image.\n"
        " Step 4: Develop a clear plan to solve the question by locating the right data. Focus only on the specific "
        "category or group that matches the question. \n"
        "Step 5: Use step-by-step reasoning to ensure you are referencing the correct numbers or data points from the "
        "image, avoiding unnecessary extra steps or interpretations.\n"
        ' Step 6: Provide the final answer, starting with "FINAL ANSWER:" and using as few words as possible, simply '
        "stating the number or data point requested. \n\n"
        " The question is: {question}"
    ),
    prefill=_STEP_BY_STEP,
    max_new_tokens=512,
)


def after_newline(preset: Preset) -> Preset:
    """Return a preset whose `prefill` stands at the end of the user's text instead."""
    template = f"{preset.template}\n{preset.prefill}"
    return replace(preset, name=f"{preset.name}-newline", template=template, prefill="")


# "Option number" and "digit": Meta does not publish how the options stand in {question}; here they are numbered.

META_AI2D_11B = Preset(
    name="meta-11b",
    template=(
        "Look at the scientific diagram carefully and answer the following question: {question}\n{options}\n"
        " Think step by step and finally respond to the question with only the correct option number as "
        '"FINAL ANSWER". ' + _STEP_BY_STEP
    ),
    option="{number}. {text}",
    max_new_tokens=400,
)
META_AI2D_90B = Preset(
    name="meta-90b",
    template=(
        "Look at the scientific diagram carefully and answer the following question: {question}\n{options}\n"
        " Respond only with the correct option digit."
    ),
    option="{number}. {text}",
    max_new_tokens=400,
)

_SHORTEST = (
    "For yes/no questions, just respond Yes or No. If the answer is numeric, just respond with the number and nothing "
    "else. If the answer has multiple words, just respond with the words and absolutely nothing else. Never respond in "
    "a sentence or a phrase.\n"
)
META_DOCVQA = Preset(
    name="meta",
    template=(
        " Read the text in the image carefully and answer the question with the text as seen exactly in the image. "
        f"{_SHORTEST} Question: {{question}}"
    ),
    max_new_tokens=512,
)
META_VQAV2 = Preset(
    name="meta",
    template=(
        " Look at the image carefully and answer this visual question. "
        f"{_SHORTEST} Respond with as few words as possible.\n Question: {{question}}"
    ),
    max_new_tokens=25,
)
META_MMMU = Preset(
    name="meta",
    # What Meta says of the few questions without options is not published.
    template=lambda sample: (
        "Look at the image carefully and solve the following question step-by-step. {question}"
        + (" Options: {options}" if sample.options else "")
        + " Indicate the correct answer at the end."
    ),
    max_new_tokens=2048,
)
# "Several images are stitched into one", says Meta, and not how.
META_MMMU_PRO = Preset(name="meta", template="{question} Options: {options}", images="stitched", max_new_tokens=2048)
META_MMMU_PRO_VISION = (
    "Your job is to extract the question from the image the user attached, reason about it, and then answer the "
    "question. Follow these steps: \n"
    "1. Always start by Clearly stating the question shown in the image, and also state all of the options. \n"
    "2. Then, Carefully review the information beyond the question shown in the image and analyze it without making "
    "any assumptions. \n"
    "3. Next, use your understanding of the image to answer the question you listed out in the first step. Use a "
    "step-by-step process \n"
    "4. Finally, write the answer in the following format where X is exactly one of the option letters: The best "
    "answer is X.\n"
    f"Always follow the steps above, printing out everything. {_STEP_BY_STEP} Your response must be among the given "
    "options."
)
META_MATHVISTA = Preset(name="meta", template="{question}", max_new_tokens=2048)


def named(*presets: Preset) -> dict[str, Preset]:
    """Return presets by their names."""
    return {preset.name: preset for preset in presets}
