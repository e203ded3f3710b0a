"""Pictures that were encoded: what one is, and a cache of them bounded in bytes."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adapters.cross_attention import ImageKV
from vlm.errors import VLMError
from vlm.tokenizer_files.disk import checked_path, write_whole


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """A picture after the encoder; goes wherever an image goes, with the model that encoded it."""

    features: Tensor
    """[t, p, f]: the encoder's output of the real tiles, then in the transformers reference of the missing ones."""
    tokens: Tensor
    """[t, p, d]: the projected image tokens."""
    canvas: tuple[int, int]
    """(rows, cols) in tiles."""
    size: tuple[int, int]
    """(height, width) of the upright picture in pixels."""
    model_key: str
    """Which encoder and projector made it."""
    scale: float = 1.0
    """Of the size that the tiles would have the picture at: below 1 where that held too much (see `views.py`)."""
    given: Tensor | None = None
    """[n] int64: which of the tokens, counted over all tiles, the decoder is given; None for all."""
    other_views: tuple["EncodedImage", ...] = ()
    """The same picture, shown otherwise."""

    @property
    def views(self) -> tuple["EncodedImage", ...]:
        """All views, this one first."""
        return (self, *self.other_views)

    @property
    def given_tokens(self) -> Tensor:
        """[n, d]: the tokens that the decoder is given."""
        tokens = self.tokens.flatten(0, 1)
        return tokens if self.given is None else tokens[self.given.to(tokens.device)]

    @property
    def num_visible(self) -> int:
        """How many of them are of real tiles; they come first."""
        return self.num_tiles * self.tokens.shape[1] if self.given is None else len(self.given)

    @property
    def num_tiles(self) -> int:
        """Tiles that hold pixels."""
        return self.canvas[0] * self.canvas[1]

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file, whole or not at all. A file of that name is replaced, but nothing else."""
        path = checked_path(path)
        metadata, tensors = {"model_key": self.model_key, "size": "{} {}".format(*self.size)}, {}
        for view, end in zip(self.views, _endings(len(self.views)), strict=True):
            metadata |= {f"canvas{end}": "{} {}".format(*view.canvas), f"scale{end}": repr(view.scale)}
            tensors |= {f"features{end}": view.features.contiguous(), f"tokens{end}": view.tokens.contiguous()}
            tensors |= {} if view.given is None else {f"given{end}": view.given.contiguous()}
        try:
            if path.exists() and not path.is_file():
                raise VLMError(
                    "invalid_request",
                    "the encoded image was to replace a folder, pipe or device; expected a file or a new name; "
                    "give another path",
                )
            write_whole(path, save(tensors, metadata))
        except (OSError, ValueError):
            raise VLMError(
                "invalid_request", "the encoded image could not be written; check the folder and its free space"
            ) from None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EncodedImage":
        """Read what `save` wrote."""
        path = checked_path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
                common = {"size": _two_numbers(metadata["size"]), "model_key": metadata["model_key"]}
                first, *others = (
                    cls(
                        # Copied, so that the file may be replaced while its tensors are in use.
                        features=file.get_tensor(f"features{end}").clone(),
                        tokens=file.get_tensor(f"tokens{end}").clone(),
                        canvas=_two_numbers(metadata[f"canvas{end}"]),
                        scale=float(metadata.get(f"scale{end}", 1)),
                        given=file.get_tensor(f"given{end}").clone() if f"given{end}" in names else None,
                        **common,
                    )
                    for end in _endings(sum(name.startswith("tokens") for name in names))
                )
        except (OSError, KeyError, ValueError, SafetensorError):
            raise VLMError(
                "invalid_request", "the file holds no encoded image; give one that EncodedImage.save wrote"
            ) from None
        return replace(first, other_views=tuple(others))


def _endings(num_views: int) -> list[str]:
    """Return what the names of each view's tensors end with: nothing for the first, as where there is but one."""
    return [f".{view}" if view else "" for view in range(num_views)]


def _two_numbers(text: str) -> tuple[int, int]:
    first, second = text.split()
    return int(first), int(second)


class ImageEntry:
    """An encoded picture and the keys and values of its views, which are made when first asked for."""

    def __init__(self, encoded: EncodedImage):
        self.encoded = encoded
        self.kv: list[ImageKV] = []

    @property
    def num_bytes(self) -> int:
        of_views = [(view.features, view.tokens, view.given) for view in self.encoded.views]
        return sum(tensor.nbytes for kept in (*of_views, *self.kv) for tensor in kept if tensor is not None)


class ImageCache:
    """The encoded pictures used last, by the key of their decoded pixels. Threads may share it."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, ImageEntry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> ImageEntry | None:
        """Return the entry of `key`, which becomes the one used last."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: str, entry: ImageEntry) -> None:
        """Keep `entry`, dropping those used longest ago until all fit; one too large alone is not kept."""
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            self._shrink()

    def shrink(self) -> None:
        """Drop entries until all fit; to be called after keys and values were added to one."""
        with self._lock:
            self._shrink()

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(entry.num_bytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def _shrink(self) -> None:
        sizes = {key: entry.num_bytes for key, entry in self._entries.items()}
        # First what can never fit, or it would push out all the others on its way.
        for key in [key for key, size in sizes.items() if size > self.max_bytes]:
            del self._entries[key], sizes[key]
        total = sum(sizes.values())
        while total > self.max_bytes:
            key, _ = self._entries.popitem(last=False)
            total -= sizes[key]
