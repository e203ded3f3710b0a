"""Each objective learns a tiny problem whose optimum is known, and counts what it should."""

import copy
import math

import numpy as np
import pytest
import torch

from tests.conftest import random_model
from tests.training_rows import draw_pictures
from vision_encoder.preprocess import ImageProcessor
from vlm import Tokenizer, VisionLanguageModel, VLMError, preset
from vlm.prompt import Image, Text, Turn, encode_prompt
from vlm.training.data.batches import Example
from vlm.training.data.samples import Conversation, Document, Preference
from vlm.training.objectives import DirectPreference, NextToken, SupervisedReplies
from vlm.training.rows import IGNORED
from vlm.training.setup import initialise
from vlm.training.trained import train_parts

TOKENIZER = Tokenizer.bytes_only()
NUM_IDS = 512
ENTROPY = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
"""Of a coin that falls three times in four on one side."""


@pytest.fixture
def model() -> VisionLanguageModel:
    torch.manual_seed(0)
    model = VisionLanguageModel(preset("tiny"))
    initialise(model)
    return model


def no_image(image):
    raise AssertionError("no image was expected")


def examples(objective, samples, open_image=no_image) -> list[Example]:
    return [Example(str(place), (0, place), objective.rows(sample, open_image)) for place, sample in enumerate(samples)]


def learn(model, objective, batch: list[Example], *, steps: int, lr: float = 4e-2) -> float:
    """Take steps on all of `batch` and return the mean loss it ends at."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss = objective.loss(model, batch) / objective.weight(batch)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(objective.loss(model, batch) / objective.weight(batch))


def said(role: str, text: str) -> Turn:
    return Turn(role, (Text(text),))


def test_supervised_replies_end_at_the_entropy_of_the_answers(model):
    """Three of four say a: the end of turn is certain, so the mean over two tokens ends at half the entropy."""
    objective = SupervisedReplies(TOKENIZER, NUM_IDS)
    samples = [Conversation(turns=(said("user", "q"), said("assistant", reply))) for reply in "aaab"]
    loss = learn(model, objective, examples(objective, samples), steps=50)
    assert loss == pytest.approx(ENTROPY / 2, abs=3e-3)
    ids = torch.tensor([encode_prompt(TOKENIZER, [said("user", "q")]).ids])
    shares = model(ids)[0, -1].softmax(-1)
    assert [float(shares[ord(letter)]) for letter in "ab"] == pytest.approx([0.75, 0.25], abs=0.02)


def test_next_tokens_end_at_the_entropy_of_the_text(model):
    """The second letter is b or c; the first and the end are certain."""
    objective = NextToken(TOKENIZER, NUM_IDS, max_length=64)
    batch = examples(objective, [Document(parts=(Text(text),)) for text in ("ab", "ac")])
    assert learn(model, objective, batch, steps=50) == pytest.approx(math.log(2) / 3, abs=3e-3)


def test_encoder_and_adapter_learn_captions_under_a_decoder_that_stays_as_it_was(tmp_path):
    """Blind, the decoder can know that a caption is dd or ww; seeing, it knows which."""
    model = random_model(preset("tiny"))
    objective, captions = NextToken(TOKENIZER, NUM_IDS, max_length=64), ("dd", "ww")
    learn(
        model, objective, examples(objective, [Document(parts=(Text(each),)) for each in captions]), steps=40, lr=2e-2
    )
    draw_pictures(tmp_path, {"dd.png": 0, "ww.png": 255, "grey.png": 128})
    processor = ImageProcessor(model.config.vision)

    def pictured(names) -> list[Example]:
        pairs = zip(names, captions, strict=True)
        samples = [Document(parts=(Image(tmp_path / f"{name}.png"), Text(text))) for name, text in pairs]
        return examples(objective, samples, processor)

    train_parts(model, ("encoder", "projector", "cross_attention"))
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    assert {"decoder.embedding.weight", "decoder.head.weight", "decoder.layers.0.mlp.up_proj.weight"} <= set(frozen)
    blind = math.log(2) / 3
    assert learn(model, objective, pictured(captions), steps=40, lr=1e-2) < blind / 2
    after = dict(model.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in frozen.items())
    with torch.no_grad():
        grey = pictured(["grey", "grey"])
        assert objective.loss(model, grey) / objective.weight(grey) > blind - 0.01


@pytest.mark.parametrize("with_reference", [True, False])
def test_preferences_end_where_their_odds_are_those_of_the_data(model, with_reference):
    """Three of four prefer a: at the optimum β times the margin gained is ln 3, and the loss the entropy."""
    objective = DirectPreference(TOKENIZER, NUM_IDS, beta=0.5)
    samples = [
        Preference(turns=(said("user", "q"),), chosen=chosen, rejected=rejected)
        for chosen, rejected in [("a", "bb")] * 3 + [("bb", "a")]
    ]
    batch = examples(objective, samples)
    start = objective.margins(model, batch).detach()
    if with_reference:
        objective.reference = {example.place: float(value) for example, value in zip(batch, start, strict=True)}
        assert float(objective.loss(model, batch)) / 4 == pytest.approx(math.log(2), abs=1e-5)
    assert learn(model, objective, batch, steps=80, lr=3e-3) == pytest.approx(ENTROPY, abs=2e-3)
    gained = objective.margins(model, batch)[0].item() - (start[0].item() if with_reference else 0.0)
    assert 0.5 * gained == pytest.approx(math.log(3), abs=0.1)


# What counts


def test_only_replies_and_their_ends_are_learned():
    objective = SupervisedReplies(TOKENIZER, NUM_IDS)
    picture = np.zeros((28, 28, 3), dtype=np.uint8)
    turns = (
        said("system", "be brief"),
        Turn("user", (Image(picture), Text("what <|eot_id|> is it?"))),
        said("assistant", "a dog"),
        said("user", "sure?"),
        Turn("assistant", (Text("yes "), Image(picture), Text("see"))),
    )
    (row,) = objective.rows(Conversation(turns=turns), ImageProcessor(preset("tiny").vision))
    assert row.ids == encode_prompt(TOKENIZER, turns, add_generation_prompt=False).ids
    learned = [target for target in row.targets if target != IGNORED]
    assert TOKENIZER.decode(learned) == "a dog<|eot_id|>yes see<|eot_id|>"
    assert all(target in (IGNORED, following) for target, following in zip(row.targets, row.ids[1:], strict=False))
    assert len(row.images) == 2


def test_every_token_of_a_long_text_is_learned_once():
    objective = NextToken(TOKENIZER, NUM_IDS, max_length=10)
    text = "the quick brown fox jumps over"
    rows = objective.rows(Document(parts=(Text(text),)), no_image)
    learned = [target for row in rows for target in row.targets if target != IGNORED]
    assert TOKENIZER.decode(learned) == text + "<|end_of_text|>"
    assert max(len(row.ids) for row in rows) == 10


def test_an_objective_refuses_samples_of_another_kind():
    with pytest.raises(VLMError, match="is a document; this objective learns from conversations"):
        SupervisedReplies(TOKENIZER, NUM_IDS).rows(Document(parts=(Text("a"),)), no_image)


def test_unknown_parts_are_named_with_the_nearest(model):
    model = copy.deepcopy(model)
    train_parts(model, ("decoder.layers.1.mlp.*", "head"))
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "decoder.head.weight",
        *(f"decoder.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
    with pytest.raises(VLMError, match="did you mean 'encoder'"):
        train_parts(model, ("enccoder",))
