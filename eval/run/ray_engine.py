"""The shards of a run as Ray tasks: each is what `--shard i/n` would run, on whatever machine has room.

A task whose worker is lost is started again by Ray, finds the records of its shard, and goes on. The folder of the run
and the data must be reachable under the same paths from every machine.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace

from eval.backends import Backend
from eval.run.folder import RunFolder
from eval.run.runner import Outcome, RunSettings, run
from eval.run.settling import start_anew
from eval.run.shards import Shard
from vlm.errors import VLMError
from vlm.packages import needed

MAX_RETRIES = 3


def run_on_ray(
    settings: RunSettings, open_backend: Callable[[], Backend], num_shards: int, *, uses_accelerator: bool
) -> Outcome:
    """Run all shards and return what came of them together.

    open_backend: is sent to every task, and makes its backend there. uses_accelerator: each task takes a GPU, where
    the cluster has some.

    Raises: VLMError for what stopped a shard; the others go on to their end first.
    """
    ray = needed("ray", "--engine ray")
    if not ray.is_initialized():
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        ray.init(log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": path})
    num_gpus = 1 if uses_accelerator and ray.cluster_resources().get("GPU") else 0

    # A worker that is lost costs a retry; an error of ours would be the same again.
    @ray.remote(max_retries=MAX_RETRIES, retry_exceptions=False, num_cpus=1, num_gpus=num_gpus)
    def run_shard(shard: Shard) -> Outcome | tuple[str, str]:
        try:
            return run(replace(settings, shard=shard, new_run=False), open_backend(), show_progress=False)
        except VLMError as error:
            return error.code, error.report

    # Once, and here: a task that is started again must not move its own answers away.
    moved_to = start_anew(RunFolder(settings.out)) if settings.new_run else None
    futures = [run_shard.remote(Shard(index, num_shards)) for index in range(1, num_shards + 1)]
    try:
        outcomes = [_outcome(ray, future) for future in futures]
    except KeyboardInterrupt:
        for future in futures:
            ray.cancel(future, force=True)
        raise
    failed = [outcome for outcome in outcomes if isinstance(outcome, VLMError)]
    if failed:
        raise failed[0]
    counts = [sum(values) for values in zip(*(outcome[:3] for outcome in outcomes), strict=True)]
    return Outcome(*counts, moved_to)


def _outcome(ray, future) -> Outcome | VLMError:
    try:
        outcome = ray.get(future)
        return outcome if isinstance(outcome, Outcome) else VLMError(*outcome)
    except ray.exceptions.RayError as error:
        return VLMError(
            "device_unavailable",
            f"a shard was lost {MAX_RETRIES + 1} times ({type(error).__name__}); see to the machines and resume",
        )
