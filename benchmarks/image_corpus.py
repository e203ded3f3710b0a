"""Put every file of a folder through the image gate, each in a fresh worker under limits, and count the verdicts.

    python -m benchmarks.image_corpus FOLDER [--timeout-s 5] [--memory-mib 1024] [--show]

OK is a picture, REJECT is an ImageError that keeps its promises, FAIL is all else. MUST-ACCEPT are the files that plain
Pillow decodes without an error in the gate's formats and within its pixel limit: a gate that refuses one is too strict.
The last line is one JSON object; the exit status is 1 if anything failed or a must-accept file was refused.
"""

import argparse
import collections
import io
import json
import re
import sys
import time
import warnings
from pathlib import Path

import PIL
from PIL import Image

from vision_encoder.decode_worker import DecodeWorker
from vision_encoder.image_container import FORMATS
from vision_encoder.image_limits import CODES, MAX_MESSAGE_CHARS, ImageError, ImageLimits
from vlm.machine import peak_bytes, processor

LIMITS = ImageLimits()
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|<_io|\.py\b|(?:/\w+){2,}")


def main() -> int:
    """Measure the folder named on the command line, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout-s", type=float, default=5.0)
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument("--show", action="store_true", help="print the verdict on every file")
    options = parser.parse_args()
    files = sorted(path for path in options.folder.rglob("*") if path.is_file())
    verdicts, slowest, largest, refused, over_limit = collections.Counter(), (0.0, ""), (0, ""), [], []
    num_must_accept, start = 0, time.perf_counter()
    for path in files:
        with DecodeWorker(timeout_s=options.timeout_s, max_memory_bytes=options.memory_mib * 2**20) as worker:
            verdict, wall_s, peak = judge(path, worker)
        verdicts[verdict] += 1
        slowest, largest = max(slowest, (wall_s, path.name)), max(largest, (peak, path.name))
        plain = plain_pillow(path)
        num_must_accept += plain == "reads"
        if plain == "reads" and verdict != "OK":
            refused.append(path.name)
        if plain == "over limit":
            over_limit.append(path.name)
        if options.show or verdict.startswith("FAIL"):
            print(f"{verdict:28} {wall_s:6.2f} s {peak / 2**20:6.0f} MiB  plain Pillow: {plain:10} {path.name}")
    num_failed = sum(count for verdict, count in verdicts.items() if verdict.startswith("FAIL"))
    print(f"{processor()}, Pillow {PIL.__version__}, {time.perf_counter() - start:.0f} s")
    for verdict, count in sorted(verdicts.items()):
        print(f"{count:6}  {verdict}")
    print(f"slowest {slowest[0]:.2f} s of {options.timeout_s:g} s ({slowest[1]}), starting the worker included")
    print(f"largest {largest[0] / 2**20:.0f} MiB of {options.memory_mib} MiB ({largest[1]})")
    print(f"must-accept: {num_must_accept - len(refused)} of {num_must_accept}; refused: {refused or 'none'}")
    print(f"read by plain Pillow but over the pixel limit: {over_limit or 'none'}")
    print(
        json.dumps(
            {
                "files": len(files),
                "verdicts": dict(sorted(verdicts.items())),
                "worst_s": round(slowest[0], 3),
                "worst_peak_bytes": largest[0],
                "must_accept": num_must_accept,
                "must_accept_refused": refused,
                "over_pixel_limit": over_limit,
            }
        )
    )
    return 1 if num_failed or refused else 0


def judge(path: Path, worker: DecodeWorker) -> tuple[str, float, int]:
    """Return the verdict on one file, the seconds it took and the worker's peak memory in bytes."""
    start = time.perf_counter()
    try:
        image = worker.read_image(path)
        verdict = "OK" if image.mode == "RGB" and min(image.size) > 0 and not image.info else "FAIL not a bare RGB"
    except ImageError as error:
        verdict = f"REJECT {error.code}"
        if error.code not in CODES or len(str(error)) > MAX_MESSAGE_CHARS or LEAK.search(str(error)):
            verdict = "FAIL message"
        if worker.pid is None:
            verdict = "FAIL worker lost"
    except Exception as error:  # noqa: BLE001 - any other exception is what this looks for
        verdict = f"FAIL {type(error).__name__}"
    return verdict, time.perf_counter() - start, 0 if worker.pid is None else peak_bytes(worker.pid)


def plain_pillow(path: Path) -> str:
    """Return what Pillow alone makes of the first frame: "reads", "refuses" or "over limit"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
                image.load()
                return "over limit" if image.width * image.height > LIMITS.max_pixels else "reads"
    except Exception:  # noqa: BLE001 - whatever Pillow raises, it has not read the file
        return "refuses"


if __name__ == "__main__":
    sys.exit(main())
