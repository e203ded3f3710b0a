"""GGUF files: their settings, and their tensors, expanded from the blocks of numbers that they are stored in.

The `gguf` library expands the blocks. The head of a file is read here: the library's reader takes minutes over a
vocabulary of 128,000 tokens, keeps the whole file mapped, and believes every size that it finds.
Source: ggml docs/gguf.md.
"""

import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vlm.checkpoint.files import invalid, open_file
from vlm.checkpoint.stored import QuantizedTensor, StoredTensor
from vlm.packages import needed
from vlm.quantization.weight import CHUNK

_VERSIONS = (2, 3)
# Kinds of settings: numbers and truth by their letter in `struct`, texts, and lists of either.
_LETTERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9
# Far above a vocabulary of 128,000 tokens with its merges.
_MAX_HEAD_BYTES = 64 << 20
_ALIGNMENT = "general.alignment"
# Kinds of tensors that are no blocks.
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(eq=False)
class GgufTensor(StoredTensor):
    """Floats of an open file."""

    file: BinaryIO
    offset: int
    kind: str
    """How they are stored, by the library's name."""
    row_bytes: int

    def copy_to(self, out: Tensor) -> None:
        from gguf import GGMLQuantizationType, dequantize

        num_rows = max(1, CHUNK * len(out) // out.numel())
        for start in range(0, len(out), num_rows):
            part = out[start : start + num_rows]
            stored = np.empty((len(part), self.row_bytes), np.uint8)
            self.file.seek(self.offset + start * self.row_bytes)
            if self.file.readinto(stored) != stored.nbytes:
                raise invalid(f"{self.place[0]} ended early while it was read; do not change it")
            if self.kind in _PLAIN:
                values = torch.from_numpy(stored).view(_PLAIN[self.kind])
            else:
                values = torch.from_numpy(dequantize(stored, GGMLQuantizationType[self.kind]))
            part.copy_(values.view(part.shape))


class GgufBlocks(GgufTensor, QuantizedTensor):
    """Blocks of an open file, expanded to float32."""


def open_gguf(folder: Path, name: str, opened: ExitStack) -> tuple[dict, dict[str, StoredTensor]]:
    """Return the settings and the tensors of the file `name`, which stays open as long as `opened`.

    Raises VLMError for what is no whole file, and where the library is not installed.
    """
    gguf = needed("gguf", name)
    file = opened.enter_context(open_file(folder, name))
    num_bytes = os.fstat(file.fileno()).st_size
    head = _Head(file.read(min(num_bytes, _MAX_HEAD_BYTES)))
    try:
        if head.take(4) != b"GGUF" or head.number("I") not in _VERSIONS:
            raise invalid(f"{name} is no GGUF file of version 2 or 3; download it again")
        num_tensors, num_settings = head.number("Q"), head.number("Q")
        settings = {head.text(): head.value(head.number("I")) for _ in range(num_settings)}
        entries = [(head.text(), head.shape(), head.number("I"), head.number("Q")) for _ in range(num_tensors)]
        alignment = max(1, int(settings.get(_ALIGNMENT, 32)))
    except (struct.error, TypeError, ValueError, LookupError, OverflowError):
        raise invalid(f"the head of {name} ({num_bytes:,} bytes) ends early or is damaged; download it again") from None
    start, tensors = -(-head.place // alignment) * alignment, {}
    for key, shape, kind, offset in entries:
        if kind not in {known.value for known in gguf.GGMLQuantizationType}:
            raise invalid(f"{name} stores {key:.80} as kind {kind}, which is not known; upgrade the gguf library")
        kind = gguf.GGMLQuantizationType(kind)
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        row_bytes = torch.Size(shape[1:]).numel() * block_bytes // per_block
        if shape[-1] % per_block or start + offset + shape[0] * row_bytes > num_bytes or key in tensors:
            raise invalid(f"{name} ends before {key:.80} does, or stores it twice; download it again")
        cls = GgufTensor if kind.name in _PLAIN else GgufBlocks
        dtype = _PLAIN.get(kind.name, torch.float32)
        tensors[key] = cls(shape, dtype, (name, offset), file, start + offset, kind.name, row_bytes)
    return settings, tensors


class _Head:
    """The head of a file, read from front to back."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def take(self, count: int) -> bytes:
        first, self.place = self.place, self.place + count
        if self.place > len(self.content):
            raise ValueError
        return self.content[first : self.place]

    def number(self, letter: str) -> int | float | bool:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(letter)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> object:
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            return self.number(_LETTERS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind == _TEXT:
            return [self.text() for _ in range(count)]
        letter = _LETTERS[kind]
        return list(struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(letter))))

    def shape(self) -> tuple[int, ...]:
        """Return a tensor's sizes, which stand in the file from the last to the first."""
        sizes = [self.number("Q") for _ in range(self.number("I"))]
        if not 0 < len(sizes) <= 4 or not all(sizes) or max(sizes) > 1 << 40:
            raise ValueError
        return tuple(reversed(sizes))
