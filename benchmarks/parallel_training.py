"""The losses of twenty steps on several processes beside those on one, each way; in float32.

    python -m benchmarks.parallel_training

The model is small, its gates are open; samples are of unequal length, with pictures and without. The last line is JSON.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import torch

from tests.parallel_runs import PROCESSES, STEPS, run_modes, worst_difference, write_inputs
from vlm.machine import processor

LIMIT = 1e-5


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else f"{processor()}, gloo"
    print(
        f"largest difference from one process over {STEPS} steps; limit {LIMIT:g}; torch {torch.__version__}, {kind}\n"
    )
    print(f"{'mode':<14}{'processes':>10}{'loss':>12}{'norm of the gradient':>24}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        expected = run_modes(folder, 1, ["single"])["single"]
        for count, modes in PROCESSES.items():
            for mode, log in run_modes(folder, count, modes).items():
                loss, norm = (worst_difference(log, expected, figure) for figure in ("loss", "grad_norm"))
                print(f"{mode:<14}{count:>10}{loss:>12.1e}{norm:>24.1e}", flush=True)
                rows.append({"mode": mode, "processes": count, "loss": loss, "grad_norm": norm})
    machine = {"device": str(kind), "cpus": os.cpu_count(), "torch": torch.__version__}
    machine["python"] = platform.python_version()
    command = "python -m benchmarks.parallel_training"
    print(json.dumps({"command": command, "steps": STEPS, "limit": LIMIT, "differences": rows, **machine}))
    return 0 if max(row["loss"] for row in rows) < LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
