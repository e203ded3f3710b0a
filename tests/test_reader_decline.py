"""When a reader declines: as often as is tolerable, by one row of its head that changes little else."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from adapters.masks import CrossMask
from tests.conftest import random_model
from vision_encoder.preprocess import normalise
from vlm.config import preset
from vlm.pipeline import VLM
from vlm.training.reader import decline
from vlm.training.reader.data import ReaderData
from vlm.training.reader.decline import FirstWords, declining_token, first_words, fitted, shares_declined
from vlm.training.reader.targets import IGNORED
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.synthetic.questions import DECLINED

TOKENIZER = reader_tokenizer()
SMALL = replace(decline.DIET, num_images=2, num_questions=2)


def draw(num_questions: int, *, eager: float, seed: int = 0, width: int = 64) -> tuple[Tensor, FirstWords]:
    """Return a row that declines the more the more `eager` it is, and states that it tells apart, if not all."""
    generator = torch.Generator().manual_seed(seed)
    common, telling = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(99)))[0].T
    declined = torch.rand(num_questions, generator=generator) < 0.45
    hidden = 8 * common + 0.5 * torch.randn(num_questions, width, generator=generator)
    hidden += 2 * torch.where(declined, 1.0, -1.0)[:, None] * telling
    rival = 6 + torch.randn(num_questions, generator=generator)
    return (eager + 6) / 8 * common + telling, FirstWords(hidden, rival, declined)


def margins(row: Tensor, words: FirstWords) -> Tensor:
    return words.hidden.double() @ row.double() - words.rival.double()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([each.argsort().argsort().double() for each in (one, other)]))[0, 1])


@pytest.mark.parametrize("eager", [-3.0, 0.0, 4.0])
@pytest.mark.parametrize("num_questions", [400, 4000])
def test_as_many_answerable_questions_as_is_tolerable_are_declined(eager, num_questions, monkeypatch):
    row, words = draw(num_questions, eager=eager)
    answerable = int((~words.declined).sum())
    for share in (decline.MAX_DECLINED, 0.2):
        monkeypatch.setattr(decline, "MAX_DECLINED", share)
        assert abs(shares_declined(fitted(row, words), words)[0] - share) <= 1.5 / answerable


@pytest.mark.parametrize("eager", [-3.0, 4.0])
def test_which_of_two_questions_is_sooner_declined_stays(eager):
    row, words = draw(2000, eager=eager)
    after = fitted(row, words)
    assert not torch.allclose(margins(after, words), margins(row, words), atol=0.3)
    assert rank_correlation(margins(row, words), margins(after, words)) > 0.95
    # And of questions that it was not fitted on.
    unseen = draw(2000, eager=eager, seed=1)[1]
    assert rank_correlation(margins(row, unseen), margins(after, unseen)) > 0.95


def test_what_is_common_is_not_made_of_the_noise_of_a_few_questions():
    row, few = draw(70, eager=-3.0)
    after, unseen = fitted(row, few), draw(2000, eager=-3.0, seed=1)[1]
    assert rank_correlation(margins(row, unseen), margins(after, unseen)) > 0.95


def test_a_row_that_declined_too_little_declines_more_of_what_cannot_be_answered():
    row, words = draw(2000, eager=-3.0)
    before, after = shares_declined(row, words), shares_declined(fitted(row, words), words)
    assert before[0] < decline.MAX_DECLINED
    assert after[1] > before[1] + 0.1
    assert after[1] > 10 * after[0]


def test_the_row_and_the_words_are_left_as_they_were():
    row, words = draw(200, eager=1.0)
    before = [part.clone() for part in (row, *words)]
    fitted(row, words)
    assert all(torch.equal(*pair) for pair in zip((row, *words), before, strict=True))


@pytest.fixture(scope="module")
def untrained():
    return VLM(random_model(preset("default")), TOKENIZER)


@torch.no_grad()
def test_first_words_are_those_of_each_question_asked_alone(untrained, monkeypatch):
    monkeypatch.setattr(decline, "DIET", SMALL)
    token, model = declining_token(TOKENIZER), untrained.model
    words = first_words(untrained, 2, seed=2)
    data = ReaderData(preset("default").vision, TOKENIZER, SMALL, num_batches=2, seed=2)
    rows, canvases = [], []
    for batch in (data[0], data[1]):
        tokens = model.encode(normalise(batch.pixels), [batch.canvas] * len(batch.pixels))[1]
        canvases.append(batch.canvas)
        for group in batch.groups:
            for ids, labels, picture in zip(group.ids, group.labels, group.image_index, strict=True):
                first = int((labels != IGNORED).nonzero()[0])
                image = model.decoder.image_kv(tokens[picture][None].flatten(1, 2))
                seeing = torch.arange(first + 1) >= group.first_seeing
                logits = model(ids[None, : first + 1], image, CrossMask(None, seeing[None, :, None]))[0, -1]
                rows.append((logits, TOKENIZER.decode(labels[labels != IGNORED].tolist()[:-1])))
    assert len({*canvases}) == 2
    assert len(words.hidden) == len(words.rival) == len(rows) > 2
    assert words.declined.tolist() == [reply == DECLINED for _, reply in rows]
    assert 0 < words.declined.sum() < len(rows)
    for index, (logits, _) in enumerate(rows):
        torch.testing.assert_close(model.decoder.logits(words.hidden[index]), logits, rtol=1e-4, atol=1e-4)
        others = torch.cat([logits[:token], logits[token + 1 :]])
        torch.testing.assert_close(words.rival[index], others.max(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_token_that_declines_is_never_its_own_rival(untrained, monkeypatch):
    monkeypatch.setattr(decline, "DIET", replace(SMALL, share_sheets=0.0))
    words = first_words(untrained, 1, seed=4)
    row = untrained.model.decoder.head.weight[declining_token(TOKENIZER)]
    before = row.clone()
    row.copy_(9 * words.hidden.mean(0))
    try:
        assert (words.hidden @ row > words.rival).all()
        assert torch.equal(first_words(untrained, 1, seed=4).rival, words.rival)
    finally:
        row.copy_(before)


def test_the_command_fits_one_row_of_the_head_and_leaves_the_rest(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(decline, "DIET", replace(SMALL, share_sheets=0.0))
    untrained.save_pretrained(tmp_path / "model")
    options = {"--model": tmp_path / "model", "--out": tmp_path / "fitted", "--batches": 2, "--seed": 3}
    said = CliRunner().invoke(decline.main, [str(part) for option in options.items() for part in option])
    assert said.exit_code == 0, said.output
    assert "before" in said.output
    assert "after" in said.output
    old, new = (VLM.from_pretrained(tmp_path / name).model.state_dict() for name in ("model", "fitted"))
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["decoder.head.weight"]
    changed = (old["decoder.head.weight"] != new["decoder.head.weight"]).any(1).nonzero()[:, 0].tolist()
    assert changed == [declining_token(TOKENIZER)]
