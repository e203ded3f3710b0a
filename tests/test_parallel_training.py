"""Runs on several processes equal the run of one, each way; they go on in another number, and end together."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

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
from vlm.processes import num_processes
from vlm.training import checkpoints, loop, speed
from vlm.training.checkpoints import CheckpointFolder
from vlm.training.config import TrainConfig
from vlm.training.loop import Training
from vlm.training.objectives import DirectPreference
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


def reference_then_steps(folder: Path, ways: list[str]) -> None:
    """Train on pairs each way, twice, and write down of which places this process asked the reference."""
    margins = DirectPreference.margins
    data = [{"path": str(folder / "preferences.jsonl")}]
    for way in ways:
        asked: list[list[int]] = []
        for _ in range(2):
            asked.append([])
            DirectPreference.margins = lambda *args, asked=asked: (
                asked[-1].extend(example.place[1] for example in args[2]) or margins(*args)
            )
            changes = {"parallel": MODES[way], "steps": 3, "data": data, "objective": {"name": "dpo"}}
            training = Training(build(TrainConfig, settings(folder, f"shared-{way}", **changes)))
            DirectPreference.margins = margins
        (folder / f"shared-{way}-{training.world.rank}.json").write_text(json.dumps(asked))
        training.train()


def test_the_reference_of_pairs_is_computed_once_by_all_together(folder):
    rows = [{"messages": [{"role": "user", "content": "say"}], "chosen": "a" * n, "rejected": "b"} for n in range(1, 8)]
    rows[2]["chosen"] = None
    write_jsonl(folder / "preferences.jsonl", rows)
    ways = ["ddp", "fsdp", "tensor-2", "pipeline-2"]
    run_all(1, reference_then_steps, folder, ["single"])
    run_all(2, reference_then_steps, folder, ways)
    expected = (folder / "shared-single" / "reference.json").read_text()
    assert [place for _, place, _ in json.loads(expected)["margins"]] == [0, 1, 3, 4, 5, 6]
    for way in ways:
        asked = [json.loads((folder / f"shared-{way}-{rank}.json").read_text()) for rank in range(2)]
        assert asked == [[[0, 4, 6], []], [[1, 3, 5], []]], way
        assert (folder / f"shared-{way}" / "reference.json").read_text() == expected, way
        assert worst_difference(*(read_log(folder / f"shared-{one}") for one in (way, "single"))) < LIMIT, way


# What is shown


def with_a_terminal(folder: Path, ways: list[str]) -> None:
    """Train each way on a terminal; the main process writes down what it was told of the machine."""
    speed.measured_peak = lambda device, dtype: 1e9
    for way in ways:
        screen = io.StringIO()
        loop.tqdm = lambda screen=screen, **given: tqdm(**given | {"disable": bool(given["disable"]), "file": screen})
        training = Training(build(TrainConfig, settings(folder, f"shown-{way}", parallel=MODES[way], steps=4)))
        training.train()
        if training.world.is_main:
            found = {"peak": training.speed.peak, "share": training.speed.share(1e3), "screen": screen.getvalue()}
            (folder / f"shown-{way}.json").write_text(json.dumps(found))


def test_the_share_of_the_peak_is_that_of_all_processes(folder):
    ways = {"ddp": 0.1, "fsdp": 0.1, "tensor-2": 0.05, "pipeline-2": 1e-3}
    run_all(1, with_a_terminal, folder, ["single"])
    run_all(2, with_a_terminal, folder, list(ways))
    single = json.loads((folder / "shown-single.json").read_text())
    for way, tolerance in ways.items():
        found = json.loads((folder / f"shown-{way}.json").read_text())
        assert found["peak"] == 2 * single["peak"] == 2e9
        # As many operations for a token as in one process, but for less padding in a share of the samples, and for the
        # patch embedding, which each has that shares layers.
        assert found["share"] == pytest.approx(single["share"] / 2, rel=tolerance), way
        assert "% of peak" in found["screen"]


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


SAVED_OFTEN = {"parallel": MODES["fsdp"], "checkpoints": {"every": 2, "keep": 1}}


def dies_while_saving(folder: Path, out: str, who: str, when: str) -> None:
    """Train until a process kills itself in the save after step 6: its share half written, or all but the name."""
    training = Training(build(TrainConfig, settings(folder, out, **SAVED_OFTEN)))
    writer, write_checksums = checkpoints.dcp.HuggingFaceStorageWriter, checkpoints.write_checksums
    write = writer.write_data

    def die() -> None:
        if training.num_done == 6 and who in ("all", "main" if training.world.is_main else "other"):
            os.kill(os.getpid(), signal.SIGKILL)

    def write_half(*args):
        written = write(*args)
        if training.num_done == 6:
            number = training.world.rank + 1
            (share,) = (folder / out / "checkpoints").glob(f".saving-*/shard-{number:05d}-*.safetensors")
            os.truncate(share, share.stat().st_size // 2)
        die()
        return written

    if when == "share":
        writer.write_data = write_half
    else:
        checkpoints.write_checksums = lambda staging: write_checksums(staging) or die()
    with pytest.raises(VLMError, match="another process of the run has ended"):
        training.train()


@pytest.mark.parametrize(("who", "when"), [("main", "share"), ("other", "share"), ("all", "share"), ("main", "name")])
def test_a_kill_while_shares_are_saved_leaves_the_checkpoint_before_to_go_on_from(folder, who, when):
    out = f"killed-saving-{who}-{when}"
    saved = folder / out / "checkpoints"
    with started(2, dies_while_saving, folder, out, who, when) as processes:
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]
    assert codes == [0 if who not in ("all", one) else -signal.SIGKILL for one in ("main", "other")]
    assert [path.name for path in saved.glob("step-*")] == ["step-00000004"]
    # What the main process was writing, unless it lived to take it away.
    assert len(list(saved.glob(".saving-*"))) == (who != "other")
    run_all(2, train, SAVED_OFTEN, folder, out)
    assert_same_run(folder, out)
    assert [path.name for path in saved.iterdir()] == ["step-00000020"]


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
