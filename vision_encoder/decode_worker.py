"""Decoding in a process of its own that can be killed: for servers, where an image may be an attack.

The worker has limits on memory, processor time and open files, no standard error, and little of the environment. What
comes back from it is a line of JSON and plain pixels, never a pickle: a worker that an image has taken over must not
take over its parent. It imports Pillow and nothing heavier.
"""

import contextlib
import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from vision_encoder.image_colour import row_bands
from vision_encoder.image_decode import decode_bytes
from vision_encoder.image_input import DEFAULT_LIMITS, Fetch, encoded_bytes, read_image
from vision_encoder.image_limits import CODES, ImageError, ImageLimits

_LENGTH = struct.Struct("<Q")
_MAX_REPLY_LINE = 2048
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


class DecodeWorker:
    """Reads images as `read_image` does, decoding them in a child process under limits.

    The child starts with the first image and stays; it is killed when an image takes too long, and a new one starts
    with the next image. One image at a time: threads that share a worker wait for each other, and a server keeps as
    many workers as it wants images decoded at once. A forked process makes its own. Use it as a context manager, or
    call `close`; should both be forgotten, the child ends when its input does.
    """

    def __init__(
        self,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        timeout_s: float = 20.0,
        max_memory_bytes: int = 2**30,
    ):
        """`timeout_s` is per image, starting the child included; `max_memory_bytes` is the child's address space."""
        self.limits = limits
        self.timeout_s = timeout_s
        self.max_memory_bytes = max_memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "DecodeWorker":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the child. The worker can be used again: it starts a new one."""
        with self._lock:
            self._stop()

    def read_image(self, image, *, fetch: Fetch | None = None) -> Image.Image:
        """Return `image` as an upright RGB picture; what holds pixels already is converted in this process.

        Raises: ImageError as `vision_encoder.read_image` does; image_too_large also when time or memory runs out, and
            image_corrupt also when decoding ends the child.
        """
        content = encoded_bytes(image, limits=self.limits, fetch=fetch)
        if content is None:
            return read_image(image, limits=self.limits)
        with self._lock:
            return self._decode(content)

    def _decode(self, content: bytes) -> Image.Image:
        process = self._running()
        timed_out = threading.Event()
        watchdog = threading.Timer(self.timeout_s, lambda: (timed_out.set(), process.kill()))
        watchdog.daemon = True
        watchdog.start()
        reply = None
        try:
            process.stdin.write(_LENGTH.pack(len(content)) + content)
            process.stdin.flush()
            reply = _read_reply(process.stdout, self.limits)
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            pass  # it died, or talks nonsense: the same to us
        finally:
            watchdog.cancel()
            watchdog.join()
            if timed_out.is_set() or reply is None:
                self._stop()
        if reply is None:
            raise _lost(timed_out.is_set(), self.timeout_s)
        if reply.error:
            raise reply.error
        return Image.frombytes("RGB", (reply.size[1], reply.size[0]), reply.pixels)

    def _running(self) -> subprocess.Popen:
        if self._process and self._process.poll() is not None:
            self._stop()
        if not self._process:
            settings = {
                "limits": dataclasses.asdict(self.limits),
                "timeout_s": self.timeout_s,
                "max_memory_bytes": self.max_memory_bytes,
            }
            kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
            # One thread: numpy's others would each claim address space.
            kept |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vision_encoder.decode_worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=kept,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        return self._process

    def _stop(self) -> None:
        if self._process:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # a broken pipe with bytes still to write
                    pipe.close()
            self._process.wait()
            self._process = None


class _Reply(NamedTuple):
    error: ImageError | None
    size: tuple[int, int]
    pixels: bytes


def _read_reply(stream: BinaryIO, limits: ImageLimits) -> _Reply | None:
    """Return the child's answer, or None if it ends early. Raises errors of many kinds where it is not one."""
    line = stream.readline(_MAX_REPLY_LINE)
    if not line.endswith(b"\n"):
        return None
    answer = json.loads(line)
    if answer.get("code") in CODES:
        return _Reply(ImageError(answer["code"], str(answer.get("message"))), (0, 0), b"")
    height, width = int(answer.get("height", 0)), int(answer.get("width", 0))
    limits.check_size((height, width))
    pixels = stream.read(height * width * 3)
    return _Reply(None, (height, width), pixels) if len(pixels) == height * width * 3 else None


def _lost(timed_out: bool, timeout_s: float) -> ImageError:
    if timed_out:
        return ImageError(
            "image_too_large",
            f"the image was not decoded within {timeout_s:g} s; make it smaller or save it again as PNG or JPEG",
        )
    return ImageError(
        "image_corrupt",
        "decoding the image ended its process: it is damaged or needs too much memory; save it again as PNG or JPEG",
    )


def main() -> None:
    """Decode images from standard input to standard output until it ends, under the limits in argument 1."""
    settings = json.loads(sys.argv[1])
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a decoder that prints must not write into the replies
    _limit_resources(settings["max_memory_bytes"])
    limits = ImageLimits(**settings["limits"])
    while header := requests.read(_LENGTH.size):
        _limit_seconds(settings["timeout_s"])
        content = requests.read(_LENGTH.unpack(header)[0])
        try:
            image = decode_bytes(content, limits)
        except ImageError as error:
            _answer(replies, code=error.code, message=str(error))
        else:
            _answer(replies, height=image.height, width=image.width)
            for _, band in row_bands(image):
                replies.write(band.tobytes())
            del image
        replies.flush()


def _answer(replies: BinaryIO, **answer) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")


def _limit_resources(max_memory_bytes: int) -> None:
    import resource  # POSIX only; here, so that the rest can be imported anywhere

    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    for nothing in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(nothing, (0, 0))


def _limit_seconds(timeout_s: float) -> None:
    """Let the kernel end this process soon after the parent would have: for when the parent is gone."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
