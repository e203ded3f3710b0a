"""A run: every sample of the chosen tasks is asked once, and its answer is in the folder whatever happens next.

The log says what is done. To go on with a run is to start it again: the manifest is compared, what is in the log is
left out, and the rest is asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from eval import tasks
from eval.backends import Asked, Backend, Failure, Question, shown_images
from eval.batching import planned
from eval.fingerprint import ImageDigests, prompts_digest, record_key, samples_digest
from eval.journal import Journal, read_journal
from eval.manifest import RunDiffers, check_same, new_manifest
from eval.progress import Progress
from eval.records import Prediction, Prompt, Sample
from eval.run_folder import MANIFEST, REPORT, SCORES, RunFolder, lock
from eval.selection import Selection, select
from eval.shards import Shard
from vlm.errors import VLMError

MAX_TEXT_OF_ERROR = 10_000
Name = tuple[str, str]
"""The task and the id of a sample."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is run. The backend says who answers."""

    data: Mapping[str, Path]
    """Where the data of each task lies; the keys are the tasks that are run."""
    out: Path
    selection: Selection = field(default_factory=Selection)
    prompt: str | None = None
    """The preset; None takes each task's own."""
    max_new_tokens: int | None = None
    """None takes the preset's."""
    batch_size: int | None = None
    """None takes what the run was begun with, or what the backend finds right."""
    shard: Shard | None = None
    new_run: bool = False
    """Move earlier answers aside and start anew."""
    retry_errors: bool = False
    """Ask again what has an error record and no answer."""
    command: tuple[str, ...] = ()
    """What was typed, for the manifest."""


class Outcome(NamedTuple):
    """What came of a run; counts are of this process's samples."""

    num_samples: int
    num_before: int
    """Those with a record from before."""
    num_errors: int
    moved_to: Path | None
    """Where earlier answers were moved."""


def run(settings: RunSettings, backend: Backend, *, show_progress: bool = True) -> Outcome:
    """Answer every sample that has no record yet.

    Raises: VLMError, `RunDiffers` among them; the records that were written until then stay.
    """
    folder = RunFolder(settings.out)
    folder.create()
    with ExitStack() as stack:
        stack.enter_context(folder.claimed(settings.shard))
        # The model is loaded while the samples are read.
        stack.enter_context(backend)
        questions = _questions(settings, backend.name)
        manifest = _manifest(settings, questions, backend)
        with folder.settling():
            moved_to = _settle(folder, manifest, settings)
            batch_size = settings.batch_size or folder.manifest()["batch_size"]
        mine = [each for each in questions if settings.shard is None or settings.shard.holds(each.sample.cluster)]
        journal = stack.enter_context(Journal(folder.journal_path(settings.shard)))
        progress = stack.enter_context(Progress(len(mine), shown=show_progress))
        log = _Log(journal, progress, mine, {name: manifest[name] for name in ("model", "generation")})
        log.take_in(folder.journals())
        num_before = log.num_known
        progress.start()
        wanted = log.still_to_ask(settings.retry_errors)
        for asked in _asked(mine, wanted, log.failed - wanted, backend, batch_size):
            log.write(asked)
        return Outcome(len(mine), num_before, len(log.failed), moved_to)


def _questions(settings: RunSettings, model_name: str) -> list[Question]:
    """Return what the model is asked about each chosen sample."""
    loaded = {name: tasks.find(name).load(path, **settings.selection.options) for name, path in settings.data.items()}
    chosen = select(loaded, settings.selection)
    return [
        _question(tasks.find(name), sample, settings, model_name)
        for name, samples in chosen.items()
        for sample in samples
    ]


def _question(task: "tasks.Task", sample: Sample, settings: RunSettings, model_name: str) -> Question:
    try:
        prompt = task.prompt(sample, preset=settings.prompt, model_name=model_name)
    except VLMError:
        if sample.problem is None:
            raise
        # A damaged sample need not be one that can be asked about.
        prompt = Prompt(messages=[{"role": "user", "content": sample.question}], max_new_tokens=1, name="none")
    if settings.max_new_tokens is not None:
        prompt = replace(prompt, max_new_tokens=settings.max_new_tokens)
    return Question(sample, prompt)


def _manifest(settings: RunSettings, questions: list[Question], backend: Backend) -> dict:
    described = {}
    for name in settings.data:
        own = [question for question in questions if question.sample.task == name]
        described[name] = {
            "prompt": sorted({question.prompt.name for question in own if question.sample.problem is None}),
            "num_samples": len(own),
            "samples": samples_digest(question.sample for question in own),
            "prompts": prompts_digest(own),
        }
    places = {name: str(path.absolute()) for name, path in settings.data.items()}
    model = backend.describe()
    return new_manifest(
        command=settings.command,
        data=next(iter(places.values())) if len(set(places.values())) == 1 else places,
        tasks=described,
        selection=settings.selection.described(),
        model=model,
        generation=backend.generation,
        batch_size=settings.batch_size or backend.batch_size,
    )


