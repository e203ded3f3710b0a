"""Tokens that a model gains: nothing else changes, and they are there after saving."""

import pytest
import torch
from tokenizers import Tokenizer as TheirTokenizer
from transformers import GenerationConfig, MllamaConfig

from tests.conftest import random_model
from tests.training_rows import draw_pictures, write_jsonl
from vlm import VLM, Tokenizer, VLMError, preset
from vlm.training.config import TrainConfig
from vlm.training.loop import Training
from vlm.training.rows import IGNORED
from vlm.training.settings import build
from vlm.training.vocabulary import add_tokens

NAMES = ("<box>", "</box>")


@pytest.fixture
def tiny() -> VLM:
    return VLM(random_model(preset("tiny")), Tokenizer.bytes_only())


def question(folder) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": folder / "a.png"}, {"type": "text", "text": "?"}]}]


def test_what_the_model_said_of_old_tokens_it_says_still(tiny, tmp_path):
    draw_pictures(tmp_path, {"a.png": 77})
    before, old_ids = tiny.logits(question(tmp_path)), tiny.prompt_ids(question(tmp_path))
    grown = add_tokens(tiny, NAMES)
    after, ids = grown.logits(question(tmp_path)), grown.prompt_ids(question(tmp_path))
    assert grown.tokenizer.image_marker_id == 514
    assert ids == [514 if token_id == 512 else token_id for token_id in old_ids]
    assert after.shape[1] == before.shape[1] + 2
    assert torch.allclose(after[:, :512], before, atol=1e-5)
    # Both new rows are the mean of the others.
    assert torch.allclose(after[:, 512], before.mean(1), atol=1e-5)
    assert torch.equal(after[:, 512], after[:, 513])


def test_new_tokens_survive_training_and_saving(tmp_path):
    VLM(random_model(preset("tiny")), Tokenizer.bytes_only()).save_pretrained(tmp_path / "model")
    draw_pictures(tmp_path, {"a.png": 77})
    talk = [*question(tmp_path), {"role": "assistant", "content": "<box>yes</box>"}]
    talk[0]["content"][0]["image"] = "a.png"
    values = {
        "out": str(tmp_path / "run"),
        "model": {"source": str(tmp_path / "model"), "added_tokens": list(NAMES)},
        "data": [{"path": str(write_jsonl(tmp_path / "talk.jsonl", [{"messages": talk}]))}],
        "steps": 2,
        "batch_size": 1,
    }
    training = Training(build(TrainConfig, values))
    (row,) = training.data[0].examples[0].rows
    assert 514 in row.ids
    assert [target for target in row.targets if target != IGNORED] == [512, *b"yes", 513, 265]
    assert row.targets[row.ids.index(514) - 1] == IGNORED
    report = training.train()
    saved = VLM.from_pretrained(report.result, device="cpu")
    assert saved.tokenizer.text_ids == {"<box>": 512, "</box>": 513}
    assert saved.tokenizer.image_marker_id == 514
    assert saved.tokenizer.decode([512, ord("a"), 513]) == "<box>a</box>"
    assert saved.tokenizer.encode("<box>a") == [512, ord("a")]
    assert saved.model.config.decoder.vocab_size == 514
    assert torch.equal(saved.logits(question(tmp_path)), training.vlm.logits(question(tmp_path)))
    settings = MllamaConfig.from_pretrained(report.result)
    assert settings.image_token_index == settings.text_config.vocab_size == 514
    # The special tokens stay where they were, before the new ones.
    for ids in (settings.text_config, GenerationConfig.from_pretrained(report.result)):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (256, [257, 264, 265], 260)
    theirs = TheirTokenizer.from_file(str(report.result / "tokenizer.json"))
    assert [theirs.token_to_id(name) for name in (*NAMES, "<|image|>")] == [512, 513, 514]
    # Once more, on top of them.
    assert add_tokens(saved, ("<more>",)).tokenizer.text_ids["<more>"] == 514


@pytest.mark.parametrize("names", [("<|eot_id|>",), ("<|new|>",), ("<a>", "<a>"), ("",)])
def test_names_that_are_taken_are_refused(tiny, names):
    with pytest.raises(VLMError, match="is empty, there already, or spelt"):
        add_tokens(tiny, names)


def test_an_adapter_cannot_train_new_rows(tmp_path):
    values = {"out": str(tmp_path), "data": [{"path": "a.jsonl"}], "trained": {"lora": {}}}
    with pytest.raises(VLMError, match="need rows that are trained"):
        build(TrainConfig, values | {"model": {"preset": "tiny", "added_tokens": ["<box>"]}})
