"""Reinforcement learning: each way ends at the known optimum of a tiny problem, and its parts are what they say."""

import math
from pathlib import Path

import pytest
import torch

from tests.training_rows import same_state, write_jsonl
from vlm import VLM, Tokenizer, VisionLanguageModel, VLMError, preset
from vlm.prompt import Text, Turn, encode_prompt
from vlm.training.config import ObjectiveChoice, TrainConfig
from vlm.training.data.batches import Example
from vlm.training.data.samples import Conversation, Document
from vlm.training.journal import read_lines
from vlm.training.loop import Training
from vlm.training.objectives import GRPO, PPO, FunctionReward, ModelReward, StartModel
from vlm.training.objectives.policy_gradient import generalised_advantages
from vlm.training.objectives.rewards import QUESTION
from vlm.training.objectives.rollouts import Attempt, write_replies
from vlm.training.rows import IGNORED
from vlm.training.settings import build
from vlm.training.setup import initialise

TOKENIZER = Tokenizer.bytes_only()
NUM_IDS = 512
TURNS = (Turn("user", (Text("q"),)), Turn("assistant", (Text("a"),)))
HERE = "tests.test_training_policy:"


def likes_a(prompt: str, reply: str, answer: str) -> float:
    return float(reply == answer == "a")


def likes_long(prompt: str, reply: str, answer: str) -> float:
    return len(reply)


def not_a_number(prompt: str, reply: str, answer: str) -> float:
    return math.nan


def coin() -> VisionLanguageModel:
    """Return a model that says a or b, each as likely, to the question q."""
    torch.manual_seed(0)
    model = VisionLanguageModel(preset("tiny"))
    initialise(model)
    ids = torch.tensor([encode_prompt(TOKENIZER, TURNS[:1]).ids])
    with torch.no_grad():
        hidden = model.decoder(ids).hidden[0, -1]
        model.decoder.head.weight[[ord("a"), ord("b")]] = 12 * hidden / hidden.square().sum()
    model.requires_grad_(False)
    model.decoder.head.weight.requires_grad_(True)
    return model


def choice(name: str, **changes) -> ObjectiveChoice:
    return ObjectiveChoice(name=name, reward=HERE + "likes_a", max_new_tokens=1, **changes)


def objective_of(model: VisionLanguageModel, config: ObjectiveChoice) -> GRPO | PPO:
    reward = FunctionReward(config.reward)
    if config.name == "grpo":
        objective = GRPO(TOKENIZER, NUM_IDS, config, reward)
    else:
        objective = PPO(TOKENIZER, NUM_IDS, config, reward, model.decoder.embedding.weight)
    if config.reference == "start":
        objective.reference = StartModel(model, torch.device("cpu"))
    return objective


def learn(model, objective, *, steps: int, lr: float, prompts: int) -> float:
    """Take steps on the question q and return how likely a has become."""
    rows = objective.rows(Conversation(turns=TURNS), None)
    batch = [Example(str(place), (0, place), rows, place) for place in range(prompts)]
    # Plain steps: Adam's are as large for tokens that are never said.
    groups = [{"params": [model.decoder.head.weight]}, {"params": [*objective.weights.values()], "lr": 0.02}]
    optimizer = torch.optim.SGD(groups if objective.weights else groups[:1], lr=lr)
    torch.manual_seed(1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        collected = objective.collect(model, batch, 64)
        for _ in range(objective.updates):
            optimizer.zero_grad()
            (objective.loss(model, collected) / objective.weight(collected)).backward()
            optimizer.step()
    ids = torch.tensor([encode_prompt(TOKENIZER, TURNS[:1]).ids])
    with torch.no_grad():
        return float(model(ids)[0, -1].softmax(-1)[ord("a")])


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_replies_end_where_reward_and_distance_balance(name):
    """The optimum is the reference times e^(reward / β): with β = 1 / ln 3 a becomes three times as likely as b."""
    model = coin()
    changes = {"grpo": {"group_size": 16, "scale_rewards": False}, "ppo": {"updates": 2}}[name]
    objective = objective_of(model, choice(name, beta=1 / math.log(3), **changes))
    found = learn(model, objective, steps=20, lr=0.08, prompts={"grpo": 3, "ppo": 48}[name])
    # Of a group's mean a sixteenth is the reply's own, which takes as much of the reward.
    assert found == pytest.approx(0.75, abs=0.05)
    # Over many replies: log p(a) - log 1/2 and log p(b) - log 1/2 by their shares.
    rows = objective.rows(Conversation(turns=TURNS), None)
    count = 400 // objective.num_replies
    objective.collect(model, [Example("", (0, 0), rows, number) for number in range(count)], 100)
    distance = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert objective.figures["kl"] == pytest.approx(distance, abs=0.08)


def test_without_a_reference_the_reward_takes_all():
    model = coin()
    objective = objective_of(model, choice("grpo", reference="none", group_size=8))
    assert learn(model, objective, steps=20, lr=0.1, prompts=4) > 0.97
    assert objective.figures["reward"] > 0.9


def test_a_value_head_learns_what_replies_are_worth():
    model = coin()
    model.requires_grad_(False)
    objective = objective_of(model, choice("ppo", beta=0.0))
    rows = objective.rows(Conversation(turns=TURNS), None)
    batch = [Example("", (0, 0), rows, number) for number in range(48)]
    optimizer = torch.optim.SGD(objective.weights.values(), lr=0.03)
    torch.manual_seed(0)
    for step in range(25):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 25)
        collected = objective.collect(model, batch, 64)
        (objective.loss(model, collected) / objective.weight(collected)).backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = torch.tensor([encode_prompt(TOKENIZER, TURNS[:1]).ids])
    value = objective.value(model.decoder(ids).hidden[0, -1])
    assert float(value.detach()) == pytest.approx(0.5, abs=0.1)


