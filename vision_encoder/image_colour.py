"""Any Pillow mode to 8-bit sRGB on white.

What is documented nowhere else: where an image has alpha it is laid on white; grey deeper than 8 bits is scaled, never
clipped; an ICC profile that fits the mode is applied, one that does not is ignored. PNG's gamma chunks are ignored,
as in Pillow. CMYK and LAB without a profile are converted as Pillow does.
"""

import io
from collections.abc import Iterator

from PIL import Image, ImageChops, ImageCms

BAND_PIXELS = 2**20
MAX_PROFILE_BYTES = 4 * 2**20
"""Larger ICC profiles are ignored; press profiles have about 2 MB."""
_PROFILE_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}


def to_rgb(image: Image.Image, white: int | None = None) -> Image.Image:
    """Return `image`, which is decoded, as RGB: sRGB colours, alpha on white, no metadata.

    `white` is the sample value that means white in a mode of more than 8 bits; None has it chosen by the values found.
    The result may be `image` itself, and its palette may be changed: pass a private copy, which no file is behind.
    """
    profile = image.info.get("icc_profile")
    colours, alpha = _split_alpha(image, white)
    rgb = _apply_profile(colours, profile)
    if rgb is None:
        rgb = colours if colours.mode == "RGB" else colours.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        rgb.paste((255, 255, 255), mask=ImageChops.invert(alpha))
    # Whatever of orientation, profile or transparency stayed behind would be applied a second time.
    rgb.info = {}
    return rgb


def row_bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield (top, band) from top to bottom, so that a large picture need not be held twice."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _split_alpha(image: Image.Image, white: int | None) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours in mode L, RGB, CMYK or LAB, and the alpha in mode L, or None where all is opaque."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image, white)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else _with_byte_transparency(image).convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _with_byte_transparency(image: Image.Image) -> Image.Image:
    """Bring the transparent colour of a 16-bit RGB PNG down to the 8 bits that Pillow decodes its pixels to."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image


def _deep_grey(image: Image.Image, white: int | None) -> tuple[Image.Image, Image.Image | None]:
    """Return grey of 16 or 32 bits, or float, scaled to mode L, and its alpha if one value stands for transparent."""
    import numpy as np  # here, for a decoding worker seldom needs it

    black, white = (0, white) if white else _value_range(image)
    grey = Image.new("L", image.size)
    transparent = image.info.get("transparency")
    alpha = Image.new("L", image.size) if isinstance(transparent, int) else None
    for top, band in row_bands(image):
        values = np.asarray(band)
        share = np.nan_to_num((values.astype(np.float64) - black) / (white - black))
        scaled = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
        grey.paste(Image.fromarray(scaled), (0, top))
        if alpha is not None:
            alpha.paste(Image.fromarray((values != transparent).astype(np.uint8) * 255), (0, top))
    return grey, alpha


def _value_range(image: Image.Image) -> tuple[float, float]:
    """Return the values that mean black and white, for modes that do not say: the narrowest usual range that holds all.

    0 to 255 as Pillow makes I and F from 8 bits (0 to 1 for F that is never above 1), 0 to 65535 as it reads 16-bit
    grey; anything else from its own least to its own greatest value.
    """
    import numpy as np

    low, high = np.inf, -np.inf
    for _, band in row_bands(image):
        values = np.asarray(band)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if image.mode == "F" and low >= 0 and high <= 1:
        return 0, 1
    for white in (255, 65535):
        if low >= 0 and high <= white:
            return 0, white
    # One value throughout, or none that is finite: any range will do.
    return (low, high) if low < high else (0, 1)


def _apply_profile(colours: Image.Image, profile: object) -> Image.Image | None:
    """Return `colours` in sRGB by their ICC profile, or None where it is missing, unfit, broken or huge."""
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_MODES.get(source.profile.xcolor_space) != colours.mode:
            return None
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None  # a picture with a damaged profile is still a picture
