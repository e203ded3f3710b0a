"""Digests of what decides an answer: equal digests, equal answer."""

import hashlib
import json
import re
from collections.abc import Iterable

from eval.records import ImageRef, Prompt, Sample
from vlm.errors import VLMError

MAX_KNOWN_IMAGES = 4096
_CONTENT_NAME = re.compile(r"[0-9a-f]{16,64}")


def digest(*parts: object) -> str:
    """Return 32 hex digits for `parts`, which JSON can hold."""
    # JSON in ASCII also holds halves of surrogate pairs, which UTF-8 cannot.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()[:32]


def samples_digest(samples: Iterable[Sample]) -> str:
    """Return a digest of the questions and their accepted answers, whatever their order; no image is opened."""
    return digest(*sorted(digest(*_said(sample)) for sample in samples))


def prompts_digest(asked: Iterable[tuple[Sample, Prompt]]) -> str:
    """Return a digest of the rendered prompts, whatever their order."""
    return digest(*sorted(digest(sample.id, *_rendered(prompt)) for sample, prompt in asked))


class ImageDigests:
    """Digests of pictures by their encoded bytes, which decide the pixels; those met last are remembered."""

    def __init__(self):
        self._known: dict[object, str] = {}

    def of(self, image: ImageRef) -> str:
        """Return the digest of `image`; of one that cannot be read, why."""
        if image.load is not None and _CONTENT_NAME.fullmatch(image.id):
            return image.id  # a digest already, and reading it out of a large file again would take long
        name = image.path or image.id
        if name in self._known:
            return self._known[name]
        try:
            found = hashlib.sha256(image.read()).hexdigest()
        except VLMError as error:
            return f"unreadable: {error.code}"
        if len(self._known) >= MAX_KNOWN_IMAGES:
            self._known.clear()
        self._known[name] = found
        return found


def record_key(sample: Sample, prompt: Prompt, images: list[str], run: dict) -> str:
    """Return the key of a record: of its sample, what it was asked, the images' digests and how `run` answers."""
    return digest(sample.task, sample.id, sample.problem, *_rendered(prompt), images, run)


def _said(sample: Sample) -> tuple:
    images = [image.id for image in sample.images]
    fields = dict(sample.fields)
    return sample.id, images, sample.question, sample.targets, sample.options, fields, sample.problem


def _rendered(prompt: Prompt) -> tuple:
    return prompt.text(), prompt.prefill, prompt.max_new_tokens