def test_advantages_are_the_sums_of_later_surprises():
    rewards, values, decay = torch.tensor([0.1, -0.2, 1.0]), torch.tensor([0.5, 0.3, 0.7]), 0.9
    surprises = [rewards[k] + (values[k + 1] if k < 2 else 0) - values[k] for k in range(3)]
    expected = [sum(decay ** (j - k) * surprises[j] for j in range(k, 3)) for k in range(3)]
    assert generalised_advantages(rewards, values, decay).tolist() == pytest.approx([float(x) for x in expected])
    # At λ = 1 an advantage is all reward still to come, less what was expected.
    assert generalised_advantages(rewards, values, 1.0).tolist() == pytest.approx([0.4, 0.5, 0.3])


def test_a_reply_depends_on_the_step_and_the_samples_place_in_the_run_not_on_its_neighbours():
    model = coin()
    objective = objective_of(model, choice("grpo", group_size=8))
    rows = objective.rows(Conversation(turns=TURNS), None)
    samples = [Example("", (0, 0), rows, number) for number in range(4)]

    def replies(seed: int, batch: list[Example], size: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [rollout.rows[0].ids for rollout in objective.collect(model, batch, size)]

    whole = replies(0, samples, 64)
    assert whole == replies(0, samples[:1], 3) + replies(0, samples[1:], 64)
    assert whole[:8] != whole[8:16]
    assert whole != replies(1, samples, 64)


def test_a_step_too_far_has_no_gradient():
    """Beyond the clip only what went the wrong way is moved back."""
    model = coin()
    objective = objective_of(model, choice("grpo", beta=0.0, group_size=2))
    (rollout, *_) = objective.collect(model, [Example("", (0, 0), objective.rows(Conversation(turns=TURNS), None))], 8)
    for shift, advantage, moves in ((0.5, 1.0, False), (0.5, -1.0, True), (-0.5, -1.0, False), (0.1, 1.0, True)):
        given = rollout._replace(old=rollout.old - shift, advantages=torch.tensor([advantage]))
        objective.loss(model, [given]).backward()
        assert bool(model.decoder.head.weight.grad.any()) == moves, (shift, advantage)
        model.decoder.head.weight.grad = None


def test_replies_go_on_from_the_prompt_alone_and_keep_the_answer_for_the_reward():
    model = coin()
    objective = objective_of(model, choice("grpo"))
    earlier = (Turn("user", (Text("x"),)), Turn("assistant", (Text("y"),)))
    (row,) = objective.rows(Conversation(turns=(*earlier, *TURNS)), None)
    (attempt,) = write_replies(model, TOKENIZER, [row], [0], 3)
    prompt = encode_prompt(TOKENIZER, (*earlier, TURNS[0])).ids
    assert attempt.row.ids[: len(prompt)] == prompt
    assert attempt.answer == "a"
    assert attempt.prompt == TOKENIZER.decode(prompt)
    learned = [target for target in attempt.row.targets if target != IGNORED]
    assert learned == attempt.row.ids[len(prompt) :]
    with pytest.raises(VLMError, match="conversations that end with the assistant's answer"):
        objective.rows(Document(parts=(Text("a"),)), None)
    with pytest.raises(VLMError, match="conversations that end"):
        objective.rows(Conversation(turns=TURNS[:1]), None)


# Rewards


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:f", "cannot be imported"),
        (HERE + "f", "cannot be imported"),
        ("f", "cannot be"),
        ("math:pi", "'math:pi' is no function; give module:function"),
    ],
)
def test_a_reward_that_is_no_function_is_refused(name, words):
    with pytest.raises(VLMError, match=words):
        FunctionReward(name)


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(VLMError, match=r"not_a_number' returned nan; expected a finite number"):
        FunctionReward(HERE + "not_a_number")([Attempt(None, "", "", "")])


