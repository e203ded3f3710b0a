"""What a file's bytes say before anything is decoded: its format, its size, and whether its first frame is whole.

Pure functions of bytes, which look at the container only, never at compressed pixels. They judge nothing, except that
those which walk a file raise ValueError ("... too large") where it is chopped into more than `MAX_BLOCKS`.
"""

import re
import struct
from collections.abc import Iterator

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are let in. A multi-picture JPEG (MPO) counts as JPEG."""
STATES_LENGTHS_LOOSELY = ("BMP", "TIFF")
MAX_BLOCKS = 2**19
"""Most segments, chunks or blocks that are walked: a GIF of 64 MiB has half as many. Beyond, Pillow would take long."""

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
    *((0, magic, "TIFF") for magic in (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")),
    # Named so that the refusal can say what was found.
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\0\0\2\0\0\0", "TGA"),
    (0, b"\0\0\x0a\0\0\0", "TGA"),
    (0, b"\0\0\2\0", "CUR"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif", "HEIC"),
    (4, b"ftypmsf", "HEIC"),
    (4, b"ftyp", "MP4"),
    (0, b"\x1a\x45\xdf\xa3", "WebM"),
    (8, b"AVI ", "AVI"),
    (0, b"DDS ", "DDS"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (0, b"qoif", "QOI"),
    (0, b"gimp xcf", "XCF"),
    (0, b"icns", "ICNS"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xd0\xcf\x11\xe0", "Microsoft Office"),
)
_MARKUP = ((re.compile(rb"<svg[\s>:]", re.I), "SVG"), (re.compile(rb"<(!doctype html|html)", re.I), "HTML"))
_TIFF_OFFSETS = {273: 279, 324: 325}
"""Tag that holds where the strips (or tiles) begin: tag that holds how many bytes each has."""
_TIFF_ITEMS = {3: "H", 4: "I", 5: "Q", 8: "H", 9: "I", 10: "Q", 11: "I", 12: "Q", 13: "I", 16: "Q", 17: "Q", 18: "Q"}
"""Kind of value: a letter of `struct` as wide as it; other kinds have one byte."""
_NETPBM = re.compile(rb"P[1-7Ff][\s#]")


def format_of(content: bytes) -> str | None:
    """Return the format of `content` by its first bytes, or None; only those in `FORMATS` are let in."""
    for offset, magic, name in _SIGNATURES:
        if content.startswith(magic, offset) and (name != "WEBP" or content.startswith(b"RIFF")):
            return name
    if _NETPBM.match(content):
        return "PNM"
    return next((name for pattern, name in _MARKUP if pattern.search(content[:1024])), None)


def declared_size(content: bytes, format_name: str) -> tuple[int, int] | None:
    """Return (height, width) where Pillow would allocate, or trip, before it tells the size; else None."""
    try:
        if format_name == "PNG" and content[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", content, 16)
            return height, width
        if format_name == "GIF":
            left, top, width, height = struct.unpack_from("<4H", content, _gif_first_image(content) + 1)
            screen_width, screen_height = struct.unpack_from("<HH", content, 6)
            # As in Pillow, a frame that reaches beyond the screen enlarges it.
            return max(screen_height, top + height), max(screen_width, left + width)
        if format_name == "WEBP" and content[12:16] == b"VP8X":
            return int.from_bytes(content[27:30], "little") + 1, int.from_bytes(content[24:27], "little") + 1
    except (struct.error, IndexError):
        pass  # the header itself is cut
    return None


def ends_early(content: bytes, format_name: str) -> bool:
    """Return whether bytes of the first frame are missing at the end of `content`.

    A still PNG must reach its IEND and a JPEG its EOI: what stands before them may turn the picture. A GIF needs no
    trailer, since one cut between two frames looks the same. BMP and TIFF state lengths that are wrong in some files
    that decode well (`STATES_LENGTHS_LOOSELY`): there the answer only explains why a decoder failed.
    """
    checks = {
        "JPEG": lambda content: _jpeg_scan_data(content)[1] < 0,
        "PNG": _png_ends_early,
        "GIF": _gif_ends_early,
        "WEBP": lambda content: struct.unpack_from("<I", content, 4)[0] + 8 > len(content),
        "BMP": lambda content: struct.unpack_from("<I", content, 2)[0] > len(content),
        "TIFF": _tiff_ends_early,
    }
    try:
        return format_name in checks and checks[format_name](content)
    except (struct.error, IndexError, OverflowError):  # it points beyond the end, the last by more than 2**63
        return True


def begins_a_format(content: bytes) -> bool:
    """Return whether `content` is so short that it could be the beginning of any of `FORMATS`."""
    if len(content) < 12 and b"RIFF".startswith(content[:4]):
        return True
    return any(name in FORMATS and offset == 0 and magic.startswith(content) for offset, magic, name in _SIGNATURES)


def num_jpeg_scans(content: bytes) -> int:
    """Return how many scans the first picture of a JPEG has."""
    start, end = _jpeg_scan_data(content)
    # 0xFFDA cannot occur in entropy-coded data; the first one stands before `start`.
    return 1 + content.count(b"\xff\xda", start, end if end >= 0 else None)


def without_png_profile(content: bytes) -> bytes | None:
    """Return a PNG without its colour profile, or None if it has none."""
    for chunk, start, end in _png_chunks(content):
        if chunk == b"iCCP":
            return content[:start] + content[end:]
        if chunk == b"IDAT":
            break
    return None


def webp_first_frame(content: bytes) -> bytes | None:
    """Return an animated WebP cut down to its first frame, or None if it is still or that frame is not whole."""
    position, kept = 12, []
    while position + 8 <= len(content):
        end = position + 8 + (struct.unpack_from("<I", content, position + 4)[0] + 1 & ~1)
        if end > len(content):
            return None
        kept.append(content[position:end])
        if content.startswith(b"ANMF", position):
            body = b"WEBP" + b"".join(kept)
            return b"RIFF" + struct.pack("<I", len(body)) + body
        position = end
    return None


def _block_budget() -> Iterator[int]:
    yield from range(MAX_BLOCKS)
    raise ValueError("the number of blocks is too large")


def _jpeg_scan_data(content: bytes) -> tuple[int, int]:
    """Return where the entropy-coded data of the first picture begins and where its EOI stands (-1: it has none)."""
    position, marker = 2, re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # a marker that has a length, or EOI
    for _ in _block_budget():
        found = marker.search(content, position)
        if not found or content[found.end() - 1] == 0xD9:
            break
        position = found.end() + struct.unpack_from(">H", content, found.end())[0]
        if content[found.end() - 1] == 0xDA:
            return position, content.find(b"\xff\xd9", position)
    return len(content), -1


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of each chunk; the last one's end may lie beyond the end of the content."""
    position = 8
    for _ in _block_budget():
        if position + 8 > len(content):
            return
        length, name = struct.unpack_from(">I4s", content, position)
        yield name, position, position + 12 + length
        position += 12 + length


