"""The 11B with a picture of four tiles in 8 GB: true shape, random weights, 4 bits, as a user has it.

    python -m benchmarks.eleven_b --dir /tmp [--tiles 1|2|4] [--tokens 64] [--layers 8] [--preset 11b-vision] [--keep]

Writes a Hugging Face folder of about 8 GB, tensor by tensor, into a folder of its own under --dir, which is removed at
the end; with --keep it stays for the next run. The model is then loaded from it with `low_memory=True`, a picture is
encoded, saved and loaded, as a second question would find it, and asked about. --layers takes that many text and vision
layers of the true widths, for a look that is short. Every stage is a line; the last line is JSON; status 1 where the
peak is above 8.0 GB.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vlm import VLM, GenerationConfig
from vlm.bench.limits import Work, product, reading
from vlm.bench.measure import machine
from vlm.bench.operations import encode_operations
from vlm.bench.random_folder import num_tensors, write_random
from vlm.bench.random_models import weights_read
from vlm.config import ModelConfig, preset
from vlm.images.cache import EncodedImage
from vlm.machine import peak_bytes

MAX_BYTES = 8_000_000_000
CANVASES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
_EVERY_S = 5.0
_QUESTION = "Which of the lines is the highest in the last year?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the weights may lie for a while")
    parser.add_argument("--tiles", type=int, choices=list(CANVASES), default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--preset", default="11b-vision")
    parser.add_argument(
        "--layers", type=int, choices=range(4, 33, 4), help="of text and of vision; all of them if left"
    )
    parser.add_argument("--keep", action="store_true", help="leave the weights for the next run")
    options = parser.parse_args()
    log = Log()
    log.say(str(machine()))
    config, name = preset(options.preset), f"eleven_b-{options.preset}-{options.layers or 'all'}"
    config = config if options.layers is None else shortened(config, options.layers)
    folder = options.dir / name if options.keep else Path(tempfile.mkdtemp(dir=options.dir))
    try:
        figures = measure(config, folder, CANVASES[options.tiles], options.tokens, log)
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    for name, value in figures.items():
        print(f"{name:36}{value:10.2f}")
    about = machine() | {name: getattr(options, name) for name in ("tiles", "tokens", "preset", "layers")}
    print(json.dumps(about | figures), flush=True)
    return int(figures["peak GB"] * 1e9 > MAX_BYTES)


class Log:
    """Says at once what is being done and since when, to a terminal or not."""

    def __init__(self):
        self.start = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:7.1f} s] {text}", flush=True)


class Progress:
    """Says how far a stage is: at most every few seconds, and at its end."""

    def __init__(self, log: Log, stage: str, total: int = 0):
        self.log, self.stage, self.total, self.count = log, stage, total, 0
        self.start = self.said = time.perf_counter()
        log.say(stage)

    def step(self, *_) -> None:
        self.reach(self.count + 1, self.total)

    def reach(self, count: int, total: int) -> None:
        self.count, now = count, time.perf_counter()
        taken, last = now - self.start, count == total
        if last or now - self.said >= _EVERY_S:
            left = f"took {taken:.1f} s" if last else f"{taken / count * (total - count):.0f} s left"
            self.log.say(f"  {self.stage}: {count:,} of {total:,}, {left}")
            self.said = now


class Limit:
    """What the machine can do at most, measured again and again in between: it changes from minute to minute."""

    def __init__(self, work: Work):
        self.work, self.times_s = work, list[float]()
        work.call()

    def take(self, *_) -> None:
        start = time.perf_counter()
        self.work.call()
        self.times_s.append(time.perf_counter() - start)

    @property
    def spent_s(self) -> float:
        return sum(self.times_s)

    @property
    def per_s(self) -> float:
        if not self.times_s:
            self.take()
        return self.work.amount * len(self.times_s) / self.spent_s


@contextmanager
def followed(log: Log, stage: str, modules: Sequence[nn.Module], limit: Limit | None = None) -> Iterator[None]:
    """Say how many of `modules` were run, and measure `limit` after each."""
    progress = Progress(log, stage, len(modules))
    watchers = (progress.step,) if limit is None else (progress.step, limit.take)
    hooks = [module.register_forward_hook(watcher) for module in modules for watcher in watchers]
    yield
    for hook in hooks:
        hook.remove()


def shortened(config: ModelConfig, num_layers: int) -> ModelConfig:
    """Return the shape with `num_layers` text layers and local vision layers, and a quarter as many of the others."""
    cross = config.adapter.cross_layers[: num_layers // 4]
    features = tuple(range(min(num_layers, len(config.vision.feature_layers))))
    vision = replace(
        config.vision, num_local_layers=num_layers, num_global_layers=num_layers // 4, feature_layers=features
    )
    decoder = replace(config.decoder, num_layers=num_layers)
    return ModelConfig(decoder=decoder, adapter=replace(config.adapter, cross_layers=cross), vision=vision)


def measure(config: ModelConfig, folder: Path, canvas: tuple[int, int], num_tokens: int, log: Log) -> dict[str, float]:
    """Return the figures of one picture and one reply."""
    if not (folder / "config.json").exists():
        written = Progress(log, "random weights written", num_tensors(config))
        write_random(config, folder, "int4", written.step)
    start, progress = time.perf_counter(), Progress(log, "weights read and arranged")
    vlm = VLM.from_pretrained(folder, device="cpu", low_memory=True, progress=progress.reach)
    loaded_s, loaded_peak = time.perf_counter() - start, peak_bytes()
    products = Limit(product(torch.bfloat16))
    start = time.perf_counter()
    encode(vlm, canvas, log, products).save(folder / "picture.safetensors")
    encoded_s, encoded_peak = time.perf_counter() - start - products.spent_s, peak_bytes()
    # Larger than any cache, and small beside the decoder.
    reads = Limit(reading(1 << 27, 0.05))
    first_s, tokens_per_s = reply(vlm, EncodedImage.load(folder / "picture.safetensors"), num_tokens, log, reads)
    throughput, bandwidth = products.per_s, reads.per_s
    token_bytes = weights_read(vlm.model, with_image=True)
    return {
        "weights read, s": loaded_s,
        "picture encoded, s": encoded_s,
        "GFLOP/s in bfloat16": throughput / 1e9,
        "share of matrix throughput": encode_operations(config, canvas[0] * canvas[1]) / throughput / encoded_s,
        "first token after that, s": first_s,
        "first token, s": encoded_s + first_s,
        "first token at 237 GFLOP/s, s": (encoded_s + first_s) * throughput / 237e9,
        "tokens/s": tokens_per_s,
        "tokens/s at 30 GB/s": 30e9 / bandwidth * tokens_per_s,
        "GB/s read": bandwidth / 1e9,
        "GB read per token": token_bytes / 1e9,
        "share of read bandwidth": token_bytes * tokens_per_s / bandwidth,
        "peak GB while loading": loaded_peak / 1e9,
        "peak GB while encoding": encoded_peak / 1e9,
        "peak GB": peak_bytes() / 1e9,
    }


def encode(vlm: VLM, canvas: tuple[int, int], log: Log, limit: Limit) -> EncodedImage:
    """Return a random picture of just the tiles of `canvas`, encoded."""
    encoder, side = vlm.model.encoder, vlm.model.config.vision.tile_size
    noise = torch.randint(0, 256, (canvas[0] * side, canvas[1] * side, 3), dtype=torch.uint8)
    layers = [*encoder.local_layers, *encoder.global_layers]
    with followed(log, "picture encoded, layer by layer", layers, limit):
        encoded = vlm.encode_image(Image.fromarray(noise.numpy()))
    if encoded.canvas != canvas:
        raise ValueError(f"the picture went onto {encoded.canvas}, not {canvas}")
    return encoded


def reply(vlm: VLM, encoded: EncodedImage, num_tokens: int, log: Log, limit: Limit) -> tuple[float, float]:
    """Return the seconds to the first token of a reply about the picture, and the tokens a second after it."""
    log.say("question read and answered")
    # The layers of the decoder are left alone: with anything that looks on they would be run one by one.
    watch = vlm.model.decoder.register_forward_hook(limit.take)
    parts = [{"type": "image", "image": encoded}, {"type": "text", "text": _QUESTION}]
    found = vlm.chat([{"role": "user", "content": parts}], config=GenerationConfig(max_new_tokens=num_tokens))
    watch.remove()
    count, timings = len(found.token_ids), found.timings
    log.say(f"  {count} tokens, {timings.prefill_s + timings.decode_s - limit.spent_s:.1f} s")
    # The limit is measured once after the prompt, and after each token but the last, which is not read.
    first, *later = limit.times_s
    # Random weights may end the reply before its second token.
    rate = max(0, count - 1) / (timings.decode_s - sum(later)) if later else 0.0
    return timings.encode_s + timings.prefill_s - first, rate


if __name__ == "__main__":
    sys.exit(main())