def test_a_reward_model_is_asked_about_the_reply(tmp_path):
    model = coin()
    judge = VLM(model, TOKENIZER)
    judge.save_pretrained(tmp_path / "judge")
    objective = objective_of(model, choice("grpo"))
    (attempt,) = write_replies(model, TOKENIZER, objective.rows(Conversation(turns=TURNS), None), [0], 1)
    (found,) = ModelReward(str(tmp_path / "judge"), TOKENIZER, torch.device("cpu"))([attempt])
    talk = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": attempt.reply},
        {"role": "user", "content": QUESTION},
    ]
    yes, no = judge.score(talk, ["Yes", "No"])
    # There the ends of the answers are left out; here they count.
    ends = []
    for word in ("Yes", "No"):
        logits = judge.logits([*talk, {"role": "assistant", "content": word}], continue_final=True)[-1]
        ends.append(float(logits.log_softmax(-1)[TOKENIZER.eot_id]))
    assert found == pytest.approx(yes.logprob + ends[0] - no.logprob - ends[1], abs=1e-4)


# In a run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    VLM(coin(), TOKENIZER).save_pretrained(folder / "model")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_jsonl(folder / "talk.jsonl", [{"messages": talk}] * 4)
    return folder


def settings(place: Path, out: Path, name: str, **changes) -> TrainConfig:
    values = {
        "out": str(out),
        "model": {"source": str(place / "model")},
        "data": [{"path": str(place / "talk.jsonl")}],
        "objective": {"name": name, "reward": HERE + "likes_a", "max_new_tokens": 2, "updates": 2, "group_size": 2},
        "trained": {"parts": ["head"]},
        "optimizer": {"lr": 2e-2},
        "checkpoints": {"every": 2},
        "steps": 3,
        "batch_size": 4,
    }
    return build(TrainConfig, values | changes)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_run_of_its_own_replies_goes_on_bit_for_bit(place, tmp_path, name):
    straight = Training(settings(place, tmp_path / "straight", name))
    report = straight.train()
    cut = Training(settings(place, tmp_path / "cut", name))
    take = cut.step
    cut.step = lambda *args: (cut.num_done == 1 and cut.stop(), take(*args))[1]
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = Training(settings(place, tmp_path / "cut", name))
    assert again.num_done == 2
    again.train()
    logs = [read_lines(tmp_path / out / "log.jsonl") for out in ("straight", "cut")]
    assert [[row[key] for key in ("loss", "reward", "kl")] for row in logs[0]] == [
        [row[key] for key in ("loss", "reward", "kl")] for row in logs[1]
    ]
    assert same_state(dict(straight.weights), dict(again.weights))
    assert ("value_head.weight" in straight.weights) == (name == "ppo")
    VLM.from_pretrained(report.result)


def test_an_adapter_is_measured_against_the_model_beneath_it(place, tmp_path):
    lora = {"trained": {"lora": {"rank": 2, "targets": ["head", "q_proj"]}}}
    training = Training(settings(place, tmp_path / "run", "grpo", **lora))
    assert training.objective.reference._copy is None
    report = training.train()
    rows = read_lines(tmp_path / "run" / "log.jsonl")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rows[-1]["kl"]) > 1e-5
    assert report.result.name == "adapter"


def test_dropout_and_a_missing_reward_are_refused(place, tmp_path):
    with pytest.raises(VLMError, match="would blur the ratios of grpo"):
        settings(place, tmp_path, "grpo", trained={"lora": {"dropout": 0.1}})
    with pytest.raises(VLMError, match="ppo needs either reward"):
        settings(place, tmp_path, "ppo", objective={"name": "ppo"})
