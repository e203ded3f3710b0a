"""Small models and drafts beside them, and what two replies must have alike."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import random_model
from vlm import VLM, GenerationConfig, ModelConfig, Tokenizer, preset
from vlm.generation.reply import Reply
from vlm.model import VisionLanguageModel

LONG = GenerationConfig(max_new_tokens=24)


def text_twin(model: VisionLanguageModel, **changes) -> VisionLanguageModel:
    """Return the model without what looks at pictures: right about every token of a text."""
    config = replace(model.config.decoder, num_extra_embeddings=0, **changes)
    twin = random_model(ModelConfig(decoder=config)).to(model.decoder.embedding.weight.dtype)
    own = [layer for layer in model.decoder.layers if not hasattr(layer, "attention_gate")]
    for layer, source in zip(twin.decoder.layers, own, strict=True):
        layer.load_state_dict(source.state_dict())
    twin.decoder.norm.load_state_dict(model.decoder.norm.state_dict())
    twin.decoder.head.load_state_dict(model.decoder.head.state_dict())
    with torch.no_grad():
        twin.decoder.embedding.weight.copy_(model.decoder.embedding.weight[: config.vocab_size])
    return twin


def writing_bytes(model: VisionLanguageModel, draft: VLM | None = None) -> VLM:
    """Return a pipeline whose model writes bytes alone, so that every reply has as many tokens as it may."""
    vlm = VLM(model, Tokenizer.bytes_only(), draft=draft)
    given = vlm.model.decoder.logits
    vlm.model.decoder.logits = lambda hidden: given(hidden) - 1e4 * (torch.arange(512) >= 256)
    return vlm


def text_model(seed: int = 1, **changes) -> VLM:
    """Return a random text-only model with the tests' vocabulary."""
    config = replace(preset("tiny").decoder, num_extra_embeddings=0, num_layers=1, **changes)
    return VLM(random_model(ModelConfig(decoder=config), seed), Tokenizer.bytes_only())


def same(found: Reply, expected: Reply) -> None:
    assert (found.token_ids, found.text, found.finish_reason) == (
        expected.token_ids,
        expected.text,
        expected.finish_reason,
    )
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)
