"""This project's model as a backend, in a process that is started again when a sample ends it."""

import hashlib
from collections.abc import Iterable, Iterator

from eval.backends import Answer, Asked, Failure, Question, conversation, shown_images
from eval.backends.checkpoint_model import CheckpointModel
from eval.backends.model_answers import Request
from eval.backends.worker import Worker, WorkerLost
from eval.records import ImageRef
from vlm.errors import VLMError

DEFAULT_TIMEOUT_S = 600.0
MAX_RESTARTS = 3


class LocalBackend:
    """Answers in batches with a model in a process of its own.

    A batch that ends the process, or takes longer than half of `timeout_s`, is asked again question by question; what
    then ends it once more is a failure of that question. So a sample that hangs costs `timeout_s` in all, the starts
    of the process included as far as they fit. A process that ends again and again without one answer in between is
    no sample's fault: after `max_restarts` the run stops, and can be resumed.
    """

    def __init__(
        self,
        model: CheckpointModel | None = None,
        *,
        generation: dict | None = None,
        likelihood: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_restarts: int = MAX_RESTARTS,
    ):
        """generation: fields of a GenerationConfig but for max_new_tokens, which is the prompt's.

        likelihood: "options" or "letters" measures how likely these are as replies, where a sample has options.
        """
        self.model = model or CheckpointModel()
        self._config, self._likelihood = generation or {}, likelihood
        self.timeout_s, self.max_restarts = timeout_s, max_restarts
        self._most_rows: int | None = None
        """Fewer than a batch once whole batches ended the process and their questions alone did not."""
        self._worker: Worker | None = None
        self._description: dict | None = None
        self._start_s = 0.0
        self._reason = ""
        self._lost_in_a_row = 0
        """Times the process ended since it last answered."""

    def __enter__(self) -> "LocalBackend":
        self._worker = Worker(self.model, identify=True)
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def describe(self) -> dict:
        if self._description is None:
            self._description = {"backend": "local", **self._alive().ready()["model"]}
        return self._description

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def generation(self) -> dict:
        return {**self._config, "likelihood": self._likelihood}

    @property
    def batch_size(self) -> int:
        return self._alive().ready()["rows"]

    def answers(self, batches: Iterable[list[Question]]) -> Iterator[Asked]:
        # What failed is held back until the process has answered something since: it may be the device that is gone.
        held: list[Asked] = []
        for batch in batches:
            for asked in self._answer(batch):
                held.append(asked)
                if not self._lost_in_a_row:
                    yield from held
                    held.clear()
        if held:
            self._alive()
        yield from held

    def _answer(self, batch: list[Question]) -> Iterator[Asked]:
        images = _Images()
        readable = []
        for question in batch:
            try:
                images.read(question)
                readable.append(question)
            except VLMError as error:
                yield Asked(question, Failure(reason=f"{error.message} [{error.code}]"))
        size = min(self._most_rows or len(batch), len(batch))
        for start in range(0, len(readable), size):
            yield from self._answer_together(readable[start : start + size], images)

    def _answer_together(self, questions: list[Question], images: "_Images") -> Iterator[Asked]:
        outcomes = self._try(questions, images, self.timeout_s / 2)
        if outcomes is not None:
            yield from map(Asked, questions, outcomes)
            return
        all_passed = True
        for question in questions:
            left_s = max(self.timeout_s / 2 - 2 * self._start_s, self.timeout_s / 4)
            outcomes = self._try([question], images, left_s)
            all_passed = all_passed and outcomes is not None
            lost = Failure(reason=f"lost twice with this sample: the model's process {self._reason}")
            yield Asked(question, outcomes[0] if outcomes else lost)
        if all_passed and len(questions) > 1:
            # Not one of them, then, but all of them together: the system may have ended it for its memory.
            self._most_rows = len(questions) // 2

    def _try(self, questions: list[Question], images: "_Images", timeout_s: float) -> list[Answer | Failure] | None:
        """Return what came of `questions`, None when the process was lost.

        Raises: VLMError when it was lost too often in a row.
        """
        try:
            said = self._alive().ask(self._request(questions, images), timeout_s)
        except WorkerLost as lost:
            self._stop()
            self._reason = str(lost)
            self._lost_in_a_row += 1
            if self._lost_in_a_row > self.max_restarts:
                raise VLMError(
                    "device_unavailable",
                    f"the model's process was lost {self._lost_in_a_row} times in a row (it {self._reason:.120}); "
                    "see to the device or the memory and resume, or allow more with --max-restarts",
                ) from None
            return None
        self._lost_in_a_row = 0
        return [_outcome(each) for each in said]

    def _alive(self) -> Worker:
        """Return the process, started and with its model loaded."""
        if self._worker is None:
            self._worker = Worker(self.model, identify=False)
        try:
            self._worker.ready()
        except WorkerLost as lost:
            self._stop()
            raise VLMError("device_unavailable", f"while the model was loaded its process {lost}") from None
        self._start_s = self._worker.started_s
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _request(self, questions: list[Question], images: "_Images") -> Request:
        prompt = questions[0].prompt
        names = {name for question in questions for name in images.names(question)}
        return Request(
            conversations=[conversation(question.prompt, images.part) for question in questions],
            options=[self._wanted(question) for question in questions],
            images={name: images.content[name] for name in names},
            generation={**self._config, "max_new_tokens": prompt.max_new_tokens},
            continue_final=bool(prompt.prefill),
        )

    def _wanted(self, question: Question) -> tuple[str, ...]:
        """Return the replies whose likelihood is measured, "" for an option that is not offered."""
        options = question.sample.options if self._likelihood else ()
        if self._likelihood == "letters":
            return tuple(chr(ord("A") + place) if option else "" for place, option in enumerate(options))
        return options


class _Images:
    """The pictures of a batch, each read once."""

    def __init__(self):
        self.content: dict[str, bytes] = {}
        """By digest."""
        self._names: dict[int, str] = {}

    def read(self, question: Question) -> None:
        """Raises: VLMError where a picture cannot be read."""
        for image in shown_images(question.prompt):
            if id(image) not in self._names:
                content = image.read()
                self._names[id(image)] = name = hashlib.sha256(content).hexdigest()
                self.content[name] = content

    def names(self, question: Question) -> list[str]:
        return [self._names[id(image)] for image in shown_images(question.prompt)]

    def part(self, image: ImageRef) -> dict:
        return {"type": "image", "image": self._names[id(image)]}


def _outcome(said: dict) -> Answer | Failure:
    if "error" in said:
        return Failure(reason=said["error"])
    scores = said.get("option_scores")
    measured = None if scores is None else tuple(None if score is None else tuple(score) for score in scores)
    return Answer(**{**said, "token_ids": tuple(said["token_ids"]), "option_scores": measured})
