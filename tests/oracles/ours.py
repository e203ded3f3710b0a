"""Our own model, answering what the oracles answer. It goes in through a Hugging Face folder, as a user's would."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MllamaConfig

from tests.oracles.cases import Case, Picture
from vlm.batch import Batch, DecoderPrompt, PromptImage, build_batch
from vlm.checkpoint import load_model, read_config
from vlm.model import VisionLanguageModel

State = dict[str, Tensor]


def build(config: MllamaConfig, state: State, *, reference: str = "meta", dtype=torch.float32) -> VisionLanguageModel:
    """Write `state` as a Hugging Face folder and load it."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / "model.safetensors")
        return load_model(Path(folder), config=read_config(Path(folder)).with_reference(reference), dtype=dtype)


def build_stock(config: MllamaConfig, state: State) -> VisionLanguageModel:
    """The same for `reference="transformers"`."""
    return build(config, state, reference="transformers")


def _all_tiles(model: VisionLanguageModel, images: Sequence[Picture]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return pixels [m, max_tiles, c, x, x], zero where a tile is missing, and the canvases."""
    size = images[0].pixels.shape[1:]
    pixels = torch.zeros(len(images), model.config.vision.max_tiles, *size)
    for place, picture in enumerate(images):
        pixels[place, : len(picture.pixels)] = picture.pixels
    return pixels, [picture.grid for picture in images]


@torch.inference_mode()
def features(model: VisionLanguageModel, images: Sequence[Picture]) -> Tensor:
    """[m, t, p, f]"""
    return model.encode(*_all_tiles(model, images))[0]


@torch.inference_mode()
def image_tokens(model: VisionLanguageModel, images: Sequence[Picture]) -> Tensor:
    """[m, t, p, d]"""
    return model.encode(*_all_tiles(model, images))[1]


@torch.inference_mode()
def prompt(model: VisionLanguageModel, case: Case) -> DecoderPrompt:
    """Return `case` as the decoder takes it: real tiles alone, and the missing ones too where those leak."""
    images = []
    for picture in case.images:
        pixels, canvas = picture.pixels[None], [picture.grid]
        if model.config.reference == "transformers":
            pixels, canvas = _all_tiles(model, [picture])
        tokens = model.encode(pixels, canvas)[1]
        num_visible = len(picture.pixels) * tokens.shape[2]
        images.append(PromptImage(model.decoder.image_kv(tokens.flatten(1, 2)), num_visible))
    return DecoderPrompt(case.ids, images)


def batch(model: VisionLanguageModel, cases: Sequence[Case]) -> Batch:
    marker = model.config.decoder.vocab_size
    return build_batch([prompt(model, case) for case in cases], marker, torch.device("cpu"))


@torch.inference_mode()
def layer_outputs(model: VisionLanguageModel, case: Case) -> list[Tensor]:
    """[1, s, d] of each layer that ran."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in model.decoder.layers
    ]
    logits(model, case)
    for hook in hooks:
        hook.remove()
    return outputs


@torch.inference_mode()
def logits(model: VisionLanguageModel, case: Case) -> Tensor:
    """[1, s, n]"""
    return logits_many(model, [case])[0][None]


@torch.inference_mode()
def logits_many(model: VisionLanguageModel, cases: Sequence[Case]) -> list[Tensor]:
    """[s, n] of each case, computed as one batch."""
    together = batch(model, cases)
    found = model(together.ids, together.image, together.mask(0, together.ids.shape[1]))
    return [found[row, :length] for row, length in enumerate(together.lengths)]
