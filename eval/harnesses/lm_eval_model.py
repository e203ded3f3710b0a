"""Our model as lm-evaluation-harness knows models.

With `--apply_chat_template` a prompt is the conversation itself, written as JSON, for text never becomes a special
token here; without, the prompt is what the user says. Either way the model replies in a turn of its own, and blanks
before a reply whose likelihood is asked are left out.

Source: its package on PyPI, lm_eval/api/model.py and lm_eval/models/vllm_vlms.py.
"""

import json
from collections.abc import Iterator, Sequence

from lm_eval.api.model import LM
from tqdm import tqdm

from eval.harnesses.guest import Ask, Guest, generation_of

DEFAULT_TOKENS = 256
"""Of a reply whose task does not say; their default."""
PLACEHOLDER = "<image>"
"""Where an image stands in the text of a task."""


class SightlineLM(LM):
    """Answers text and images."""

    MULTIMODAL = True

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        reference: str = "meta",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.guest = Guest(pretrained, device=device, dtype=dtype, reference=reference, batch_size=batch_size)
        self._chats: set[str] = set()

    @property
    def tokenizer_name(self) -> str:
        return f"sightline {self.guest.name}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return "sightline: the conversation as JSON"

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        chat = json.dumps(chat_history)
        self._chats.add(chat)
        return chat

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        replies = []
        shown = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Replies")
        for reply in self.guest.replies(map(self._ask, requests)):
            replies.append(reply)
            self.cache_hook.add_partial("generate_until", requests[len(replies) - 1].args, reply)
            shown.update()
        shown.close()
        return replies

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = []
        for request in tqdm(requests, disable=disable_tqdm or self.rank != 0, desc="Likelihoods"):
            context, reply, *more = request.args
            score = self.guest.likelihood(self._messages(context, *more), reply)
            found.append((score.logprob, score.is_greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("sightline measures replies and not whole texts; choose tasks without perplexity")

    def _ask(self, request) -> Ask:
        context, wanted, *more = request.args
        return Ask(self._messages(context, *more), generation_of(wanted, default_tokens=DEFAULT_TOKENS))

    def _messages(self, context: str, media: dict | None = None) -> list[dict]:
        """Return the conversation that a context is, with the images in the places of their placeholders."""
        images = list((media or {}).get("visual") or ())
        turns = json.loads(context) if context in self._chats else [{"role": "user", "content": context}]
        num_places = sum(turn["content"].count(PLACEHOLDER) for turn in turns)
        first, rest = images[: len(images) - num_places], iter(images[max(0, len(images) - num_places) :])
        messages = [{"role": turn["role"], "content": list(_parts(turn["content"], rest))} for turn in turns]
        user = next(turn for turn in messages if turn["role"] == "user")
        user["content"] = [{"type": "image", "image": image} for image in first] + user["content"]
        return [turn if turn["role"] == "user" else _text_alone(turn) for turn in messages]


def _parts(text: str, images: Iterator) -> Iterator[dict]:
    for place, piece in enumerate(text.split(PLACEHOLDER)):
        image = next(images, None) if place else None
        if image is not None:
            yield {"type": "image", "image": image}
        if piece:
            yield {"type": "text", "text": piece}


def _text_alone(turn: dict) -> dict:
    parts: Sequence[dict] = turn["content"]
    return {**turn, "content": "".join(part.get("text", "") for part in parts)}
