"""Weights that stay in their file: its pages are in memory while a layer looks at them, and are let go after it."""

import mmap
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from vlm.checkpoint.stored import MappedTensor
from vlm.model import VisionLanguageModel

_PAGE = mmap.PAGESIZE


class MappedWeights:
    """The weights of one model that are mapped, and how to let their pages go.

    A weight that was written into stays, for what was written is in memory alone.
    """

    def __init__(self, model: VisionLanguageModel, mapped: Mapping[str, MappedTensor]):
        """Take `mapped`, by the names of weights that `model` has now."""
        weights = dict(model.named_parameters())
        self._places = {weights[name].data_ptr(): (found, weights[name]._version) for name, found in mapped.items()}
        if model.encoder is not None:
            for part in (*model.encoder.local_layers, *model.encoder.global_layers, model.encoder, model.projector):
                part.register_forward_hook(self._after)

    def release(self, weights: Iterable[Tensor]) -> None:
        """Let the pages of those of `weights` go that are mapped; they are read again when they are wanted."""
        for weight in weights:
            found, version = self._places.get(weight.data_ptr(), (None, 0))
            if found is None or weight._version != version:
                continue
            # Whole pages alone: a neighbour stands in the first and in the last one, and may have been written into.
            start, end = -(-found.offset // _PAGE) * _PAGE, (found.offset + weight.nbytes) // _PAGE * _PAGE
            if start < end:
                found.memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _after(self, part: nn.Module, *_) -> None:
        self.release(part.parameters())
