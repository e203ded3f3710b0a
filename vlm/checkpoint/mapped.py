"""Weights that stay in their file: its pages are in memory while a layer looks at them, and are let go after it."""

import mmap
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vlm.checkpoint.stored import MappedTensor
from vlm.model import VisionLanguageModel

_PAGE = mmap.PAGESIZE
# Windows has none: there the system takes pages when it needs them.
_LET_GO = getattr(mmap, "MADV_DONTNEED", None)
# What Linux says of a page. Source: Linux Documentation/admin-guide/mm/pagemap.rst.
_PAGES, _ENTRY_BYTES = "/proc/self/pagemap", 8
_IS_OF_FILE, _IS_SWAPPED, _IS_PRESENT = 1 << 61, 1 << 62, -1 << 63


class MappedWeights:
    """The weights of one model that are mapped, and how to let their pages go.

    Pages that were written into stay, for what was written is in memory alone.
    """

    def __init__(self, model: VisionLanguageModel, mapped: Mapping[str, MappedTensor]):
        """Take `mapped`, by the names of weights that `model` has now."""
        weights = dict(model.named_parameters())
        self._places = {weights[name].data_ptr(): found for name, found in mapped.items()}
        if model.encoder is not None:
            for part in (*model.encoder.local_layers, *model.encoder.global_layers, model.encoder, model.projector):
                part.register_forward_hook(self._after)

    def __reduce__(self) -> tuple:
        # The weights of a copy, or of the model in another process, are in memory.
        return _nothing_mapped, ()

    def release(self, weights: Iterable[Tensor]) -> None:
        """Let the pages of those of `weights` go that are mapped; they are read again when they are wanted."""
        for weight in weights:
            found = self._places.get(weight.data_ptr())
            if found is None or _LET_GO is None:
                continue
            # Whole pages alone: a neighbour stands in the first and in the last one, and may have been written into.
            start, end = -(-found.offset // _PAGE) * _PAGE, (found.offset + weight.nbytes) // _PAGE * _PAGE
            if start < end and not _is_written(weight.data_ptr() + start - found.offset, (end - start) // _PAGE):
                found.memory.madvise(_LET_GO, start, end - start)

    def _after(self, part: nn.Module, *_) -> None:
        self.release(part.parameters())


def _nothing_mapped() -> MappedWeights:
    empty = object.__new__(MappedWeights)
    empty._places = {}
    return empty


def _is_written(address: int, num_pages: int) -> bool:
    """Return whether one of the pages at `address` is no longer the file's; True where that cannot be told."""
    try:
        with open(_PAGES, "rb") as file:
            file.seek(address // _PAGE * _ENTRY_BYTES)
            found = bytearray(file.read(num_pages * _ENTRY_BYTES))
    except OSError:
        return True
    if len(found) < num_pages * _ENTRY_BYTES:
        return True
    pages = torch.frombuffer(found, dtype=torch.int64)
    written = (pages & _IS_PRESENT != 0) & (pages & _IS_OF_FILE == 0)
    return bool((written | (pages & _IS_SWAPPED != 0)).any())
