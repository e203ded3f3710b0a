"""Several pictures as one, for models that are shown a single picture a question."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from eval.records import ImageRef

GAP_PIXELS = 10


def side_by_side(images: Sequence[ImageRef]) -> ImageRef:
    """Return one picture of all `images` in their order, tops aligned, on white; it is drawn when it is read."""
    return ImageRef(id="+".join(image.id for image in images), load=_Stitched(tuple(images)))


@dataclass(frozen=True, slots=True)
class _Stitched:
    """To be called for the bytes of the one picture."""

    images: tuple[ImageRef, ...]

    def __call__(self) -> bytes:
        from PIL import Image

        pictures = [image.decoded() for image in self.images]
        width = sum(picture.width for picture in pictures) + GAP_PIXELS * (len(pictures) - 1)
        whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
        left = 0
        for picture in pictures:
            whole.paste(picture, (left, 0))
            left += picture.width + GAP_PIXELS
        out = io.BytesIO()
        whole.save(out, "PNG")
        return out.getvalue()
