"""What 8 and 4 bits cost: agreement of the shipped model's answers, divergence on random layers.

    python -m benchmarks.quantization_quality [--questions 100] [--layers default|11b-vision] [--rows 16]

First the chart questions of examples/benchmark: the share of the shipped model's answers that stay letter for letter
what they were, and of those that are right by the evaluation's own rule; first with keys and values in int8, at the end
with one kind of matrix at a time quantised, in groups of 32. Each picture is encoded once: the encoder is never
quantised.

Then one random self-attention layer, and one cross-attention layer, is put before a norm and a random head; of these
one part at a time is quantised. `error` is by how much what the head is given changes (for the head: what it gives),
relative to it; `nats` the Kullback-Leibler divergence of the next token's distribution, in nats. Random weights have no
structure, so the numbers compare parts and group sizes; what they cost a trained model only its answers tell. Every row
is printed when it is measured. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.cross_attention import GatedCrossAttentionLayer
from adapters.masks import CrossMask
from eval import score
from vlm import VLM, GenerationConfig, Tokenizer, preset
from vlm.checkpoint import load_model
from vlm.config import DecoderConfig
from vlm.decoder import FeedForward, SelfAttentionLayer, SelfContext
from vlm.pipeline import DEFAULT_MODEL
from vlm.quantization import GROUP_SIZES, QuantizedLinear, Scheme, dequantize, plan, quantize
from vlm.rope import rotation

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = (Scheme(bits=8), *(Scheme(bits=4, group_size=size) for size in GROUP_SIZES))
# Rows of the head that are made, and image tokens that are looked at.
HEAD_ROWS, IMAGE_TOKENS = 8192, 1601


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=100, help="of the benchmark; 0 leaves the answers out")
    parser.add_argument("--layers", default="default", help="preset whose layers are made, such as 11b-vision")
    parser.add_argument("--rows", type=int, default=16, help="tokens that the layers are given")
    options = parser.parse_args()
    torch.manual_seed(0)
    answers = agreement(options.questions) if options.questions else {}
    layers = divergences(preset(options.layers).decoder, options.rows)
    record = {"preset": options.layers, "torch": torch.__version__, "layers": layers, "answers": answers}
    print(json.dumps(record), flush=True)


@torch.inference_mode()
def divergences(config: DecoderConfig, rows: int) -> list[dict]:
    """Return for each part and scheme what quantising it does."""
    print(f"\n{'layer':7}{'part':24}{'scheme':24}{'error':>9}{'nats':>11}", flush=True)
    x = _features(rows, config.width)
    head = _random(nn.Linear(config.width, min(HEAD_ROWS, config.vocab_size), bias=False))
    found = []
    for kind, make in (("self", _self_layer), ("cross", _cross_layer)):
        layer, run = make(config, x)
        plain = run()
        spread = 3 / head(plain).std()  # as far apart as a trained head's logits
        linear = {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
        for name, part in (linear | {"head": head} if kind == "self" else linear).items():
            logits, weight = head(plain) * spread, part.weight.data
            for scheme in SCHEMES:
                if weight.shape[1] % (scheme.group_size or 1):
                    continue
                part.weight.data = dequantize(quantize(weight, scheme, torch.bfloat16), scheme, torch.float32)
                hidden = run()
                changed = head(hidden) * spread
                part.weight.data = weight
                pair = (changed, logits) if name == "head" else (hidden, plain)
                error = ((pair[0] - pair[1]).norm() / pair[1].norm()).item()
                nats = _nats(logits, changed)
                found.append({"layer": kind, "part": name, "scheme": str(scheme), "error": error, "nats": nats})
                print(f"{kind:7}{name:24}{scheme!s:24}{error:9.5f}{nats:11.2e}", flush=True)
    return found


def _self_layer(config: DecoderConfig, x: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    layer, norm = _random(SelfAttentionLayer(config)), nn.RMSNorm(config.width)
    positions = torch.arange(x.shape[1])[None]
    context = SelfContext(None, positions, rotation(config, positions), None)
    return layer, lambda: norm(layer(x, context, 0))


def _cross_layer(config: DecoderConfig, x: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    sizes = (config.width, config.num_heads, config.num_kv_heads, config.head_dim, config.norm_eps)
    layer = _random(GatedCrossAttentionLayer(*sizes, FeedForward(config.width, config.mlp_dim)))
    layer.attention_gate.data.fill_(1)
    layer.mlp_gate.data.fill_(1)
    tokens, norm = _features(IMAGE_TOKENS, config.width), nn.RMSNorm(config.width)
    return layer, lambda: norm(layer(x, layer.attention.project(tokens), CrossMask(None, None)))


def _features(rows: int, width: int) -> Tensor:
    """Return random rows, one feature in a hundred ten times as strong as the others, as in trained models."""
    x = torch.randn(1, rows, width)
    x[..., ::100] *= 10
    return x


def _random(module: nn.Module) -> nn.Module:
    """Give the matrices of `module` weights of the usual spread."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data.normal_(std=part.in_features**-0.5)
    return module


