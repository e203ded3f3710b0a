"""The last stage of the reader's training: its decoder alone, on pictures as they are shown when it answers."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from vlm.batch import DecoderPrompt, build_batch
from vlm.config import preset
from vlm.images.cache import ImageEntry
from vlm.images.source import ImageSource
from vlm.training.reader import shown
from vlm.training.reader.diet import Diet
from vlm.training.reader.folder import without_positions
from vlm.training.reader.model import Reader
from vlm.training.reader.run import Run
from vlm.training.reader.shown import ShownBatch, ShownData
from vlm.training.reader.stages import STAGES
from vlm.training.reader.targets import IGNORED
from vlm.training.reader.vocabulary import reader_tokenizer

TOKENIZER = reader_tokenizer()
STAGE = replace(STAGES[-1], num_batches=4, diet=Diet(num_images=2, share_pages=0.0, num_questions=3))


@pytest.fixture(autouse=True)
def no_denormals():
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def batch(index: int = 0) -> ShownBatch:
    return ShownData(preset("default").vision, TOKENIZER, STAGE.diet, num_batches=4, seed=5)[index]


def test_a_batch_is_a_function_of_its_index_and_has_pictures_of_several_sizes():
    once, again = batch(), batch()
    for picture, same in zip(once.pictures, again.pictures, strict=True):
        assert torch.equal(picture.view.levels, same.view.levels)
        assert [group.ids.tolist() for group in picture.groups] == [group.ids.tolist() for group in same.groups]
    canvases = {picture.view.canvas for index in range(4) for picture in batch(index).pictures}
    assert len(canvases) > 1


def test_its_loss_is_that_of_the_answers_as_they_are_written_to_a_user():
    torch.manual_seed(0)
    reader = Reader(preset("default")).eval()
    images, device = ImageSource(reader.model), torch.device("cpu")
    total = weights = 0.0
    for picture in batch().pictures:
        view = images._encode_view(picture.view, (300, 300))
        seen = images.keys_values(ImageEntry(view))
        for group in picture.groups:
            for ids, labels in zip(group.ids.tolist(), group.labels, strict=True):
                asked = build_batch([DecoderPrompt(ids, seen)], TOKENIZER.image_marker_id, device)
                logits = reader.model(asked.ids, asked.image, asked.mask(0, len(ids)))[0]
                predicting = labels != IGNORED
                weight = float(predicting.sum()) ** -0.5
                total += weight * float(functional.cross_entropy(logits, labels, reduction="sum").detach())
                weights += weight * int(predicting.sum())
    losses = reader(batch())
    assert float(losses.answer.detach()) == pytest.approx(total / weights, rel=1e-4)
    assert not any(map(float, losses[1:]))


def test_a_step_moves_the_decoder_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "LONGEST_SIDES", (224, 300))
    run = Run(tmp_path, (STAGE,), 0)
    before = {name: weight.clone() for name, weight in without_positions(run.reader).items()}
    run._step(run.reader, STAGE, [batch()])
    moved = {name for name, weight in without_positions(run.reader).items() if not torch.equal(weight, before[name])}
    decoder = {name for name, _ in run.reader.named_parameters() if name.startswith("model.decoder.")}
    assert moved <= decoder
    # A gate that is shut, and what lies behind it, may have no gradient.
    assert len(moved) > len(decoder) / 2
