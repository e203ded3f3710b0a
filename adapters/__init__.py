"""What lets a text decoder look at features: the projector and the gated cross-attention. Imports nothing of ours."""

from adapters import lora
from adapters.config import AdapterConfig
from adapters.cross_attention import GatedCrossAttentionLayer, ImageKV
from adapters.masks import CrossMask, cross_mask, seen_images
from adapters.projector import VisionProjector

__all__ = [
    "AdapterConfig",
    "CrossMask",
    "GatedCrossAttentionLayer",
    "ImageKV",
    "VisionProjector",
    "cross_mask",
    "lora",
    "seen_images",
]