def _png_ends_early(content: bytes) -> bool:
    animated = seen_pixels = False
    for name, _, end in _png_chunks(content):
        if not name.isalpha():
            return False  # damaged rather than cut
        if animated and seen_pixels and name not in (b"IDAT", b"IEND"):
            return False
        if end > len(content):
            return True
        if name == b"IEND":
            return False
        animated |= name == b"acTL"
        seen_pixels |= name == b"IDAT"
    return not (animated and seen_pixels)


def _gif_first_image(content: bytes) -> int:
    """Return where the descriptor of the first image stands. Raises: IndexError when the content ends before it."""
    position, budget = 13 + _gif_palette_bytes(content[10]), _block_budget()
    while content[position] != 0x2C:
        next(budget)
        position = _gif_after_blocks(content, position + 2, budget) if content[position] == 0x21 else position + 1
    return position


def _gif_ends_early(content: bytes) -> bool:
    image = _gif_first_image(content)
    # After the descriptor: a palette, the code size, then blocks of pixels.
    _gif_after_blocks(content, image + 10 + _gif_palette_bytes(content[image + 9]) + 1, _block_budget())
    return False


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_after_blocks(content: bytes, position: int, budget: Iterator[int]) -> int:
    """Return what follows a run of data blocks. Raises: IndexError when their terminator is missing."""
    while block_bytes := content[position]:
        next(budget)
        position += block_bytes + 1
    return position + 1


def _tiff_ends_early(content: bytes) -> bool:
    """Return whether the first directory, or a strip or tile that it names, reaches beyond the end."""
    order = "<" if content.startswith(b"II") else ">"
    if b"+" in content[:4]:  # BigTIFF
        position, count_format, entry_format = struct.unpack_from(order + "Q", content, 8)[0], "Q", "HHQ"
    else:
        position, count_format, entry_format = struct.unpack_from(order + "I", content, 4)[0], "H", "HHI"
    word = entry_format[-1]
    entry_bytes = struct.calcsize("<" + entry_format + word)
    count = struct.unpack_from(order + count_format, content, position)[0]
    position += struct.calcsize(count_format)
    values = {}
    for entry in range(position, position + count * entry_bytes, entry_bytes):
        tag, kind, num = struct.unpack_from(order + entry_format, content, entry)
        item = _TIFF_ITEMS.get(kind, "B")
        num_bytes, where = num * struct.calcsize(item), entry + entry_bytes - struct.calcsize(word)
        if num_bytes > struct.calcsize(word):
            where = struct.unpack_from(order + word, content, where)[0]
        if where + num_bytes > len(content):
            return True
        if tag in _TIFF_OFFSETS or tag in _TIFF_OFFSETS.values():
            values[tag] = struct.unpack_from(f"{order}{num}{item}", content, where)
    return any(
        start + num_bytes > len(content)
        for starts, lengths in _TIFF_OFFSETS.items()
        for start, num_bytes in zip(values.get(starts, ()), values.get(lengths, ()), strict=False)
    )
