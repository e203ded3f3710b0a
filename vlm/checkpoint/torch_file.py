"""PyTorch's .pth files, read with `weights_only=True` and nothing else.

The file is mapped while a group of tensors is copied out and let go after it, so that its pages do not add up to a
second model in memory.
"""

import pickle
import pickletools
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.files import find_file, invalid
from vlm.checkpoint.stored import StoredTensor

_MIN_GROUP_BYTES = 32 << 20
_MAX_PICKLE_BYTES = 2 << 20
# All that the dictionary of a plain model names.
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TENSORS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_TENSORS |= {f"torch {kind}Storage" for kind in _KINDS}
# What a hostile or broken archive makes torch.load and zipfile raise.
_BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(eq=False)
class TorchTensor(StoredTensor):
    """One entry of the dictionary in a .pth file."""

    archive: "_Archive"
    name: str

    def copy_to(self, out: Tensor) -> None:
        out.copy_(self.archive.mapped(self.name))


def open_torch(folder: Path, name: str, opened: ExitStack) -> dict[str, StoredTensor]:
    """Return the tensors of the file `name`; they can be read as long as `opened`."""
    archive = _Archive(find_file(folder, name), name)
    opened.callback(archive.let_go)
    return {
        key: TorchTensor(tuple(tensor.shape), tensor.dtype, _place(name, tensor), archive, key)
        for key, tensor in archive.map().items()
    }


class _Archive:
    """A checked .pth file, mapped now and then."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._stamp = self._look()
        self._group_bytes = max(_MIN_GROUP_BYTES, self._stamp[1] // 32)
        self._mapped: dict[str, Tensor] = {}
        self._copied = 0
        _check_archive(path, name)

    def map(self) -> dict[str, Tensor]:
        """Return every tensor, mapped; until it is used it costs no memory."""
        if self._look() != self._stamp:
            raise invalid(f"{self.name} changed while it was read; load it again")
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except _BROKEN as error:
            raise invalid(f"{self.name} cannot be read ({_first_line(error)}); download it again") from None
        if not isinstance(state, dict) or not state:
            raise invalid(f"{self.name} holds a {type(state).__name__}; expected a dictionary of tensors")
        for key, tensor in state.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise invalid(f"{self.name} holds a {type(tensor).__name__} named {key!r:.60}; expected tensors only")
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
                raise invalid(
                    f"{self.name} holds {key:.80} as a sparse, quantised or empty tensor; expected plain ones"
                )
        self._mapped = {key: tensor.detach() for key, tensor in state.items()}
        return self._mapped

    def mapped(self, key: str) -> Tensor:
        """Return one tensor for a copy to be made of; pages of earlier ones are let go from time to time."""
        if not self._mapped or self._copied > self._group_bytes:
            self.let_go()
            self.map()
        tensor = self._mapped[key]
        self._copied += tensor.nbytes
        return tensor

    def let_go(self) -> None:
        self._mapped, self._copied = {}, 0

    def _look(self) -> tuple:
        seen = self.path.stat()
        return seen.st_ino, seen.st_size, seen.st_mtime_ns


def _check_archive(path: Path, name: str) -> None:
    """Refuse what is no plain archive of torch.save, and any pickle that asks for more than tensors."""
    num_bytes = path.stat().st_size
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start != b"PK\x03\x04":
            raise invalid(f"{name} ({num_bytes:,} bytes) is no archive of torch.save; save or download it again")
        with zipfile.ZipFile(path) as archive:
            pickled = _data_pickle(archive, name)
        refused = _refused_names(pickled)
    except _BROKEN as error:
        raise invalid(
            f"{name} ({num_bytes:,} bytes) is no whole archive of torch.save ({_first_line(error)}); download it again"
        ) from None
    if refused:
        raise invalid(f"{name} wants to use {', '.join(refused)!s:.150}; refused: only tensors are loaded")


def _data_pickle(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the one pickle of an archive that is as torch.save writes it."""
    entries = archive.infolist()
    if not entries or entries[0].header_offset != 0:
        raise invalid(f"{name} holds more than one archive; expected one as torch.save writes it")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise invalid(f"{name} is compressed or encrypted; expected an archive as torch.save writes it")
    names = {entry.filename for entry in entries}
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if len(names) != len(entries) or len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
        raise invalid(f"{name} holds {len(pickles)} pickles or entries twice; expected one small data.pkl")
    return archive.read(pickles[0])


def _refused_names(pickled: bytes) -> list[str]:
    """Return what a pickle names beside tensors, without running any of it. torch.load looks again."""
    refused, texts = set(), ["", ""]
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            refused |= {argument} - _TENSORS
        elif opcode.name == "STACK_GLOBAL":
            refused.add(" ".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return sorted(text.replace(" ", ".") for text in refused)


def _first_line(error: BaseException) -> str:
    """The first line of an error without the file's path, short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0] if len(lines[0]) < 90 else lines[0][:89] + "…"
    return type(error).__name__ if "/" in text or "0x" in text else text


def _place(name: str, tensor: Tensor) -> tuple:
    return name, tensor.data_ptr(), tensor.stride()
