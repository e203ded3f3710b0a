"""Checkpoint to checkpoint without a model in between: no more than one tensor is in memory at a time."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.hf_writing import write_hf
from vlm.checkpoint.loading import readable
from vlm.checkpoint.opened import OpenCheckpoint
from vlm.checkpoint.saving import check_folder
from vlm.quantization import GROUP_SIZES, QuantizedWeight, Scheme
from vlm.tokenizer import Tokenizer


def convert_to_hf(
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype | str = "auto",
    quantize: str | None = None,
    group_size: int = GROUP_SIZES[0],
    max_shard_bytes: float = 5e9,
    write_more: Callable[[Path], None] | None = None,
    progress: Callable[[int], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> torch.dtype:
    """Write the checkpoint folder `source` into `target` in Hugging Face's layout, whole or not at all.

    See `load_model` for `dtype`, `quantize` and `group_size`, and `save_model` for the rest. `progress` is called with
    how many weights were read since it was called last.

    Returns the dtype of what is not quantised.
    """
    source, target = Path(source).absolute(), Path(target).absolute()
    check_folder(target, "hf")
    with readable(source), ExitStack() as opened:
        checkpoint = OpenCheckpoint(source, None, opened)
        schemes = checkpoint.schemes(quantize, group_size)
        weights = _StreamedWeights(checkpoint, schemes, checkpoint.dtype(dtype), progress or (lambda _: None))
        write_hf(weights, target, max_shard_bytes, write_more, tokenizer)
        return weights.dtype


class _StreamedWeights:
    """The weights of an open checkpoint, each read when it is asked for."""

    def __init__(
        self,
        checkpoint: OpenCheckpoint,
        schemes: Mapping[str, Scheme],
        dtype: torch.dtype,
        progress: Callable[[int], None],
    ):
        self.config, self.schemes, self.dtype = checkpoint.config, schemes, dtype
        self._checkpoint, self._progress = checkpoint, progress
        self.shapes = checkpoint.shapes

    def dtype_of(self, name: str) -> torch.dtype:
        return self.dtype

    def read(self, name: str) -> Tensor:
        tensor = self._checkpoint.read(name, self.dtype)
        self._progress(tensor.numel())
        return tensor

    def read_quantized(self, layer: str) -> QuantizedWeight:
        weight = self._checkpoint.read_quantized(layer, self.schemes[layer], self.dtype)
        rows, cols = self.size(layer)
        self._progress(rows * cols)
        return weight

    def size(self, layer: str) -> tuple[int, int]:
        return tuple(self.shapes[f"{layer}.weight"].shape)
