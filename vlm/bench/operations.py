"""What is measured: functions of no argument, ours and our peer's, on one model of random weights."""

import torch
from PIL.Image import Image
from torch import Tensor

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask
from vlm.bench.measure import Call
from vlm.config import DecoderConfig, ModelConfig
from vlm.generation.sampling import GenerationConfig
from vlm.kv_cache import SCALE_DTYPE, empty_cache
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM


def decode_step(
    model: VisionLanguageModel,
    context: int,
    image_tokens: int = 0,
    cache_dtype: torch.dtype = torch.bfloat16,
    num_rows: int = 1,
) -> Call:
    """Return a function that decodes one token in each row after `context` others, with a picture each of
    `image_tokens` if any."""
    decoder, config, device = model.decoder, model.config.decoder, device_of(model)
    # The same place is written again and again, so that each step takes the same.
    cache = empty_cache(config, num_rows, context + 1, dtype=cache_dtype, device=device)
    # Zeros that were never written are one page of memory, however many they are.
    for part in cache.parts:
        part.fill_(1)
    cache = cache._replace(lengths=cache.lengths + context, max_length=context)
    image, mask = _pictures(model, image_tokens, num_rows)
    ids = torch.ones(num_rows, 1, dtype=torch.int64, device=device)
    return lambda: decoder.logits(decoder(ids, cache, image, mask).hidden).argmax(-1)


def device_of(model: VisionLanguageModel) -> torch.device:
    """Return where the model computes."""
    return model.decoder.embedding.weight.device


def cache_bytes(config: DecoderConfig, context: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Return the bytes of keys and values that a token after `context` others reads, its own counted."""
    scale_bytes = SCALE_DTYPE.itemsize if dtype == torch.int8 else 0
    vector_bytes = config.head_dim * dtype.itemsize + scale_bytes
    return 2 * config.num_layers * config.num_kv_heads * vector_bytes * (context + 1)


def prefill(model: VisionLanguageModel, num_tokens: int, image_tokens: int = 0, num_rows: int = 1) -> Call:
    """Return a function that reads a prompt in each row into a fresh cache and gives the logits of its last token."""
    ids = torch.arange(num_tokens, device=device_of(model)).expand(num_rows, -1) % model.config.decoder.vocab_size
    decoder = model.decoder
    image, mask = _pictures(model, image_tokens, num_rows)
    settings = {"dtype": torch.bfloat16, "device": ids.device}

    def call() -> Tensor:
        cache = empty_cache(model.config.decoder, num_rows, num_tokens, **settings)
        return decoder.logits(decoder(ids, cache, image, mask).hidden[:, -1])

    return call


def _pictures(
    model: VisionLanguageModel, image_tokens: int, num_rows: int
) -> tuple[ImageKV, CrossMask] | tuple[None, None]:
    """Return the keys and values of a picture a row, all of which may be seen; (None, None) without tokens."""
    if not image_tokens:
        return None, None
    tokens = torch.randn(num_rows, image_tokens, model.config.decoder.width).to(device_of(model), torch.bfloat16)
    return model.decoder.image_kv(tokens), CrossMask(None, None)


def encode(model: VisionLanguageModel, canvas: tuple[int, int]) -> Call:
    """Return a function that encodes a picture of rows · cols tiles."""
    pixels = random_pixels(model.config, canvas).to(device_of(model))
    return lambda: model.encoder(pixels, [canvas])


def random_pixels(config: ModelConfig, canvas: tuple[int, int]) -> Tensor:
    """Return the pixels [1, t, c, height, width] of a picture that fills its tiles."""
    side = config.vision.tile_size
    return torch.randn(1, canvas[0] * canvas[1], 3, side, side)


def encode_operations(config: ModelConfig, num_tiles: int) -> int:
    """Return the floating-point operations that encoding `num_tiles` takes at least: the rows that are computed."""
    vision = config.vision
    missing = min(vision.max_tiles - num_tiles, 1)
    rows = (num_tiles + missing) * (vision.tokens_per_tile + 1)
    matrices = 2 * rows * vision.width * (4 * vision.width + 2 * vision.mlp_dim)
    attention = 4 * rows**2 * vision.width
    return (vision.num_local_layers + vision.num_global_layers) * (matrices + attention)


def prefill_operations(model: VisionLanguageModel, num_tokens: int) -> int:
    """Return the floating-point operations of the text layers' matrices over `num_tokens`."""
    config = model.config.decoder
    kv_width = config.num_kv_heads * config.head_dim
    layer = 2 * config.width * (config.width + kv_width) + 3 * config.width * config.mlp_dim
    return 2 * num_tokens * layer * config.num_layers


def answer_many(vlm: VLM, picture: Image, questions: list[str], new_tokens: int) -> Call:
    """Return a function that answers questions about one picture, which nothing has seen before."""
    config = GenerationConfig(max_new_tokens=new_tokens)

    def call() -> None:
        vlm.images.forget()
        vlm.answer_many([(picture, question) for question in questions], config=config)

    return call
