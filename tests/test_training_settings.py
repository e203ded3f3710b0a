"""The settings of a run: every key is checked, and names what is wrong with it."""

import math

import pytest
import torch
from torch import nn

from vlm import VLMError
from vlm.training.config import OptimizerConfig, Schedule, TrainConfig, WeightGroup
from vlm.training.optimizers import Optimizers
from vlm.training.schedules import share_of_peak
from vlm.training.settings import read_settings

TOML = """
out = "runs/a"
steps = 20
[model]
preset = "tiny"
[[data]]
path = "a.jsonl"
[optimizer]
lr = 1e-3
[[optimizer.groups]]
match = "encoder.*"
lr = 0
"""
YAML = """
out: runs/a
steps: 20
model: {preset: tiny}
data:
  - path: a.jsonl
optimizer:
  lr: 1e-3
  groups: [{match: encoder.*, lr: 0}]
"""


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def test_toml_and_yaml_say_the_same(toml, tmp_path):
    (tmp_path / "run.yaml").write_text(YAML)
    settings = read_settings(TrainConfig, toml)
    assert settings == read_settings(TrainConfig, tmp_path / "run.yaml")
    assert settings.optimizer.groups == (WeightGroup(match="encoder.*", lr=0.0),)
    assert settings.batch_size == TrainConfig.batch_size


def test_overrides_reach_every_key(toml):
    settings = read_settings(
        TrainConfig,
        toml,
        [
            "optimizer.lr=2e-4", "data.0.path=b.jsonl", "model={source='a'}", "trained.lora.targets=['q_proj']",
            "schedule.name=wsd", "steps=7",
        ],
    )  # fmt: skip
    assert settings.optimizer.lr == 2e-4
    assert settings.data[0].path == "b.jsonl"
    assert settings.trained.lora.targets == ("q_proj",)
    assert settings.schedule == Schedule(name="wsd")
    assert settings.steps == 7


