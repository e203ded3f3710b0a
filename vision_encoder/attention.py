"""The dtype in which torch's attention is best done on the processor that is there."""

import torch
from torch import Tensor

# Queries from which turning keys and values into float32 is sooner won back than it takes.
_MIN_QUERIES = 384


def attention_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype in which torch attends soonest, and no less exactly, with queries [b, h, s, e].

    On a processor of the x86 kind without AMX torch's bfloat16 kernel turns every block into float32 anyway, and rounds
    the weights of the values to bfloat16: it takes 1.2 to 1.4 times as long as the float32 one. Results must be turned
    back by the caller. Not where gradients are wanted, for which float32 copies would be kept.
    """
    fits = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] >= _MIN_QUERIES and not q.requires_grad
    return torch.float32 if fits and _lacks_amx() and not torch.is_autocast_enabled("cpu") else q.dtype


def _lacks_amx() -> bool:
    """Return whether this is a processor of the x86 kind without AMX."""
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") == "x86_64" and not capabilities.get("amx_bf16")
