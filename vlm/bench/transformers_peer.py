"""transformers on the same random weights: written as a Hugging Face folder and read by it. SDPA, its default.

Import only where transformers is installed.
"""

import tempfile
from pathlib import Path

import torch
from transformers import DynamicCache

from vlm import checkpoint
from vlm.bench.measure import Call
from vlm.bench.operations import random_pixels
from vlm.model import VisionLanguageModel
from vlm.verify.transformers_oracle import OracleModel, load

CPU = torch.device("cpu")


def peer_of(model: VisionLanguageModel, device: torch.device = CPU) -> OracleModel:
    """Return transformers' model with the weights of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_model(model, Path(folder) / "model", format="hf")
        has_vision = model.config.vision is not None
        return load(Path(folder) / "model", has_vision=has_vision, dtype=torch.bfloat16, device=device)


def decode_step(peer: OracleModel, context: int) -> Call:
    """Return a function that decodes one token after `context` others."""
    cache = DynamicCache(config=peer.config.get_text_config())
    ids = torch.ones(1, 1, dtype=torch.long, device=peer.device)
    peer(input_ids=ids.expand(-1, context), past_key_values=cache, logits_to_keep=1)

    def call() -> torch.Tensor:
        logits = peer(input_ids=ids, past_key_values=cache).logits
        # Not `cache.crop`, which in transformers 5.17 fails at layers that hold nothing: those that look at pictures.
        for layer in cache.layers:
            if layer.is_initialized:
                layer.crop(-1)
        return logits.argmax(-1)

    return call


def prefill(peer: OracleModel, num_tokens: int) -> Call:
    """Return a function that reads a text prompt into a fresh cache and gives the logits of its last token."""
    ids = torch.arange(num_tokens)[None]
    return lambda: peer(input_ids=ids, use_cache=True, logits_to_keep=1).logits


def encode(peer: OracleModel, model: VisionLanguageModel, canvas: tuple[int, int]) -> Call:
    """Return a function that encodes a picture of rows · cols tiles, padded to all tiles as transformers does."""
    inputs = _picture(model, canvas)
    return lambda: peer.model.vision_model(**inputs)


def answer_loop(peer: OracleModel, model: VisionLanguageModel, prompts: list[list[int]], new_tokens: int) -> Call:
    """Return a function that answers prompts about one picture of one tile, one after the other."""
    picture = _picture(model, (1, 1))

    def call() -> None:
        for ids in prompts:
            length = len(ids)
            tiles = torch.zeros(1, length, 1, model.config.vision.max_tiles, dtype=torch.long)
            tiles[..., 0] = 1
            peer.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, length, dtype=torch.long),
                cross_attention_mask=tiles, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
                pad_token_id=0, **picture,
            )  # fmt: skip

    return call


def _picture(model: VisionLanguageModel, canvas: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return random pixels as transformers' processor packs a picture."""
    vision, used = model.config.vision, canvas[0] * canvas[1]
    pixels = torch.zeros(1, 1, vision.max_tiles, 3, vision.tile_size, vision.tile_size, dtype=torch.bfloat16)
    pixels[0, 0, :used] = random_pixels(model.config, canvas)[0]
    mask = torch.zeros(1, 1, vision.max_tiles, dtype=torch.long)
    mask[..., :used] = 1
    ids = torch.tensor([[1 + vision.canvases.index(canvas)]])
    return {"pixel_values": pixels, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask}
