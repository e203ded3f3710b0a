"""Encoded bytes, or a picture Pillow holds, to an upright RGB picture; every failure leaves as an ImageError.

This is the only place that calls Pillow's decoders. It opens nothing but the formats of `image_container.FORMATS`.
"""

import contextlib
import io
from collections.abc import Iterator

# Imported by name: left to itself, Pillow would import every plugin it has to find these two.
from PIL import (
    Image,
    ImageFile,
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from vision_encoder.decoder_silence import silenced
from vision_encoder.image_colour import to_rgb
from vision_encoder.image_container import (
    FORMATS,
    STATES_LENGTHS_LOOSELY,
    begins_a_format,
    declared_size,
    ends_early,
    format_of,
    num_jpeg_scans,
    webp_first_frame,
    without_png_profile,
)
from vision_encoder.image_limits import ImageError, ImageLimits

_ORIENTATION_TAG = 274
_BITS_PER_SAMPLE_TAG = 258
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_bytes(content: bytes, limits: ImageLimits) -> Image.Image:
    """Return the first frame of `content` as upright RGB.

    Everything that the header can tell is checked before a pixel is decoded.

    Raises: ImageError, with any code but invalid_request.
    """
    limits.check_bytes(len(content))
    format_name = format_of(content)
    if format_name is None and begins_a_format(content):
        raise _truncated("sent")
    if format_name not in FORMATS:
        raise ImageError(
            "image_unsupported",
            f"found {format_name or 'no known image format'}; expected JPEG, PNG, WebP, GIF, BMP or TIFF (by content, "
            "whatever the name says); convert the image to PNG or JPEG first",
        )
    with silenced(format_name), _refusals(format_name, limits, content):
        if size := declared_size(content, format_name):
            limits.check_size(size)
        image = _open(_whole(content, format_name, limits), format_name)
        limits.check_size((image.height, image.width))
        _load(image, format_name, content, limits)
        white = _white_level(image)
        # Rebound, so that a WebP decoder is freed before colours are converted: it holds two more pictures.
        image = _upright_copy(image)
        return to_rgb(image, white)


def convert_pil(image: Image.Image, limits: ImageLimits) -> Image.Image:
    """Return the current frame of the caller's `image` as upright RGB; the caller's own is only decoded, not changed.

    One that is open but not decoded yet must be of the formats that are let in: its decoder would run here.

    Raises: ImageError.
    """
    limits.check_size((image.height, image.width))
    pending = isinstance(image, ImageFile.ImageFile) and (image.tile or getattr(image, "_im", image) is None)
    if pending and image.format not in (*FORMATS, "MPO"):
        raise ImageError(
            "image_unsupported",
            f"found a PIL image opened from {image.format!s:.20} and not decoded yet; expected JPEG, PNG, WebP, "
            "GIF, BMP or TIFF; call its load() first if you trust the file",
        )
    with silenced(image.format), _refusals("PIL", limits):
        image.load()
        return to_rgb(_upright_copy(image), _white_level(image))


def _whole(content: bytes, format_name: str, limits: ImageLimits) -> bytes:
    """Return what Pillow is to see of `content`, once the bytes of its first frame are known to be there."""
    if format_name == "JPEG" and (num_scans := num_jpeg_scans(content)) > limits.max_scans:
        raise ImageError(
            "image_too_large",
            f"the JPEG has {num_scans} scans; expected at most {limits.max_scans}; save it again as a baseline JPEG",
        )
    if format_name in STATES_LENGTHS_LOOSELY or not ends_early(content, format_name):
        return content
    if format_name == "WEBP" and (first := webp_first_frame(content)):
        return first  # libwebp takes whole files only
    if not limits.allow_truncated:
        raise _truncated(format_name)
    # With an end marker in place libjpeg makes the best of what came before.
    return content + b"\xff\xd9" if format_name == "JPEG" else content


def _open(content: bytes, format_name: str) -> Image.Image:
    """Open `content` as `format_name` and nothing else, without its colour profile should that be in the way."""
    try:
        return Image.open(io.BytesIO(content), formats=(format_name,))
    except (OSError, ValueError):
        rest = without_png_profile(content) if format_name == "PNG" else None
        if rest is None:
            raise
        return Image.open(io.BytesIO(rest), formats=(format_name,))


def _load(image: Image.Image, format_name: str, content: bytes, limits: ImageLimits) -> None:
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        if not (limits.allow_truncated and _tells_of_a_cut(error, format_name, content)):
            raise
        # What was decoded before the error stays; without tiles Pillow takes the picture for loaded.
        image.tile = []
        image.load()


def _upright_copy(image: Image.Image) -> Image.Image:
    """Return a copy of `image`, which is decoded, turned as its metadata says."""
    turn = _TURNS.get(_orientation(image))
    return image.copy() if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or XMP's where EXIF has none (as Pillow's exif_transpose); 1 if it is unreadable.

    A TIFF is turned by Pillow as it is decoded, which then says 1.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - damaged metadata raises anything, and must not cost a sound picture
        return 1
    return orientation if isinstance(orientation, int) else 1


def _white_level(image: Image.Image) -> int | None:
    """Return the sample value that means white in 16-bit grey, where the file tells its depth."""
    if not image.mode.startswith("I;16"):
        return None
    bits = {"PNG": 16}.get(image.format)
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (16,))[0]
    return 2**bits - 1 if bits else None


@contextlib.contextmanager
def _refusals(subject: str, limits: ImageLimits, content: bytes = b"") -> Iterator[None]:
    """Turn whatever goes wrong inside into an ImageError about `subject`."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - on hostile bytes Pillow raises a dozen unrelated types
        raise _refusal(error, subject, limits, content) from None


def _refusal(error: Exception, subject: str, limits: ImageLimits, content: bytes) -> ImageError:
    text = str(error)
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(
            "image_too_large",
            f"the {subject} image declares far more pixels than the {limits.max_pixels} allowed; make it smaller "
            "before sending it",
        )
    if isinstance(error, MemoryError):
        return ImageError(
            "image_too_large", f"the {subject} image needs too much memory to decode; make it smaller before sending it"
        )
    if "too large" in text or "Too much memory" in text:
        return ImageError(
            "image_too_large",
            f"the {subject} image has too much metadata; save it again without its texts and profile",
        )
    if _tells_of_a_cut(error, subject, content):
        return _truncated(subject)
    reason = "damaged, or of a rare kind" + (", or closed already" if subject == "PIL" else "")
    return ImageError(
        "image_corrupt",
        f"the {subject} image cannot be decoded: it is {reason}; expected a file that common viewers open; "
        "save it again as PNG or JPEG",
    )


def _tells_of_a_cut(error: Exception, subject: str, content: bytes) -> bool:
    # Pillow's words count too: a BMP or TIFF may be cut though the lengths that it states fit.
    text = str(error).lower()
    return "truncated" in text or "not enough image data" in text or ends_early(content, subject)


def _truncated(subject: str) -> ImageError:
    return ImageError(
        "image_truncated",
        f"the {subject} image ends before its first frame does; expected the whole file; send it again, "
        "or give what vision_encoder.read_image(..., limits=ImageLimits(allow_truncated=True)) makes of it",
    )
