"""Rotary positions with Llama 3.1's scaling. Pairs are (i, i + e/2), as in Hugging Face checkpoints.

Source: llama-models models/llama3/model.py, precompute_freqs_cis and apply_scaling.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.config import DecoderConfig


class Rotation(NamedTuple):
    """The angles of some positions, in float32."""

    cos: Tensor
    """[b, 1, s, e]"""
    sin: Tensor


def frequencies(config: DecoderConfig, device: torch.device) -> Tensor:
    """Return the radians per position of each pair, [e / 2] float32."""
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    wavelength = 2 * math.pi / plain
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    # 0 where the wavelength is long and slowed whole, 1 where it is short and kept.
    kept = ((scaling.original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def rotation(config: DecoderConfig, positions: Tensor) -> Rotation:
    """Return the rotation of `positions` [b, s] int64."""
    angles = positions[:, None, :, None].float() * frequencies(config, positions.device)
    angles = torch.cat([angles, angles], dim=-1)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn queries or keys x [b, heads, s, e], computed in float32 and returned in the dtype of x."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * by.cos + torch.cat([-second, first], dim=-1) * by.sin).to(x.dtype)
