"""Reinforcement learning: replies that the model writes itself become likelier the better they are rewarded.

Both ways take clipped steps. PPO learns with a value head what a reply is worth at each of its tokens, and has the
distance from the reference in the reward; GRPO compares several replies to one prompt, and has it in the loss.
Source: Schulman et al., arXiv 1707.06347, equations 7 and 9; arXiv 1506.02438, equation 16 (GAE); Ziegler et al., arXiv
1909.08593, equation 2 (the reward of PPO); Shao et al., arXiv 2402.03300, section 4.1 (GRPO).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlm.model import VisionLanguageModel
from vlm.tokenizer import Tokenizer
from vlm.training.config import ObjectiveChoice
from vlm.training.data.batches import Example
from vlm.training.data.samples import Conversation, Sample
from vlm.training.objectives.objective import Objective, OpenImage, opened, wrong_kind
from vlm.training.objectives.replies import conversation_ids
from vlm.training.objectives.rewards import Reward
from vlm.training.objectives.rollouts import Attempt, Rollout, score_rows, write_replies
from vlm.training.objectives.start_model import StartModel
from vlm.training.parallel.world import World
from vlm.training.rows import Row, Scored, predict, score_targets


class PolicyGradient(Objective):
    """What both have in common: replies, their rewards, and the clipped loss."""

    def __init__(self, tokenizer: Tokenizer, num_ids: int, choice: ObjectiveChoice, reward: Reward):
        self.tokenizer, self.num_ids, self.choice, self.reward = tokenizer, num_ids, choice, reward
        self.updates = choice.updates
        self.reference: StartModel | None = None
        """None leaves the reference out."""
        self.world = World.alone()
        """The processes that share the samples of a step; all of them have the whole model."""

    def rows(self, sample: Sample, open_image: OpenImage) -> list[Row]:
        """Return a conversation whose last reply is marked: it is not learned, but given to the reward."""
        if not isinstance(sample, Conversation) or sample.turns[-1].role != "assistant":
            raise wrong_kind(sample, "conversations that end with the assistant's answer")
        *before, last = sample.turns
        start = len(conversation_ids(self.tokenizer, before)[0])
        ids, learned = conversation_ids(self.tokenizer, (*before, last))
        learned = [taken and place >= start for place, taken in enumerate(learned)]
        return [Row(ids=ids, targets=predict(ids, learned, self.num_ids), images=opened(before, open_image))]

    def weight(self, examples: Sequence[Rollout]) -> int:
        return sum(len(rollout.old) for rollout in examples)

    def collect(self, model: VisionLanguageModel, examples: Sequence[Example], size: int) -> list[Rollout]:
        """Return a reply, or several, to each sample, with what is to be learned from it."""
        prompts = [example.rows[0] for example in examples for _ in range(self.num_replies)]
        # By the step and the sample's place in the run: taken up, or on several processes, it writes the same replies.
        drawn = int(torch.randint(2**62, ()))
        kinds = [(drawn, example.number, place) for example in examples for place in range(self.num_replies)]
        attempts: list[Attempt] = []
        for start in range(0, len(prompts), size):
            part, seeds = prompts[start : start + size], [hash(kind) % 2**62 for kind in kinds[start : start + size]]
            attempts += write_replies(model, self.tokenizer, part, seeds, self.choice.max_new_tokens)
        if not self.world.total(len(attempts), "data"):
            return []
        rows, marker_id = [attempt.row for attempt in attempts], self.tokenizer.image_marker_id
        old, hidden = score_rows(model, rows, marker_id, size)
        reference = old
        if self.reference is not None:
            with self.reference.of(model) as before:
                reference, _ = score_rows(before, rows, marker_id, size)
        rewards = self.reward(attempts)
        distance = sum(float((one - other).sum()) for one, other in zip(old, reference, strict=True))
        sums = {"reward": sum(rewards), "kl": distance, "reply_tokens": sum(map(len, old))}
        num_replies = self.world.total(len(rows), "data")
        self.figures = {name: self.world.total(value, "data") / num_replies for name, value in sums.items()}
        device = model.decoder.embedding.weight.device
        return self.judged(rows, old, reference, hidden, torch.tensor(rewards, device=device))

    def uncounted(self, example: Example) -> Rollout:
        return Rollout(example.rows, *[torch.zeros(0, device=self.world.device)] * 4)

    def loss(self, model: VisionLanguageModel, examples: Sequence[Rollout]) -> Tensor:
        rows = [rollout.rows[0] for rollout in examples]
        scored = score_targets(model, rows, self.tokenizer.image_marker_id, self.pack)
        joined = Rollout(rows, *(torch.cat(parts) for parts in list(zip(*examples, strict=True))[1:]))
        ratio = (scored.log_probabilities - joined.old).exp()
        clipped = ratio.clamp(1 - self.choice.clip, 1 + self.choice.clip)
        gain = torch.minimum(ratio * joined.advantages, clipped * joined.advantages)
        return -gain.sum() + self.penalty(scored, joined)

    @property
    def num_replies(self) -> int:
        """How many replies each prompt gets."""
        return 1

    def judged(
        self, rows: list[Row], old: list[Tensor], reference: list[Tensor], hidden: list[Tensor], rewards: Tensor
    ) -> list[Rollout]:
        """Return the replies with their advantages."""
        raise NotImplementedError

    def penalty(self, scored: Scored, joined: Rollout) -> Tensor:
        """Return what is added to the sum of the clipped losses."""
        raise NotImplementedError


class GRPO(PolicyGradient):
    """Rewards are taken from the mean of the replies to the same prompt."""

    @property
    def num_replies(self) -> int:
        return self.choice.group_size

    def judged(self, rows, old, reference, hidden, rewards: Tensor) -> list[Rollout]:
        groups = rewards.unflatten(0, (len(rewards) // self.num_replies, self.num_replies))
        advantages = groups - groups.mean(1, keepdim=True)
        if self.choice.scale_rewards:
            advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
        spread = [one.expand_as(log) for one, log in zip(advantages.flatten(), old, strict=True)]
        return [Rollout([row], *parts) for row, *parts in zip(rows, old, reference, spread, spread, strict=True)]

    def penalty(self, scored: Scored, joined: Rollout) -> Tensor:
        # The gradient of half the square, log(π / π_ref) · ∇ log π, is on average that of KL(π | π_ref); that of the
        # paper's estimate is on average the one of KL(π_ref | π), which holds on to what the reference found likely.
        return self.choice.beta * (scored.log_probabilities - joined.reference).square().sum() / 2


class PPO(PolicyGradient):
    """A value head on the last hidden states says what was to be expected."""

    def __init__(self, tokenizer: Tokenizer, num_ids: int, choice: ObjectiveChoice, reward: Reward, like: Tensor):
        """`like`: a weight [n, d] on whose device the value head is to be, for states as wide."""
        super().__init__(tokenizer, num_ids, choice, reward)
        self.value = nn.Linear(like.shape[1], 1, device=like.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.weights: Mapping[str, nn.Parameter] = {
            f"value_head.{name}": weight for name, weight in self.value.named_parameters()
        }

    @torch.no_grad()
    def judged(self, rows, old, reference, hidden, rewards: Tensor) -> list[Rollout]:
        advantages, returns = [], []
        for place, reward in enumerate(rewards):
            each = self.choice.beta * (reference[place] - old[place])
            each[-1] += reward
            values = self.value(hidden[place].float())[:, 0]
            advantages.append(generalised_advantages(each, values, self.choice.gae_lambda))
            returns.append(advantages[-1] + values)
        every = torch.cat([rewards.new_zeros(0), *advantages])
        count, total = (self.world.total(value, "data") for value in (len(every), float(every.sum())))
        mean = total / count
        squares = self.world.total(float((every - mean).square().sum()), "data")
        spread = math.sqrt(squares / count) + 1e-8
        advantages = [(one - mean) / spread for one in advantages]
        return [Rollout([row], *parts) for row, *parts in zip(rows, old, reference, advantages, returns, strict=True)]

    def penalty(self, scored: Scored, joined: Rollout) -> Tensor:
        errors = self.value(scored.hidden.float())[:, 0] - joined.returns
        return self.choice.value_weight * errors.square().sum() / 2


def generalised_advantages(rewards: Tensor, values: Tensor, decay: float) -> Tensor:
    """Return the advantage of each token [k], given the reward that followed it and what was expected before it.

    Nothing is discounted; `decay` is λ: at 1 all that came counts, at 0 only the next value.
    """
    surprises = rewards + torch.cat([values[1:], values.new_zeros(1)]) - values
    advantages, later = torch.empty_like(surprises), 0.0
    for place in reversed(range(len(surprises))):
        later = surprises[place] + decay * later
        advantages[place] = later
    return advantages
