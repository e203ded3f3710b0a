"""Runs on several processes equal the run of one, each way; they go on in another number, and end together."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import random_model
from tests.nearness import difference
from tests.parallel_runs import (
    MODES,
    PROCESSES,
    model_config,
    read_log,
    run_all,
    run_modes,
    settings,
    started,
    train,
    worst_difference,
    write_inputs,
)
from tests.training_rows import write_jsonl
from vlm import VLM, GenerationConfig, Tokenizer, VLMError
from vlm.config import ModelConfig
from vlm.training.checkpoints import CheckpointFolder
from vlm.training.config import TrainConfig
from vlm.training.loop import Training
from vlm.training.parallel.world import num_processes
from vlm.training.settings import build

pytestmark = pytest.mark.slow
LIMIT = 1e-5
SHORT = GenerationConfig(max_new_tokens=6)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    write_inputs(folder)
    train({}, folder, "single")
    return folder


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return VLM.from_pretrained(model, device="cpu").model.state_dict()


def assert_same_run(folder: Path, out: str, expected: str = "single") -> None:
    """The log and what came out are those of another run."""
    logs = [read_log(folder / name) for name in (out, expected)]
    assert worst_difference(*logs) < LIMIT
    assert worst_difference(*logs, "grad_norm") < 1e-4
    for name in ("step", "lr", "samples", "tokens", "skipped"):
        assert [row[name] for row in logs[0]] == [row[name] for row in logs[1]], name
    found, wanted = (weights_of(folder / name / "model") for name in (out, expected))
    assert max(difference(found[name], weight) for name, weight in wanted.items() if weight.any()) < 1e-3


@pytest.mark.parametrize("count", PROCESSES)
def test_processes_follow_the_losses_of_one(folder, count):
    modes = PROCESSES[count]
    run_modes(folder, count, modes)
    log = read_log(folder / "single")
    assert log[-1]["loss"] < log[0]["loss"] - 1
    for mode in modes:
        assert_same_run(folder, f"{mode}-{count}")
        skipped = (folder / f"{mode}-{count}" / "skipped_samples.jsonl").read_text()
        assert "talk-9" in skipped
        assert skipped.count("\n") == 1


# Other ways to learn: adapters on frozen layers, layers computed twice, pairs, bfloat16, replies of one's own


def last_letter(prompt: str, reply: str, answer: str) -> float:
    return ord(reply[-1]) % 7 if reply else -1.0


POLICY = {"reward": "tests.test_parallel_training:last_letter", "max_new_tokens": 4, "updates": 2, "group_size": 2}
ASKED = {"questions": [{"text": "?"}], "every": 2, "max_new_tokens": 4}
LORA = ["q_proj", "k_proj", "o_proj", "down_proj", "fc1", "projector", "patch_embedding", "head"]

VARIANTS = {
    "lora": {"trained": {"lora": {"rank": 2, "targets": LORA}}},
    "recompute": {"recompute": True, "optimizer": {"lr": 2e-3, "groups": [{"match": "encoder.*", "lr": 1e-3}]}},
    "dpo": {"objective": {"name": "dpo"}, "batch_size": 5},
    "bf16": {"precision": "bf16"},
    "grpo": {"objective": {"name": "grpo", **POLICY}, "batch_size": 3, "samples": ASKED},
    "ppo": {"objective": {"name": "ppo", **POLICY}, "batch_size": 3},
    "dropout": {"trained": {"lora": {"rank": 2, "dropout": 0.4, "targets": LORA}}},
    "int8": {"trained": {"lora": {"rank": 2, "targets": LORA}}},
    "int4": {"trained": {"lora": {"rank": 2, "targets": LORA}}, "recompute": True},
}


def variants(folder: Path, ways: list[tuple[str, str]]) -> None:
    for name, way in ways:
        changes = VARIANTS[name] | {"steps": 4, "parallel": MODES[way]}
        if name == "dpo":
            changes["data"] = [{"path": str(folder / "pairs.jsonl")}]
        if name in ("int8", "int4"):
            changes["model"] = {"source": str(folder / "model"), "quantize": name}
        train(changes, folder, f"{name}-{way}")


def test_other_ways_to_learn_follow_the_losses_of_one(folder):
    prompt = [{"role": "user", "content": "say"}]
    pairs = [{"messages": prompt, "chosen": "a" * (1 + n), "rejected": "b"} for n in range(5)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    two = [
        ("lora", "fsdp"), ("lora", "ddp"), ("lora", "pipeline-2"), ("lora", "tensor-2"), ("recompute", "fsdp"),
        ("recompute", "pipeline-2"), ("dpo", "fsdp"), ("bf16", "fsdp"), ("bf16", "tensor-2"), ("grpo", "ddp"),
        ("ppo", "ddp"), ("dropout", "tensor-2"), ("int8", "tensor-2"), ("int4", "tensor-2"), ("int4", "fsdp"),
        ("int4", "pipeline-2"),
    ]  # fmt: skip
    four = [("lora", "fsdp-tensor"), ("dpo", "pipeline-ddp"), ("int4", "tensor-4"), ("int4", "fsdp-tensor")]
    variants(folder, [(name, "single") for name in VARIANTS])
    run_all(2, variants, folder, two)
    run_all(4, variants, folder, four)
    for name, way in two + four:
        logs = [read_log(folder / f"{name}-{one}") for one in (way, "single")]
        assert worst_difference(*logs) < (3e-2 if name == "bf16" else LIMIT), (name, way)
        if name in ("grpo", "ppo"):
            assert logs[1][0]["reward"] != logs[1][-1]["reward"]
            assert max(worst_difference(*logs, figure) for figure in ("reward", "kl", "reply_tokens")) < LIMIT, name
    asked = [(folder / f"grpo-{way}" / "samples.jsonl").read_text() for way in ("ddp", "single")]
    assert asked[0] == asked[1]
    assert asked[0].count("\n") == 2


# The command


def test_the_command_under_torchrun_speaks_once_and_is_refused_as_one(folder):
    config = folder / "run.toml"
    values = settings(folder, "command", steps=3)
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict | list)]
    lines += ["[model]", f"source = {json.dumps(values['model']['source'])}"]
    lines += ["[[data]]", f"path = {json.dumps(values['data'][0]['path'])}"]
    config.write_text("\n".join(lines))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "vlm", "train", str(config), "parallel.data=fsdp", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("3 steps, loss") == 1
    skipped = (folder / "command" / "skipped_samples.jsonl").read_text().splitlines()
    assert json.loads(done.stdout.splitlines()[-1])["poison"] == len(skipped)
    VLM.from_pretrained(folder / "command" / "model", device="cpu")
    refused = subprocess.run([*command, "seed=1"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert refused.returncode
    assert "begun with other settings of seed" in refused.stdout + refused.stderr


# Going on, accidents


def stopped_by_a_signal(folder: Path, out: str, way: str, step: int) -> None:
    """Train until one process, not the main one, is told to stop; the whole run stops, and is saved."""
    training = Training(build(TrainConfig, settings(folder, out, parallel=MODES[way], checkpoints={"every": 100})))
    signal.signal(signal.SIGTERM, training.stop)
    take = training.step

    def step_and_tell(*args):
        if training.num_done + 1 == step and training.world.size > 1 and not training.world.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(*args)

    training.step = step_and_tell
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert training.num_done == step


def test_a_run_that_is_told_to_stop_on_two_processes_goes_on_with_any_number_in_any_way(folder):
    """2 processes of FSDP2, then 4 of FSDP2 with tensor parallel, then 2 of a pipeline, and one at last."""
    out = "handed-on"
    run_all(2, stopped_by_a_signal, folder, out, "fsdp", 3)
    run_all(4, stopped_by_a_signal, folder, out, "fsdp-tensor", 5)
    run_all(2, stopped_by_a_signal, folder, out, "pipeline-2", 8)
    state = CheckpointFolder(folder / out / "checkpoints", keep=2).load()
    assert state.step == 8
    assert {name: weight.shape for name, weight in state.weights.items()} == {
        name: weight.shape
        for name, weight in VLM.from_pretrained(folder / "model", device="cpu").model.named_parameters()
    }
    train({"checkpoints": {"every": 100}}, folder, out)
    assert_same_run(folder, out)


def one_dies(folder: Path, out: str, way: str) -> None:
    training = Training(build(TrainConfig, settings(folder, out, parallel=MODES[way], checkpoints={"every": 2})))
    take = training.step

    def step_or_die(*args):
        if training.num_done == 5 and not training.world.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(*args)

    training.step = step_or_die
    with pytest.raises(VLMError, match="another process of the run has ended") as caught:
        training.train()
    assert caught.value.code == "device_unavailable"
    assert len(caught.value.report) <= 300


@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor-2", "pipeline-2"])
def test_a_killed_process_ends_the_others_with_an_error_that_says_so(folder, way):
    out = f"killed-{way}"
    with started(2, one_dies, folder, out, way) as processes:
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert CheckpointFolder(folder / out / "checkpoints", keep=2).load().step == 4


def one_has_no_number(folder: Path, out: str, way: str) -> None:
    training = Training(build(TrainConfig, settings(folder, out, parallel=MODES[way], steps=4)))
    loss_of = training.objective.loss

    def spoiled(model, examples):
        bad = training.num_done == 2 and training.world.place("data") == training.world.extent("data") - 1
        return loss_of(model, examples) * (float("nan") if bad else 1)

    training.objective.loss = spoiled
    assert training.train().bad_steps == 1


def test_a_step_that_is_not_finite_in_one_process_is_left_out_in_all(folder):
    one_has_no_number(folder, "nan-single", "single")
    for way in ("ddp", "fsdp", "tensor-2", "pipeline-2"):
        run_all(2, one_has_no_number, folder, f"nan-{way}", way)
        logs = [read_log(folder / name) for name in (f"nan-{way}", "nan-single")]
        assert [row["skipped"] for row in logs[0]] == [False, False, True, False], way
        assert abs(logs[0][3]["loss"] - logs[1][3]["loss"]) < LIMIT, way


def one_cannot_write(folder: Path, out: str) -> None:
    from vlm.training import checkpoints

    training = Training(
        build(TrainConfig, settings(folder, out, parallel=MODES["fsdp"], steps=6, checkpoints={"every": 2}))
    )
    write = checkpoints.dcp.save

    def full(*args, **kwargs):
        write(*args, **kwargs)
        if training.num_done == 4 and training.world.is_main:
            raise OSError(28, "No space left on device")

    checkpoints.dcp.save = full
    report = training.train()
    assert report.failed_saves == 1


def test_a_full_disk_costs_a_checkpoint_and_ends_no_process(folder):
    run_all(2, one_cannot_write, folder, "full")
    checkpoints = folder / "full" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000006"]


# Inference


def answers(folder: Path, source: str, dtype: str, quantize: str | None) -> None:
    """Ask a model that all processes share; the main one writes down what it says."""
    model = VLM.from_pretrained(folder / source, device="auto", dtype=dtype, quantize=quantize)
    assert num_processes() == 1 or model.model.decoder.embedding.weight.device_mesh.size() == num_processes()
    talks = [[{"role": "user", "content": "say 1 say 2"}]]
    if model.model.config.vision is not None:
        image = {"type": "image", "image": str(folder / "b.png")}
        talks.append([{"role": "user", "content": [image, {"type": "text", "text": "say"}]}])
    found = {"logits": [model.logits(talk) for talk in talks]}
    found["ids"] = [reply.token_ids for reply in model.chat_many(talks, config=SHORT)] if dtype == "float32" else None
    if os.environ.get("RANK", "0") == "0":
        torch.save(found, folder / f"{source}-{dtype}-{quantize}-{num_processes()}.pt")


ASKED_MODELS = [
    ("model", "float32", None), ("tied", "float32", None), ("model", "bfloat16", None), ("model", "float32", "int8"),
    ("model", "float32", "int4"), ("model", "bfloat16", "int4"),
]  # fmt: skip


def all_answers(folder: Path) -> None:
    for one in ASKED_MODELS:
        answers(folder, *one)


def test_a_model_shared_by_processes_answers_as_one_does(folder):
    tiny = model_config().decoder
    tied = dataclasses.replace(tiny, tied=True, num_extra_embeddings=0)
    VLM(random_model(ModelConfig(decoder=tied)), Tokenizer.bytes_only()).save_pretrained(folder / "tied")
    all_answers(folder)
    for count in (2, 4):
        run_all(count, all_answers, folder)
        for source, dtype, quantize in ASKED_MODELS:
            name = f"{source}-{dtype}-{quantize}"
            found, expected = (torch.load(folder / f"{name}-{one}.pt") for one in (count, 1))
            limit = 1e-5 if dtype == "float32" else 5e-2
            for logits, wanted in zip(found["logits"], expected["logits"], strict=True):
                assert difference(logits, wanted) < limit, (count, name)
            assert found["ids"] == expected["ids"]
