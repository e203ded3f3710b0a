"""Safetensors files, read and written tensor by tensor. What is loaded no longer needs the file; what is mapped does.

Source: safetensors README, "Format". Stricter than the library: keys given twice are refused too.
"""

import functools
import json
import mmap
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from vlm.checkpoint.files import MAX_JSON_BYTES, invalid, open_file, parse_json
from vlm.checkpoint.stored import MappedTensor, StoredTensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Python 3.11 has no name for it.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class _Pages:
    """A file mapped once for all its tensors, when the first is wanted so: each mapping keeps the file open."""

    def __init__(self, file: BinaryIO):
        self._file = file

    @functools.cached_property
    def memory(self) -> mmap.mmap | None:
        """What is written into it is not written into the file; it lives as long as a tensor looks at it. None where
        the system maps no such file."""
        try:
            if sys.platform != "linux":
                return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            # Else Linux refuses a file that is larger than memory, for all of it could be written into.
            flags = mmap.MAP_PRIVATE | _NO_RESERVE
            return mmap.mmap(self._file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            return None


@dataclass(eq=False)
class SafetensorsTensor(StoredTensor):
    """A run of bytes of an open file."""

    file: BinaryIO
    offset: int
    name: str
    pages: _Pages

    def copy_to(self, out: Tensor) -> None:
        if out.device.type != "cpu" or out.dtype != self.dtype or not out.is_contiguous():
            out.copy_(self.load())
            return
        self.file.seek(self.offset)
        rest = as_bytes(out)
        while rest:
            count = self.file.readinto(rest)
            if not count:
                raise invalid(f"{self.name} ended {len(rest):,} bytes early while it was read; do not change it")
            rest = rest[count:]

    def map(self) -> MappedTensor | None:
        if self.offset % self.dtype.itemsize or not self.num_bytes or self.pages.memory is None:
            return None
        count = self.num_bytes // self.dtype.itemsize
        values = torch.frombuffer(self.pages.memory, dtype=self.dtype, count=count, offset=self.offset)
        return MappedTensor(values.view(self.shape), self.pages.memory, self.offset)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def open_safetensors(folder: Path, name: str, opened: ExitStack) -> dict[str, StoredTensor]:
    """Return the tensors of the file `name`, which stays open as long as `opened`."""
    file = opened.enter_context(open_file(folder, name))
    num_bytes = os.fstat(file.fileno()).st_size
    length = file.read(8)
    num_header = int.from_bytes(length, "little")
    if len(length) < 8 or num_header > num_bytes - 8:
        needed = 8 + num_header if len(length) == 8 else 8
        raise invalid(f"{name} has {num_bytes:,} bytes; its header alone needs {needed:,}; download it again")
    if num_header > MAX_JSON_BYTES:
        raise invalid(f"{name} has a header of {num_header:,} bytes; expected at most {MAX_JSON_BYTES:,}")
    header = parse_json(file.read(num_header), f"the header of {name}")
    header.pop("__metadata__", None)
    start, end, tensors, pages = 8 + num_header, 0, {}, _Pages(file)
    for key, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        tensor = _tensor(key, entry, file, start, name, pages)
        if tensor.offset != start + end:
            raise invalid(f"{name} has a gap or an overlap before {key:.80}; save or download it again")
        end += tensor.num_bytes
        tensors[key] = tensor
    if start + end != num_bytes:
        raise invalid(f"{name} has {num_bytes:,} bytes; its header speaks of {start + end:,}; download it again")
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, Tensor | StoredTensor]) -> None:
    """Write `tensors` in their order, one after the other; a stored one is in memory only while it is written."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + (tensor.num_bytes if isinstance(tensor, StoredTensor) else tensor.nbytes)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            values = tensor.load() if isinstance(tensor, StoredTensor) else tensor
            file.write(as_bytes(values.detach().cpu().contiguous()))


def _offsets(entry: object) -> list[int]:
    """Return where a tensor begins and ends, for an order in which an empty one stands before the one beside it."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets if _sizes(offsets) else []


def _tensor(key: str, entry: object, file: BinaryIO, start: int, name: str, pages: _Pages) -> SafetensorsTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise invalid(f"{name} describes {key:.80} in a way that is no safetensors header; download it again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise invalid(f"{name} stores {key:.80} as {dtype!r:.40}; expected one of {', '.join(DTYPES)}")
    if not _sizes(shape) or len(shape) > 8 or not _sizes(offsets) or len(offsets) != 2:
        raise invalid(f"{name} gives {key:.80} a shape or a place that is no list of sizes; download it again")
    num_bytes = DTYPES[dtype].itemsize
    for size in shape:
        num_bytes *= size
    if offsets[1] - offsets[0] != num_bytes or num_bytes > 1 << 60:
        raise invalid(f"{name} gives {key:.80} the bytes {offsets!s:.60}; its shape {shape!s:.60} needs {num_bytes:,}")
    return SafetensorsTensor(tuple(shape), DTYPES[dtype], (name, offsets[0]), file, start + offsets[0], name, pages)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)
