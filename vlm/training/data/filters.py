"""Steps that leave samples out before a run begins: by length, by language, and what was there before."""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence

from vlm.errors import VLMError
from vlm.packages import needed
from vlm.training.config import Filter
from vlm.training.data.samples import Sample, sample_images, sample_text

Keeps = Callable[[Sample], bool]
"""Tells whether a sample stays. Duplicates are told from what came before, so that the order counts."""

MIN_PROBABILITY, SIMILARITY = 0.5, 0.8
GRAM = 5
"""Characters of a piece by which near duplicates are compared."""
NUM_PERMUTATIONS = 128


def open_filters(filters: Sequence[Filter]) -> list[Keeps]:
    """Return the steps in their order. Raises: VLMError for a missing library or an unknown language."""
    kinds = {"length": _Length, "language": _Language, "duplicates": _Duplicates, "near_duplicates": _NearDuplicates}
    return [kinds[step.name](step) for step in filters]


class _Length:
    def __init__(self, step: Filter):
        self._least, self._most = step.min_chars or 0, step.max_chars

    def __call__(self, sample: Sample) -> bool:
        length = len(sample_text(sample))
        return self._least <= length and (self._most is None or length <= self._most)


class _Language:
    """Told by py3langid's naive Bayes over bytes. A text too short to tell is as likely of every language.

    Source: Lui and Baldwin 2012, langid.py.
    """

    def __init__(self, step: Filter):
        langid = needed("py3langid.langid", "a language filter")
        self._model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        self._languages, self._least = frozenset(step.languages), step.min_probability or MIN_PROBABILITY
        unknown = sorted(self._languages - set(self._model.labels))
        if unknown:
            raise VLMError(
                "invalid_request",
                f"languages names {unknown[0]!r:.40}, which py3langid does not know; expected codes such as en, de, zh",
            )

    def __call__(self, sample: Sample) -> bool:
        language, probability = self._model.classify(sample_text(sample))
        return language in self._languages and probability >= self._least


class _Duplicates:
    """Equal in every text and in the names, or the bytes, of every image."""

    def __init__(self, step: Filter):
        self._seen: set[bytes] = set()

    def __call__(self, sample: Sample) -> bool:
        digest = _digest(sample, sample_text(sample))
        is_new = digest not in self._seen
        self._seen.add(digest)
        return is_new


class _NearDuplicates:
    """Alike by the share of pieces that two texts have in common, estimated with MinHash; images must be the same.

    A hundred questions about a hundred pictures are no duplicates, however alike they are worded.
    Source: Broder 1997; Lee et al., arXiv 2107.06499, section 4.2.
    """

    def __init__(self, step: Filter):
        datasketch = needed("datasketch", "a filter of near duplicates")
        self._least = step.similarity or SIMILARITY
        # Higher than this the index has too few bands; it only finds candidates anyway.
        self._index = datasketch.MinHashLSH(threshold=min(self._least, 0.9), num_perm=NUM_PERMUTATIONS)
        self._empty = datasketch.MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
        self._compact = datasketch.LeanMinHash
        self._kept: list = []

    def __call__(self, sample: Sample) -> bool:
        text = " ".join(unicodedata.normalize("NFKC", sample_text(sample)).lower().split())
        pieces = {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}
        images = _digest(sample, "")
        signature = self._empty.copy()
        signature.update_batch([images + piece.encode("utf-8", "surrogatepass") for piece in pieces])
        if any(self._kept[one].jaccard(signature) >= self._least for one in self._index.query(signature)):
            return False
        self._index.insert(len(self._kept), signature)
        self._kept.append(self._compact(signature))
        return True


def _digest(sample: Sample, text: str) -> bytes:
    """Return 16 bytes that two samples share if `text` and images are the same."""
    digest = hashlib.blake2b(digest_size=16)
    for part in [type(sample).__name__, text, *sample_images(sample)]:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(f"{type(part).__name__} {len(content)} ".encode() + content)
    return digest.digest()
