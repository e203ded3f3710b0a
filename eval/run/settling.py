"""Which run a folder holds: this one, which goes on; or another, which is refused or moved aside whole."""

from contextlib import ExitStack
from pathlib import Path

from eval.run.folder import MANIFEST, REPORT, SCORES, RunFolder, lock
from eval.run.manifest import RunDiffers, check_same
from eval.run.shards import Shard
from vlm.errors import VLMError


def settle(folder: RunFolder, manifest: dict, own: Path, *, shard: Shard | None, new_run: bool) -> Path | None:
    """Have the folder hold this run's manifest and no other run's answers; return where those were moved.

    own: the journal of this process, whose lock it holds. Raises: VLMError, `RunDiffers` among them.
    """
    expected, moved_to = folder.manifest(), None
    if new_run:
        if shard is not None and expected is not None and _is_same(manifest, expected):
            # Other processes may be at work on other shards of this very run.
            moved_to = folder.move_aside([own.name])
        else:
            moved_to = start_anew(folder, claimed=own)
        expected = folder.manifest()
    elif expected is None and any(path.stat().st_size for path in folder.journals()):
        raise VLMError(
            "invalid_request",
            f"{folder.path.name!r:.80} holds answers and no manifest.json; expected both; --new-run moves them aside",
        )
    if expected is None:
        folder.write_json(MANIFEST, manifest)
    else:
        check_same(manifest, expected)
    return moved_to


def start_anew(folder: RunFolder, *, claimed: Path | None = None) -> Path | None:
    """Move a run aside, whole, and return where to; None where there was none.

    claimed: the journal whose lock the caller holds. Raises: VLMError where another process is writing to the folder.
    """
    journals = folder.journals()
    with ExitStack() as stack:
        for path in journals:
            if path != claimed:
                stack.enter_context(lock(path.with_suffix(".lock")))
        return folder.move_aside([MANIFEST, SCORES, REPORT, *(path.name for path in journals)])


def _is_same(manifest: dict, expected: dict) -> bool:
    try:
        check_same(manifest, expected)
    except RunDiffers:
        return False
    return True
