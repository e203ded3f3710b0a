"""The benchmarks, one file each, and those that other packages bring.

A package offers tasks by an entry point in the group `sightline.tasks` whose name is the task's and whose value is the
`Task`; docs/adding_a_task.md shows one.
"""

import importlib
import importlib.metadata

from eval.tasks.task import Format, Task
from vlm.errors import UnknownName, VLMError, shown

__all__ = ["Format", "Task", "find", "names"]

ENTRY_POINTS = "sightline.tasks"
_OWN = ("ai2d", "chartqa", "docvqa", "infovqa", "mathvista", "mmmu", "mmmu_pro", "textvqa", "vqav2")


def names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted({*_OWN, *_plugged()})


def find(name: str) -> Task:
    """Return a task by its name.

    Raises: VLMError when there is none, or the package that brings it does not give a Task.
    """
    if name in _OWN:
        # Also when a package offers one of that name.
        return importlib.import_module(f"eval.tasks.{name}").TASK
    point = _plugged().get(name)
    if point is None:
        raise UnknownName(f"there is no task {shown(name)}; expected one of {', '.join(names())}; choose one of them")
    return _loaded(point)


def _plugged() -> dict[str, importlib.metadata.EntryPoint]:
    """Return what other packages offer."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _loaded(point: importlib.metadata.EntryPoint) -> Task:
    brought_by = f"task {point.name[:40]!r} of the package {point.dist.name if point.dist else '?':.40}"
    try:
        task = point.load()
    except Exception as error:
        # Somebody else's code may raise anything.
        raise VLMError(
            "invalid_request",
            f"{brought_by} cannot be loaded ({type(error).__name__}); expected `{point.value:.60}` to be a Task; mend "
            "or remove the package",
        ) from error
    if not isinstance(task, Task) or task.name != point.name:
        found = f"a Task called {task.name[:40]!r}" if isinstance(task, Task) else shown(task)
        raise VLMError(
            "invalid_request",
            f"{brought_by} is {found}; expected a Task called {point.name[:40]!r}; mend or remove the package",
        )
    return task
