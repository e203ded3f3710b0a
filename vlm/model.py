"""The whole model: encoder, projector and decoder put together. No text and no pictures here, only tensors."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask
from adapters.projector import VisionProjector
from vision_encoder.encoder import VisionEncoder
from vision_encoder.thinning import Kept
from vlm.config import ModelConfig
from vlm.decoder import TextDecoder
from vlm.kv_cache import CAPACITY_STEP, KVCache, empty_cache


class VisionLanguageModel(nn.Module):
    """A model of the Llama 3.2 Vision kind; without `config.vision` the text-only family."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.kv_cache_dtype: torch.dtype | None = None
        """Of new caches; None is the weights' own."""
        self.release: Callable[[Iterable[Tensor]], None] | None = None
        """Lets the memory of weights go that can be read from their file again; None where all stay in memory."""
        self.encoder = VisionEncoder(config.vision) if config.vision else None
        self.projector = VisionProjector(config.vision.feature_dim, config.decoder.width) if config.vision else None
        self.decoder = TextDecoder(config.decoder, config.adapter)

    def forward(
        self,
        ids: Tensor,
        image: ImageKV | None = None,
        mask: CrossMask | None = None,
        num_new: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the logits [b, s, n] of every position of ids [b, s]; see `TextDecoder.forward`."""
        return self.decoder.logits(self.decoder(ids, cache, image, mask, num_new).hidden)

    def empty_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return a cache for the decoder with room for `capacity` positions in each of `batch_size` rows."""
        weight = self.decoder.embedding.weight
        if weight.device.type == "cuda":
            # So that the memory of one reply serves the next, and with it what was recorded there.
            capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        dtype = self.kv_cache_dtype or weight.dtype
        return empty_cache(self.config.decoder, batch_size, capacity, dtype=dtype, device=weight.device)

    def encode(
        self, pixels: Tensor, canvases: list[tuple[int, int]] | Tensor, kept: Kept | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features [m, t, p, f] and image tokens [m, t, p, d]; see `VisionEncoder.forward`."""
        features = self.encoder(pixels, canvases, kept)
        return features, self.projector(features)
