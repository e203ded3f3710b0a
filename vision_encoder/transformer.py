"""The layers of the vision transformer, over a sequence in which one row can stand for many equal ones.

Meta's encoder pads every tile to a multiple of 8 tokens, encodes missing tiles too, and masks padding from padding
only: real rows see everything, padding rows see real rows. Two exact savings replace its mask:

- One attention of the real rows over all keys and one of the padding rows over the real keys need no mask.
- Padding rows that enter equal stay equal, since they never see each other. One row stands for `k` of them when
  ln k is added to the logits of its key.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vision_encoder.attention import attend


class RowLayout(NamedTuple):
    """What the rows of a sequence stand for."""

    num_real: int
    """Rows of real tokens; they come first."""
    log_counts: Tensor | None
    """[rows] float32: ln of how many equal rows each stands for; None where each is but one. Where real rows stand for
    several too, as blank patches may, it differs from picture to picture, [m, rows]."""

    @property
    def log_counts_of_real(self) -> Tensor | None:
        """Those of real rows alone, [m, num_real]; None where each is but one."""
        thinned = self.log_counts is not None and self.log_counts.ndim == 2
        return self.log_counts[:, : self.num_real] if thinned else None


class VisionAttention(nn.Module):
    """Self-attention of all heads at full width, without bias."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, layout: RowLayout) -> Tensor:
        """Map x [m, rows, v] to the same shape."""
        # unflatten and transpose rather than einops: this is the innermost loop, and both are views.
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        real = layout.num_real
        seen_by_real = attend(q[:, :, :real], k, v, bias=layout.log_counts)
        seen_by_padding = attend(q[:, :, real:], k[:, :, :real], v[:, :, :real], bias=layout.log_counts_of_real)
        seen = torch.cat([seen_by_real, seen_by_padding], dim=2)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class VisionLayer(nn.Module):
    """Pre-norm attention and feed-forward; a global layer gates both by a tanh."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, norm_eps: float, *, gated: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attention = VisionAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)
        self.gated = gated
        if gated:
            self.attention_gate = nn.Parameter(torch.full((1,), torch.pi / 4))
            self.mlp_gate = nn.Parameter(torch.full((1,), torch.pi / 4))

    def forward(self, x: Tensor, layout: RowLayout) -> Tensor:
        """Map x [m, rows, v] to the same shape."""
        attended = self.attention(self.attention_norm(x), layout)
        x = x + (self.attention_gate.tanh() * attended if self.gated else attended)
        transformed = self.fc2(functional.gelu(self.fc1(self.mlp_norm(x))))
        return x + (self.mlp_gate.tanh() * transformed if self.gated else transformed)
