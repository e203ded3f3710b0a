"""A draft: a small text model proposes how a reply goes on, and the large model checks several tokens in one pass.

What is put out is the large model's own likeliest token each time; the draft decides only how many come of a pass.
In float32 that is what plain decoding gives, and to the bit where `vlm.native` serves. Elsewhere in 16 bits a pass of
several positions may round otherwise than passes of one do, as batches may: what is nearly as likely may then be taken.

The draft sees no picture: it is given the prompt without image markers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.config import ModelConfig
from vlm.errors import VLMError
from vlm.generation.generate import BadLogits, Prefilled, Step, choose, prefill
from vlm.generation.sampling import Sampler
from vlm.kv_cache import KVCache
from vlm.model import VisionLanguageModel
from vlm.native import MAX_ROWS
from vlm.quantization import quantized_layers
from vlm.tokenizer import Tokenizer

MAX_PROPOSED = MAX_ROWS - 1
"""With the token before them no more positions than our products take in 16 bits, which round each as it is alone."""
POSITION_BITS = 2.0
"""One more position takes a pass as long as it takes to read so many bits of every weight; measured, as is the next,
see `docs/draft.md`."""
DRAFT_SHARE = 1.5
"""What the draft takes for a token, as a multiple of reading its weights: it is small, and reads two after a check."""

_FIRST_GUESS = 0.8
_MEMORY, _PATIENCE = 16, 256


class Draft:
    """A small text model beside the large one whose replies it proposes."""

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        *,
        large: VisionLanguageModel,
        large_tokenizer: Tokenizer,
    ):
        """Raises: VLMError (invalid_request) where it cannot propose for `large`."""
        _check_draft(model, tokenizer, large, large_tokenizer)
        self.model, self.marker_id = model, large_tokenizer.image_marker_id
        self.price = draft_price(model, large)

    def begin(self, prompt_ids: list[int], room: int) -> "Proposer":
        """Return who proposes a reply of up to `room` tokens to a prompt."""
        ids = [token_id for token_id in prompt_ids if token_id != self.marker_id]
        return Proposer(self.model, ids, room, self.price)


class Proposer:
    """Writes ahead of one reply, with a cache of its own, as far as that pays."""

    def __init__(self, model: VisionLanguageModel, ids: list[int], room: int, price: float):
        self._model, self._ids, self._price = model, ids, price
        self._capacity = min(len(ids) + room, model.config.decoder.max_context)
        self._cache: KVCache | None = None
        self._proposed: list[int] = []
        self._likelihood = _FIRST_GUESS
        """That the next proposal is right, by the last ones."""

    def take(self, token_ids: list[int]) -> None:
        """Go on from the tokens that the large model wrote, whatever was proposed."""
        agreed = 0
        for token_id, proposed in zip(token_ids, self._proposed, strict=False):
            is_right = token_id == proposed
            self._likelihood += (is_right - self._likelihood) / _MEMORY
            if not is_right:
                break
            agreed += 1
        if self._cache is not None:
            self._cache = self._cache.cut(min(self._cache.max_length, len(self._ids) + agreed))
        self._ids = self._ids + token_ids
        self._proposed = []

    def propose(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next; none where that would not pay, or past the own context."""
        count = min(worthwhile(self._likelihood, self._price), most, self._capacity - len(self._ids) + 1)
        if count < 1:
            # Another part of the reply may be easier: with time it is tried again.
            self._likelihood += (_FIRST_GUESS - self._likelihood) / _PATIENCE
            return []
        likeliest = self._likeliest(self._read())
        found = [likeliest]
        for _ in range(count - 1):
            output = self._model.decoder(likeliest, self._cache)
            likeliest, self._cache = self._likeliest(output.hidden[:, -1]), output.cache
            found.append(likeliest)
        # Asked of the device once.
        self._proposed = torch.cat(found, dim=1)[0].tolist()
        return self._proposed

    def _read(self) -> Tensor:
        """Read what the cache lacks and return the hidden state [1, d] of the last position."""
        device = self._model.decoder.embedding.weight.device
        if self._cache is None:
            batch = build_batch([DecoderPrompt(self._ids, [])], None, device)
            hidden, self._cache = prefill(self._model, batch, self._capacity)
            return hidden
        ids = torch.tensor([self._ids[self._cache.max_length :]], device=device)
        output = self._model.decoder(ids, self._cache)
        self._cache = output.cache
        return output.hidden[:, -1]

    def _likeliest(self, hidden: Tensor) -> Tensor:
        """Return the likeliest next id [1, 1] after hidden [1, d]."""
        return self._model.decoder.logits(hidden).argmax(-1, keepdim=True)


