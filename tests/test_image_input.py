"""The gate as a whole: what goes in, what is refused before it costs anything, and what a refusal says."""

import base64
import dataclasses
import gc
import io
import os
import pickle
import re
import struct
import tempfile
import tracemalloc
import urllib.parse
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from tests.image_files import encode, exif, gif, noise_picture, png, png_chunk, smooth_pixels, webp_with_offset
from vision_encoder import image_decode
from vision_encoder.image_input import MAX_ESCAPES, ImageError, ImageLimits, encoded_bytes, pixel_key, read_image
from vision_encoder.image_limits import CODES

LEAK = re.compile(r"0x[0-9a-f]{4,}|Traceback|<|object at|\.py\b|(/\w+){2,}", re.I)
SMALL = ImageLimits(max_pixels=1000, max_bytes=4000)


def refusal(image, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(image, **options)
    return caught.value


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


# What goes in


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_way_in_gives_the_same_pixels(format_name, tmp_path):
    content = encode(Image.fromarray(smooth_pixels()), format_name)
    path = tmp_path / "picture.xyz"
    path.write_bytes(content)
    with Image.open(io.BytesIO(content)) as opened:
        ways = [path, str(path), content, bytearray(content), memoryview(content), data_url(content), opened]
        keys = {pixel_key(read_image(way)) for way in ways}
    picture = read_image(content)
    pixels = np.asarray(picture)
    ways = [picture, pixels, pixels.copy(order="F"), torch.tensor(pixels).permute(2, 0, 1)]
    assert keys | {pixel_key(read_image(way)) for way in ways} == {pixel_key(picture)}


def test_what_comes_out_is_bare_rgb_and_a_second_pass_changes_nothing():
    content = encode(noise_picture(), "JPEG", exif=exif(Orientation=6), comment=b"secret", dpi=(300, 300))
    picture = read_image(content)
    assert type(picture) is Image.Image
    assert (picture.mode, picture.info, dict(picture.getexif())) == ("RGB", {}, {})
    assert pixel_key(read_image(picture)) == pixel_key(picture)


def test_arrays_are_copied():
    pixels = smooth_pixels()
    before = pixels.copy()
    picture = read_image(pixels)
    pixels[:] = 0
    assert (np.asarray(picture) == before).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (1, 3), (3, 1)])
def test_axes_of_arrays_are_never_guessed(size):
    pixels = noise_picture(size)
    array = np.asarray(pixels)
    assert pixel_key(read_image(array)) == pixel_key(pixels)
    assert pixel_key(read_image(torch.tensor(array).permute(2, 0, 1))) == pixel_key(pixels)
    if size != (3, 3):
        assert refusal(array.transpose(2, 0, 1) if size[1] != 3 else array[..., :1]).code == "invalid_request"


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (10000, 1), (1, 2241), (1, 65500), (65500, 1)])
@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_extreme_shapes_pass(size, format_name):
    picture = read_image(encode(Image.new("RGB", (size[1], size[0]), (10, 200, 30)), format_name))
    assert (picture.height, picture.width) == size


def test_data_urls_may_be_percent_encoded_unpadded_and_mislabelled():
    content = encode(noise_picture(), "PNG")
    text = base64.b64encode(content).decode()
    key = pixel_key(read_image(content))
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for url in (
        "data:," + "".join(f"%{byte:02x}" for byte in content),
        f"DATA:text/html;charset=x;BASE64,{lines}",
        f"data:;base64,{text.rstrip('=')}",
        "data:;base64," + text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3d"),
        "data:;base64," + lines.replace("\n", "%0D%0a%20 \t"),
    ):
        assert pixel_key(read_image(url)) == key


