"""The reader's training on several processes, which are as real as torchrun starts them."""

import os
import subprocess
import sys

import pytest

TWO = """
import os
import torch, torch.distributed
from vlm.processes import leave_group
from vlm.training.reader.muon import Muon
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
weights = [torch.nn.Parameter(torch.randn(8, 12)) for _ in range(3)]
optimizer = Muon(weights, lr=0.02)
for _ in range(3):
    for weight in weights:
        weight.grad = torch.sin(weight.detach() * 3)
    optimizer.step()
line = "SUM " + " ".join(f"{weight.double().sum().item():.9f}" for weight in weights)
os.write(1, f"{line}\\n".encode())  # in one piece: the processes share the pipe
leave_group()
"""


RUN = """
import os
from dataclasses import replace
from pathlib import Path
import torch
from vlm.training.reader.diet import Diet
from vlm.training.reader.run import Run
from vlm.training.reader.stages import STAGES
torch.set_flush_denormal(True)
named = {stage.name: stage for stage in STAGES}
letters, questions, answers = (named[name] for name in ("letters", "more of everything", "as it answers"))
stages = {
    "all": (
        replace(letters, num_batches=2, diet=replace(letters.diet, num_images=2)),
        replace(questions, num_batches=2, diet=Diet(num_images=4, share_pages=0.5, num_questions=2)),
    ),
    "decoder alone": (replace(answers, num_batches=2, diet=Diet(num_images=4, share_pages=0.0, num_questions=2)),),
}
run = Run(Path(os.environ["OUT"]), stages[os.environ["STAGES"]], 0)
# What is held is rounded to what it ships in.
is_held = os.environ["STAGES"] == "decoder alone"
def sums():
    return {
        name: (weight.bfloat16() if is_held and not name.startswith("model.decoder.") else weight).double().sum().item()
        for name, weight in run.reader.named_parameters()
    }
before = sums()
run.train()
after = sums()
of_decoder = [name for name in after if name.startswith("model.decoder.")]
others = [name for name in after if name not in of_decoder]
shares = [sum(before[name] != after[name] for name in names) / len(names) for names in (of_decoder, others)]
os.write(1, f"SUM {sum(after.values()):.9f} {shares[0]} {shares[1]}\\n".encode())
"""


def _sums(tmp_path, program: str, num_processes: int, **environment: str) -> set[str]:
    """Return what the processes of a program say of their weights."""
    script = tmp_path / "program.py"
    script.write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    environment = os.environ | {"OUT": str(tmp_path / "run"), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line for line in done.stdout.splitlines() if line.startswith("SUM")}


@pytest.mark.slow
def test_several_processes_step_as_one(tmp_path):
    sums = [_sums(tmp_path, TWO, num_processes) for num_processes in (1, 2)]
    assert len(sums[0]) == 1
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_a_run_on_two_processes_goes_through_stages_in_which_not_all_losses_count_and_both_have_its_weights(tmp_path):
    (line,) = _sums(tmp_path, RUN, 2, STAGES="all")
    assert all(float(share) > 0.9 for share in line.split()[2:])
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_in_the_last_stage_the_decoder_alone_moves_on_both_processes(tmp_path):
    (line,) = _sums(tmp_path, RUN, 2, STAGES="decoder alone")
    of_decoder, others = map(float, line.split()[2:])
    # Behind gates that are shut nothing has a gradient yet.
    assert of_decoder > 0.5
    assert others == 0