def decode_ahead(
    model: VisionLanguageModel,
    batch: Batch,
    prefilled: Prefilled,
    sampler: Sampler,
    max_new_tokens: int,
    ended: set[int],
    proposer: Proposer,
) -> Iterator[Step | BadLogits]:
    """Yield the tokens of the only reply of `batch`, as `generate.decode` does, several of a pass where they hold.

    The sampler must take the likeliest token (`can_draft`). `batch` and `prefilled` are used up.
    """
    hidden, cache = prefilled
    mask, count, last = batch.reply_mask(), 0, 0
    proposed: list[int] = []
    while True:
        logits = model.decoder.logits(hidden).float()
        steps = _holding(choose(logits, dict.fromkeys(range(len(logits)), sampler)), proposed)
        # Numbers that are none may come of a proposal that is wrong: what stands there is asked for alone.
        is_doubtful = bool(proposed) and isinstance(steps[-1], BadLogits)
        if is_doubtful:
            steps.pop()
        for step in steps:
            count += 1
            if isinstance(step, BadLogits) or count >= max_new_tokens:
                ended.add(0)
            yield step._replace(row=0)
            if 0 in ended:
                return
        # The last token is not read yet; what was read of proposals that do not hold is overwritten.
        cache = cache.cut(cache.max_length - len(hidden) + len(steps))
        written = [step.token_id for step in steps]
        proposer.take(written)
        last = written[-1] if written else last
        # No more than fit the reply if all hold, and so the room of the cache.
        proposed = [] if is_doubtful else proposer.propose(max_new_tokens - count - 1)
        ids = torch.tensor([[last, *proposed]], device=logits.device)
        output = model.decoder(ids, cache, batch.image, mask)
        hidden, cache = output.hidden[0], output.cache


def can_draft(samplers: list[Sampler]) -> bool:
    """Return whether a draft may be used: one reply, each token of which is nothing but the likeliest."""
    return len(samplers) == 1 and samplers[0].takes_likeliest and samplers[0].constraint is None


def worthwhile(likelihood: float, price: float) -> int:
    """Return the number of proposals with which tokens come soonest; 0 where plain decoding is as quick.

    likelihood: that one is right if those before it are.
    price: what one more takes, to be proposed and to be checked, in passes of one position.
    """

    def tokens_per_pass(count: int) -> float:
        return sum(likelihood**right for right in range(count + 1)) / (1 + count * price)

    return max(range(MAX_PROPOSED + 1), key=tokens_per_pass)


def draft_price(draft: VisionLanguageModel, large: VisionLanguageModel) -> float:
    """Return what a proposal takes, to be made and to be checked, in passes of one position, which reading binds."""
    num_weights, num_bytes = _reading(large)
    return (_reading(draft)[1] * DRAFT_SHARE + num_weights * POSITION_BITS / 8) / num_bytes


def _check_draft(
    draft: VisionLanguageModel, draft_tokenizer: Tokenizer, model: VisionLanguageModel, tokenizer: Tokenizer
) -> None:
    refuse_vision(draft.config)
    sizes = draft.config.decoder.vocab_size, model.config.decoder.vocab_size
    if sizes[0] != sizes[1]:
        raise _other_vocabulary(f"the draft has {sizes[0]} tokens and the model {sizes[1]}")
    if (name := _differing(draft_tokenizer, tokenizer)) is not None:
        raise _other_vocabulary(f"the draft's tokenizer has other ids than the model's, that of {name!r:.60} for one")


def refuse_vision(config: ModelConfig) -> None:
    """Refuse a draft that looks at pictures itself. Raises: VLMError (invalid_request)."""
    if config.vision is not None:
        raise VLMError(
            "invalid_request",
            "the draft is a vision model; expected a text-only one, which is given the text alone; give a small text "
            "model with the same tokenizer, such as Llama-3.2-1B-Instruct beside the 11B",
        )


def _holding(steps: list[Step | BadLogits], proposed: list[int]) -> list[Step | BadLogits]:
    """Return those of `steps`, one after each position of a pass, before which every proposal was right."""
    for place, (step, expected) in enumerate(zip(steps, proposed, strict=False)):
        if isinstance(step, BadLogits) or step.token_id != expected:
            return steps[: place + 1]
    return steps


def _differing(draft: Tokenizer, tokenizer: Tokenizer) -> str | None:
    """Return the name of a token with another id; None where all that a prompt or reply may hold agree.

    Names of tokens that are reserved differ between Meta's files and Hugging Face's, and are never used.
    """
    ends = [name for name, token_id in tokenizer.special_ids.items() if token_id in tokenizer.stop_ids]
    for name in ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", *ends):
        if draft.special_ids.get(name) != tokenizer.special_ids.get(name):
            return name
    for ours, others in ((tokenizer.ranks, draft.ranks), (tokenizer.text_ids, draft.text_ids)):
        if ours != others:
            name = next(name for name in (*ours, *others) if ours.get(name) != others.get(name))
            return name if isinstance(name, str) else name.decode("utf-8", "replace")
    return None


def _other_vocabulary(found: str) -> VLMError:
    return VLMError(
        "invalid_request",
        f"{found}; expected the same vocabulary, id for id; give a draft of the same family, "
        "such as Llama-3.2-1B-Instruct beside the 11B",
    )


def _reading(model: VisionLanguageModel) -> tuple[int, int]:
    """Return how many weights a decoded token reads, and their bytes; of an embedding that is no head, one row."""
    decoder = model.decoder
    layers, weights = quantized_layers(decoder).values(), list(decoder.parameters())
    if decoder.head is not None:
        weights = [weight for weight in weights if weight is not decoder.embedding.weight]
    return (
        sum(weight.numel() for weight in weights) + sum(layer.num_weights for layer in layers),
        sum(weight.nbytes for weight in weights) + sum(layer.num_bytes for layer in layers),
    )