def test_urls_are_fetched_only_by_the_hook_and_only_http():
    content, asked = encode(noise_picture(), "PNG"), []
    picture = read_image("https://example.org/a.png", fetch=lambda url: asked.append(url) or content)
    assert pixel_key(picture) == pixel_key(read_image(content))
    assert asked == ["https://example.org/a.png"]
    for url in ("file:///etc/passwd", "gopher://example.org/1", "ftp://example.org/a.png"):
        assert refusal(url, fetch=lambda url: asked.append(url) or content).code == "invalid_request"
    assert len(asked) == 1
    assert refusal("http://a/", fetch=lambda url: bytes(SMALL.max_bytes + 1), limits=SMALL).code == "image_too_large"


def test_pixels_already_held_are_not_encoded_bytes():
    for held in (noise_picture(), smooth_pixels(), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        assert encoded_bytes(held) is None


# What is refused before it costs anything


def jpeg_of_declared_size(height: int, width: int) -> bytes:
    content = encode(noise_picture((8, 8)), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def bmp_of_declared_size(height: int, width: int) -> bytes:
    content = encode(noise_picture((8, 8)), "BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


BOMBS = {
    "png": png((40000, 40000), 1, 0, b""),
    "gif": gif((20000, 20000), [(0, 0, np.zeros((2, 2), np.uint8))], palette=b""),
    # Disposal "to background": Pillow fills the frame's whole area while it opens the file.
    "gif frame": gif((9, 9), [(60000, 60000, np.zeros((2, 2), np.uint8))], palette=b"").replace(
        b"!\xf9\x04\0", b"!\xf9\x04\x08"
    ),
    "webp": webp_with_offset((16383, 16383), 0, 0, Image.new("RGB", (2, 2))),
    "jpeg": jpeg_of_declared_size(65500, 65500),
    "bmp": bmp_of_declared_size(30000, 30000),
    "tiff": encode(noise_picture((8, 8)), "TIFF").replace(
        struct.pack("<HHII", 257, 4, 1, 8), struct.pack("<HHII", 257, 4, 1, 100_000_000)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(name, monkeypatch):
    called = []
    monkeypatch.setattr(image_decode, "_load", lambda *arguments: called.append("load"))
    if name in ("png", "gif", "gif frame", "webp"):  # the formats in which opening is already costly
        monkeypatch.setattr(image_decode, "_open", lambda *arguments: called.append("open"))
    error = refusal(BOMBS[name])
    assert (error.code, called) == ("image_too_large", [])
    assert re.search(r"at most 50000000 pixels|than the 50000000 allowed", str(error))


def test_the_pixel_limit_itself_is_allowed_and_holds_for_pictures_too():
    limits = ImageLimits(max_pixels=600)
    for picture in (noise_picture((20, 30)), smooth_pixels((20, 30)), encode(noise_picture((30, 20)), "WEBP")):
        assert read_image(picture, limits=limits)
    tensor = torch.zeros(3, 20, 31, dtype=torch.uint8)
    for picture in (noise_picture((20, 31)), smooth_pixels((31, 20)), tensor, encode(noise_picture((31, 20)), "WEBP")):
        assert refusal(picture, limits=limits).code == "image_too_large"


def test_no_more_than_the_byte_limit_is_read_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "big"
    path.write_bytes(bytes(SMALL.max_bytes + 1))
    monkeypatch.setattr("builtins.open", lambda *arguments, **options: pytest.fail("opened"))
    assert refusal(path, limits=SMALL).code == "image_too_large"
    monkeypatch.undo()
    # A file that grows after the look: its size is not believed.
    small, stat_of = os.stat_result((0o100644, 0, 0, 1, 0, 0, 10, 0, 0, 0)), os.stat
    monkeypatch.setattr(os, "stat", lambda name, **rest: small if name == path else stat_of(name, **rest))
    assert len(encoded_bytes(path)) == 11


def test_long_texts_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", lambda *arguments, **options: pytest.fail("decoded"))
    assert refusal("data:;base64," + "A" * (4 * SMALL.max_bytes + 4), limits=SMALL).code == "image_too_large"


def test_many_escapes_are_refused_before_they_are_decoded(monkeypatch):
    """H2: each would become an object; 8 MiB of them took 650 MB."""
    monkeypatch.setattr(urllib.parse, "unquote_to_bytes", lambda *arguments: pytest.fail("decoded"))
    error = refusal("data:image/png," + "%41" * (MAX_ESCAPES + 1))
    assert (error.code, "send it as base64" in str(error)) == ("invalid_request", True)


@pytest.mark.parametrize("unit", ["AAA ", "AA\r\n", "%2B", "AAA%20"])
def test_base64_takes_a_few_times_its_size_however_it_is_written(unit):
    url = "data:;base64," + unit * 100_000
    tracemalloc.start()
    try:
        encoded_bytes(url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(url)


def unreadable(path, *arguments, **options):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "missing", "nul", "long", "loop", "denied"])
def test_only_regular_files_are_opened(kind, tmp_path, monkeypatch):
    path = tmp_path / "there"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "denied":
        path.write_bytes(b"x")
        monkeypatch.setattr("builtins.open", unreadable)
    path = {"device": "/dev/zero", "nul": "a\0b", "long": "x" * 5000}.get(kind, path)
    error = refusal(path)
    assert error.code == "invalid_request"
    assert tmp_path.name not in str(error)


# Formats by content


FOREIGN = {
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{ } loop\n",
    "PDF": b"%PDF-1.7\n",
    "PSD": b"8BPS\0\1" + bytes(20),
    "ICO": encode(noise_picture((16, 16)), "ICO"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
    "DDS": b"DDS |\0\0\0" + bytes(20),
    "FITS": b"SIMPLE  =                    T",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(20),
    "PNM": b"P6 2 2 255\n" + bytes(12),
    "HTML": b"<!DOCTYPE html><html></html>",
    "ZIP": b"PK\3\4" + bytes(20),
    "no known image format": b"Dear Sir or Madam,",
    "TGA": encode(noise_picture((16, 16)), "TGA"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", ["", ".png", ".eps"])
def test_other_formats_are_refused_by_name_whatever_the_file_is_called(name, suffix, tmp_path):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(FOREIGN[name])
    error = refusal(path)
    assert error.code == "image_unsupported"
    assert f"found {name};" in str(error)


@pytest.mark.parametrize("suffix", [".eps", ".svg", ".exe", ""])
def test_a_wrong_extension_or_media_type_does_not_matter(suffix, tmp_path):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encode(noise_picture(), "PNG"))
    assert pixel_key(read_image(path)) == pixel_key(noise_picture())


def test_eps_never_reaches_ghostscript(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: started.append("Ghostscript"))
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: started.append("subprocess"))
    content = encode(noise_picture(), "EPS")
    path = tmp_path / "picture.eps"
    path.write_bytes(content)
    with Image.open(io.BytesIO(content)) as lazily_opened:
        codes = [refusal(image).code for image in (content, path, data_url(content), lazily_opened)]
    assert (codes, started) == (["image_unsupported"] * 4, [])


def test_a_pil_image_of_a_foreign_format_is_taken_once_the_caller_has_decoded_it():
    with Image.open(io.BytesIO(encode(noise_picture(), "PPM"))) as image:
        assert "PPM" in str(refusal(image))
        image.load()
        assert pixel_key(read_image(image)) == pixel_key(noise_picture())


# What a refusal says


MESSAGES = {
    "empty": (b"", "image_empty", r"0 bytes; give the whole content"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "image_empty", r"0 x 5 pixels .*at least 1 x 1"),
    "empty picture": (Image.new("RGB", (0, 0)), "image_empty", r"0 x 0 pixels"),
    "zero width": (png((2, 0), 8, 2, b""), "image_empty", r"2 x 0 pixels"),
    "bytes": (bytes(5000), "image_too_large", r"more than 4000 bytes, the limit; save it smaller"),
    "pixels": (encode(Image.new("L", (40, 40)), "PNG"), "image_too_large", r"40 x 40 .* at most 1000 pixels .*smaller"),
    "text bomb": (
        png((2, 2), 8, 0, bytes(4), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 * 2**20)))),
        "image_too_large",
        r"PNG image has too much metadata; save it again without",
    ),
    "scans": (
        b"\xff\xd8" + b"\xff\xda\0\2" * 101 + b"\xff\xd9",
        "image_too_large",
        r"JPEG has 101 scans; expected at most 100; save it again",
    ),
    "foreign": (b"%PDF-1.4", "image_unsupported", r"found PDF; expected JPEG, PNG, WebP.*convert the image"),
    "undecoded": (
        Image.open(io.BytesIO(encode(noise_picture((4, 4)), "PPM"))),
        "image_unsupported",
        r"opened from PPM and not decoded yet; expected JPEG.*call its load\(\)",
    ),
    "cut": (
        encode(noise_picture((20, 20)), "PNG")[:-9],
        "image_truncated",
        r"PNG image ends before its first frame.*whole file; send it again",
    ),
    "damaged": (
        encode(Image.new("L", (9, 9)), "PNG").replace(b"IDAT\x78", b"IDAT\x79"),
        "image_corrupt",
        r"PNG image cannot be decoded: it is damaged, .*save it again as PNG",
    ),
    "type": ([1, 2], "invalid_request", r"type list; expected a path, bytes, a PIL image, .*give one"),
    "none": (None, "invalid_request", r"type NoneType; expected a path"),
    "missing": ("there is no such file", "invalid_request", r"found no file.*check the path"),
    "unreadable": ("a\0b", "invalid_request", r"cannot be read; check its path and its permissions"),
    "folder": (tempfile.gettempdir(), "invalid_request", r"folder, pipe or device; expected a regular file"),
    "http": ("https://x/y.png", "invalid_request", r"not fetched by default; send the image.*allow_urls=True"),
    "scheme": ("ftp://x/y.png", "invalid_request", r"scheme ftp; expected http, https or data:"),
    "no comma": ("data:image/png;base64", "invalid_request", r"without a comma; expected data:image/png;base64,"),
    "base64": ("data:;base64,!!!!", "invalid_request", r"valid base64; encode the file"),
    "surrogate": ("data:;base64,\ud800", "invalid_request", r"valid base64"),
    "grey array": (
        np.zeros((4, 5), np.uint8),
        "invalid_request",
        r"numpy array of shape \(4, 5\) and dtype uint8; expected \[h, w, 3\] uint8; .*stack grey",
    ),
    "alpha array": (np.zeros((4, 5, 4), np.uint8), "invalid_request", r"\(4, 5, 4\).*alpha as a PIL image"),
    "float array": (np.zeros((4, 5, 3)), "invalid_request", r"dtype float64; .*scale floats to 0 to 255"),
    "chw array": (np.zeros((3, 4, 5), np.uint8), "invalid_request", r"\(3, 4, 5\).*transpose\(1, 2, 0\)"),
    "hwc tensor": (
        torch.zeros(4, 5, 3, dtype=torch.uint8),
        "invalid_request",
        r"tensor of shape \(4, 5, 3\).*expected \[3, h, w\] uint8.*permute\(2, 0, 1\)",
    ),
    "float tensor": (torch.zeros(3, 4, 5), "invalid_request", r"tensor of shape .* dtype float32"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_refusal_says_what_was_found_what_is_expected_and_how_to_fix_it(case):
    image, code, pattern = MESSAGES[case]
    error = refusal(image, limits=SMALL)
    assert error.code == code
    assert re.search(pattern, str(error)), str(error)
    assert len(str(error)) <= 300
    assert not LEAK.search(str(error).replace("data:image/png", ""))


def test_a_failed_fetch_says_so_and_a_fetchers_own_refusal_stands():
    def unreachable(url):
        raise ConnectionError("10.0.0.1 refused at 0xdeadbeef")

    def private(url):
        raise ImageError("invalid_request", "the URL leads to a private address")

    assert str(refusal("http://x/", fetch=unreachable)) == "the image URL could not be fetched; send the image itself"
    assert str(refusal("http://x/", fetch=private)) == "the URL leads to a private address"


def test_a_closed_pil_image_is_refused():
    image = Image.open(io.BytesIO(encode(noise_picture(), "PNG")))
    image.close()
    error = refusal(image)
    assert (error.code, "closed already" in str(error)) == ("image_corrupt", True)


def test_errors_keep_their_code_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("image_corrupt", "found x")))
    assert (type(error), error.code, str(error)) == (ImageError, "image_corrupt", "found x")
    assert len(str(ImageError("image_corrupt", "x" * 999))) == 300
    with pytest.raises(KeyError, match="unknown image error code 'oops'"):
        ImageError("oops", "")


def test_limits_check_themselves():
    for name in ("max_bytes", "max_pixels", "max_scans"):
        for value in (0, -1, 1.5, True, "9"):
            with pytest.raises(ImageError, match=f"{name} is .*; give a whole number of 1 or more"):
                ImageLimits(**{name: value})
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImageLimits().max_bytes = 1


# Mutated files, and what they leave behind


def mutated(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    format_name = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")[seed % 6]
    content = bytearray(encode(noise_picture((12, 10), seed), format_name))
    for _ in range(1 + seed % 8):
        content[random.integers(min(len(content), 400))] = random.choice([0, 1, 127, 255, random.integers(256)])
    return bytes(content[: random.integers(len(content))] if seed % 3 == 0 else content)


def test_two_hundred_corrupt_images_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path, refused = tmp_path / "corrupt", []
    good = encode(noise_picture(), "PNG")
    read_image(good)  # libraries that open files of their own on first use have done so
    gc.collect()  # what other tests have dropped may hold files until then
    open_files = sorted(os.listdir("/proc/self/fd"))
    for seed in range(300):
        path.write_bytes(mutated(seed))
        try:
            assert read_image(path).mode == "RGB"
        except ImageError as error:
            refused.append(error)
    assert len(refused) >= 200
    assert {error.code for error in refused} <= CODES - {"invalid_request"}
    assert not [str(error) for error in refused if LEAK.search(str(error))]
    assert pixel_key(read_image(good)) == pixel_key(noise_picture())
    assert sorted(os.listdir("/proc/self/fd")) == open_files
    assert os.listdir(tmp_path / "temporary") == []


# Keys


def test_keys_tell_apart_what_raw_bytes_do_not():
    raw = bytes(range(256)) * 36
    shapes = [Image.frombytes("RGB", (width, len(raw) // 3 // width), raw) for width in (30, 32, 96, 100)[:3]]
    indices = Image.frombytes("P", (8, 8), bytes(range(64)))
    palettes = []
    for palette in (bytes(range(192)), bytes(reversed(range(192)))):
        indices.putpalette(palette)
        palettes.append(encode(indices, "PNG"))
    grey = encode(Image.frombytes("L", (96, 96), raw), "PNG")
    keys = [pixel_key(read_image(image)) for image in (*shapes, *palettes, grey)]
    assert len(set(keys)) == len(keys)


def test_keys_ignore_metadata_and_encoding():
    picture = noise_picture()
    tagged = encode(picture, "PNG", exif=exif(ImageID="b" * 36, ImageUniqueID="a" * 32))
    other = encode(noise_picture(seed=1), "PNG", exif=exif(ImageID="b" * 36, ImageUniqueID="a" * 32))
    assert pixel_key(read_image(tagged)) == pixel_key(read_image(encode(picture, "BMP"))) == pixel_key(picture)
    assert pixel_key(read_image(other)) != pixel_key(picture)


def test_keys_are_of_rgb_only():
    with pytest.raises(ImageError, match="found a P picture; expected RGB; call read_image first"):
        pixel_key(Image.new("P", (2, 2)))


@pytest.mark.parametrize(
    "turn", [lambda tensor: tensor.to("meta"), lambda tensor: tensor.to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_all_their_values_are_refused(turn):
    error = refusal(turn(torch.zeros(3, 4, 4, dtype=torch.uint8)))
    assert error.code == "invalid_request"
    assert "expected a dense one" in str(error)
