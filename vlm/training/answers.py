"""What the model says to a few questions while it is trained, for people to read."""

from pathlib import Path

from vision_encoder.image_input import read_image
from vlm.errors import VLMError, public
from vlm.generation.sampling import GenerationConfig
from vlm.pipeline import VLM
from vlm.request import question_about
from vlm.training.config import Samples
from vlm.training.journal import Lines

FILE = "samples.jsonl"


class Answers:
    """The questions of a run, and the file of their answers."""

    @public
    def __init__(self, choice: Samples, vlm: VLM, folder: Path, *, num_done: int):
        """Go on after `num_done` steps: answers of later ones are dropped. Raises: VLMError for no picture."""
        self.choice, self.vlm = choice, vlm
        self._talks = []
        for question in choice.questions:
            if question.image is not None:
                read_image(question.image)
                self._talks.append(question_about(question.image, question.text))
            else:
                self._talks.append([{"role": "user", "content": question.text}])
        self._file = Lines(folder / FILE, lambda row: row["step"] <= num_done)

    def ask(self, step: int) -> list[str]:
        """Write down the likeliest replies after `step`, and return them with their questions."""
        if not self._talks:
            return []
        model, was_training = self.vlm.model, self.vlm.model.training
        model.eval()
        if self.vlm.images is not None:
            # The encoder may be another one than when they were last encoded.
            self.vlm.images.forget()
        config = GenerationConfig(max_new_tokens=self.choice.max_new_tokens)
        replies = self.vlm.chat_many(self._talks, config=config, return_errors=True)
        model.train(was_training)
        lines = []
        for question, reply in zip(self.choice.questions, replies, strict=True):
            text = reply.message if isinstance(reply, VLMError) else reply.text
            self._file.add({"step": step, "question": question.text, "reply": text})
            lines.append(f"step {step}: {question.text} → {text}")
        return lines
