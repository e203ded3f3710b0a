"""The one gate by which every image enters: whatever the caller holds, to an upright 8-bit RGB picture.

The same picture comes out equal, pixel for pixel, whether it went in as a path, bytes, a `data:` URL or a PIL image.
What comes out carries no metadata, so a second pass through the gate changes nothing. Of an animation or a document of
many pages, the first frame. What is let in stands in `image_container.FORMATS`, how much of it in `ImageLimits`.
"""

import base64
import hashlib
import os
import re
import stat
import sys
import urllib.parse
from collections.abc import Callable

from PIL import Image

from vision_encoder.image_colour import row_bands
from vision_encoder.image_decode import convert_pil, decode_bytes
from vision_encoder.image_limits import ImageError, ImageLimits

__all__ = ["DEFAULT_LIMITS", "Fetch", "ImageError", "ImageLimits", "encoded_bytes", "pixel_key", "read_image"]

DEFAULT_LIMITS = ImageLimits()
Fetch = Callable[[str], bytes]
"""Downloads an http(s) URL. It answers for where it connects to; for a refusal it raises ImageError or OSError."""

MAX_ESCAPES = 2**17
"""Most %-escapes of a `data:` URL that is no base64: each becomes an object of its own while it is decoded."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.I)
# What base64 consists of besides letters and digits, and what stands between its lines, as URLs may spell them.
_BASE64_ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0D": "", "%0A": "", "%20": ""}


def read_image(image, *, limits: ImageLimits = DEFAULT_LIMITS, fetch: Fetch | None = None) -> Image.Image:
    """Return `image` as an upright RGB picture in sRGB, alpha laid on white; the caller's object is not changed.

    `image` is a path (str or os.PathLike), bytes, a PIL image (its current frame), an [h, w, 3] uint8 numpy array, a
    [3, h, w] uint8 tensor, or a `data:` URL; an http(s) URL only where `fetch` is given. The axes of an array are never
    guessed: numpy is h w c, a tensor c h w (CVE-2026-22773 read a 1 x 1 picture the other way round).

    Raises: ImageError, for anything that is wrong with `image`.
    """
    content = encoded_bytes(image, limits=limits, fetch=fetch)
    if content is not None:
        return decode_bytes(content, limits)
    if isinstance(image, Image.Image):
        return convert_pil(image, limits)
    return _array_image(image, limits)


def encoded_bytes(image, *, limits: ImageLimits = DEFAULT_LIMITS, fetch: Fetch | None = None) -> bytes | None:
    """Return the still encoded content of `image`, within the byte limit, or None if it holds pixels already.

    Raises: ImageError.
    """
    if isinstance(image, Image.Image) or _array_kind(image):
        return None
    if isinstance(image, bytes | bytearray | memoryview):
        limits.check_bytes(memoryview(image).nbytes)
        return bytes(image)
    if isinstance(image, str) and image[:5].lower() == "data:":
        return _data_url_bytes(image, limits)
    if isinstance(image, str) and (scheme := _SCHEME.match(image)):
        return _fetched_bytes(image, scheme[1].lower(), limits, fetch)
    if isinstance(image, str | os.PathLike):
        return _file_bytes(image, limits)
    raise ImageError(
        "invalid_request",
        f"found an image of type {type(image).__name__:.40}; expected a path, bytes, a PIL image, "
        "an [h, w, 3] uint8 numpy array, a [3, h, w] uint8 tensor or a data: URL; give one of these",
    )


def pixel_key(image: Image.Image) -> str:
    """Return a key, in hex, that two pictures share only if their sizes and all their pixels are equal.

    `image` is what `read_image` returns. Neither its file's bytes nor an identifier in its metadata take part, for
    those can be made equal at will (GHSA-c65p-x677-fgj6).

    Raises: ImageError (invalid_request) if it is not RGB.
    """
    if image.mode != "RGB":
        raise ImageError("invalid_request", f"found a {image.mode} picture; expected RGB; call read_image first")
    digest = hashlib.sha256(f"{image.mode} {image.height} {image.width} ".encode())
    for _, band in row_bands(image):
        digest.update(band.tobytes())
    return digest.hexdigest()


def _file_bytes(path: str | os.PathLike, limits: ImageLimits) -> bytes:
    # Opening without waiting: between the look and the opening the file could become a pipe.
    wait_free = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            limits.check_bytes(status.st_size)
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait_free)) as file:
                # One more than it says, and no more: it could have grown.
                content = file.read(min(status.st_size, limits.max_bytes) + 1)
            limits.check_bytes(len(content))
            return content
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(
            "invalid_request",
            "found no file at the path given as image; check the path (base64 text has to be a data: URL)",
        ) from None
    except (OSError, ValueError, TypeError):
        raise ImageError(
            "invalid_request", "the file given as image cannot be read; check its path and its permissions"
        ) from None
    raise ImageError(
        "invalid_request", "the path given as image is a folder, pipe or device; expected a regular file; name one"
    )


def _data_url_bytes(url: str, limits: ImageLimits) -> bytes:
    """Return the content of a `data:` URL; its media type is ignored, as file names are."""
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError("invalid_request", "found a data: URL without a comma; expected data:image/png;base64,CONTENT")
    # No way of writing takes more than 4 characters a byte.
    limits.check_bytes(max(1, len(payload) // 4))
    if header.lower().rstrip().endswith(";base64"):
        content = _base64_bytes(payload)
    elif payload.count("%") > MAX_ESCAPES:
        raise ImageError("invalid_request", f"the data: URL has more than {MAX_ESCAPES} %-escapes; send it as base64")
    else:
        content = urllib.parse.unquote_to_bytes(payload)
    limits.check_bytes(len(content))
    return content


def _base64_bytes(text: str) -> bytes:
    """Return what `text` spells; each step is one pass and makes no object for every part."""
    if "%" in text:
        for escape, meant in _BASE64_ESCAPES.items():
            text = text.replace(escape, meant).replace(escape.lower(), meant)
    try:
        content = text.encode("ascii").translate(None, b" \t\r\n\f\v").rstrip(b"=")
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except ValueError:  # binascii.Error and UnicodeError are two
        raise ImageError(
            "invalid_request", "the data: URL does not hold valid base64; encode the file's bytes with base64"
        ) from None


def _fetched_bytes(url: str, scheme: str, limits: ImageLimits, fetch: Fetch | None) -> bytes:
    if scheme not in ("http", "https"):
        raise ImageError(
            "invalid_request", f"found an image URL of scheme {scheme:.20}; expected http, https or data:, or a path"
        )
    if fetch is None:
        raise ImageError(
            "invalid_request",
            "found an http(s) image URL, and URLs are not fetched by default; send the image itself, "
            "or allow them with VLM.from_pretrained(..., allow_urls=True)",
        )
    try:
        content = fetch(url)
    except OSError:
        raise ImageError("invalid_request", "the image URL could not be fetched; send the image itself") from None
    limits.check_bytes(len(content))
    return content


def _array_kind(image) -> str | None:
    """Return "numpy array" or "tensor" if `image` is one; importing neither library, for without it there is none."""
    for kind, module, class_name in (("numpy array", "numpy", "ndarray"), ("tensor", "torch", "Tensor")):
        if (loaded := sys.modules.get(module)) and isinstance(image, getattr(loaded, class_name)):
            return kind
    return None


def _array_image(array, limits: ImageLimits) -> Image.Image:
    """Return the picture in an [h, w, 3] uint8 numpy array or a [3, h, w] uint8 tensor."""
    kind = _array_kind(array)
    shape, dtype = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    if kind == "tensor":
        colour_axis, axes, turn = 0, "[3, h, w]", "permute(2, 0, 1)"
        if array.is_meta or str(array.layout) != "torch.strided":
            raise ImageError(
                "invalid_request",
                "found a sparse tensor, or one without values (on meta); expected a dense one; give tensor.to_dense(), "
                "or fill it",
            )
    else:
        colour_axis, axes, turn = 2, "[h, w, 3]", "transpose(1, 2, 0)"
    if dtype != "uint8" or len(shape) != 3 or shape[colour_axis] != 3:
        raise ImageError(
            "invalid_request",
            f"found a {kind} of shape {shape!s:.40} and dtype {dtype:.20}; expected {axes} uint8; scale floats to 0 "
            f"to 255, stack grey three times, bring colour to its axis with {turn}, and give alpha as a PIL image",
        )
    limits.check_size(shape[1:] if kind == "tensor" else shape[:2])
    if kind == "tensor":
        from einops import rearrange

        array = rearrange(array.detach().cpu(), "c h w -> h w c").numpy()
    return Image.fromarray(array)
