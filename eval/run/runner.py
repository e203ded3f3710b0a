"""A run: every sample of the chosen tasks is asked once, and its answer is in the folder whatever happens next.

The log says what is done. To go on with a run is to start it again: the manifest is compared, what is in the log is
left out, and the rest is asked.
"""

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from eval import tasks
from eval.backends import Asked, Backend, Failure, Question
from eval.digests import digest
from eval.prompts import Preset
from eval.records import Prompt, Sample
from eval.run.answer_log import AnswerLog, Name, name_of
from eval.run.batches import planned
from eval.run.fingerprint import prompt_digest, samples_digest
from eval.run.folder import RunFolder
from eval.run.image_digests import SUFFIX, ImageDigests
from eval.run.journal import Journal
from eval.run.manifest import new_manifest
from eval.run.progress import Progress
from eval.run.selection import Selection, select
from eval.run.settling import settle
from eval.run.shards import Shard
from vlm.errors import VLMError

logger = logging.getLogger(__name__)
NO_PROMPT = "none"
"""What the prompt of a sample is called that is too damaged to be asked about."""


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
        stack.enter_context(_uncollected())
        begun = _begin(settings, backend, folder, stack, show_progress)
        mine, log = begun.questions, begun.log
        num_before = log.num_known
        wanted = log.still_to_ask(settings.retry_errors)
        # What was loaded stays to the end: from here on only what comes and goes is looked through.
        gc.freeze()
        gc.enable()
        for asked in _asked(mine, wanted, log.failed - wanted, backend, begun.batch_size):
            log.write(asked)
        return Outcome(len(mine), num_before, len(log.failed), begun.moved_to)


class _Begun(NamedTuple):
    """A run that is about to ask."""

    questions: list[Question]
    """Those of this process."""
    log: AnswerLog
    batch_size: int
    moved_to: Path | None


def _begin(settings: RunSettings, backend: Backend, folder: RunFolder, stack: ExitStack, show_progress: bool) -> _Begun:
    """Read the samples, have the folder hold this run, and learn what was answered; `stack` closes what is opened."""
    questions = _questions(settings, backend.name)
    manifest = _manifest(settings, questions, backend)
    own = folder.journal_path(settings.shard)
    with folder.settling():
        moved_to = settle(folder, manifest, own, shard=settings.shard, new_run=settings.new_run)
        batch_size = settings.batch_size or folder.manifest()["batch_size"]
    if settings.shard is not None:
        questions = [question for question in questions if settings.shard.holds(question.sample.cluster)]
    journal = stack.enter_context(Journal(own))
    progress = stack.enter_context(Progress(len(questions), shown=show_progress))
    images = ImageDigests(sorted(folder.path.glob(f"*{SUFFIX}")), own=own.with_suffix(SUFFIX))
    stack.callback(images.close)
    log = AnswerLog(journal, progress, questions, {name: manifest[name] for name in ("model", "generation")}, images)
    log.take_in(folder.journals())
    progress.start()
    return _Begun(questions, log, batch_size, moved_to)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Begin without the garbage collector, which would go through all samples again and again as they are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _questions(settings: RunSettings, model_name: str) -> list[Question]:
    """Return what the model is asked about each chosen sample."""
    loaded = {name: tasks.find(name).load(path, **settings.selection.options) for name, path in settings.data.items()}
    chosen = select(loaded, settings.selection)
    _say_what_is_wrong(chosen)
    questions = []
    for name, samples in chosen.items():
        task = tasks.find(name)
        preset = task.prompts[task.preset(settings.prompt, model_name)]
        if settings.max_new_tokens is not None:
            preset = replace(preset, max_new_tokens=settings.max_new_tokens)
        questions += [_question(preset, sample) for sample in samples]
    return questions


def _say_what_is_wrong(chosen: Mapping[str, list[Sample]]) -> None:
    """Warn of damaged samples before the first is asked; each becomes an error record."""
    for name, samples in chosen.items():
        problems = [sample.problem for sample in samples if sample.problem is not None]
        if problems:
            logger.warning("%s: %d of %d samples cannot be asked: %s", name, len(problems), len(samples), problems[0])


def _question(preset: Preset, sample: Sample) -> Question:
    try:
        prompt = preset(sample)
    except VLMError:
        if sample.problem is None:
            raise
        # A damaged sample need not be one that can be asked about.
        prompt = Prompt(messages=[{"role": "user", "content": sample.question}], max_new_tokens=1, name=NO_PROMPT)
    return Question(sample, prompt, prompt_digest(sample, prompt))


def _manifest(settings: RunSettings, questions: list[Question], backend: Backend) -> dict:
    described = {}
    for name in settings.data:
        own = [question for question in questions if question.sample.task == name]
        # A picture that is missing may be put back: its question is asked by the same preset then.
        prompts = [question.prompt for question in own if question.prompt.name != NO_PROMPT]
        described[name] = {
            "prompt": sorted({prompt.name for prompt in prompts}),
            "max_new_tokens": sorted({prompt.max_new_tokens for prompt in prompts}),
            "num_samples": len(own),
            "samples": samples_digest(question.sample for question in own),
            "prompts": digest(*sorted(question.digest for question in own)),
        }
    places = {name: str(path.absolute()) for name, path in settings.data.items()}
    model = backend.describe()
    return new_manifest(
        command=settings.command,
        data=next(iter(places.values())) if len(set(places.values())) == 1 else places,
        tasks=described,
        selection=settings.selection.described({question.sample.id for question in questions}),
        model=model,
        generation=backend.generation,
        batch_size=settings.batch_size or backend.batch_size,
    )


def _asked(
    mine: list[Question], wanted: set[Name], given_up: set[Name], backend: Backend, batch_size: int
) -> Iterator[Asked]:
    """Yield what came of the questions that are wanted; those that were given up are in no batch."""
    for question in mine:
        if question.sample.problem is not None and name_of(question) in wanted:
            yield Asked(question, Failure(reason=question.sample.problem))
    for asked in backend.answers(_batches_left(mine, wanted, given_up, batch_size)):
        if name_of(asked.question) in wanted:
            yield asked


def _batches_left(
    mine: list[Question], wanted: set[Name], given_up: set[Name], batch_size: int
) -> Iterator[list[Question]]:
    """Yield every batch of which something is wanted, whole: in other company the last bits would be others."""
    if not wanted:
        return
    for batch in planned((question for question in mine if question.sample.problem is None), batch_size):
        if any(name_of(question) in wanted for question in batch):
            yield [question for question in batch if name_of(question) not in given_up]
