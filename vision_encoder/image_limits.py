"""What the image gate lets in, and the one error by which it refuses the rest."""

from dataclasses import dataclass, fields

CODES = frozenset(
    {"image_unsupported", "image_corrupt", "image_truncated", "image_too_large", "image_empty", "invalid_request"}
)
MAX_MESSAGE_CHARS = 300


class ImageError(ValueError):
    """A refused image: `code` is one of `CODES`, the message says what was found, what is expected, how to fix it.

    The message is ours alone. What Pillow said is dropped, for it may hold paths and addresses (CVE-2026-22778).
    """

    def __init__(self, code: str, message: str):
        if code not in CODES:
            raise KeyError(f"unknown image error code {code!r}; expected one of {sorted(CODES)}")
        super().__init__(message[:MAX_MESSAGE_CHARS])
        self.code = code

    def __reduce__(self):
        # Exceptions unpickle from `args`, which holds the message alone; data loaders send errors between processes.
        return ImageError, (self.code, str(self))


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """How large an image may be, and how whole it must be."""

    max_bytes: int = 64 * 2**20
    """Largest encoded image, in bytes; no more than this is ever read from a file."""
    max_pixels: int = 50_000_000
    """Largest height times width, by the header, before anything is decoded; 200 MB as decoded by Pillow."""
    max_scans: int = 100
    """Most scans in a progressive JPEG: each is a pass over the whole picture, and real ones have about ten."""
    allow_truncated: bool = False
    """Take a path, bytes or a `data:` URL whose end is missing, as far as it can be decoded; the rest is black."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ImageError("invalid_request", f"{field.name} is {value!r:.40}; give a whole number of 1 or more")

    def check_bytes(self, num_bytes: int) -> None:
        """Refuse an encoded image of `num_bytes`. Raises: ImageError (image_empty, image_too_large)."""
        if num_bytes == 0:
            raise ImageError("image_empty", "the image has 0 bytes; give the whole content of an image file")
        if num_bytes > self.max_bytes:
            raise ImageError(
                "image_too_large",
                f"the image has more than {self.max_bytes} bytes, the limit; save it smaller or more compressed",
            )

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse a picture of `size` (height, width). Raises: ImageError (image_empty, image_too_large)."""
        height, width = size
        if height < 1 or width < 1:
            raise ImageError(
                "image_empty", f"the image is {height} x {width} pixels (height x width); expected at least 1 x 1"
            )
        if height * width > self.max_pixels:
            raise ImageError(
                "image_too_large",
                f"the image is {height} x {width} pixels (height x width); expected at most {self.max_pixels} pixels "
                "in all; make it smaller before sending it",
            )
