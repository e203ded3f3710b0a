"""First frames, whole or cut, turned upright, however much metadata stands around them."""

import io
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from tests.image_files import (
    encode,
    exif,
    gif,
    noise_picture,
    png,
    png_chunk,
    smooth_pixels,
    tiff,
    webp_with_offset,
    with_png_chunk,
    xmp_orientation,
)
from vision_encoder import image_container
from vision_encoder.image_input import ImageError, ImageLimits, pixel_key, read_image

LENIENT = ImageLimits(allow_truncated=True)


def verdict(content: bytes, limits: ImageLimits | None = None) -> str:
    """Return the key of the picture, or the code of the refusal."""
    try:
        return pixel_key(read_image(content, limits=limits or ImageLimits()))
    except ImageError as error:
        return error.code


def refused(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(content)
    return caught.value.code


# Cut files


def ifd_first_tiff() -> bytes:
    pixels = noise_picture((8, 8)).convert("L").tobytes()
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 278: 8}  # 259: 8 is deflate, which libtiff decodes
    return tiff(tags, zlib.compress(pixels))


STILLS = {
    "png": encode(noise_picture(), "PNG"),
    "flat png": encode(Image.new("RGB", (64, 64)), "PNG"),
    "jpeg": encode(noise_picture(), "JPEG"),
    "progressive jpeg": encode(noise_picture(), "JPEG", progressive=True),
    "webp": encode(noise_picture(), "WEBP"),
    "lossless webp": encode(noise_picture(), "WEBP", lossless=True),
    "bmp": encode(noise_picture(), "BMP"),
    "tiff": encode(noise_picture(), "TIFF"),
    "lzw tiff": encode(noise_picture(), "TIFF", compression="tiff_lzw"),
    "ifd-first tiff": ifd_first_tiff(),
}


@pytest.mark.parametrize("name", STILLS)
def test_a_still_cut_anywhere_is_refused_the_same_way_every_time(name):
    content = STILLS[name]
    cuts = {len(content) * step // 20 for step in range(1, 20)} | set(range(1, 60)) | {len(content) - 1}
    cuts |= set(range(max(1, len(content) - 30), len(content)))
    verdicts = {cut: verdict(content[:cut]) for cut in cuts}
    assert set(verdicts.values()) == {"image_truncated"}
    assert verdict(content) != "image_truncated"


@pytest.mark.parametrize("name", ["gif", "flat gif"])
def test_a_gif_may_lack_its_trailer_and_nothing_else(name):
    content = encode(noise_picture() if name == "gif" else Image.new("P", (64, 64)), "GIF")
    assert {verdict(content[:cut]) for cut in range(1, len(content) - 1)} == {"image_truncated"}
    assert verdict(content[:-1]) == verdict(content)


def animation(format_name: str, **options) -> bytes:
    frames = [noise_picture(seed=seed) for seed in range(1, 4)]
    return encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options)


