"""What a run knows of each sample: what its journals say already, and what is written of an answer that comes."""

import json
from collections.abc import Iterable
from pathlib import Path

from eval.backends import Asked, Failure, Question, shown_images
from eval.digests import digest
from eval.records import Prediction
from eval.run.fingerprint import record_key
from eval.run.image_digests import ImageDigests
from eval.run.journal import Journal, RecordHead, read_journal
from eval.run.progress import Progress
from vlm.errors import VLMError

MAX_TEXT_OF_ERROR = 10_000
Name = tuple[str, str]
"""The task and the id of a sample."""


def name_of(question: Question) -> Name:
    """Return the task and the id of a question's sample."""
    return question.sample.task, question.sample.id


class AnswerLog:
    """The journal, and what it says of each sample."""

    def __init__(
        self,
        journal: Journal,
        progress: Progress,
        questions: Iterable[Question],
        run: dict,
        digests: ImageDigests,
    ):
        """run: what decides the answers beside the question."""
        self.failed: set[Name] = set()
        """Samples with an error record and no answer."""
        self._questions = {name_of(question): question for question in questions}
        self._open = set(self._questions)
        """Those without an answer; it only shrinks, so that a long run needs no more memory than a short one."""
        self._journal, self._progress, self._digests = journal, progress, digests
        self._run = digest(json.dumps(run, sort_keys=True))

    @property
    def num_known(self) -> int:
        return len(self._questions) - len(self._open) + len(self.failed)

    def still_to_ask(self, retry_errors: bool) -> set[Name]:
        return self._open - (set() if retry_errors else self.failed)

    def take_in(self, paths: Iterable[Path]) -> None:
        """Learn what was written before.

        Raises: VLMError where a picture is no longer the one that was shown.
        """
        for path in paths:
            for record in read_journal(path, RecordHead.from_json):
                question = self._questions.get((record.task, record.id))
                if question is not None:
                    if record.error is None:
                        self._check_key(record, question)
                    self._count(record)

    def write(self, asked: Asked) -> None:
        """Put what came of a question into the journal."""
        record = _record(asked, self._key(self._questions[name_of(asked.question)]))
        self._journal.append(record)
        self._count(record)

    def _count(self, record: Prediction | RecordHead) -> None:
        name = (record.task, record.id)
        self._progress.add(record, again=name in self.failed or name not in self._open)
        if record.error is None:
            self._open.discard(name)
            self.failed.discard(name)
        elif name in self._open:
            self.failed.add(name)

    def _key(self, question: Question) -> str:
        images = [self._digests.of(image) for image in shown_images(question.prompt)]
        return record_key(question.digest, images, self._run)

    def _check_key(self, record: Prediction | RecordHead, question: Question) -> None:
        if record.key != self._key(question):
            raise VLMError(
                "invalid_request",
                f"sample {record.id[:60]!r} of {record.task} was answered with other pictures than there are now; put "
                "them back, give another --out, or --new-run, which moves the earlier answers aside",
            )


def _record(asked: Asked, key: str) -> Prediction:
    (sample, prompt, _), outcome = asked
    common = {
        "id": sample.id,
        "task": sample.task,
        "key": key,
        "target": sample.targets,
        "images": tuple(image.id for image in sample.images),
        "options": sample.options,
        "fields": sample.fields,
    }
    if isinstance(outcome, Failure):
        nothing = dict.fromkeys(("prediction", "token_ids", "finish_reason", "confidence"))
        # What is wrong with a sample may be that it is endless.
        said = {"prompt": _cut(prompt.text()), "question": _cut(sample.question)}
        return Prediction(**common, **nothing, **said, error=outcome.reason)
    return Prediction(
        **common,
        prompt=prompt.text(),
        question=sample.question,
        prediction=outcome.text,
        token_ids=outcome.token_ids,
        finish_reason=outcome.finish_reason,
        confidence=outcome.confidence,
        option_scores=outcome.option_scores,
        error=None,
    )


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_OF_ERROR:
        return text
    return f"{text[:MAX_TEXT_OF_ERROR]}… ({len(text)} characters)"
