"""This process among those of a run that torchrun started: what each has, and what all agree on."""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vlm.errors import VLMError
from vlm.processes import join, leave_group, num_processes
from vlm.training.config import Parallel

Value = TypeVar("Value")
DIMS = ("pipeline", "data", "tensor")


class World:
    """The processes of a run in a grid: stages of the pipeline, shares of the data, parts of each layer."""

    def __init__(self, parallel: Parallel, device: torch.device, size: int | None = None):
        """Join the others. Raises: VLMError where there are not as many as the settings need.

        `size`: how many there are; None: as many as torchrun started.
        """
        self.size = num_processes() if size is None else size
        _check(parallel, self.size)
        self.device = device
        self.mesh: DeviceMesh | None = None
        if self.size > 1:
            self.device = join(device)
            num_data = self.size // (parallel.tensor * parallel.pipeline)
            shape = (parallel.pipeline, num_data, parallel.tensor)
            self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=DIMS)
        self.rank = 0 if self.size == 1 else dist.get_rank()
        self.is_main = self.rank == 0
        """Whether this process writes what is written once; known after parting too."""

    @classmethod
    def alone(cls) -> "World":
        """Return a process that does all, whatever others there are."""
        return cls(Parallel(), torch.device("cpu"), size=1)

    def extent(self, dim: str) -> int:
        return 1 if self.mesh is None else self.mesh[dim].size()

    def place(self, dim: str) -> int:
        return 0 if self.mesh is None else self.mesh[dim].get_local_rank()

    def gather(self, value: Value, dim: str | None = None) -> list[Value]:
        """Return what every process gave, or each of those along one side of the grid."""
        count = self.size if dim is None else self.extent(dim)
        if count == 1:
            return [value]
        values: list = [None] * count
        dist.all_gather_object(values, value, group=None if dim is None else self.mesh[dim].get_group())
        return values

    def total(self, value: float, *dims: str) -> float:
        """Return the sum over the processes along some sides of the grid."""
        for dim in dims:
            value = sum(self.gather(value, dim))
        return value

    def from_main(self, value: Value) -> Value:
        """Return what the main process gave."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def leave(self) -> None:
        """Part from the others, at the end of a run that went well."""
        if self.size > 1:
            leave_group()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process through before the others. Where it is refused all are."""
        failure = None
        if not self.is_main:
            if failure := self.from_main(failure):
                raise VLMError(*failure)
            yield
            return
        try:
            yield
        except VLMError as error:
            failure = error.code, error.report
            raise
        finally:
            self.from_main(failure)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Turn the loss of another process into an error that says so."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_lost(error):
                raise
            raise VLMError(
                "device_unavailable",
                "another process of the run has ended, and this one with it; the first error that was printed says "
                "why; start the run again with the same settings to go on from its last checkpoint",
            ) from error


class Silent:
    """What only the main process does, in another one: nothing."""

    num_poison = 0

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


def _is_lost(error: RuntimeError) -> bool:
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "timed out", "timeout")
    causes = [error, error.__cause__, error.__context__]
    return any(isinstance(cause, dist.DistError) or any(sign in str(cause) for sign in signs) for cause in causes)


def _check(parallel: Parallel, size: int) -> None:
    needed = parallel.tensor * parallel.pipeline
    if size % needed:
        raise _bad(
            f"parallel.tensor {parallel.tensor} and pipeline {parallel.pipeline} need a multiple of {needed} processes "
            f"and there are {size}; start them with torchrun --nproc-per-node {needed}"
        )
    if parallel.pipeline > 1 and size > parallel.pipeline and parallel.data == "fsdp":
        raise _bad(
            f"{size} processes are {parallel.pipeline} stages and share the data among the rest, and parallel.data is "
            f"'fsdp', which stages cannot gather; set parallel.data = 'ddp', or start {parallel.pipeline}"
        )
    if parallel.tensor > 1 and size > parallel.tensor and parallel.data == "ddp":
        raise _bad(
            f"{size} processes share layers among {parallel.tensor} and the data among the rest, and parallel.data is "
            "'ddp', which cannot hold shared layers; set parallel.data = 'fsdp'"
        )


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
