"""Draws AI2D's letters: in filled boxes that hide the words, or in boxes through which they can still be read."""

import io
from collections.abc import Sequence
from typing import NamedTuple

from vlm.images.gate import named_picture

_FILL, _HALF = (255, 255, 255), 127
"""White; how much of it lies over a word that can still be read, of 255."""
_LARGEST, _SMALLEST, _CORNER_SIZE = 100, 6, 16
"""Sizes of the font."""
_LARGEST_PLACE = 100_000


class LetterBox(NamedTuple):
    """Where a word stands, in pixels, and the letter that takes its place."""

    letter: str
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of(cls, letter: str, rectangle: Sequence[Sequence[float]]) -> "LetterBox":
        """Return the box between two corners. Raises: ValueError, TypeError or OverflowError for anything else."""
        (first_x, first_y), (second_x, second_y) = rectangle
        left, right = sorted((int(first_x), int(second_x)))
        top, bottom = sorted((int(first_y), int(second_y)))
        if not isinstance(letter, str) or max(abs(left), abs(top), right, bottom) > _LARGEST_PLACE:
            raise ValueError
        return cls(letter, left, top, right, bottom)


def draw_letters(content: bytes, boxes: Sequence[LetterBox], *, transparent: bool) -> bytes:
    """Return a PNG of the picture with its letters.

    Opaque: each box is filled and the letter stands in it as large as it fits. Transparent: the box is filled half and
    the letter stands at its top left corner, on white.

    Source: google-research/pix2struct, preprocessing_utils.py (render_text_on_bounding_box) for opaque boxes;
    allenai/molmo, olmo/hf_datasets/ai2d.py (draw_abc_labels) for transparent ones. The font is Pillow's own.

    Raises: VLMError when the image gate refuses the picture.
    """
    from PIL import ImageDraw

    picture = named_picture(content, "the diagram")
    draw = ImageDraw.Draw(picture, "RGBA")
    for box in boxes:
        if box.top == box.bottom or box.left == box.right:
            # A few boxes of the data have no height; none of them is an answer.
            continue
        draw.rectangle(box[1:], fill=(*_FILL, _HALF if transparent else 255))
        if transparent:
            _draw_at_corner(draw, box)
        else:
            _draw_inside(draw, box)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _draw_inside(draw, box: LetterBox) -> None:
    font = _fitting(draw, box)
    middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
    draw.text(middle, box.letter, font=font, fill="black", anchor="mm")


def _draw_at_corner(draw, box: LetterBox) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(_CORNER_SIZE)
    place = (max(box.left - _CORNER_SIZE * 3 // 4, 0), max(box.top - _CORNER_SIZE * 5 // 8, 0))
    draw.rectangle(draw.textbbox(place, box.letter, font=font), fill="white")
    draw.text(place, box.letter, font=font, fill="black")


def _fitting(draw, box: LetterBox):
    """Return the font in the largest size in which the letter fits its box; the smallest when it fits in none."""
    from PIL import ImageFont

    low, high = _SMALLEST, _LARGEST
    while low < high:
        size = (low + high + 1) // 2
        left, top, right, bottom = draw.textbbox((0, 0), box.letter, font=ImageFont.load_default(size))
        if right - left <= 0.95 * (box.right - box.left) and bottom - top <= 0.95 * (box.bottom - box.top):
            low = size
        else:
            high = size - 1
    return ImageFont.load_default(low)
