"""Attention where it is soonest done: in C, or by torch in the dtype that suits the processor."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision_encoder.native import attend_many, lacks_amx

# Queries from which turning keys and values into float32 is sooner won back than it takes.
_MIN_FOR_FLOAT32 = 384
# Queries from which a plan of cuDNN's is worth being made, and its kernel first among torch's.
_MIN_FOR_CUDNN = 1024


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return [b, h, s, e] for queries [b, h, s, e] over keys and values [b, g, l, e].

    One of three may be given. `bias` [l] or [b, l] float32 is added to the logits of each key. `mask` is bool,
    broadcastable to [b, h, s, l], True where a key may be seen. `causal`, which needs s <= l: the queries are the last
    of the positions, and each sees the keys up to its own.

    Raises: ValueError where two are given, or more queries than keys with `causal`.
    """
    positions, length = q.shape[2], k.shape[2]
    if (bias is not None) + (mask is not None) + causal > 1 or (causal and positions > length):
        raise ValueError(f"give one of bias, mask and causal, the last with at least {positions} keys, not {length}")
    if bias is not None and bias.ndim == 2 and len(bias) == 1:
        bias = bias[0]
    if mask is None and (out := attend_many(q, k, v, bias, causal=causal)) is not None:
        return out
    if causal and positions < length:
        mask, causal = _of_the_last(positions, length, q.device), False
    if bias is not None and q.device.type == "cuda":
        return attend_with_bias_as_columns(q, k, v, bias)
    dtype = attention_dtype(q)
    if bias is not None:
        mask = bias.expand(len(k), -1)[:, None, None].to(torch.promote_types(q.dtype, torch.float32))
    with _quickest_first(q, k) if mask is None and not causal else nullcontext():
        out = functional.scaled_dot_product_attention(
            q.to(dtype),
            k.to(dtype),
            v.to(dtype),
            attn_mask=mask,
            is_causal=causal,
            enable_gqa=bool(k.shape[1] != q.shape[1]),
        )
    return out.to(q.dtype)


def _of_the_last(positions: int, length: int, device: torch.device) -> Tensor:
    """Return the causal mask [s, l] of the last positions; torch would take them for the first."""
    places = torch.arange(length, device=device)
    return places <= places[-positions:, None]


def _quickest_first(q: Tensor, k: Tensor) -> AbstractContextManager:
    """Return where torch tries cuDNN's kernel first: on a GPU the quickest for a picture's many rows.

    It makes a plan for each shape, and pictures of a model have few.
    """
    fits = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] >= _MIN_FOR_CUDNN
    if not fits or k.shape[1] != q.shape[1]:
        return nullcontext()
    # What a caller has switched off stays off.
    backends = torch.backends.cuda
    kinds = {
        SDPBackend.CUDNN_ATTENTION: backends.cudnn_sdp_enabled(),
        SDPBackend.FLASH_ATTENTION: backends.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: backends.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: backends.math_sdp_enabled(),
    }
    return sdpa_kernel([kind for kind, is_on in kinds.items() if is_on], set_priority=True)


def attend_with_bias_as_columns(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return what `attend` returns with `bias` [l] or [b, l] by kernels that take none, as a GPU's flash attention.

    Two more columns of the product add it: the queries' are 1, the keys' its high and its low part.
    """
    width = q.shape[-1]
    padded = -(-(width + 2) // 8) * 8  # flash kernels take heads in steps of 8
    wanted = bias.float() * width**0.5
    high = wanted.to(k.dtype)
    columns = functional.pad(torch.stack([high, (wanted - high.float()).to(k.dtype)], -1), (0, padded - width - 2))
    columns = columns.expand(len(k), -1, -1)[:, None]
    ones = functional.pad(q.new_ones(2), (0, padded - width - 2))
    with _quickest_first(q, k):
        out = functional.scaled_dot_product_attention(
            torch.cat([q, ones.expand(*q.shape[:-1], -1)], -1),
            torch.cat([k, columns.expand(*k.shape[:-1], -1)], -1),
            functional.pad(v, (0, padded - width)),
            scale=width**-0.5,
            enable_gqa=bool(k.shape[1] != q.shape[1]),
        )
    return out[..., :width]


def attention_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype in which torch attends soonest, and no less exactly, with queries [b, h, s, e].

    On a processor of the x86 kind without AMX torch's bfloat16 kernel turns every block into float32 anyway, and rounds
    the weights of the values to bfloat16: it takes 1.2 to 1.4 times as long as the float32 one. Results must be turned
    back by the caller. Not where gradients are wanted, for which float32 copies would be kept.
    """
    fits = (
        q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] >= _MIN_FOR_FLOAT32 and not q.requires_grad
    )
    return torch.float32 if fits and lacks_amx() and not torch.is_autocast_enabled("cpu") else q.dtype
