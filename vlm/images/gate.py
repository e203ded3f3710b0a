"""The image gate for those who see only `vlm`: what it refuses is named. No torch is loaded."""

from typing import TYPE_CHECKING

from vlm.errors import VLMError, public

if TYPE_CHECKING:
    from PIL.Image import Image


def named_picture(source: str | bytes, name: str) -> "Image":
    """Return the picture upright, in RGB, on white. Raises: VLMError of the gate, which begins with `name`."""
    from vision_encoder.image_input import read_image

    try:
        return public(read_image)(source)
    except VLMError as error:
        raise VLMError(error.code, f"{name}: {error.message}") from None
