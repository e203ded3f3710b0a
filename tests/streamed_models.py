"""Tiny models of which layers are streamed, and what is asked of them."""

from dataclasses import replace

import torch

from tests.conftest import random_model
from tests.conversations import FOUR_TILES, MIXED, user
from vlm import VLM, GenerationConfig, Tokenizer, preset
from vlm.checkpoint.layer_stream import LayerStream
from vlm.checkpoint.offload import Offload, stream
from vlm.decoder import SelfAttentionLayer
from vlm.model import VisionLanguageModel

ENCODER = [f"encoder.{kind}.{i}" for kind, count in (("local_layers", 3), ("global_layers", 2)) for i in range(count)]
SHORT = GenerationConfig(max_new_tokens=6)
QUESTION = user(FOUR_TILES, "what?")


def model_of_six() -> VisionLanguageModel:
    """A tiny model with six decoder layers that can be streamed, and five in its encoder."""
    config = preset("tiny")
    return random_model(replace(config, decoder=replace(config.decoder, num_layers=6)))


def streamed(model: VisionLanguageModel, device: str = "cpu") -> VLM:
    """Stream the whole encoder of `model` and its last five self-attention layers."""
    decoder = [f"decoder.layers.{i}" for i, layer in enumerate(model.decoder.layers) if is_plain(layer)][1:]
    stream(model, Offload(ENCODER, decoder), torch.device(device))
    return VLM(model, Tokenizer.bytes_only())


def is_plain(layer: torch.nn.Module) -> bool:
    return isinstance(layer, SelfAttentionLayer)


def streams(model: VisionLanguageModel) -> tuple[LayerStream, LayerStream]:
    """Return the stream of the encoder and that of the decoder."""
    return tuple(layer.forward.func.__self__ for layer in (model.encoder.local_layers[0], model.decoder.layers[-1]))


def assert_equal(found: VLM, expected: VLM) -> None:
    """Logits are the same bit for bit, and tokens with pictures and without."""
    for messages in MIXED:
        assert torch.equal(found.logits(messages), expected.logits(messages))
    replies = [each.chat_many(MIXED, config=SHORT) for each in (found, expected)]
    assert [reply.token_ids for reply in replies[0]] == [reply.token_ids for reply in replies[1]]
