"""All measurements, each beside the limit of the machine and beside the peer, as rows of one table."""

import functools
import gc
import importlib.util
import io
import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from types import ModuleType

import torch
from PIL import Image
from torch import nn

from vlm.bench import limits, operations
from vlm.bench.measure import Call, seconds
from vlm.bench.random_models import random_model, weights_read
from vlm.config import ModelConfig, preset
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.quantization import PRECISIONS
from vlm.tokenizer import Tokenizer

ALL_PRECISIONS = ("bfloat16", *PRECISIONS)
CANVASES = ((1, 1), (1, 2), (2, 2))
LONG_CONTEXTS = (1024, 8192, 32768)
_CONTEXT, _PROMPT, _NEW_TOKENS = 128, 512, 16
_QUESTIONS = [f"What is the value of bar {number}?" for number in range(10)]
_COMMANDS = {
    "vlm --help": ["--help"],
    "first answer of the shipped model": ["ask", "-", "Which bar is highest?", "--max-new-tokens", "8"],
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine can do at most."""

    bytes_per_s: float
    operations_per_s: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operation, measured."""

    name: str
    seconds: float
    share: float | None = None
    """Of the limit that binds it: read bandwidth, or matrix throughput in bfloat16."""
    limit: str = ""
    beside: float | None = None
    """How many times sooner it is done than by the peer."""
    peer: str = ""


class Bench:
    """The measurements of one run."""

    def __init__(self, *, quick: bool):
        self.window_s, self.windows, self.quick = (0.05, 3, True) if quick else (0.5, 7, False)
        self.work = {
            "reading": limits.reading(1 << (26 if quick else 30), self.window_s),
            "float32": limits.product(torch.float32),
            "bfloat16": limits.product(torch.bfloat16),
        }
        self.limits = self._limits()
        self.has_peer = importlib.util.find_spec("transformers") is not None

    def rows(self, parts: Iterable[str]) -> Iterator[Row]:
        """Yield the rows as they are measured, of parts that are named like the methods."""
        with torch.inference_mode():
            for part in parts:
                yield from getattr(self, part)()
                gc.collect()

    def cold(self) -> Iterator[Row]:
        """What a process takes from its start."""
        return cold_starts(1 if self.quick else 3)

    def text(self) -> Iterator[Row]:
        """Decoding and prefill of the 1B text shape."""
        config = self._smaller(preset("1b"))
        peers = self._text_peers(config)
        for precision in ALL_PRECISIONS:
            model = random_model(config, precision)
            yield self._decode(f"1b, {precision}: a token", model, 0, peers.get("decode"))
            yield self._prefill(f"1b, {precision}: {_PROMPT} tokens read", model, peers.get("prefill"))
            if precision in PRECISIONS:
                yield from self._beside_llama_cpp(config, precision, model)

    def long(self) -> Iterator[Row]:
        """Decoding after long texts, in the 1B text shape: what is read is the weights and the cache."""
        config = self._smaller(preset("1b"))
        for precision in ("bfloat16", "int4"):
            model = random_model(config, precision)
            for cache, context in itertools.product((torch.bfloat16, torch.int8), LONG_CONTEXTS):
                step = operations.decode_step(model, context, cache_dtype=cache)
                read = weights_read(model, with_image=False) + operations.cache_bytes(config.decoder, context, cache)
                name = f"1b, {precision}{', int8 cache' if cache == torch.int8 else ''}: a token after {context} others"
                yield replace(self._row(name, step, None, "reading", read), limit="reading, cache counted")

    def large(self) -> Iterator[Row]:
        """Decoding with a picture of four tiles in 5 of the 40 layers of the 11B shape, and its head."""
        config = preset("11b-vision")
        decoder = self._smaller(replace(config, vision=None, adapter=None)).decoder
        layers = replace(decoder, num_layers=4 if not self.quick else 1)
        adapter = replace(config.adapter, cross_layers=(1,))
        config = replace(config, decoder=layers, adapter=adapter, vision=preset("tiny").vision)
        for precision in ALL_PRECISIONS:
            model = random_model(config, precision)
            yield self._decode(f"11b, {precision}: a token, 5 layers and head", model, 4 * 1601, None)

    def pictures(self) -> Iterator[Row]:
        """Encoding, of a 1B-like vision model."""
        model, peer, peers = self._vision_models
        for canvas in CANVASES[: 1 if self.quick else 3]:
            theirs = peer and peers.encode(peer, model, canvas)
            tiles = canvas[0] * canvas[1]
            needed = operations.encode_operations(model.config, tiles)
            name = f"1b-vision: a picture of {tiles} tiles encoded"
            yield self._row(name, operations.encode(model, canvas), theirs, "bfloat16", needed, windows=3)

    def questions(self) -> Iterator[Row]:
        """Ten questions about one picture, of the same model."""
        model, peer, peers = self._vision_models
        vlm = VLM(model, Tokenizer.bytes_only())
        picture = Image.new("RGB", (model.config.vision.tile_size,) * 2, "white")
        ours = operations.answer_many(vlm, picture, _QUESTIONS, _NEW_TOKENS)
        theirs = None
        if peer is not None:
            prompts = [vlm.prompt_ids(_about(picture, question)) for question in _QUESTIONS]
            theirs = peers.answer_loop(peer, model, prompts, _NEW_TOKENS)
        yield self._row("1b-vision: ten questions, one picture", ours, theirs, windows=1)

    # Parts

    @functools.cached_property
    def _vision_models(self) -> tuple[VisionLanguageModel, nn.Module | None, ModuleType | None]:
        """A 1B-like vision model, the same of transformers, and the module that runs that."""
        model = random_model(_vision_1b(quick=self.quick))
        if not self.has_peer:
            return model, None, None
        from vlm.bench import transformers_peer

        return model, transformers_peer.peer_of(model), transformers_peer

    def _limits(self) -> Limits:
        taken = seconds({name: work.call for name, work in self.work.items()}, window_s=self.window_s)
        rates = {name: work.amount / taken[name] for name, work in self.work.items()}
        return Limits(bytes_per_s=rates.pop("reading"), operations_per_s=rates)

    def _smaller(self, config: ModelConfig) -> ModelConfig:
        """Return the shape, or for a quick look a small part of it."""
        return replace(config, decoder=replace(config.decoder, num_layers=2, vocab_size=8192)) if self.quick else config

    def _text_peers(self, config: ModelConfig) -> dict[str, Call]:
        if not self.has_peer:
            return {}
        from vlm.bench import transformers_peer

        peer = transformers_peer.peer_of(random_model(config))
        return {
            "decode": transformers_peer.decode_step(peer, _CONTEXT),
            "prefill": transformers_peer.prefill(peer, _PROMPT),
        }

    def _decode(self, name: str, model: VisionLanguageModel, image_tokens: int, peer: Call | None) -> Row:
        step = operations.decode_step(model, _CONTEXT, image_tokens)
        return self._row(name, step, peer, "reading", weights_read(model, with_image=image_tokens > 0))

    def _prefill(self, name: str, model: VisionLanguageModel, peer: Call | None) -> Row:
        needed = operations.prefill_operations(model, _PROMPT)
        return self._row(name, operations.prefill(model, _PROMPT), peer, "bfloat16", needed)

    def _beside_llama_cpp(self, config: ModelConfig, precision: str, model: VisionLanguageModel) -> Iterator[Row]:
        """Compare decoding and prefill with llama.cpp at about as many bits, where it is installed."""
        if not all(map(importlib.util.find_spec, ("llama_cpp", "gguf"))):
            return
        from vlm.bench.llama_cpp_peer import Peer

        with closing(Peer(config.decoder, precision, _PROMPT)) as peer:
            name = f"1b, {precision}, beside llama.cpp"
            for row in (
                self._decode(f"{name}: a token", model, 0, peer.decode_step(_CONTEXT)),
                self._prefill(f"{name}: {_PROMPT} tokens read", model, peer.prefill(_PROMPT)),
            ):
                yield replace(row, peer=peer.name)

    def _row(
        self,
        name: str,
        ours: Call,
        theirs: Call | None,
        limit: str = "",
        needed: int = 0,
        windows: int | None = None,
    ) -> Row:
        """Measure an operation that needs so many bytes or operations, in turn with its peer and with its limit.

        What the machine can do changes from minute to minute, so that a limit measured before says little.
        """
        calls = {"ours": ours} | ({"theirs": theirs} if theirs else {})
        calls |= {"limit": self.work[limit].call} if limit else {}
        found = seconds(calls, windows=min(windows or self.windows, self.windows), window_s=self.window_s)
        beside = found["theirs"] / found["ours"] if theirs else None
        share = needed / found["ours"] * found["limit"] / self.work[limit].amount if limit else None
        return Row(name=name, seconds=found["ours"], share=share, limit=limit, beside=beside, peer=self._peer(beside))

    def _peer(self, beside: float | None) -> str:
        if beside is not None:
            return "transformers bfloat16"
        return "" if self.has_peer else "not run: transformers"


def cold_starts(times: int) -> Iterator[Row]:
    """Measure commands in processes of their own."""
    for name, arguments in _COMMANDS.items():
        found = seconds({"": functools.partial(_command, arguments, _png())}, windows=times, window_s=0)
        yield Row(name=name, seconds=found[""])


def _command(arguments: list[str], picture: bytes) -> None:
    subprocess.run([sys.executable, "-m", "vlm", *arguments], check=True, input=picture, capture_output=True)


def record(row: Row) -> dict[str, object]:
    """Return a row for JSON."""
    return {name: value for name, value in asdict(row).items() if value not in (None, "")}


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (448, 448), "white").save(file, "PNG")
    return file.getvalue()


def _about(picture: Image.Image, question: str) -> list[dict]:
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def _vision_1b(*, quick: bool) -> ModelConfig:
    """Return a 1B text model that sees by a smaller encoder of the 11B's kind."""
    large, text = preset("11b-vision"), preset("1b").decoder
    local, global_, features, layers = (2, 1, (0, 1), 2) if quick else (12, 4, (1, 3, 5, 7, 9), 16)
    vision = replace(large.vision, num_local_layers=local, num_global_layers=global_, feature_layers=features)
    decoder = replace(text, tied=False, num_extra_embeddings=8, num_layers=layers, vocab_size=8192 if quick else 128256)
    cross = tuple(range(1, layers + layers // 4, 5)) if layers > 4 else (1,)
    return ModelConfig(decoder=decoder, adapter=replace(large.adapter, cross_layers=cross), vision=vision)
