"""The 11B with a picture of four tiles in 8 GB: true shape, random weights, 4 bits, made tensor by tensor on disk.

    python -m benchmarks.eleven_b --dir /tmp [--tiles 1|2|4] [--tokens 64] [--layers 8] [--preset 11b-vision] [--keep]

Writes about 8 GB into a folder of its own under --dir, which is removed at the end; with --keep it stays, and what is
whole in it is not written again. First the vision tower is mapped from disk, encodes the picture, and is let go; then
the decoder is read and the embedding mapped, of which only the rows of the tokens are ever read. The encoded picture is
saved and loaded in between, as a second question would find it. --layers takes that many text and vision layers of the
true widths, for a look that is short. Every stage is a line; the last line is JSON; status 1 where the peak is above
8.0 GB.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask
from vlm.bench.limits import Work, product, reading
from vlm.bench.measure import machine
from vlm.bench.operations import encode_operations, random_pixels
from vlm.bench.random_models import random_tensor, shaped_model, weights_read
from vlm.config import ModelConfig, preset
from vlm.image_cache import EncodedImage
from vlm.kv_cache import empty_cache
from vlm.model import VisionLanguageModel
from vlm.quantization.linear import arrange_layers

MAX_BYTES = 8_000_000_000
CANVASES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
_PROMPT = 32
_EVERY_S = 5.0


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
        with torch.inference_mode():
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

    def __init__(self, log: Log, stage: str, total: int):
        self.log, self.stage, self.total, self.count = log, stage, total, 0
        self.start = self.said = time.perf_counter()
        log.say(stage)

    def step(self, *_) -> None:
        self.count += 1
        now = time.perf_counter()
        taken, last = now - self.start, self.count == self.total
        if last or now - self.said >= _EVERY_S:
            left = f"took {taken:.1f} s" if last else f"{taken / self.count * (self.total - self.count):.0f} s left"
            self.log.say(f"  {self.stage}: {self.count} of {self.total}, {left}")
            self.said = now


class Limit:
    """What the machine can do at most, measured again and again in between: it changes from minute to minute."""

    def __init__(self, work: Work):
        self.work, self.spent_s, self.count = work, 0.0, 0
        work.call()

    def take(self, *_) -> None:
        start = time.perf_counter()
        self.work.call()
        self.spent_s += time.perf_counter() - start
        self.count += 1

    @property
    def per_s(self) -> float:
        if not self.count:
            self.take()
        return self.work.amount * self.count / self.spent_s


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
    model = shaped_model(config, "int4")
    write(model, folder, log)
    products = Limit(product(torch.bfloat16))
    start = time.perf_counter()
    encode(model, folder, canvas, log, products).save(folder / "picture.safetensors")
    encoded_s, encoded_peak = time.perf_counter() - start - products.spent_s, peak_bytes()
    read_s = read_decoder(model, folder, log)
    # Larger than any cache, and small beside the decoder.
    reads = Limit(reading(1 << 27, 0.05))
    first_s, per_token_s = reply(model, EncodedImage.load(folder / "picture.safetensors"), num_tokens, log, reads)
    throughput, bandwidth = products.per_s, reads.per_s
    token_bytes = weights_read(model, with_image=True)
    return {
        "picture encoded, s": encoded_s,
        "GFLOP/s in bfloat16": throughput / 1e9,
        "share of matrix throughput": encode_operations(config, canvas[0] * canvas[1]) / throughput / encoded_s,
        "decoder read, s": read_s,
        "first token after that, s": first_s,
        "first token, s": encoded_s + first_s,
        "first token at 237 GFLOP/s, s": (encoded_s + first_s) * throughput / 237e9,
        "tokens/s": 1 / per_token_s,
        "tokens/s at 30 GB/s": 30e9 / bandwidth / per_token_s,
        "GB/s read": bandwidth / 1e9,
        "GB read per token": token_bytes / 1e9,
        "share of read bandwidth": token_bytes / per_token_s / bandwidth,
        "peak GB while encoding": encoded_peak / 1e9,
        "peak GB": peak_bytes() / 1e9,
    }


def write(model: VisionLanguageModel, folder: Path, log: Log) -> None:
    """Write random weights, a file for each part of the model that is read as a whole; those that are there stay."""
    folder.mkdir(exist_ok=True)
    parts = {file: names for file, names in files(model).items() if not (folder / file).exists()}
    progress = Progress(log, f"weights written into {folder}", len(parts))
    for file, names in parts.items():
        # Under its name only when it is whole.
        part = folder / f"{file}.part"
        save_file({name: random_tensor(model, name) for name in names}, part)
        part.replace(folder / file)
        progress.step()


def files(model: VisionLanguageModel) -> dict[str, list[str]]:
    """Return which tensors stand in which file: the vision tower, the embedding, a file a layer, the rest."""
    parts: dict[str, list[str]] = {}
    for name in model.state_dict():
        first, second, *more = name.split(".")
        part = "vision" if first != "decoder" else f"layer-{more[0]}" if second == "layers" else second
        parts.setdefault(f"{part}.safetensors", []).append(name)
    return parts


def encode(model: VisionLanguageModel, folder: Path, canvas: tuple[int, int], log: Log, limit: Limit) -> EncodedImage:
    """Return a random picture encoded, by a tower that is mapped from disk and let go afterwards."""
    put(model, load_file(folder / "vision.safetensors"))
    layers = [*model.encoder.local_layers, *model.encoder.global_layers]
    with followed(log, "picture encoded, layer by layer", layers, limit):
        features, tokens = model.encode(random_pixels(model.config, canvas), [canvas])
    log.say(f"  picture projected; {peak_bytes() / 1e9:.2f} GB at most so far")
    model.encoder = model.projector = None
    side = model.config.vision.tile_size
    size = (canvas[0] * side, canvas[1] * side)
    return EncodedImage(features=features[0], tokens=tokens[0], canvas=canvas, size=size, model_key="random")


def read_decoder(model: VisionLanguageModel, folder: Path, log: Log) -> float:
    """Read the decoder layer by layer, each arranged for its kernels before the next; the embedding stays on disk.

    Returns the seconds.
    """
    names = sorted(set(files(model)) - {"vision.safetensors"})
    progress = Progress(log, "decoder read and arranged, part by part", len(names))
    for file in names:
        tensors = load_file(folder / file)
        # What is arranged is copied anyway; the rest must not keep its file mapped.
        mapped = file.startswith("embedding")
        put(model, tensors if mapped else {name: tensor.clone() for name, tensor in tensors.items()})
        del tensors
        if file.startswith(("layer", "head")):
            arrange_layers(model.decoder.head if file.startswith("head") else _layer(model, file))
        progress.step()
    model.eval()
    return time.perf_counter() - progress.start


def put(model: VisionLanguageModel, tensors: dict[str, Tensor]) -> None:
    """Give the parts of `model` that `tensors` names their weights."""
    unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    if unexpected:
        raise ValueError(f"the files hold {unexpected[:3]}, which the model has not; give another --dir")


def reply(
    model: VisionLanguageModel, encoded: EncodedImage, num_tokens: int, log: Log, limit: Limit
) -> tuple[float, float]:
    """Return the seconds to the first token of a reply about the picture, and for each token after it."""
    decoder, config = model.decoder, model.config.decoder
    start, mask = time.perf_counter(), CrossMask(None, None)
    image = image_keys(model, encoded, log)
    cache = empty_cache(config, 1, _PROMPT + num_tokens, dtype=torch.bfloat16, device=torch.device("cpu"))
    with followed(log, f"{_PROMPT} tokens of the prompt read, layer by layer", list(decoder.layers)):
        output = decoder(torch.arange(_PROMPT)[None], cache, image, mask)
    ids = decoder.logits(output.hidden[:, -1:]).argmax(-1)
    first = time.perf_counter()
    progress = Progress(log, "further tokens", num_tokens - 1)
    for _ in range(num_tokens - 1):
        output = decoder(ids, output.cache, image, mask)
        ids = decoder.logits(output.hidden[:, -1:]).argmax(-1)
        progress.step()
        limit.take()
    return first - start, (time.perf_counter() - first - limit.spent_s) / max(1, num_tokens - 1)


def image_keys(model: VisionLanguageModel, encoded: EncodedImage, log: Log) -> ImageKV:
    """Return the keys and values of the picture for every layer that looks at it."""
    norms = [part for name, part in model.decoder.named_modules() if name.endswith("k_norm")]
    with followed(log, "keys and values of the picture, layer by layer", norms):
        return model.decoder.image_kv(encoded.tokens.flatten(0, 1)[None])


def peak_bytes() -> int:
    """Return the most memory this process ever held, mapped files counted."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _layer(model: VisionLanguageModel, file: str) -> torch.nn.Module:
    return model.decoder.layers[int(file.removesuffix(".safetensors").removeprefix("layer-"))]


if __name__ == "__main__":
    sys.exit(main())
