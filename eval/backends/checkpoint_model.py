"""This project's model by name: how it is opened, and what identifies it."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.digests import digest

if TYPE_CHECKING:
    from vlm.pipeline import VLM

_WEIGHTS = ("*.safetensors", "*.pth", "*.gguf")
_SETTINGS = ("*.json", "tokenizer.model", "original/tokenizer.model")
_ADAPTER = ("*.safetensors", "*.pt", "*.json")


@dataclass(frozen=True, kw_only=True)
class CheckpointModel:
    """A checkpoint and how it is loaded. It is sent to the process that opens it."""

    source: str | None = None
    """A folder or a Hub name; None is the model that ships."""
    device: str = "auto"
    dtype: str = "auto"
    reference: str = "meta"
    quantize: str | None = None
    adapters: tuple[str, ...] = ()
    """Folders of low-rank adapters on top of it."""
    num_views: int | None = None
    thin: bool | None = None

    @property
    def name(self) -> str:
        """What the model is called: the folder's own name, wherever it lies, or the Hub's."""
        if self.source is None:
            return "shipped"
        return os.path.basename(os.path.abspath(self.source)) if os.path.isdir(self.source) else self.source

    def open(self) -> "VLM":
        """Return the model, loaded."""
        from vlm.pipeline import VLM

        names = ("device", "dtype", "reference", "quantize", "adapters", "num_views", "thin")
        return VLM.from_pretrained(self.source, **{name: getattr(self, name) for name in names})

    def identity(self) -> dict[str, str]:
        """Return the checkpoint's name and the digest of its weights and settings, file by file; adapters' after it."""
        from vlm import checkpoint
        from vlm.pipeline import DEFAULT_MODEL

        folder = DEFAULT_MODEL if self.source is None else checkpoint.resolve(self.source)
        digests = [_files_digest(Path(adapter), _ADAPTER) for adapter in self.adapters]
        found = {"name": self.name, "weights": _files_digest(folder)}
        return found | {f"adapter {place}": each for place, each in enumerate(digests, 1)}


def describe(model: "VLM") -> dict:
    """Return what else decides a loaded model's answers."""
    import torch

    info = model.info
    vision = model.model.config.vision
    device = str(info.device)
    if info.device.type == "cuda":
        device = f"cuda ({torch.cuda.get_device_name(info.device)})"
    return {
        "device": device,
        "dtype": str(info.dtype).removeprefix("torch."),
        "reference": info.reference,
        "quantize": info.quantize,
        "processor": None
        if vision is None
        else {"tile_size": info.tile_size, "max_tiles": info.max_tiles, "patch_size": vision.patch_size},
        "config": digest(repr(model.model.config)),
    }


def _files_digest(folder: Path, patterns: tuple[str, ...] = _WEIGHTS + _SETTINGS) -> str:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return digest(*zip(names, pool.map(_file_digest, paths), strict=True))


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
