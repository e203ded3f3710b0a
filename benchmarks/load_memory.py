"""Peak memory of loading a checkpoint of more than 1 GB, in a fresh process each, beside its limit (fault row C10).

    python -m benchmarks.load_memory [--gigabytes 1.2] [--folder /tmp]

Peak is the highest resident memory of the process less what it held after `import vlm.checkpoint`. The limit is 1.15
of the model's bytes for one file of the same dtype, and the model and its largest file otherwise.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vlm.machine import peak_bytes, processor, resident_bytes

CASES = {
    # name: (folder, dtype)
    "hf, one file": ("hf", "bfloat16"),
    "hf, shards": ("shards", "bfloat16"),
    "hf, one file, to float32": ("hf", "float32"),
    "meta, one file": ("meta", "bfloat16"),
    "meta, 4 files": ("split", "bfloat16"),
    "meta, one file, to float32": ("meta", "float32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_load(Path(arguments.child[0]), arguments.child[1])))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _build(Path(folder), arguments.gigabytes)
        print(f"{processor()}, Python {platform.python_version()}")
        print(f"{'case':28}{'model GB':>10}{'peak GB':>10}{'ratio':>8}{'limit':>8}{'seconds':>9}")
        for name, (layout, dtype) in CASES.items():
            command = [sys.executable, __file__, "--child", str(Path(folder) / layout), dtype]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ratio = found["peak_bytes"] / found["model_bytes"]
            limit = 1.15
            if layout in ("shards", "split") or dtype != "bfloat16":
                limit = 1 + found["largest_file_bytes"] / found["model_bytes"]
            print(
                f"{name:28}{found['model_bytes'] / 1e9:10.2f}{found['peak_bytes'] / 1e9:10.2f}{ratio:8.2f}{limit:8.2f}"
                f"{found['seconds']:9.1f}{'' if ratio <= limit else '   OVER'}"
            )


def _load(folder: Path, dtype: str) -> dict:
    import torch

    import vlm.checkpoint

    before = resident_bytes()
    start = time.perf_counter()
    model = vlm.checkpoint.load_model(folder, dtype=getattr(torch, dtype))
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth")]
    return {
        "model_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "peak_bytes": peak - before,
        "largest_file_bytes": max(path.stat().st_size for path in weights),
        "seconds": seconds,
    }


def _build(folder: Path, gigabytes: float) -> None:
    """Write one random model of about that size in every layout."""
    import torch

    from adapters.config import AdapterConfig
    from vision_encoder.config import VisionConfig
    from vlm.checkpoint import meta, save_model
    from vlm.config import DecoderConfig, ModelConfig, RopeScaling
    from vlm.model import VisionLanguageModel

    decoder = DecoderConfig(
        width=1024,
        num_layers=max(4, round(gigabytes * 30)),
        num_heads=16,
        num_kv_heads=8,
        mlp_dim=4096,
        vocab_size=64000,
        num_extra_embeddings=8,
        rope_scaling=RopeScaling(factor=8.0),
    )
    config = ModelConfig(decoder=decoder, adapter=AdapterConfig(cross_layers=(3, 8)), vision=VisionConfig.tiny())
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        torch.nn.init.zeros_(parameter) if name.endswith("table") else torch.nn.init.normal_(parameter)
    save_model(model, folder / "hf")
    save_model(model, folder / "shards", max_shard_bytes=gigabytes * 1e9 / 4)
    save_model(model, folder / "meta", format="meta")
    splits = {key.theirs: key.split for key in meta.keys(config)}
    whole = torch.load(folder / "meta" / meta.WEIGHTS, weights_only=True, mmap=True)
    (folder / "split").mkdir()
    shutil.copy(folder / "meta" / "params.json", folder / "split")
    for rank in range(4):
        parts = {
            name: tensor if splits[name] is None else tensor.chunk(4, splits[name])[rank].clone()
            for name, tensor in whole.items()
        }
        torch.save(parts, folder / "split" / f"consolidated.{rank:02d}.pth")


if __name__ == "__main__":
    main()
