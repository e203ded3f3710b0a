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
STAGE, ENLARGED = (
    replace(
        next(stage for stage in STAGES if stage.name == name),
        num_batches=4,
        diet=Diet(num_images=2, share_pages=0.0, num_questions=3),
    )
    for name in ("as it answers", "enlarged")
)
"""One for the decoder alone, and one in which all is trained; each ends with a mean."""


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


def _weights(run: Run) -> torch.Tensor:
    """Return some that stages for the decoder train, and some that they hold."""
    model = run.reader.model
    norms = model.decoder.norm, model.encoder.global_layers[0].mlp_norm
    return torch.cat([norm.weight.data.float() for norm in norms])


@pytest.mark.parametrize(
    ("stage", "taken"),
    [(STAGE, [0, 2, 4]), (replace(STAGE, mean_of=(0.0, 1.0, 1.0)), [0, 4, 4]), (ENLARGED, [0, 4])],
    ids=["decoder", "twice the end", "all"],
)
def test_a_stage_ends_with_the_mean_of_its_weights_after_the_shares_it_names(tmp_path, monkeypatch, stage, taken):
    monkeypatch.setattr(shown, "LONGEST_SIDES", (224, 300))
    # At a rate at which each step is larger than what sums are rounded by.
    run = Run(tmp_path, (replace(stage, rates=(1.0, 1.0)),), 0)
    stood, step = [_weights(run)], run._step

    def stepping(*given):
        told = step(*given)
        stood.append(_weights(run))
        return told

    monkeypatch.setattr(run, "_step", stepping)
    run.train()
    assert len(stood) == 1 + stage.num_batches
    num_trained = len(stood[0]) if stage is ENLARGED else run.reader.model.decoder.norm.weight.numel()
    assert float((stood[2] - stood[4])[:num_trained].abs().mean()) > 2e-5
    mean = torch.stack([stood[batch] for batch in taken]).mean(0)
    torch.testing.assert_close(_weights(run)[:num_trained], mean[:num_trained], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [STAGE, ENLARGED], ids=["decoder", "all"])
def test_a_run_that_is_taken_up_again_has_the_same_mean(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(shown, "LONGEST_SIDES", (224, 300))
    stage = replace(stage, rates=(1.0, 1.0))
    whole, begun = (Run(tmp_path / name, (stage,), 0) for name in ("whole", "begun"))
    whole.train()
    agree = begun._agree
    monkeypatch.setattr(begun, "_agree", lambda: agree() or begun.batch_index == 3)
    with pytest.raises(SystemExit):
        begun.train()
    again = Run(tmp_path / "begun", (stage,), 0)
    assert again.batch_index == 3
    again.train()
    for one, other in zip(again.reader.model.parameters(), whole.reader.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
