"""Small image files for the tests of the image gate, several of them such as no library would write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (48, 64)
"""(height, width) of the pictures made here."""


def smooth_pixels(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return [h, w, 3] uint8 gradients without any symmetry, which JPEG keeps well."""
    height, width = size
    rows, cols = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([cols * 255, rows * 255, 255 * (1 - cols * rows)], -1).round().astype(np.uint8)


def noise_picture(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """Return an RGB picture of noise: no two bytes of its file can be spared."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encode(picture: Image.Image, format_name: str, **options) -> bytes:
    """Return `picture` as a file's content."""
    buffer = io.BytesIO()
    picture.copy().save(buffer, format_name, **options)  # a copy: saving leaves settings behind on some modes
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return one PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(size: tuple[int, int], depth: int, colour_type: int, rows: bytes, chunks: bytes = b"") -> bytes:
    """Return a PNG of unfiltered `rows`, packed but without their filter bytes, with `chunks` before the pixels."""
    height, width = size
    row_bytes = len(rows) // height if height else 0
    filtered = b"".join(b"\0" + rows[top : top + row_bytes] for top in range(0, len(rows), row_bytes or 1))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + pixels + png_chunk(b"IEND", b"")


def with_png_chunk(content: bytes, chunk: bytes) -> bytes:
    """Return a PNG with `chunk` put right behind its header."""
    return content[:33] + chunk + content[33:]


def gif(screen: tuple[int, int], frames: list, *, palette: bytes, transparent: int | None = None) -> bytes:
    """Return a GIF of `frames`, each (top, left, [h, w] uint8 indices below 128)."""
    content = b"GIF89a" + struct.pack("<HHBBB", screen[1], screen[0], 0x80 | 6, 0, 0) + palette.ljust(3 * 128, b"\0")
    for top, left, indices in frames:
        flags = 0 if transparent is None else 1
        content += b"!\xf9\x04" + struct.pack("<BHB", flags, 1, transparent or 0) + b"\0"
        content += b"," + struct.pack("<HHHHB", left, top, indices.shape[1], indices.shape[0], 0) + b"\x07"
        # Codes stay 8 bits wide, a byte each, as long as the table is cleared (128) often; 129 ends.
        flat = indices.tobytes()
        codes = b"".join(b"\x80" + flat[start : start + 100] for start in range(0, len(flat), 100)) + b"\x81"
        for start in range(0, len(codes), 255):
            block = codes[start : start + 255]
            content += bytes([len(block)]) + block
        content += b"\0"
    return content + b";"


def webp_with_offset(canvas: tuple[int, int], top: int, left: int, frame: Image.Image) -> bytes:
    """Return an animated WebP of one frame that does not fill the canvas."""
    bitstream = encode(frame, "WEBP", lossless=True)[12:]

    def uint24(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    place = [left // 2, top // 2, frame.width - 1, frame.height - 1, 100]
    body = b"WEBP" + chunk(b"VP8X", b"\x12\0\0\0" + uint24(canvas[1] - 1) + uint24(canvas[0] - 1))
    body += chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", b"".join(map(uint24, place)) + b"\0" + bitstream)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(tags: dict[int, int], strip: bytes) -> bytes:
    """Return a little-endian TIFF whose directory stands before its one strip; `tags` are all 32-bit numbers."""
    tags = {**tags, 279: len(strip)}
    strip_at = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted({**tags, 273: strip_at}.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4) + strip


def exif(**tags: int) -> Image.Exif:
    """Return EXIF with `Orientation` or other tags given by name."""
    made = Image.Exif()
    for name, value in tags.items():
        made[{"Orientation": 0x0112, "ImageID": 0x800D, "ImageUniqueID": 0xA420}[name]] = value
    return made


def xmp_orientation(orientation: int) -> bytes:
    """Return an XMP packet that says nothing but how the picture is turned."""
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def icc_profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """Return an ICC profile of version 2 with `tags` and a white point of D50."""
    white = struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, **tags}
    table, bodies, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, body in tags.items():
        body += b"\0" * (-len(body) % 4)
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body
    header = struct.pack(">IIH2x4s4s4s12s4s", at + len(bodies), 0, 0x0240, b"mntr", space, pcs, bytes(12), b"acsp")
    return header.ljust(68, b"\0") + white.ljust(60, b"\0") + table + bodies


def icc_curve(gamma: float) -> bytes:
    """Return the body of a tone curve tag."""
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def icc_rgb(primaries: np.ndarray, gamma: float) -> bytes:
    """Return the profile of an RGB space, by its [3 of XYZ, 3 of RGB] matrix to D50 and its gamma."""
    tags = {}
    for name, column in zip("rgb", primaries.T, strict=True):
        xyz = struct.pack(">3i", *(round(value * 65536) for value in column))
        tags[f"{name}XYZ".encode()] = b"XYZ \0\0\0\0" + xyz
        tags[f"{name}TRC".encode()] = icc_curve(gamma)
    return icc_profile(b"RGB ", tags)


def icc_cmyk(corners: np.ndarray) -> bytes:
    """Return the profile of a press, by the L* (0 to 255, neutral) of each of the [2, 2, 2, 2] full or empty inks."""
    identity = struct.pack(">9i", *(65536 * (cell % 4 == 0) for cell in range(9)))
    ramp = bytes(range(256))
    lab = np.stack([corners, np.full_like(corners, 128), np.full_like(corners, 128)], -1).astype(np.uint8)
    body = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + lab.tobytes() + ramp * 3
    return icc_profile(b"CMYK", {b"A2B0": body}, pcs=b"Lab ")
