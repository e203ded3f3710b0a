"""Digests of what decides an answer: equal digests, equal answer."""

from collections.abc import Iterable

from eval.digests import digest
from eval.records import Prompt, Sample


def samples_digest(samples: Iterable[Sample]) -> str:
    """Return a digest of the questions and their accepted answers, whatever their order; no image is opened.

    What is wrong with a sample is not in it: a picture that was missing may be put back, and its sample asked again.
    """
    return digest(*sorted(map(_said, samples)))


def prompt_digest(sample: Sample, prompt: Prompt) -> str:
    """Return a digest of a sample's name and what is asked about it."""
    return digest(sample.task, sample.id, prompt.text(), prompt.prefill, prompt.max_new_tokens)


def record_key(asked: str, images: list[str], run: str) -> str:
    """Return the key of a record: the digests of what was asked, of the images shown, and of how the run answers."""
    return digest(asked, images, run)


def _said(sample: Sample) -> tuple:
    images = [image.id for image in sample.images]
    return sample.id, images, sample.question, sample.targets, sample.options, sorted(sample.fields.items())
