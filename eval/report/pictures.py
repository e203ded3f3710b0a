"""Pictures made small enough to lie in the report, all of them together within a number of bytes.

They are always decoded and written anew: nothing of the original file's bytes gets into the report.
"""

import io
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from eval.records import ImageRef
from eval.report.facets import Size
from vlm.errors import VLMError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 80_000_000
NO_ROOM = "left out, to keep the report small"
_NUM_TRIED = 32
_WINDOW = 32
_ORIENTATION_TAG = 274


class Level(NamedTuple):
    """How small a picture is made."""

    side: int
    """Longest side in pixels; what is smaller stays as it is."""
    quality: int


LEVELS = (
    *(Level(1000, 75), Level(800, 75), Level(640, 70), Level(480, 65), Level(360, 60)),
    *(Level(256, 55), Level(176, 50), Level(112, 40), Level(64, 30)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture as it lies in the report."""

    content: bytes | None = None
    """WebP; None where there is a problem."""
    size: Size | None = None
    """Of the original."""
    side: int = 0
    """The longest side it was allowed."""
    problem: str | None = None


def shrink(refs: Sequence[ImageRef], max_bytes: int) -> list[Picture]:
    """Return the pictures, of at most `max_bytes` together, all with the same longest side where that is possible.

    Those that take more than others at that size are made smaller still; one that does not fit even so is left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and many pixels
        share = max_bytes // max(1, len(refs))
        # So that one picture does not make all others small, and the first round takes bounded memory, too.
        most = 4 * share
        first = _level_that_fits(refs[:: max(1, len(refs) // _NUM_TRIED)], share, most)
        pictures = list(_all_encoded(refs, first, most))
        most = _water_level([len(each.content or b"") for each in pictures], max_bytes)
        large = [place for place, each in enumerate(pictures) if len(each.content or b"") > most]
        for place, smaller in zip(large, _all_encoded([refs[place] for place in large], first, most), strict=True):
            pictures[place] = smaller
        return pictures


def _level_that_fits(refs: Sequence[ImageRef], share: int, most: int) -> int:
    """Return the first level at which pictures take at most `share` in the mean, each at most `most`; else the last."""
    for level in range(len(LEVELS)):
        if sum(len(each.content or b"") for each in _all_encoded(refs, level, most)) <= share * len(refs):
            return level
    return len(LEVELS) - 1


def _all_encoded(refs: Sequence[ImageRef], first_level: int, max_bytes: int) -> Iterator[Picture]:
    """Yield the pictures at the first level at which each takes at most `max_bytes`. Few are in memory at once."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(refs), _WINDOW):
            # Read here, one after the other: that is how a parquet file is read fast.
            contents = [_read(ref) for ref in refs[start : start + _WINDOW]]
            yield from pool.map(_encoded, contents, itertools.repeat(first_level), itertools.repeat(max_bytes))


def _read(ref: ImageRef) -> bytes | str:
    """Return the content of a picture, or why it cannot be read."""
    try:
        return ref.read()
    except VLMError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - how it is read may be somebody else's code
        return f"the picture cannot be read ({type(error).__name__})"


def _encoded(content: bytes | str, first_level: int, max_bytes: int) -> Picture:
    if isinstance(content, str):
        return Picture(problem=content)
    try:
        return _smallest_needed(content, first_level, max_bytes)
    except Exception as error:  # noqa: BLE001 - on damaged bytes Pillow raises a dozen unrelated types
        return Picture(problem=f"the picture cannot be shown ({type(error).__name__})")


def _smallest_needed(content: bytes, first_level: int, max_bytes: int) -> Picture:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            return Picture(size=(height, width), problem=f"left out, for it has {width} x {height} pixels")
        is_turned = image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
        # A JPEG is decoded at a fraction of its size where that is enough.
        image.draft(None, (LEVELS[first_level].side,) * 2)
        small = _on_white(ImageOps.exif_transpose(image))
    size = (width, height) if is_turned else (height, width)
    for level in LEVELS[first_level:]:
        small.thumbnail((level.side, level.side), reducing_gap=2.0)
        written = io.BytesIO()
        small.save(written, format="WEBP", quality=level.quality, method=2)
        if written.tell() <= max_bytes:
            return Picture(content=written.getvalue(), size=size, side=level.side)
    return Picture(size=size, problem=NO_ROOM)


def _on_white(image):
    """Return the picture as RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        # 16 bits or more a pixel, of which a plain conversion would keep the lowest.
        low, high = image.getextrema()
        scale = 255 / ((high - low) or 1)
        return image.convert("F").point(lambda value: value * scale - low * scale).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _water_level(sizes: Sequence[int], max_total: int) -> int:
    """Return the largest number to which sizes can be cut so that their sum is at most `max_total`."""
    left = max_total
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            return share
        left -= size
    return max(sizes, default=0)
