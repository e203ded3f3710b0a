"""Our model as lmms-eval knows models: "chat" takes a task's messages, "simple" (`--force_simple`) text and pictures.

Source: its package on PyPI, lmms_eval/api/model.py and lmms_eval/api/task.py (construct_requests).
"""

from collections.abc import Iterator

from lmms_eval.api.model import lmms
from tqdm import tqdm

from eval.harnesses.guest import Ask, Guest, generation_of
from vlm.errors import VLMError

DEFAULT_TOKENS = 1024
"""Of a reply whose task does not say; what lmms-eval's own model of this kind takes."""


class _Sightline(lmms):
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

    def generate_until(self, requests) -> list[str]:
        shown = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        replies = []
        for reply in self.guest.replies(self._ask(request.args) for request in requests):
            replies.append(reply)
            shown.update()
        shown.close()
        return replies

    def generate_until_multi_round(self, requests) -> list[str]:
        raise NotImplementedError("sightline answers one turn at a time; choose tasks without several rounds")

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        raise NotImplementedError("likelihoods are asked of simple models; add --force_simple")

    def _document(self, task: str, split: str, doc_id: int):
        return self.task_dict[task][split][doc_id]

    def _ask(self, args: tuple) -> Ask:
        raise NotImplementedError


class SightlineChat(_Sightline):
    """Asks as the task's messages say, with pictures where they stand in them."""

    is_simple = False

    def _ask(self, args: tuple) -> Ask:
        _, doc_to_messages, wanted, doc_id, task, split = args
        turns = doc_to_messages(self._document(task, split, doc_id))
        messages = [{"role": turn["role"], "content": list(_parts(turn["content"]))} for turn in turns]
        return Ask(messages, generation_of(wanted, default_tokens=DEFAULT_TOKENS))


class SightlineSimple(_Sightline):
    """Asks with all pictures before the text."""

    is_simple = True

    def _ask(self, args: tuple) -> Ask:
        text, wanted, doc_to_visual, doc_id, task, split = args
        messages = self._messages(text, doc_to_visual, doc_id, task, split)
        return Ask(messages, generation_of(wanted, default_tokens=DEFAULT_TOKENS))

    def _messages(self, text: str, doc_to_visual, doc_id: int, task: str, split: str) -> list[dict]:
        visuals = doc_to_visual(self._document(task, split, doc_id)) if doc_to_visual else []
        images = [{"type": "image", "image": visual} for visual in visuals or []]
        return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return for each request the loss (lmms-eval takes the smallest) and whether it is the greedy reply."""
        found = []
        for request in requests:
            text, target, *place = request.args
            if callable(target):
                target = target(self._document(place[2], place[3], place[1]))
            score = self.guest.likelihood(self._messages(text, *place), str(target))
            found.append((-score.logprob, score.is_greedy))
        return found


def _parts(content) -> Iterator[dict]:
    """Yield the parts of a turn as our model takes them."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for part in content:
        if part["type"] == "text":
            yield {"type": "text", "text": part["text"]}
        elif part["type"] == "image":
            yield {"type": "image", "image": part["url"]}
        else:
            raise VLMError("invalid_request", f"the task shows a {part['type']:.20}; expected images; choose another")
