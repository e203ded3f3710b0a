"""The processes that torchrun started: joining them, and parting."""

import os
import time

import torch
import torch.distributed as dist

_PARTING_S = 0.5


def num_processes() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device) -> torch.device:
    """Join the others that torchrun started, and return the device of this one: the machine's n-th for its n-th."""
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
        torch.accelerator.set_device_index(device.index)
    if not dist.is_initialized():
        # gloo for tensors on the CPU, and for those on an accelerator its own: NCCL on CUDA.
        dist.init_process_group()
    return device


def leave_group() -> None:
    """End what this process has with the others, as the last that it does."""
    dist.destroy_process_group()
    # gloo's threads hold objects of Python for a moment more; one that meets a Python which is gone aborts the process
    # (SIGABRT; torch 2.14: 5 of 12 ends on a busy machine, none of 11 after a pause).
    time.sleep(_PARTING_S)
