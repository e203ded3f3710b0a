"""The gated layer through which text looks at images.

Source: llama-models models/llama3/multimodal/model.py, CrossAttentionTransformerBlock.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.masks import CrossMask


class ImageKV(NamedTuple):
    """Keys and values of image tokens, computed once an image and shared by every question about it."""

    keys: Tensor
    """[layers, b, g, l, e]; of one layer [b, g, l, e]."""
    values: Tensor

    def layer(self, index: int) -> "ImageKV":
        return ImageKV(self.keys[index], self.values[index])


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return [b, h, s, e] for queries [b, h, s, e] and keys and values [b, g, l, e] that `mask` lets be seen."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def plain_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return torch's linear layer without a bias."""
    return nn.Linear(in_features, out_features, bias=False)


class LayerParts(NamedTuple):
    """What a layer is built of; a decoder that has quicker ones passes its own."""

    linear: Callable[[int, int], nn.Linear] = plain_linear
    norm: Callable[..., nn.RMSNorm] = nn.RMSNorm
    attend: Callable[..., Tensor] = attend


PLAIN = LayerParts()


class CrossAttention(nn.Module):
    """Grouped-query attention of text to image tokens: queries and keys normalised per head, no rotary positions."""

    def __init__(
        self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, norm_eps: float, parts: LayerParts
    ):
        super().__init__()
        self.head_dim, self.attend = head_dim, parts.attend
        self.q_proj = parts.linear(width, num_heads * head_dim)
        self.k_proj = parts.linear(width, num_kv_heads * head_dim)
        self.v_proj = parts.linear(width, num_kv_heads * head_dim)
        self.o_proj = parts.linear(num_heads * head_dim, width)
        self.q_norm = parts.norm(head_dim, eps=norm_eps)
        self.k_norm = parts.norm(head_dim, eps=norm_eps)

    def project(self, tokens: Tensor) -> ImageKV:
        """Return keys and values [b, g, l, e] of image tokens [b, l, d]."""
        return ImageKV(self.k_norm(self._heads(self.k_proj(tokens))), self._heads(self.v_proj(tokens)))

    def queries(self, x: Tensor) -> Tensor:
        """Return the normalised queries [b, h, s, e] of text x [b, s, d]."""
        return self.q_norm(self._heads(self.q_proj(x)))

    def forward(self, x: Tensor, image: ImageKV, mask: CrossMask) -> Tensor:
        """Map text x [b, s, d] to what it takes from the images, the same shape."""
        attended = self.attend(self.queries(x), image.keys, image.values, mask=mask.keys)
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """Split [b, s, heads * e] into [b, heads, s, e]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GatedCrossAttentionLayer(nn.Module):
    """Attention to images and a feed-forward, each behind a tanh gate that starts shut."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        norm_eps: float,
        feed_forward: nn.Module,
        *,
        leak_attention: bool = False,
        parts: LayerParts = PLAIN,
    ):
        super().__init__()
        self.attention_norm = parts.norm(width, eps=norm_eps)
        self.attention = CrossAttention(width, num_heads, num_kv_heads, head_dim, norm_eps, parts)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = parts.norm(width, eps=norm_eps)
        self.mlp = feed_forward
        self.mlp_gate = nn.Parameter(torch.zeros(1))
        self.leak_attention = leak_attention

    def forward(self, x: Tensor, image: ImageKV, mask: CrossMask) -> Tensor:
        """Map text x [b, s, d] to the same shape; rows that see no image come back as they were."""
        attended = self.attention(self.attention_norm(x), image, mask)
        x = x + self.attention_gate.tanh() * (attended if self.leak_attention else _only(attended, mask.rows))
        transformed = self.mlp(self.mlp_norm(x))
        return x + self.mlp_gate.tanh() * _only(transformed, mask.rows)


def _only(x: Tensor, rows: Tensor | None) -> Tensor:
    """Zero the rows of x [b, s, d] that are False in `rows` [b, s or 1, 1]."""
    return x if rows is None else x.masked_fill(~rows, 0)
