"""The 11B's shape on a CUDA GPU, random weights: each operation as a share of what the GPU can do.

    python -m benchmarks.gpu [--preset 11b-vision] [--rows limits shipped picture decode batch context peer]
    python -m benchmarks.gpu --rows capped --dir FOLDER --gigabytes 24 --quantize none

Needs some minutes, 24 GB of GPU memory, and for `batch` and `context` 60; a row that fails says so. `peer` is
transformers with the same weights, which go through a folder of 22 GB and take twice the memory; it is left out unless
it is named. `capped` writes that folder to --dir, allows --gigabytes of the GPU's memory to be used, loads the model as
anybody would and asks it about a picture of 4 tiles. The last line is JSON; without a GPU it says that nothing was run.
"""

import argparse
import functools
import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from vlm import VLM, GenerationConfig
from vlm.bench import operations
from vlm.bench.measure import Call, machine
from vlm.bench.random_folder import write_random
from vlm.bench.random_models import random_model, weights_read
from vlm.config import ModelConfig, preset
from vlm.model import VisionLanguageModel
from vlm.quantization import PRECISIONS

DEVICE = "cuda"
EXAMPLES = Path(__file__).parent.parent / "examples"
CANVASES = ((1, 1), (1, 2), (2, 2))
BATCHES, CONTEXTS = (1, 8, 32, 64), (1024, 8192, 32768, 131071)
# As the manufacturer says, bytes a second.
SPECIFIED = {"H100": 3.35e12, "H200": 4.8e12, "A100-SXM4-80GB": 2.039e12, "RTX 4090": 1.008e12}
_CONTEXT, _PROMPT, _SIDE, _COPIED, _NEW_TOKENS = 128, 512, 8192, 1 << 32, 512
_QUESTION = "Which of the lines is the highest in the last year?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="11b-vision")
    parser.add_argument(
        "--rows", nargs="+", choices=[*ROWS, "capped"], default=[name for name in ROWS if name != "peer"]
    )
    parser.add_argument("--dir", type=Path, help="where the weights of `capped` may lie for a while")
    parser.add_argument("--gigabytes", type=float, default=24)
    parser.add_argument("--quantize", choices=["none", "int8", "int4"], default="none")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"not run": "no CUDA GPU was found"}))
        return
    figures = machine() | {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "preset": options.preset}
    config = preset(options.preset)
    with torch.inference_mode():
        for name in options.rows:
            torch.cuda.reset_peak_memory_stats()
            try:
                row = capped(config, options) if name == "capped" else ROWS[name](config)
            except Exception as error:  # noqa: BLE001 (the other rows are worth having)
                row = {f"{name} failed": f"{type(error).__name__}: {error}"[:200]}
            for what, value in row.items():
                print(f"{what:56}{value:14.4g}" if isinstance(value, float | int) else f"{what}: {value}", flush=True)
            figures |= row
            gc.collect()
            torch.cuda.empty_cache()
    print(json.dumps(figures))


def seconds(call: Call, *, times: int = 20) -> float:
    """Return the shortest of some times of a call, its work on the device included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # More often than a decode step is done before it is recorded.
    for _ in range(12):
        call()
    found = []
    for _ in range(times):
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return min(found)


def specified_bandwidth() -> float:
    """Return what the manufacturer says of the GPU's memory, in bytes a second; NaN of a GPU that is not known here."""
    name = torch.cuda.get_device_name()
    return next((speed for part, speed in SPECIFIED.items() if part in name), float("nan"))


@functools.cache
def limits(_: ModelConfig) -> dict[str, float]:
    """Return what the GPU does at most: bytes read and written, and bfloat16 products of large matrices."""
    source = torch.ones(_COPIED // 2, dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return {
        "specified, bytes/s": specified_bandwidth(),
        "copied, bytes/s read and written": 2 * source.nbytes / seconds(lambda: target.copy_(source)),
        "bfloat16, operations/s": 2 * _SIDE**3 / seconds(lambda: a @ b),
    }


def shipped(_: ModelConfig) -> dict[str, float]:
    """Return how many answers of the shipped model are the same on the GPU as on the CPU."""
    here, there = (VLM.from_pretrained(device=device, dtype=torch.float32) for device in ("cpu", DEVICE))
    asked = same = 0
    for entry in json.loads((EXAMPLES / "questions.json").read_text()):
        with Image.open(EXAMPLES / entry["image"]) as picture:
            for question in entry["questions"][:3]:
                mine, theirs = (model.answer(picture, question["question"]).token_ids for model in (here, there))
                asked, same = asked + 1, same + (mine == theirs)
    return {"shipped model: questions": asked, "shipped model: same tokens as on the CPU": same}