@pytest.mark.parametrize("text", ["2024", "1e3", "true", "2024-01-31"])
def test_a_key_that_takes_a_text_takes_what_was_typed(toml, text):
    settings = read_settings(TrainConfig, toml, [f"out={text}", f"data.0.images={text}"])
    assert (settings.out, settings.data[0].images) == (text, text)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.weigth_decay=0.1", r"optimizer.weigth_decay is no key; did you mean weight_decay\?"),
        ("stepps=3", r"stepps is no key; did you mean steps\?"),
        ("steps=1.5", "steps is 1.5; expected a whole number"),
        ("steps=true", "steps is True; expected a whole number"),
        ("steps=0", "steps is 0; expected at least 1"),
        (f"steps={10**23}", "steps is above 9007199254740992"),
        (f"steps={'9' * 5000}", "steps is '9999.*expected a whole number"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast'; expected a number"),
        ("optimizer.lr=-1.0", "optimizer: lr is -1.0; expected more than 0"),
        ("optimizer.weight_decay=nan", "optimizer: weight_decay is nan; expected at least 0"),
        ("optimizer.clip_norm=-1", r"optimizer: clip_norm is -1.0; expected at least 0"),
        ("optimizer.beta1=2", "optimizer: beta1 is 2.0; expected at least 0 and below 1"),
        ("optimizer.groups=[{match='*', lr=-1}]", r"optimizer.groups\[0\]: lr is -1.0; expected at least 0"),
        ("schedule.warmup_steps=-5", "schedule: warmup_steps is -5; expected at least 0"),
        ("schedule.final_share=nan", "schedule: final_share is nan; expected from 0 to 1"),
        ("schedule.decay_share=2", "schedule: decay_share is 2.0; expected from 0 to 1"),
        ("trained.lora={alpha=nan}", "trained.lora: alpha is nan; expected more than 0"),
        ("trained.parts=[]", "trained: parts is empty; name what is trained"),
        ("objective.beta=nan", "expected gae_lambda from 0 to 1, beta of at least 0"),
        ("objective.value_weight=-1", "objective: value_weight is -1.0; expected at least 0"),
        ("filters=[{name='length', min_chars=-3}]", r"filters\[0\]: min_chars is -3; expected at least 0"),
        ("workers=-1", "workers is -1; expected at least 0"),
        ("seed=-1", r"seed is -1; expected at least 0 and below 2\^63"),
        ("out=''", "out is empty; expected the folder of the run"),
        ("optimizer.name=sgd", "expected one of adamw, muon"),
        ("shuffle=1", "shuffle is 1; expected true or false"),
        ("data=[]", "data is empty"),
        ("data=[{images='x'}]", r"data\[0\].path is missing"),
        ("data.1.path=x", "count lists from 0"),
        ("model.source=x", "expected either source"),
        ("trained={parts=['all'], lora={}}", "parts and lora exclude each other"),
        ("trained.lora={}", "adapter left without a base; leave trained.lora out, or give model.source"),
        ("schedule=cosine", "schedule is 'cosine'; expected keys with values"),
        ("steps", "no key=value"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(toml, override, words):
    with pytest.raises(VLMError, match=words) as caught:
        read_settings(TrainConfig, toml, [override])
    assert caught.value.code == "invalid_request"
    assert len(caught.value.message) <= 300


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", "out = ", "cannot be parsed"),
        ("a.yaml", "a: [", "cannot be parsed"),
        ("a.json", "{}", "neither .toml nor .yaml"),
        ("a.toml", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(VLMError, match=words):
        read_settings(TrainConfig, tmp_path / name)


# Schedules


def shares(name: str, **settings) -> list[float]:
    return [share_of_peak(step, num_steps=10, num_warmup=2, name=name, **settings) for step in range(10)]


def test_rates_rise_to_the_peak_and_fall_to_their_end():
    assert shares("constant") == [0.5] + [1.0] * 9
    assert shares("linear") == pytest.approx([0.5, 1, *(part / 9 for part in range(8, 0, -1))])
    assert shares("linear", final_share=0.5)[-1] == pytest.approx(0.5 + 0.5 / 9)
    assert shares("cosine")[4] == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert shares("wsd", decay_share=0.4) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert share_of_peak(0, num_steps=10, num_warmup=0) == 1
    assert share_of_peak(0, num_steps=1, num_warmup=0) == 1


# Optimizers


def weights() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"encoder.fc1.weight": (6, 4), "decoder.embedding.weight": (9, 4), "decoder.norm.weight": (4,)}
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def test_groups_have_their_own_rates_and_vectors_do_not_decay():
    trained = weights()
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1, groups=(WeightGroup(match="encoder.*", lr=1e-3),))
    optimizers = Optimizers(trained, config)
    optimizers.set_share(0.5)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizers._all_groups()
        for name, weight in trained.items()
        if any(weight is one for one in group["params"])
    }
    assert found == {
        "encoder.fc1.weight": (5e-4, 0.1),
        "decoder.embedding.weight": (5e-3, 0.1),
        "decoder.norm.weight": (5e-3, 0.0),
    }
    with pytest.raises(VLMError, match=r"vision\.\*"):
        Optimizers(trained, OptimizerConfig(groups=(WeightGroup(match="vision.*"),)))


def test_muon_steps_inner_matrices_as_torch_does_and_adamw_the_rest():
    trained, twins = weights(), weights()
    optimizers = Optimizers(trained, OptimizerConfig(name="muon", lr=1e-2, clip_norm=0))
    muon = torch.optim.Muon(
        [twins["encoder.fc1.weight"]], lr=1e-2, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    rest = [twins["decoder.embedding.weight"], twins["decoder.norm.weight"]]
    adamw = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        for name, weight in trained.items():
            weight.grad = torch.full_like(weight, 0.1 + step) * weight.detach()
            twins[name].grad = weight.grad.clone()
        optimizers.clip()
        optimizers.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(weight, twins[name]) for name, weight in trained.items())


def test_gradients_are_cut_together_to_the_largest_norm():
    trained = weights()
    optimizers = Optimizers(trained, OptimizerConfig(clip_norm=0.5))
    for weight in trained.values():
        weight.grad = torch.ones_like(weight)
    assert float(optimizers.clip()) == pytest.approx(64**0.5)
    cut = torch.cat([weight.grad.flatten() for weight in trained.values()])
    assert float(cut.norm()) == pytest.approx(0.5, abs=1e-5)
