"""How the next token is chosen: the settings of a generation, and the filters in their order."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm.errors import VLMError, shown
from vlm.generation.grammar import Constraint, check_schema

DEFAULT_MAX_NEW_TOKENS = 512
MAX_STOPS = 64
MAX_STOP_CHARS = 1000
MAX_INTEGER = 2**63 - 1
MAX_TEMPERATURE = 1e30


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a reply is generated. Greedy unless `temperature` is above 0."""

    max_new_tokens: int | None = None
    """Most tokens of the reply. None: 512, or what room the context leaves."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, logits are divided by it."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens that together have this probability; always at least one."""
    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were in the prompt or the reply less likely (arXiv 1909.05858)."""
    stop: str | tuple[str, ...] = ()
    """Texts before which the reply ends."""
    seed: int | None = None
    """Makes sampling repeat itself; every prompt of a batch starts from it."""
    schema: dict | None = None
    """A JSON schema: the reply is JSON of this form, unless its length runs out. Needs the extra `serve`."""

    def __post_init__(self):
        for name, value in vars(self).items():
            # Numbers as numpy's generators and arrays hand them out.
            if isinstance(value, np.integer | np.floating):
                object.__setattr__(self, name, value.item())
        _check_integer("max_new_tokens", self.max_new_tokens, 1, optional=True)
        _check_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_integer("top_k", self.top_k, 0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        _check_integer("seed", self.seed, 0, optional=True)
        if isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        stops = self.stop
        if not isinstance(stops, str | tuple) or any(not isinstance(text, str) or not text for text in self.stops):
            raise VLMError("invalid_request", "stop holds something that is no text; give a text or a list of texts")
        if len(self.stops) > MAX_STOPS or any(len(text) > MAX_STOP_CHARS for text in self.stops):
            raise VLMError("invalid_request", f"stop is too much; give at most {MAX_STOPS} texts of {MAX_STOP_CHARS}")
        if self.schema is not None:
            check_schema(self.schema)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts as a tuple, whichever way they were given."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop


class Sampler:
    """Chooses the tokens of one reply."""

    def __init__(
        self,
        config: GenerationConfig,
        prompt_ids: list[int],
        device: torch.device,
        constraint: Constraint | None = None,
    ):
        self.config = config
        self.constraint = constraint
        """What holds the reply to a grammar; where it is set, `choose` is given what it leaves."""
        self._generator = torch.Generator(device=device)
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)
        self._seen = None
        if config.repetition_penalty != 1.0:
            self._seen = torch.tensor(sorted(set(prompt_ids)), dtype=torch.int64, device=device)

    @property
    def takes_likeliest(self) -> bool:
        """Whether `choose` is nothing but the place of the largest logit."""
        return self.config.temperature == 0 and self._seen is None

    def choose(self, logits: Tensor) -> int:
        """Return the next id for `logits` [n] in float32."""
        config = self.config
        if self._seen is not None:
            logits = _penalise(logits, self._seen[self._seen < len(logits)], config.repetition_penalty)
        if config.temperature == 0:
            token_id = int(logits.argmax())
        else:
            probabilities = filtered_probabilities(logits, config)
            token_id = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if self._seen is not None:
            self._seen = torch.cat([self._seen, self._seen.new_tensor([token_id])]).unique()
        return token_id


def filtered_probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Return the probabilities [n] after temperature, top-k, top-p and min-p, in this order. They sum to 1."""
    # Shifted before dividing: the likeliest token stays at 0, and what no float32 holds is minus infinity, never plus.
    logits = (logits - logits.max()) / max(config.temperature, 1e-30)
    if 0 < config.top_k < len(logits):
        logits = logits.masked_fill(~_likeliest(logits, config.top_k), -math.inf)
    probabilities = logits.softmax(-1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token is kept while those before it have not reached top_p; the first always is.
        dropped = ordered.cumsum(-1) - ordered >= config.top_p
        dropped[0] = False
        probabilities = probabilities.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), 0)
    if config.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < config.min_p * probabilities.max(), 0)
    return probabilities / probabilities.sum()


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """Return which `count` of `logits` [n] are the largest; of equal ones the first, as greedy choice takes it."""
    smallest = logits.topk(count).values[-1]
    above, equal = logits > smallest, logits == smallest
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


def _penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Move the logits of ids `seen` towards less likely, no further than the largest finite number."""
    values = logits[seen]
    penalised = torch.where(values > 0, values / penalty, values * penalty).nan_to_num()
    # What a grammar rules out stays ruled out.
    return logits.index_copy(0, seen, torch.where(values == -math.inf, values, penalised))


def _check_number(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise VLMError("invalid_request", f"{name} is {shown(value)}; give a number from {low:g} to {high:g}")


def _check_integer(name: str, value: object, low: int, high: int = MAX_INTEGER, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise VLMError("invalid_request", f"{name} is {shown(value)}; give an integer from {low} to {high}")
