"""Digests: equal for what is equal, and different for all that differs."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from eval.digests import digest
from eval.records import ImageRef, Sample
from eval.run.fingerprint import samples_digest

DIFFERENT = [
    *(None, True, False, 0, 1, -1, 1.0, 10**30, 10**30 + 1, math.nan, math.inf, -math.inf),
    *("", "0", "None", "a", "\0", "é", "è", "e\u0301", "\ud83d", "\ud83e", "\ud83d\ude00", "\\ud83d"),
    *((), ("",), ("a", "b"), ("ab",), (("a",), "b"), ("a", ("b",)), ("\ud83d", "b"), ("\ud83db",)),
]
SAMPLE = Sample(
    id="1",
    task="t",
    images=(ImageRef(id="1.png", data=b"x"),),
    question="Why?",
    targets=("a", "b"),
    options=("c", "d"),
    fields={"x": 1, "y": "z"},
)
CHANGED = {
    "id": "2",
    "images": (ImageRef(id="2.png", data=b"x"),),
    "question": "Why \ud83d?",
    "targets": ("a",),
    "options": ("d", "c"),
    "fields": {"x": "1", "y": "z"},
}


def test_what_differs_has_another_digest():
    assert len({digest(part) for part in DIFFERENT}) == len(DIFFERENT)
    pairs = [*itertools.product(DIFFERENT, repeat=2)]
    assert len({digest(*pair) for pair in pairs}) == len(pairs)


@settings(deadline=None)
@given(names=st.lists(st.text(st.characters()), unique=True, max_size=8), shuffled=st.randoms())
def test_samples_have_one_digest_in_any_order(names, shuffled):
    samples = [replace(SAMPLE, id=name, fields={"x": 1, name: 2}) for name in names]
    before = samples_digest(samples)
    shuffled.shuffle(samples)
    assert samples_digest(replace(each, fields=dict(reversed(each.fields.items()))) for each in samples) == before


def test_everything_a_sample_says_is_in_the_digest_but_what_is_wrong_with_it():
    digests = {samples_digest([replace(SAMPLE, **{name: value})]) for name, value in CHANGED.items()}
    assert len(digests | {samples_digest([SAMPLE])}) == len(CHANGED) + 1
    assert samples_digest([replace(SAMPLE, problem="it is missing")]) == samples_digest([SAMPLE])