def _nats(plain: Tensor, changed: Tensor) -> float:
    first, second = plain.log_softmax(-1), changed.log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1).mean().item()


class Variant(NamedTuple):
    """Which layers of the shipped model are quantised, and how, or its keys and values."""

    name: str
    precision: str | None
    group_size: int = GROUP_SIZES[0]
    part: str = ""
    """Only layers in whose name this stands."""
    kv_cache_dtype: torch.dtype | None = None


VARIANTS = (
    Variant("int8 cache", None, kv_cache_dtype=torch.int8),
    Variant("int8", "int8"),
    *(Variant(f"int4, groups up to {size}", "int4", size) for size in GROUP_SIZES),
    *(
        Variant(f"int4, groups of 32: {part}", "int4", 32, part)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ),
)


def agreement(most: int) -> dict[str, dict[str, float]]:
    """Return for each variant the share of answers that stay as they were, and that are right."""
    vlm, questions = _shipped(None), _questions(most)
    encoded = {image: vlm.encode_image(image) for image, _, _ in questions}
    asked = [(encoded[image], question) for image, question, _ in questions]
    expected: list[str] = []
    found: dict[str, dict[str, float]] = {}
    print(f"{'shipped model':34}{'questions':>10}{'same answer':>13}{'right':>8}{'seconds':>9}", flush=True)
    for variant in (None, *VARIANTS):
        start = time.perf_counter()
        replies = _shipped(variant).answer_many(asked, config=GenerationConfig(max_new_tokens=24))
        answers = [reply.text.strip() for reply in replies]
        expected = expected or answers
        same = sum(map(str.__eq__, answers, expected)) / len(answers)
        marks = (score("chartqa", "ours", answer, row[2]) or 0 for answer, row in zip(answers, questions, strict=True))
        right, name = sum(marks) / len(answers), variant.name if variant else "bfloat16"
        found[name] = {"questions": len(answers), "same": same, "right": right}
        taken = time.perf_counter() - start
        print(f"{name:34}{len(answers):10}{same:13.3f}{right:8.3f}{taken:9.1f}", flush=True)
    return found


@torch.no_grad()
def _shipped(variant: Variant | None) -> VLM:
    """Return the shipped model in bfloat16, its layers quantised as `variant` says."""
    model = load_model(DEFAULT_MODEL)
    if variant is not None:
        model.kv_cache_dtype = variant.kv_cache_dtype
    schemes = plan(model, variant.precision, variant.group_size) if variant and variant.precision else {}
    for name, scheme in schemes.items():
        if variant.part in name:
            weight = model.get_submodule(name).weight
            model.set_submodule(name, QuantizedLinear.of(quantize(weight, scheme), scheme))
    return VLM(model, Tokenizer.from_folder(DEFAULT_MODEL))


def _questions(most: int) -> list[tuple[Path, str, str]]:
    """Return image, question and answer of the chart questions that ship."""
    folder = ROOT / "examples" / "benchmark" / "chartqa" / "test"
    rows = json.loads((folder / "test_augmented.json").read_text())[:most]
    return [(folder / "png" / row["imgname"], row["query"], str(row["label"])) for row in rows]


if __name__ == "__main__":
    main()
