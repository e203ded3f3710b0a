"""Draws AI2D's letters: in filled boxes that hide the words, or in boxes through which they can still be read."""

import io
from collections.abc import Sequence

from vlm.errors import VLMError

_FILL = (255, 255, 255)
_HALF = 127
_LARGEST, _SMALLEST = 100, 6
_MARGIN_SIZE = 16


def draw_letters(content: bytes, places: Sequence[tuple], *, transparent: bool) -> bytes:
    """Return a PNG of the picture with a letter at each of `places`, (letter, (left, top), (right, bottom)).

    Opaque: the box is filled and the letter stands in it as large as it fits. Transparent: the box is filled half and
    the letter stands at its top left corner, on white.

    Source: google-research/pix2struct, preprocessing_utils.py (render_text_on_bounding_box) for opaque boxes;
    allenai/molmo, olmo/hf_datasets/ai2d.py (draw_abc_labels) for transparent ones. The font is Pillow's own.

    Raises: VLMError (image_corrupt) when the picture cannot be decoded.
    """
    from PIL import Image, ImageDraw

    try:
        image = Image.open(io.BytesIO(content)).convert("RGBA")
    except Exception:  # noqa: BLE001 (a decoder may raise anything)
        raise VLMError("image_corrupt", "the diagram cannot be decoded; expected a whole picture") from None
    picture = Image.new("RGB", image.size, _FILL)
    picture.paste(image, mask=image.getchannel("A"))
    draw = ImageDraw.Draw(picture, "RGBA")
    for letter, start, end in places:
        (left, right), (top, bottom) = (sorted(pair) for pair in zip(start, end, strict=True))
        if top == bottom or left == right:
            # A few boxes of the data have no height; none of them is an answer.
            continue
        draw.rectangle((left, top, right, bottom), fill=(*_FILL, _HALF if transparent else 255))
        if transparent:
            _draw_at_corner(draw, letter, left, top)
        else:
            _draw_inside(draw, letter, left, top, right, bottom)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _draw_inside(draw, letter: str, left: int, top: int, right: int, bottom: int) -> None:
    font = _fitting(draw, letter, right - left, bottom - top)
    draw.text(((left + right) / 2, (top + bottom) / 2), letter, font=font, fill="black", anchor="mm")


def _draw_at_corner(draw, letter: str, left: int, top: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(_MARGIN_SIZE)
    place = (max(left - _MARGIN_SIZE * 3 // 4, 0), max(top - _MARGIN_SIZE * 5 // 8, 0))
    draw.rectangle(draw.textbbox(place, letter, font=font), fill="white")
    draw.text(place, letter, font=font, fill="black")


def _fitting(draw, letter: str, width: int, height: int):
    """Return the font in the largest size in which the letter fits a box; the smallest when it fits in none."""
    from PIL import ImageFont

    low, high = _SMALLEST, _LARGEST
    while low < high:
        size = (low + high + 1) // 2
        left, top, right, bottom = draw.textbbox((0, 0), letter, font=ImageFont.load_default(size))
        if right - left <= 0.95 * width and bottom - top <= 0.95 * height:
            low = size
        else:
            high = size - 1
    return ImageFont.load_default(low)
