"""The 11B with a picture of four tiles in 8 GB: true shape, random weights, 4 bits, made tensor by tensor on disk.

    python -m benchmarks.eleven_b --dir /tmp [--tiles 1|2|4] [--tokens 64] [--preset 11b-vision] [--keep]

Writes about 8 GB into a folder of its own under --dir, which is removed at the end. First the vision tower is mapped
from disk, encodes the picture, and is let go; then the decoder is read and the embedding mapped, of which only the rows
of the tokens are ever read. The encoded picture is saved and loaded in between, as a second question would find it. The
last line is JSON; status 1 where the peak is above 8.0 GB.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from adapters.masks import CrossMask
from vlm.bench.limits import read_bandwidth
from vlm.bench.measure import machine
from vlm.bench.operations import random_pixels
from vlm.bench.random_models import random_tensor, shaped_model, weights_read
from vlm.config import ModelConfig, preset
from vlm.image_cache import EncodedImage
from vlm.kv_cache import empty_cache
from vlm.model import VisionLanguageModel
from vlm.quantization.linear import arrange_layers

MAX_BYTES = 8_000_000_000
CANVASES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
_PROMPT = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the weights may lie for a while")
    parser.add_argument("--tiles", type=int, choices=list(CANVASES), default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--preset", default="11b-vision")
    parser.add_argument("--keep", action="store_true", help="leave the weights for the next run")
    options = parser.parse_args()
    print(machine(), flush=True)
    folder = options.dir / "eleven_b" if options.keep else Path(tempfile.mkdtemp(dir=options.dir))
    try:
        with torch.inference_mode():
            figures = measure(preset(options.preset), folder, CANVASES[options.tiles], options.tokens)
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    for name, value in figures.items():
        print(f"{name:36}{value:10.2f}")
    print(json.dumps(machine() | {"tiles": options.tiles, "preset": options.preset} | figures))
    return int(figures["peak GB"] * 1e9 > MAX_BYTES)


def measure(config: ModelConfig, folder: Path, canvas: tuple[int, int], num_tokens: int) -> dict[str, float]:
    """Return the figures of one picture and one reply."""
    # Larger than any cache, and let go before the model comes.
    bandwidth = read_bandwidth(1 << 30, 0.3)
    model = shaped_model(config, "int4")
    write(model, folder)
    start = time.perf_counter()
    encode(model, folder, canvas).save(folder / "picture.safetensors")
    encoded_s = time.perf_counter() - start
    encoded_peak = peak_bytes()
    read_decoder(model, folder)
    image = EncodedImage.load(folder / "picture.safetensors")
    first_s, per_token_s = reply(model, image, num_tokens)
    token_bytes = weights_read(model, with_image=True)
    return {
        "picture encoded, s": encoded_s,
        "first token after that, s": first_s,
        "first token, s": encoded_s + first_s,
        "tokens/s": 1 / per_token_s,
        "tokens/s at 30 GB/s": 30e9 / bandwidth / per_token_s,
        "GB read per token": token_bytes / 1e9,
        "share of read bandwidth": token_bytes / per_token_s / bandwidth,
        "peak GB while encoding": encoded_peak / 1e9,
        "peak GB": peak_bytes() / 1e9,
    }


def write(model: VisionLanguageModel, folder: Path) -> None:
    """Write random weights, a file for each part of the model that is read as a whole."""
    folder.mkdir(exist_ok=True)
    parts = files(model)
    for file, names in tqdm(parts.items(), "weights written", disable=None):
        if not (folder / file).exists():
            save_file({name: random_tensor(model, name) for name in names}, folder / file)


def files(model: VisionLanguageModel) -> dict[str, list[str]]:
    """Return which tensors stand in which file: the vision tower, the embedding, a file a layer, the rest."""
    parts: dict[str, list[str]] = {}
    for name in model.state_dict():
        first, second, *more = name.split(".")
        part = "vision" if first != "decoder" else f"layer-{more[0]}" if second == "layers" else second
        parts.setdefault(f"{part}.safetensors", []).append(name)
    return parts


def encode(model: VisionLanguageModel, folder: Path, canvas: tuple[int, int]) -> EncodedImage:
    """Return a random picture encoded, by a tower that is mapped from disk and let go afterwards."""
    put(model, load_file(folder / "vision.safetensors"))
    layers = [*model.encoder.local_layers, *model.encoder.global_layers]
    with tqdm(total=len(layers), desc="picture encoded", unit="layer", disable=None) as progress:
        hooks = [layer.register_forward_hook(lambda *_: progress.update() and None) for layer in layers]
        features, tokens = model.encode(random_pixels(model.config, canvas), [canvas])
    for hook in hooks:
        hook.remove()
    model.encoder = model.projector = None
    side = model.config.vision.tile_size
    size = (canvas[0] * side, canvas[1] * side)
    return EncodedImage(features=features[0], tokens=tokens[0], canvas=canvas, size=size, model_key="random")


def read_decoder(model: VisionLanguageModel, folder: Path) -> None:
    """Read the decoder layer by layer, each arranged for its kernels before the next; the embedding stays on disk."""
    for file in tqdm(sorted(set(files(model)) - {"vision.safetensors"}), "decoder read", disable=None):
        tensors = load_file(folder / file)
        # What is arranged is copied anyway; the rest must not keep its file mapped.
        mapped = file.startswith("embedding")
        put(model, tensors if mapped else {name: tensor.clone() for name, tensor in tensors.items()})
        del tensors
        if file.startswith(("layer", "head")):
            arrange_layers(model.decoder.head if file.startswith("head") else _layer(model, file))
    model.eval()


def put(model: VisionLanguageModel, tensors: dict[str, Tensor]) -> None:
    """Give the parts of `model` that `tensors` names their weights."""
    unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    if unexpected:
        raise ValueError(f"the files hold {unexpected[:3]}, which the model has not; give another --dir")


def reply(model: VisionLanguageModel, encoded: EncodedImage, num_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token of a reply about the picture, and for each token after it."""
    decoder, config = model.decoder, model.config.decoder
    start = time.perf_counter()
    image, mask = decoder.image_kv(encoded.tokens.flatten(0, 1)[None]), CrossMask(None, None)
    cache = empty_cache(config, 1, _PROMPT + num_tokens, dtype=torch.bfloat16, device=torch.device("cpu"))
    ids = torch.arange(_PROMPT)[None]
    times = []
    for _ in tqdm(range(num_tokens), "tokens", disable=None):
        output = decoder(ids, cache, image, mask)
        ids, cache = decoder.logits(output.hidden[:, -1:]).argmax(-1), output.cache
        times.append(time.perf_counter())
    return times[0] - start, (times[-1] - times[0]) / max(1, num_tokens - 1)


def peak_bytes() -> int:
    """Return the most memory this process ever held, mapped files counted."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _layer(model: VisionLanguageModel, file: str) -> torch.nn.Module:
    return model.decoder.layers[int(file.removesuffix(".safetensors").removeprefix("layer-"))]


if __name__ == "__main__":
    sys.exit(main())