def picture(config: ModelConfig) -> dict[str, float]:
    """Return how long pictures take to be encoded and a prompt to be read, as shares of matrix products."""
    model, most, found = model_on_gpu(config), limits(config)["bfloat16, operations/s"], {}
    for canvas in CANVASES:
        tiles = canvas[0] * canvas[1]
        pixels = operations.random_pixels(config, canvas).to(DEVICE, torch.bfloat16)
        taken = seconds(lambda pixels=pixels, canvas=canvas: model.encoder(pixels, [canvas]), times=5)
        found[f"{tiles} tiles encoded, s"] = taken
        found[f"{tiles} tiles encoded, share"] = operations.encode_operations(config, tiles) / taken / most
    taken = seconds(operations.prefill(model, _PROMPT))
    found[f"{_PROMPT} tokens read, s"] = taken
    found[f"{_PROMPT} tokens read, share"] = operations.prefill_operations(model, _PROMPT) / taken / most
    return found


def decode(config: ModelConfig) -> dict[str, float]:
    """Return how long a token takes with a picture of 4 tiles, as a share of the specified bandwidth."""
    found = {}
    for precision in ("bfloat16", *PRECISIONS):
        model = model_on_gpu(config, precision)
        taken = seconds(operations.decode_step(model, _CONTEXT, 4 * config.vision.tokens_per_tile), times=50)
        found[f"a token, {precision}, s"] = taken
        share = weights_read(model, with_image=True) / taken / specified_bandwidth()
        found[f"a token, {precision}, share"] = share
        found[f"a token, {precision}, recorded"] = model.decoder.num_recorded_steps
    return found


def batch(config: ModelConfig) -> dict[str, float]:
    """Return pictures of one tile a second, each with 64 tokens of prompt and 512 of reply, several at once."""
    model, found = model_on_gpu(config), {}
    pixels = operations.random_pixels(config, (1, 1)).to(DEVICE, torch.bfloat16)
    for size in BATCHES:
        encoded = seconds(
            lambda size=size: model.encoder(pixels.expand(size, -1, -1, -1, -1), [(1, 1)] * size), times=3
        )
        step = operations.decode_step(model, 64 + _NEW_TOKENS // 2, config.vision.tokens_per_tile, num_rows=size)
        read = operations.prefill(model, 64, config.vision.tokens_per_tile, num_rows=size)
        taken = encoded + seconds(read, times=3) + _NEW_TOKENS * seconds(step)
        found[f"{size} at once, pictures/s"] = size / taken
    found["recorded steps in all"] = model.decoder.num_recorded_steps
    return found | {"peak bytes": torch.cuda.max_memory_allocated()}


def context(config: ModelConfig) -> dict[str, float]:
    """Return how long a token takes after long texts, beside reading weights and cache at the specified bandwidth."""
    model, found = model_on_gpu(config), {}
    weights = weights_read(model, with_image=False)
    for dtype in (torch.bfloat16, torch.int8):
        for length in CONTEXTS:
            taken = seconds(operations.decode_step(model, length, cache_dtype=dtype), times=10)
            kept = operations.cache_bytes(config.decoder, length, dtype)
            name = f"after {length}, {str(dtype).removeprefix('torch.')} cache"
            found |= {f"{name}, s": taken, f"{name}, share": (weights + kept) / taken / specified_bandwidth()}
            torch.cuda.empty_cache()
    return found


def peer(config: ModelConfig) -> dict[str, float]:
    """Return how long transformers takes for a token after 128 others, and how many times ours that is."""
    from vlm.bench import transformers_peer

    model = model_on_gpu(config)
    ours = seconds(operations.decode_step(model, _CONTEXT))
    other = transformers_peer.peer_of(model, device=torch.device(DEVICE))
    taken = seconds(transformers_peer.decode_step(other, _CONTEXT))
    return {"a token, transformers, s": taken, "a token, transformers / ours": taken / ours}


def capped(config: ModelConfig, options: argparse.Namespace) -> dict[str, float]:
    """Return how a model of random weights from a folder answers in less memory than the GPU has."""
    gigabytes, quantize = options.gigabytes, options.quantize
    model_on_gpu.cache_clear()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(dir=options.dir) as place:
        write_random(config, Path(place) / "model", "bfloat16")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gigabytes * 2**30 / total)
        folder, precision = Path(place) / "model", None if quantize == "none" else quantize
        vlm = VLM.from_pretrained(folder, device=DEVICE, quantize=precision)
        side = 2 * config.vision.tile_size
        noise = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8)
        reply = vlm.answer(Image.fromarray(noise.numpy()), _QUESTION, config=GenerationConfig(max_new_tokens=64))
    name = f"{gigabytes:g} GB, {quantize}"
    times = reply.timings
    return {
        f"{name}, first token, s": times.encode_s + times.prefill_s,
        f"{name}, tokens/s": times.tokens_per_s,
        f"{name}, peak bytes": torch.cuda.max_memory_reserved(),
    }


@functools.lru_cache(maxsize=1)
def model_on_gpu(config: ModelConfig, precision: str = "bfloat16") -> VisionLanguageModel:
    """Return a model of random weights, in which pictures count."""
    model = random_model(config, precision, DEVICE)
    for name, weight in model.named_parameters():
        if name.endswith("gate"):
            weight.fill_(0.5)
    return model


ROWS: dict[str, Callable[[ModelConfig], dict[str, float]]] = {
    "limits": limits,
    "shipped": shipped,
    "picture": picture,
    "decode": decode,
    "batch": batch,
    "context": context,
    "peer": peer,
}


if __name__ == "__main__":
    main()
