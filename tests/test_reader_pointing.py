"""Where heads are asked to look: few queries, few patches, and questions of similar length side by side."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.attention import attention_weights
from vlm.config import preset
from vlm.training.reader import model as reader_model
from vlm.training.reader.conversations import _by_length, _group, question_groups, with_labels
from vlm.training.reader.model import POINTING_HEADS, Reader, _weights_of, seekers_of
from vlm.training.reader.targets import IGNORED, NUM_POINTERS, PatchLinks, Pointers, no_links

MARKER = 7


@pytest.mark.parametrize("heads", [heads for _, heads in POINTING_HEADS])
def test_heads_named_together_look_at_the_mean_of_what_each_looks_at(heads):
    generator = torch.Generator().manual_seed(0)
    queries = 2 * torch.randn(3, 4, 5, 8, generator=generator)
    keys = torch.randn(3, 2, 11, 8, generator=generator)
    each = attention_weights(queries, keys.repeat_interleave(2, dim=1))
    expected = torch.stack([sum(each[:, head] for head in together) / len(together) for together in heads], 1)
    torch.testing.assert_close(_weights_of(heads, queries, keys), expected)


def links_of(seeking: list[list[int]], num_patches: int) -> PatchLinks:
    """Return the links of pictures whose patches `seeking` are the values of labels, by turns in a row and below."""
    nothing = no_links((1, num_patches))
    links = PatchLinks(*(torch.from_numpy(np.stack([part] * len(seeking))) for part in nothing))
    for picture, patches in enumerate(seeking):
        for turn, patch in enumerate(patches):
            (links.label, links.label_beside, links.label_below, links.value_entry)[turn % 4][picture, patch] = 1
    return links


@given(st.lists(st.sets(st.integers(0, 59)), min_size=1, max_size=4), st.integers(2, 9))
def test_of_too_many_seeking_patches_some_from_all_over_the_picture_are_kept(seeking, most):
    seeking = [sorted(patches) for patches in seeking]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_model, "MAX_SEEKERS", most)
        rows = seekers_of(links_of(seeking, 60)).rows
    assert rows.shape == (len(seeking), min(most, max(map(len, seeking))))
    for patches, chosen in zip(seeking, rows.tolist(), strict=True):
        chosen = chosen[: len(patches)]
        assert len({*chosen}) == len(chosen) == min(most, len(patches))
        assert {*chosen} <= {*patches}
        if patches:
            places = [patches.index(each) for each in chosen]
            # None is further than one step from the next, nor the last from the end.
            step = math.ceil(len(patches) / len(chosen))
            assert places[0] == 0
            assert max(np.diff([*places, len(patches)])) <= step


def test_what_kept_patches_seek_is_what_they_sought():
    links = links_of([[], []], 30)
    links.label[:, :10] = torch.arange(1, 11)
    links.label_beside[:, 15:25] = torch.arange(1, 11)
    whole = seekers_of(links)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_model, "MAX_SEEKERS", 6)
        some = seekers_of(links)
    assert some.beside.shape == (2, 6, 30)
    for picture in range(2):
        for index, row in enumerate(some.rows[picture].tolist()):
            place = whole.rows[picture].tolist().index(row)
            assert torch.equal(some.beside[picture, index], whole.beside[picture, place])
            assert some.beside[picture, index].nonzero()[:, 0].tolist() == [row + 15 if row < 10 else row - 15]


def padding(groups: list[list[tuple]]) -> int:
    return sum(max(len(row[1]) for row in group) * len(group) - sum(len(row[1]) for row in group) for group in groups)


@given(st.lists(st.integers(1, 40), max_size=9))
def test_no_split_of_the_rows_in_two_is_padded_less(lengths):
    rows = [(place, [0] * length) for place, length in enumerate(lengths)]
    groups = _by_length(rows)
    assert len(groups) <= 2
    assert all(groups)
    assert [row for group in groups for row in group] == sorted(rows, key=lambda row: len(row[1]))
    if rows:
        splits = (
            ([row for row in rows if chosen >> row[0] & 1], [row for row in rows if not chosen >> row[0] & 1])
            for chosen in range(2 ** len(rows))
        )
        assert padding(groups) == min(padding([group for group in split if group]) for split in splits)
        assert padding(groups) <= padding([rows])


def asked_row(picture: int, prompt: list[int], reply: list[int], num_patches: int) -> tuple:
    ids, labels = with_labels(prompt, reply)
    nowhere = Pointers(np.zeros((NUM_POINTERS, len(ids)), dtype=np.int64), np.zeros((1, num_patches), dtype=bool))
    return picture, ids, labels, nowhere, "value"


def test_a_reply_weighs_by_the_root_of_its_length_however_rows_are_grouped():
    torch.manual_seed(0)
    reader = Reader(preset("default"))
    tokens = torch.randn(2, 17, reader.model.config.decoder.width)
    draw = np.random.default_rng(0)
    rows = []
    for picture, prompt_length, reply_length in ((0, 3, 1), (1, 5, 4), (0, 9, 25), (1, 4, 2)):
        prompt = [1, MARKER, *draw.integers(10, 200, prompt_length).tolist()]
        rows.append(asked_row(picture, prompt, draw.integers(10, 200, reply_length).tolist(), 16))
    with torch.no_grad():
        singles = torch.stack([reader.asked(tokens, 1, [_group([row], MARKER)])[0] for row in rows])
        together = reader.asked(tokens, 1, [_group(rows, MARKER)])[0]
        apart = reader.asked(tokens, 1, question_groups(rows, MARKER))[0]
    roots = torch.tensor([1, 4, 25, 2]).sqrt()
    expected = (singles * roots).sum() / roots.sum()
    assert all(row[2].count(IGNORED) == len(row[1]) - length for row, length in zip(rows, (1, 4, 25, 2), strict=True))
    assert singles.max() - singles.min() > 0.01
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(apart, expected, rtol=1e-5, atol=1e-5)
    lengths = roots.square()
    for wrong in (lengths, torch.ones(4)):
        assert abs((singles * wrong).sum() / wrong.sum() - expected) > 1e-3
