"""The 11B's shape on a CUDA GPU, random weights in bfloat16: each operation as a share of what the GPU can do.

    python -m benchmarks.gpu [--preset 11b-vision]

Needs 24 GB of GPU memory, and half a minute. A token is decoded call by call, as the model does, and once more as a
replayed CUDA graph, which shows how much of the time is spent on giving the calls. The shipped model must answer on the
GPU, token for token, as it does on the CPU. The last line is JSON; without a GPU it says that nothing was run.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from vlm.bench import operations
from vlm.bench.measure import Call, machine
from vlm.bench.random_models import weights_read
from vlm.config import ModelConfig, preset
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM

CANVASES = ((1, 1), (1, 2), (2, 2))
_CONTEXT, _PROMPT, _SIDE, _COPIED = 128, 512, 8192, 1 << 32
EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="11b-vision")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"not run": "no CUDA GPU was found"}))
        return
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "preset": options.preset}
    with torch.inference_mode():
        figures = limits() | shipped() | shares(random_model_on_gpu(preset(options.preset)))
    for name, value in figures.items():
        print(f"{name:44}{value:14.4g}")
    print(json.dumps(machine() | about | figures))


def seconds(call: Call, *, times: int = 20) -> float:
    """Return the shortest of some times of a call, its work on the device included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    found = []
    for _ in range(times):
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return min(found)


def limits() -> dict[str, float]:
    """Return what the GPU does at most: bytes read and written, and bfloat16 products of large matrices."""
    source = torch.ones(_COPIED // 2, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return {
        "copied, bytes/s read and written": 2 * source.nbytes / seconds(lambda: target.copy_(source)),
        "bfloat16, operations/s": 2 * _SIDE**3 / seconds(lambda: a @ b),
    }


def shipped() -> dict[str, float]:
    """Return how many answers of the shipped model are the same on the GPU as on the CPU."""
    here, there = (VLM.from_pretrained(device=device, dtype=torch.float32) for device in ("cpu", "cuda"))
    asked = same = 0
    for entry in json.loads((EXAMPLES / "questions.json").read_text()):
        with Image.open(EXAMPLES / entry["image"]) as picture:
            for question in entry["questions"][:3]:
                mine, theirs = (model.answer(picture, question["question"]).token_ids for model in (here, there))
                asked, same = asked + 1, same + (mine == theirs)
    return {"shipped model: questions": asked, "shipped model: same tokens as on the CPU": same}


def random_model_on_gpu(config: ModelConfig) -> VisionLanguageModel:
    """Return a model in bfloat16 with torch's own start and open gates."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = VisionLanguageModel(config)
    torch.set_default_dtype(torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith("gate"):
            weight.fill_(0.5)
    return model.eval().requires_grad_(False)


def shares(model: VisionLanguageModel) -> dict[str, float]:
    """Return the seconds of each operation, and what it does a second."""
    config, found = model.config, {}
    for canvas in CANVASES:
        tiles = canvas[0] * canvas[1]
        pixels = operations.random_pixels(config, canvas).to("cuda", torch.bfloat16)
        taken = seconds(lambda pixels=pixels, canvas=canvas: model.encoder(pixels, [canvas]), times=5)
        found[f"{tiles} tiles encoded, s"] = taken
        found[f"{tiles} tiles encoded, operations/s"] = operations.encode_operations(config, tiles) / taken
    taken = seconds(operations.prefill(model, _PROMPT))
    found[f"{_PROMPT} tokens read, s"] = taken
    found[f"{_PROMPT} tokens read, operations/s"] = operations.prefill_operations(model, _PROMPT) / taken
    step = operations.decode_step(model, _CONTEXT, 4 * config.vision.tokens_per_tile)
    read = weights_read(model, with_image=True)
    for name, call in (("a token", step), ("a token, CUDA graph", captured(step))):
        taken = seconds(call, times=50)
        found[f"{name}, s"] = taken
        found[f"{name}, bytes of weights/s"] = read / taken
    return found | {"peak bytes": torch.cuda.max_memory_allocated()}


def captured(call: Call) -> Call:
    """Return the replay of a call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


if __name__ == "__main__":
    main()