def _settle(folder: RunFolder, manifest: dict, settings: RunSettings) -> Path | None:
    """Have the folder hold this run's manifest and no other run's answers; return where those were moved."""
    expected, moved_to = folder.manifest(), None
    if settings.new_run:
        own = folder.journal_path(settings.shard)
        if settings.shard is not None and expected is not None and _is_same(manifest, expected):
            # Other processes may be at work on other shards of this very run.
            moved_to = folder.move_aside([own.name])
        else:
            moved_to = start_anew(folder, claimed=own)
        expected = folder.manifest()
    elif expected is None and any(path.stat().st_size for path in folder.journals()):
        raise VLMError(
            "invalid_request",
            f"{folder.path.name!r:.80} holds answers and no manifest.json; expected both; --new-run moves them aside",
        )
    if expected is None:
        folder.write_json(MANIFEST, manifest)
    else:
        check_same(manifest, expected)
    return moved_to


def start_anew(folder: RunFolder, *, claimed: Path | None = None) -> Path | None:
    """Move a run aside, whole, and return where to; None where there was none.

    claimed: the journal whose lock the caller holds. Raises: VLMError where another process is writing to the folder.
    """
    journals = folder.journals()
    with ExitStack() as stack:
        for path in journals:
            if path != claimed:
                stack.enter_context(lock(path.with_suffix(".lock")))
        return folder.move_aside([MANIFEST, SCORES, REPORT, *(path.name for path in journals)])


def _is_same(manifest: dict, expected: dict) -> bool:
    try:
        check_same(manifest, expected)
    except RunDiffers:
        return False
    return True


def _asked(
    mine: list[Question], wanted: set[Name], given_up: set[Name], backend: Backend, batch_size: int
) -> Iterator[Asked]:
    """Yield what came of the questions that are wanted; those that were given up are in no batch."""
    for question in mine:
        if question.sample.problem is not None and _name(question) in wanted:
            yield Asked(question, Failure(reason=question.sample.problem))
    for asked in backend.answers(_batches_left(mine, wanted, given_up, batch_size)):
        if _name(asked.question) in wanted:
            yield asked


def _batches_left(
    mine: list[Question], wanted: set[Name], given_up: set[Name], batch_size: int
) -> Iterator[list[Question]]:
    """Yield every batch of which something is wanted, whole: in other company the last bits would be others."""
    for batch in planned((question for question in mine if question.sample.problem is None), batch_size):
        if any(_name(question) in wanted for question in batch):
            yield [question for question in batch if _name(question) not in given_up]


class _Log:
    """The journal, and what it says of each sample."""

    def __init__(self, journal: Journal, progress: Progress, questions: list[Question], run: dict):
        """run: what decides the answers beside the question."""
        self.failed: set[Name] = set()
        """Samples with an error record and no answer."""
        self._answered: set[Name] = set()
        self._questions = {_name(question): question for question in questions}
        self._journal, self._progress, self._run = journal, progress, run
        self._digests = ImageDigests()

    @property
    def num_known(self) -> int:
        return len(self._answered) + len(self.failed)

    def still_to_ask(self, retry_errors: bool) -> set[Name]:
        return self._questions.keys() - self._answered - (set() if retry_errors else self.failed)

    def take_in(self, paths: list[Path]) -> None:
        """Learn what was written before.

        Raises: VLMError where a picture is no longer the one that was shown.
        """
        for path in paths:
            for record in read_journal(path):
                question = self._questions.get((record.task, record.id))
                if question is not None:
                    if record.error is None:
                        self._check_key(record, question)
                    self._count(record)

    def write(self, asked: Asked) -> None:
        """Put what came of a question into the journal."""
        record = _record(asked, self._key(asked.question))
        self._journal.append(record)
        self._count(record)

    def _count(self, record: Prediction) -> None:
        name = (record.task, record.id)
        self._progress.add(record, again=name in self.failed or name in self._answered)
        if record.error is None:
            self._answered.add(name)
            self.failed.discard(name)
        elif name not in self._answered:
            self.failed.add(name)

    def _key(self, question: Question) -> str:
        images = [self._digests.of(image) for image in shown_images(question.prompt)]
        return record_key(*question, images, self._run)

    def _check_key(self, record: Prediction, question: Question) -> None:
        if record.key != self._key(question):
            raise VLMError(
                "invalid_request",
                f"sample {record.id[:60]!r} of {record.task} was answered with other pictures than there are now; put "
                "them back, give another --out, or --new-run, which moves the earlier answers aside",
            )


def _name(question: Question) -> Name:
    return question.sample.task, question.sample.id


def _record(asked: Asked, key: str) -> Prediction:
    (sample, prompt), outcome = asked
    common = {
        "id": sample.id,
        "task": sample.task,
        "key": key,
        "target": sample.targets,
        "images": tuple(image.id for image in sample.images),
        "options": sample.options,
    }
    if isinstance(outcome, Failure):
        nothing = dict.fromkeys(("prediction", "token_ids", "finish_reason", "confidence"))
        # What is wrong with a sample may be that it is endless.
        prompt_text, question = _cut(prompt.text()), _cut(sample.question)
        return Prediction(
            **common, **nothing, prompt=prompt_text, question=question, fields=sample.fields, error=outcome.reason
        )
    measured = {} if outcome.option_scores is None else {"option_scores": outcome.option_scores}
    return Prediction(
        **common,
        prompt=prompt.text(),
        question=sample.question,
        prediction=outcome.text,
        token_ids=outcome.token_ids,
        finish_reason=outcome.finish_reason,
        confidence=outcome.confidence,
        fields={**sample.fields, **measured},
        error=None,
    )


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_OF_ERROR:
        return text
    return f"{text[:MAX_TEXT_OF_ERROR]}… ({len(text)} characters)"
