"""What the public calls give back, and how a reply's text grows token by token."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from vlm.model import VisionLanguageModel
from vlm.quantization import quantized_layers
from vlm.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of a call went. Prompts answered as one batch share these."""

    encode_s: float
    """Reading, cutting and encoding the images that were not known yet."""
    prefill_s: float
    """Reading the prompts."""
    decode_s: float
    """Writing the replies."""
    tokens_per_s: float
    """Tokens of all replies of the batch over `decode_s`."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model wrote."""

    text: str
    """The decoding of `token_ids`, cut before a stop text."""
    token_ids: list[int]
    """Without the special token that ended it."""
    finish_reason: Literal["stop", "length"]
    confidence: float
    """Mean probability of these tokens at temperature 1, before filters; 1 when there are none."""
    timings: Timings

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a given reply is."""

    text: str
    logprob: float
    """Natural log of the probability of all its tokens, without an end token."""
    num_tokens: int

    @property
    def mean_logprob(self) -> float:
        return self.logprob / self.num_tokens


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What was loaded."""

    num_parameters: int
    """Tied weights count once."""
    num_bytes: int
    dtype: torch.dtype
    device: torch.device
    max_context: int
    tile_size: int | None
    """Side of a tile in pixels; None in a text-only model."""
    max_tiles: int | None
    reference: Literal["meta", "transformers"]
    """Whose forward pass is computed."""
    quantize: Literal["int8", "int4"] | None = None
    """In how many bits the decoder's matrices are kept."""

    @classmethod
    def of(cls, model: VisionLanguageModel) -> "ModelInfo":
        parameters, layers = list(model.parameters()), quantized_layers(model).values()
        vision = model.config.vision
        return cls(
            num_parameters=sum(parameter.numel() for parameter in parameters)
            + sum(layer.num_weights for layer in layers),
            num_bytes=sum(parameter.nbytes for parameter in parameters) + sum(layer.num_bytes for layer in layers),
            dtype=model.decoder.embedding.weight.dtype,
            device=model.decoder.embedding.weight.device,
            max_context=model.config.decoder.max_context,
            tile_size=vision.tile_size if vision else None,
            max_tiles=vision.max_tiles if vision else None,
            reference=model.config.reference,
            quantize=f"int{min(layer.scheme.bits for layer in layers)}" if layers else None,
        )


@dataclass
class ReplyText:
    """A reply that is being written."""

    tokenizer: Tokenizer
    stops: tuple[str, ...]
    token_ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    finished: bool = False
    """Whether an ending token or a stop text came."""

    def __post_init__(self):
        self._decoder = StreamDecoder(self.tokenizer)
        self._held = ""
        self._emitted: list[str] = []

    @property
    def text(self) -> str:
        """What was released so far."""
        return "".join(self._emitted)

    @property
    def confidence(self) -> float:
        return sum(self.probabilities) / len(self.probabilities) if self.probabilities else 1.0

    def add(self, token_id: int, probability: float) -> str:
        """Take the next token and return the text that can be shown now; it never ends inside a character.

        Text that may turn out to be the beginning of a stop text is held back. Special tokens that end no reply
        leave no trace: they are no text, and feeding them back as such would be an injection.
        """
        if token_id in self.tokenizer.stop_ids:
            self.finished = True
            return self.close()
        if self.tokenizer.is_special(token_id):
            return ""
        self.token_ids.append(token_id)
        self.probabilities.append(probability)
        return self._release(self._decoder.feed([token_id]), final=False)

    def close(self) -> str:
        """Return the text that was still held back; to be called once when no token follows."""
        return self._release(self._decoder.flush(), final=True)

    def _release(self, piece: str, *, final: bool) -> str:
        self._held += piece
        found = [place for place in (self._held.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.finished, ready, self._held = True, self._held[: min(found)], ""
            # Nothing after the stop text is ever shown.
            self.stops, self._decoder = (), StreamDecoder(self.tokenizer)
        else:
            keep = 0 if final else self._possible_stop()
            cut = len(self._held) - keep
            ready, self._held = self._held[:cut], self._held[cut:]
        self._emitted.append(ready)
        return ready

    def _possible_stop(self) -> int:
        """Return how many characters at the end of the held text may begin a stop text."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stops):
                return size
        return 0
