"""Where a source's files are: a local folder, or a repository on the Hugging Face Hub that is downloaded."""

import os
import re
from pathlib import Path

from vlm.checkpoint.files import invalid
from vlm.tokenizer_files.disk import checked_path

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_SAFETENSORS = re.compile(r"model[^/]*\.safetensors")
# Patterns of the Hub's library, in which a star stands for slashes too.
_SETTINGS = ["*.json", "tokenizer.model", "original/tokenizer.model"]
_WEIGHTS = ["model*.safetensors"]
_META_WEIGHTS = ["consolidated*.pth", "original/consolidated*.pth"]


def resolve(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of `source`: a folder, or a Hub name such as "owner/name", which is downloaded.

    With HF_HUB_OFFLINE=1, or without a network, what was downloaded before is used.

    Raises VLMError where there is no such folder and no such repository.
    """
    folder = local_folder(source)
    if folder is not None:
        return folder
    if not isinstance(source, str) or not _NAME.fullmatch(source):
        raise invalid(f"there is no folder {str(source)!r:.120}; give a folder, or a Hub name such as owner/name")
    return _checkpoint_folder(_download(source, revision))


def local_folder(source: object) -> Path | None:
    """Return the folder at `source`, None where there is none. Raises VLMError where it cannot be told or is a file."""
    if source == "":
        return None
    folder = folder_path(source)
    try:
        is_folder, is_there = folder.is_dir(), folder.exists()
    except OSError as error:
        raise invalid(f"{folder.name:.80} cannot be looked at ({error.strerror}); give another folder") from None
    if not is_there:
        return None
    if not is_folder:
        raise invalid(f"{folder.name} is a file; give the folder of the checkpoint that it belongs to")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise invalid(f"{folder.name} may not be read; give yourself the permission, or another folder")
    return folder


def folder_path(folder: object) -> Path:
    """Return `folder` as a path, `~` written out. Raises VLMError for what is no path; a text of nothing is none."""
    return Path(os.path.expanduser(checked_path(folder, "folder")))


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        try:
            # Not list_repo_files: without a network it tries again for half a minute.
            files = [file.rfilename for file in HfApi().model_info(name, revision=revision, timeout=20).siblings or []]
        except errors.HfHubHTTPError:
            raise
        except (errors.OfflineModeIsEnabled, errors.HTTPError):
            patterns = _SETTINGS + _WEIGHTS
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        # One set of weights, safetensors where there are any.
        has_safetensors = any(_SAFETENSORS.fullmatch(file) for file in files)
        patterns = _SETTINGS + (_WEIGHTS if has_safetensors else _META_WEIGHTS)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        why = "it is gated: accept its licence on huggingface.co, then `hf auth login`"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision!r:.40}; leave revision out for the newest"
    except errors.RepositoryNotFoundError:
        why = "the Hub has no such repository, or it is private: check the name, or `hf auth login`"
    except errors.LocalEntryNotFoundError:
        why = "the Hub cannot be reached and no whole copy was downloaded before: connect, or give a local folder"
    except errors.HfHubHTTPError as error:
        why = f"the Hub answered {error.response.status_code}: try again later, or give a local folder"
    except errors.HTTPError:
        why = "the connection broke off: try again, what was downloaded is kept"
    except OSError as error:
        why = f"the download could not be stored ({error.strerror or type(error).__name__}): free some space"
    raise invalid(f"{name} is no local folder and could not be downloaded; {why}")


def _checkpoint_folder(snapshot: Path) -> Path:
    """Return the folder of a snapshot that the weights are in."""
    original = snapshot / "original"
    has_weights = any(snapshot.glob("*.safetensors")) or any(snapshot.glob("consolidated*.pth"))
    return original if not has_weights and (original / "params.json").exists() else snapshot
