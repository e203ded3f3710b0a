"""Every mode to sRGB on white, against the same sums done by numpy."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.image_files import (
    encode,
    icc_cmyk,
    icc_curve,
    icc_profile,
    icc_rgb,
    png,
    png_chunk,
    smooth_pixels,
    tiff,
    with_png_chunk,
)
from vision_encoder.image_input import pixel_key, read_image

SRGB_TO_D50 = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71688, 0.06062], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03135], [0.28804, 0.71187, 0.00009], [0.0, 0.0, 0.82521]])
"""RGB to XYZ under D50, a column a primary. Source: IEC 61966-2-1, SMPTE EG 432-1 (both adapted), ISO 22028-2."""


def pixels_of(image) -> np.ndarray:
    return np.asarray(read_image(image)).astype(int)


def grey() -> np.ndarray:
    return np.asarray(Image.fromarray(smooth_pixels()).convert("L"))


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255
    return np.rint(colours * alpha + 255 * (1 - alpha)).astype(int)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


# Modes


@pytest.mark.parametrize(
    "mode", ["L", "I", "F", "I;16", "RGB", "RGBX", "HSV", "YCbCr", "LAB", "CMYK", "P", "RGBA", "LA", "PA"]
)
def test_modes_made_of_8_bit_pictures_come_back(mode):
    picture = Image.fromarray(smooth_pixels() if mode not in ("I", "F", "I;16", "L", "LA") else grey())
    expected = np.asarray(picture.convert("RGB")).astype(int)
    converted = picture.quantize(256).convert(mode) if mode == "PA" else picture.convert(mode)
    if mode in ("P", "PA", "LAB"):  # which cannot hold it: Pillow's reading of them is the measure
        expected = np.asarray(converted.convert("RGB")).astype(int)
    assert_close(pixels_of(converted), expected, {"HSV": 8, "YCbCr": 3}.get(mode, 0))
    assert np.abs(pixels_of(converted) - np.asarray(picture.convert("RGB"))).mean() < 20


def test_bilevel_is_black_and_white():
    mask = Image.fromarray(smooth_pixels()).convert("1")
    assert (pixels_of(mask) == np.where(np.asarray(mask), 255, 0)[..., None]).all()


def test_the_callers_picture_is_never_changed():
    palette = Image.fromarray(smooth_pixels()).quantize(16)
    palette.info["transparency"] = bytes(range(0, 160, 10))
    deep = Image.fromarray(smooth_pixels())
    deep.info["transparency"] = (300, 300, 300)
    for picture in (palette, deep, Image.new("RGBA", (3, 3)), Image.fromarray(smooth_pixels())):
        before = (picture.mode, picture.tobytes(), picture.getpalette("RGBA") if picture.mode == "P" else None)
        info = dict(picture.info)
        read_image(picture)
        after = (picture.mode, picture.tobytes(), picture.getpalette("RGBA") if picture.mode == "P" else None)
        assert (after, picture.info) == (before, info)


# Alpha on white


ALPHA = np.linspace(0, 255, smooth_pixels()[..., 0].size).reshape(smooth_pixels().shape[:2]).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_alpha_is_laid_on_white(mode):
    straight = Image.fromarray(smooth_pixels() if mode.startswith("RGB") else grey())
    straight.putalpha(Image.fromarray(ALPHA))
    colours = np.asarray(straight.convert("RGB")).astype(int)
    # Premultiplied modes keep less than 8 bits of a faint colour.
    assert_close(pixels_of(straight.convert(mode)), on_white(colours, ALPHA), 2 if mode.endswith("a") else 1)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white_from_every_way_in(format_name):
    picture = Image.fromarray(smooth_pixels())
    picture.putalpha(Image.fromarray(ALPHA))
    content = encode(picture, format_name, **({"lossless": True, "exact": True} if format_name == "WEBP" else {}))
    assert_close(pixels_of(content), on_white(smooth_pixels(), ALPHA))
    with Image.open(io.BytesIO(content)) as opened:
        assert pixel_key(read_image(opened)) == pixel_key(read_image(content))


def test_transparent_palette_entries_are_laid_on_white():
    indices = Image.fromarray(np.arange(4, dtype=np.uint8)[None])
    indices = indices.convert("P")
    indices.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    one = encode(indices, "PNG", transparency=2)
    assert pixels_of(one)[0].tolist() == [[0, 0, 0], [200, 0, 0], [255, 255, 255], [0, 0, 200]]
    several = encode(indices, "PNG", transparency=bytes([0, 255, 51, 255]))
    assert_close(pixels_of(several)[0], np.array([[255, 255, 255], [200, 0, 0], [204, 244, 204], [0, 0, 200]]))
    indices.putpalette([0, 0, 0, 0, 200, 0, 0, 255, 0, 200, 0, 51, 0, 0, 200, 255], "RGBA")
    assert_close(pixels_of(indices)[0], np.array([[255, 255, 255], [200, 0, 0], [204, 244, 204], [0, 0, 200]]))


@pytest.mark.parametrize(
    ("colour_type", "depth", "rows", "key", "expected"),
    [
        (0, 8, b"\x0a\x0b", ">H", [[255] * 3, [11] * 3]),
        (2, 8, b"\1\2\3\1\2\4", ">HHH", [[255] * 3, [1, 2, 4]]),
        (0, 16, b"\x12\x34\x80\x80", ">H", [[255] * 3, [128] * 3]),
        (2, 16, b"\x12\x34\x56\x78\x9a\xbc\xff\xff\0\0\x80\x80", ">HHH", [[255] * 3, [255, 0, 128]]),
    ],
    ids=["grey", "rgb", "deep grey", "deep rgb"],
)
def test_the_transparent_colour_of_a_png_is_laid_on_white(colour_type, depth, rows, key, expected):
    samples = rows[: len(rows) // 2]
    values = struct.unpack(key, samples if depth == 16 else b"".join(b"\0" + bytes([sample]) for sample in samples))
    content = png((1, 2), depth, colour_type, rows, png_chunk(b"tRNS", struct.pack(key, *values)))
    assert pixels_of(content)[0].tolist() == expected


# More than 8 bits


RAMP = np.linspace(0, 65535, 64 * 40).round().astype(np.uint16).reshape(40, 64)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "big-endian TIFF", "picture", "big-endian picture", "I", "F"])
def test_16_bit_grey_is_scaled_and_not_clipped(format_name):
    picture = Image.fromarray(RAMP)
    if format_name.startswith("big-endian"):
        picture = Image.frombytes("I;16B", (64, 40), RAMP.astype(">u2").tobytes())
    if format_name in ("I", "F"):
        picture = Image.fromarray(RAMP.astype({"I": np.int32, "F": np.float32}[format_name]))
    image = picture if "TIFF" not in format_name and format_name != "PNG" else encode(picture, format_name[-4:].strip())
    assert_close(pixels_of(image), np.rint(RAMP / 257)[..., None].repeat(3, -1).astype(int), 0)


def test_dark_16_bit_files_stay_dark():
    dark = Image.fromarray((RAMP // 300).astype(np.uint16))
    for format_name in ("PNG", "TIFF"):
        assert pixels_of(encode(dark, format_name)).max() <= 1


def test_12_bit_tiffs_are_scaled_by_their_own_white():
    row = bytes.fromhex("fff000800fff")  # 4095, 0, 2048, 4095
    content = tiff({256: 4, 257: 2, 258: 12, 259: 1, 262: 1, 277: 1, 278: 2}, row * 2)
    assert pixels_of(content)[..., 0].tolist() == [[255, 0, 128, 255]] * 2


def test_16_bit_rgb_pngs_keep_their_high_bytes():
    samples = np.stack([RAMP, RAMP[::-1], 65535 - RAMP], -1)
    content = png((40, 64), 16, 2, samples.astype(">u2").tobytes())
    assert_close(pixels_of(content), np.rint(samples / 257).astype(int))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([1e6, 1.5e6, 2e6], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.25, float("inf"), 1.0], [64, 255, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([-7.0] * 3, [0, 0, 0]),
    ],
)
def test_float_grey_takes_the_narrowest_usual_range(values, expected):
    picture = Image.fromarray(np.array([values], np.float32))
    assert pixels_of(picture)[0, :, 0].tolist() == expected
    assert pixels_of(encode(picture, "TIFF"))[0, :, 0].tolist() == expected


# Inks


def test_cmyk_is_the_same_inverted_by_adobe_or_not():
    inks = np.asarray(Image.fromarray(smooth_pixels()).convert("CMYK")).copy()
    inks[..., 3] = 40
    picture = Image.fromarray(inks, "CMYK")
    expected = np.rint((255 - inks[..., :3].astype(float)) * (255 - 40) / 255)
    adobe = encode(picture, "JPEG", quality=99)
    assert b"Adobe" in adobe
    assert_close(pixels_of(encode(picture, "TIFF")), expected)
    assert_close(pixels_of(picture), expected)
    assert np.abs(pixels_of(adobe) - expected).mean() <= 2


# Profiles


@pytest.mark.parametrize(("primaries", "gamma"), [(DISPLAY_P3, 2.2), (PROPHOTO, 1.8)], ids=["Display P3", "ProPhoto"])
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "JPEG", "picture"])
def test_rgb_profiles_are_converted_to_srgb(primaries, gamma, format_name):
    linear = (smooth_pixels() / 255) ** gamma
    expected = srgb_curve(linear @ primaries.T @ np.linalg.inv(SRGB_TO_D50).T)
    picture = Image.fromarray(smooth_pixels())
    picture.info["icc_profile"] = icc_rgb(primaries, gamma)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(format_name, {})
    profile = {"icc_profile": picture.info["icc_profile"]}
    image = picture if format_name == "picture" else encode(picture, format_name, **profile, **options)
    found = pixels_of(image)
    assert np.abs(found - expected).mean() <= (2 if format_name == "JPEG" else 0.5)
    assert np.abs(found - smooth_pixels()).mean() > 5
    assert pixel_key(read_image(read_image(image))) == pixel_key(read_image(image))


def test_profiles_hold_for_grey_palettes_and_colours_under_alpha():
    linear = icc_profile(b"GRAY", {b"kTRC": icc_curve(1.0)})
    content = encode(Image.fromarray(grey()), "PNG", icc_profile=linear)
    assert_close(pixels_of(content), np.rint(srgb_curve(grey() / 255))[..., None].repeat(3, -1), 2)
    deep = encode(Image.fromarray(grey().astype(np.uint16) * 257), "PNG", icc_profile=linear)
    assert_close(pixels_of(deep), pixels_of(content))
    picture = Image.fromarray(smooth_pixels())
    profile = icc_rgb(DISPLAY_P3, 2.2)
    colours = pixels_of(encode(picture, "PNG", icc_profile=profile))
    picture.putalpha(Image.fromarray(ALPHA))
    assert_close(pixels_of(encode(picture, "PNG", icc_profile=profile)), on_white(colours, ALPHA))
    palette = Image.fromarray(smooth_pixels()).quantize(8)
    expected = pixels_of(encode(palette.convert("RGB"), "PNG", icc_profile=profile))
    assert_close(pixels_of(encode(palette, "PNG", icc_profile=profile)), expected, 0)


@pytest.mark.parametrize("format_name", ["TIFF", "JPEG", "picture"])
def test_a_press_profile_decides_what_cmyk_looks_like(format_name):
    lightness = np.full((2, 2, 2, 2), 255)
    lightness[1] = 128  # full cyan prints as mid grey on this press
    lightness[..., 1] = 0
    for inks, level in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 128), ((0, 255, 0, 0), 255), ((0, 0, 0, 255), 0)):
        picture = Image.new("CMYK", (8, 8), inks)
        picture.info["icc_profile"] = icc_cmyk(lightness)
        image = picture if format_name == "picture" else encode(picture, format_name, icc_profile=icc_cmyk(lightness))
        luminance = ((level * 100 / 255 + 16) / 116) ** 3 if level else 0
        assert_close(pixels_of(image), np.full((8, 8, 3), srgb_curve(np.array(luminance)).round()), 3)


HUGE = icc_rgb(DISPLAY_P3, 2.2).ljust(5 * 2**20, b"\0")


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"x",
        b"acsp" * 99,
        icc_rgb(DISPLAY_P3, 2.2)[:200],
        icc_profile(b"RGB ", {}),
        icc_cmyk(np.zeros((2, 2, 2, 2))),
    ],
    ids=["empty", "short", "nonsense", "cut", "no curves", "of another space"],
)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP", "picture"])
def test_an_unfit_profile_is_ignored(profile, format_name):
    picture = Image.fromarray(smooth_pixels())
    plain = picture.copy() if format_name == "picture" else encode(picture, format_name)
    picture.info["icc_profile"] = profile
    tagged = picture if format_name == "picture" else encode(picture, format_name, icc_profile=profile)
    assert pixel_key(read_image(tagged)) == pixel_key(read_image(plain))


def test_a_huge_or_unreadable_profile_is_ignored():
    plain = encode(Image.fromarray(smooth_pixels()), "PNG")
    bodies = [b"huge\0\0" + zlib.compress(HUGE), b"odd\0\7" + zlib.compress(b"x"), b"\0\0garbage"]
    for content in [with_png_chunk(plain, png_chunk(b"iCCP", body)) for body in bodies]:
        assert pixel_key(read_image(content)) == pixel_key(read_image(plain))
    picture = Image.fromarray(smooth_pixels())
    assert pixel_key(read_image(encode(picture, "JPEG", icc_profile=HUGE))) == pixel_key(
        read_image(encode(picture, "JPEG"))
    )
    picture.info["icc_profile"] = "not even bytes"
    assert (pixels_of(picture) == smooth_pixels()).all()


def test_large_pictures_are_worked_through_in_bands(monkeypatch):
    monkeypatch.setattr("vision_encoder.image_colour.BAND_PIXELS", 200)  # three rows of 64 at a time, then one
    assert_close(pixels_of(Image.fromarray(RAMP)), np.rint(RAMP / 257)[..., None].repeat(3, -1).astype(int), 0)
    keys = pixel_key(read_image(smooth_pixels()))
    monkeypatch.undo()
    assert keys == pixel_key(read_image(smooth_pixels()))