ANIMATIONS = {
    "gif": animation("GIF"),
    "webp": animation("WEBP"),
    "apng": animation("PNG"),
    "apng with a default image": animation("PNG", default_image=True),
    "mpo": animation("MPO"),
    "tiff": animation("TIFF"),
    "lzw tiff": animation("TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_an_animation_is_its_first_frame_and_may_be_cut_after_it(name):
    content = ANIMATIONS[name]
    whole = verdict(content)
    if name not in ("gif", "webp", "mpo"):
        assert whole == pixel_key(noise_picture(seed=1))
    cuts = [len(content) * step // 20 for step in range(1, 20)]
    verdicts = [verdict(content[:cut]) for cut in cuts]
    whole_from = next(index for index, found in enumerate(verdicts) if found == whole)
    assert 4 <= whole_from <= 8  # a third of the content is the first frame
    assert set(verdicts[:whole_from]) == {"image_truncated"}
    assert set(verdicts[whole_from:]) == {whole}


@pytest.mark.parametrize(
    ("format_name", "options"),
    [("PNG", {}), ("JPEG", {"subsampling": 0}), ("BMP", {}), ("TIFF", {}), ("GIF", {"interlace": False})],
)
def test_a_cut_file_is_taken_on_demand_as_far_as_it_goes(format_name, options):
    content = encode(noise_picture((96, 64)), format_name, **options)
    half = content[: len(content) // 2]
    whole, part = np.asarray(read_image(content)), np.asarray(read_image(half, limits=LENIENT))
    if format_name == "BMP":  # stored from the bottom up
        whole, part = whole[::-1], part[::-1]
    assert (whole[:24] == part[:24]).all()
    assert (whole[-24:] != part[-24:]).any()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert verdict(half) == "image_truncated"


def test_half_a_progressive_jpeg_is_coarse_on_demand():
    content = encode(Image.fromarray(smooth_pixels()), "JPEG", progressive=True)
    part = read_image(content[: len(content) * 3 // 4], limits=LENIENT)
    assert np.abs(np.asarray(part).astype(int) - smooth_pixels()).mean() < 20


def test_allowing_cuts_does_not_allow_damage():
    damaged = encode(Image.new("L", (9, 9)), "PNG").replace(b"IDAT\x78", b"IDAT\x79")
    assert verdict(damaged, LENIENT) == "image_corrupt"
    assert verdict(STILLS["png"][:20], LENIENT) == "image_truncated"
    assert verdict(STILLS["webp"][:-500], LENIENT) == "image_truncated"


# Turned upright


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels that a camera stores with `orientation` for the picture `upright` (EXIF 2.3, table 6)."""
    return {
        2: lambda: upright[:, ::-1],
        3: lambda: upright[::-1, ::-1],
        4: lambda: upright[::-1],
        5: lambda: upright.swapaxes(0, 1),
        6: lambda: np.rot90(upright, 1),
        7: lambda: upright[::-1, ::-1].swapaxes(0, 1),
        8: lambda: np.rot90(upright, -1),
    }.get(orientation, lambda: upright)()


def assert_upright(image) -> None:
    picture = read_image(image)
    assert picture.size == (64, 48)
    assert np.abs(np.asarray(picture).astype(int) - smooth_pixels()).mean() <= 2
    assert pixel_key(read_image(picture)) == pixel_key(picture)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_pictures_are_turned_upright_once(format_name, orientation):
    picture = Image.fromarray(np.ascontiguousarray(stored(smooth_pixels(), orientation)))
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format_name, {"quality": 97, "subsampling": 0})
    content = encode(picture, format_name, exif=exif(Orientation=orientation), **options)
    assert_upright(content)
    with Image.open(io.BytesIO(content)) as image:
        assert_upright(image)
        assert_upright(image)  # the first pass left the caller's own as it was


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_orientation_may_stand_in_xmp_alone(format_name, orientation):
    picture = Image.fromarray(np.ascontiguousarray(stored(smooth_pixels(), orientation)))
    xmp = xmp_orientation(orientation)
    if format_name == "PNG":
        content = with_png_chunk(encode(picture, "PNG"), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    elif format_name == "JPEG":
        content = encode(picture, "JPEG", xmp=xmp, quality=97, subsampling=0)
    else:
        content = encode(picture, "WEBP", xmp=xmp, lossless=True)
    assert_upright(content)


def test_exif_wins_over_xmp_and_pictures_in_memory_are_turned_too():
    picture = Image.fromarray(np.ascontiguousarray(stored(smooth_pixels(), 6)))
    options = {"exif": exif(Orientation=6), "quality": 97, "subsampling": 0}
    assert_upright(encode(picture, "JPEG", xmp=xmp_orientation(3), **options))
    picture.getexif()[0x0112] = 6
    assert_upright(picture)
    assert picture.getexif()[0x0112] == 6


def test_orientation_behind_the_pixels_of_a_png_counts():
    picture = Image.fromarray(np.ascontiguousarray(stored(smooth_pixels(), 8)))
    content = encode(picture, "PNG")
    chunk = png_chunk(b"eXIf", exif(Orientation=8).tobytes().removeprefix(b"Exif\0\0"))
    assert_upright(content[:-12] + chunk + content[-12:])


@pytest.mark.parametrize(
    "broken", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_unreadable_exif_costs_nothing(broken):
    plain = encode(noise_picture(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    assert verdict(plain[:2] + segment + plain[2:]) == verdict(plain)


# Frames


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_no_frame_but_the_first_is_visited(name, monkeypatch):
    owner, method = {
        "GIF": (GifImagePlugin.GifImageFile, "_seek"),
        "WEBP": (WebPImagePlugin.WebPImageFile, "_get_next"),
        "PNG": (PngImagePlugin.PngImageFile, "_seek"),
        "TIFF": (TiffImagePlugin.TiffImageFile, "_seek"),
    }[name]
    visits, original = [], getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda self, *frame: visits.append(frame) or original(self, *frame))
    frames = [noise_picture((4, 4), seed) for seed in range(50)]
    content = encode(frames[0], name, save_all=True, append_images=frames[1:])
    visits.clear()
    read_image(content)
    assert len(visits) == 1


def test_a_first_frame_with_an_offset_stands_in_its_place():
    indices = np.full((4, 6), 1, np.uint8)
    content = gif((10, 12), [(2, 3, indices)], palette=b"\0\0\xff\xff\0\0\0\xff\0", transparent=2)
    webp = webp_with_offset((10, 12), 2, 4, Image.new("RGB", (6, 4), (255, 0, 0)))
    for picture, left in ((read_image(content), 3), (read_image(webp), 4)):
        expected = np.full((10, 12, 3), 255, np.uint8)
        expected[2:6, left : left + 6] = (255, 0, 0)
        assert (np.asarray(picture) == expected).all()


def test_without_a_transparent_colour_a_gif_shows_its_first_colour_around_the_frame():
    content = gif((4, 4), [(1, 1, np.full((2, 2), 1, np.uint8))], palette=b"\0\0\xff\xff\0\0")
    picture = np.asarray(read_image(content))
    assert picture[0, 0].tolist() == [0, 0, 255]
    assert (picture[1:3, 1:3] == (255, 0, 0)).all()


def test_the_callers_frame_is_the_one_that_is_read():
    with Image.open(io.BytesIO(animation("PNG"))) as image:
        image.seek(2)
        assert pixel_key(read_image(image)) == pixel_key(noise_picture(seed=3))
        assert image.tell() == 2


# Metadata


def test_polyglots_are_what_they_begin_as():
    picture, page = encode(noise_picture(), "PNG"), b"<!doctype html><script>alert(1)</script>"
    assert verdict(picture + page) == verdict(picture)
    jpeg = encode(noise_picture(), "JPEG")
    assert verdict(jpeg + b"PK\3\4" + bytes(99)) == verdict(jpeg)
    assert verdict(page + picture) == "image_unsupported"


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_compressed_texts_are_not_blown_up(name):
    body = zlib.compress(bytes(2**21))
    body = b"key\0\0" + body if name == b"zTXt" else b"key\0\1\0\0\0" + body
    assert refused(with_png_chunk(STILLS["png"], png_chunk(name, body))) == "image_too_large"


def test_long_plain_texts_are_passed_over():
    chunk = png_chunk(b"iTXt", b"key\0\0\0\0\0" + b"x" * 3_000_000)
    assert verdict(with_png_chunk(STILLS["png"], chunk)) == verdict(STILLS["png"])


def test_an_exif_directory_that_leads_to_itself_ends():
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x8769, 4, 1, 8)
    entries += struct.pack("<HHII", 0x8825, 4, 1, 8)
    looped = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + struct.pack("<I", 8)
    picture = Image.fromarray(np.ascontiguousarray(stored(smooth_pixels(), 6)))
    assert_upright(encode(picture, "JPEG", exif=looped, quality=97, subsampling=0))
    assert_upright(encode(picture, "WEBP", exif=looped, lossless=True))


def progressive_with_scans(num_scans: int) -> bytes:
    content = STILLS["progressive jpeg"]
    last = content.rindex(b"\xff\xda")
    more = num_scans - content.count(b"\xff\xda")
    return content[:-2] + content[last:-2] * more + b"\xff\xd9"


def test_scans_are_counted_before_any_is_decoded(monkeypatch):
    assert len(verdict(progressive_with_scans(100))) == 64
    monkeypatch.setattr(Image, "open", lambda *arguments, **options: pytest.fail("opened"))
    assert refused(progressive_with_scans(500)) == "image_too_large"


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff\xe0\0\2" * 300 + b"\xff\xd9",
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"teSt", b"") * 300,
        b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1x\0" * 300,
        b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe" + b"\1x" * 300,
        b"GIF89a\1\0\1\0\0\0\0" + bytes(300),
    ],
    ids=["jpeg segments", "png chunks", "gif extensions", "gif blocks", "gif junk"],
)
def test_files_chopped_into_countless_blocks_are_refused(content, monkeypatch):
    monkeypatch.setattr(image_container, "MAX_BLOCKS", 200)
    monkeypatch.setattr(Image, "open", lambda *arguments, **options: pytest.fail("opened"))
    assert refused(content) == "image_too_large"


# Silence


def noisy_files() -> list[bytes]:
    """Return files that Pillow reads with a warning: an animation of no frames, a tag beyond the end of a file."""
    animated = with_png_chunk(STILLS["png"], png_chunk(b"acTL", bytes(8)))
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 8, 305: 7}
    tagged = tiff(tags, bytes(range(64)))
    beyond = struct.pack("<HHII", 305, 2, 99, 0xF000)
    return [animated, tagged.replace(struct.pack("<HHII", 305, 4, 1, 7), beyond)]


def test_pillow_warns_nobody_and_its_filters_are_put_back():
    for content in noisy_files():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            assert len(verdict(content)) == 64
            assert (caught, warnings.filters) == ([], filters)
            Image.open(io.BytesIO(content)).load()
            assert caught  # plain Pillow does warn


def test_many_threads_read_right_and_leave_the_filters_as_they_were():
    filters, keys, files = list(warnings.filters), [], [*noisy_files(), STILLS["png"]] * 8
    threads = [threading.Thread(target=lambda content=content: keys.append(verdict(content))) for content in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(keys) == sorted(verdict(content) for content in files)
    assert warnings.filters == filters


def test_libtiff_writes_nothing_to_standard_error_and_the_descriptor_is_put_back(tmp_path):
    path = tmp_path / "cut.tiff"
    path.write_bytes(ifd_first_tiff()[:-10])
    script = (
        "import sys; from PIL import Image; from vision_encoder.image_input import read_image\n"
        "for read in (read_image, lambda path: Image.open(path).load()):\n"
        "    try: read(sys.argv[1])\n"
        "    except (ValueError, OSError): print('refused', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    # Only plain Pillow, the second time, lets libtiff speak.
    assert done.stderr.startswith("refused\n")
    assert done.stderr.count("\n") > 2


# At full size


def report(name: str, start: float) -> None:
    print(f"{time.strftime('%Y-%m-%d')} {name}: {time.perf_counter() - start:.3f} s")


@pytest.mark.full
def test_full_size_bombs_and_pictures():
    row = zlib.compressobj(9)
    zeros = b"".join([*(row.compress(bytes(5001)) for _ in range(40000)), row.flush()])
    bomb = png((1, 1), 1, 0, b"\0").replace(png_chunk(b"IDAT", zlib.compress(b"\0\0")), png_chunk(b"IDAT", zeros))
    header = struct.pack(">IIBBBBB", 40000, 40000, 1, 0, 0, 0, 0)
    bomb = bomb[:8] + png_chunk(b"IHDR", header) + bomb[33:]
    frames = [(0, 0, np.full((8, 8), index % 100, np.uint8)) for index in range(10_000)]
    large = noise_picture((1200, 700)).resize((7000, 12000))
    cases = {
        "40000 x 40000 PNG": (bomb, "image_too_large"),
        "12000 x 7000 JPEG": (encode(large, "JPEG"), "image_too_large"),
        "7100 x 7000 JPEG": (encode(large.crop((0, 0, 7000, 7100)), "JPEG"), None),
        "10000 frames of GIF": (gif((8, 8), frames, palette=bytes(range(192))), None),
        "100 MB iTXt": (
            with_png_chunk(STILLS["png"], png_chunk(b"iTXt", b"k\0\0\0\0\0" + bytes(10**8))),
            "image_too_large",
        ),
        "500 scans": (progressive_with_scans(500), "image_too_large"),
    }
    for name, (content, code) in cases.items():
        start = time.perf_counter()
        found = verdict(content)
        report(f"{name}, {len(content)} bytes, {found[:20]}", start)
        assert found == code or (code is None and len(found) == 64)
