"""Where a source's files are: a local folder, or a repository on the Hugging Face Hub that is downloaded."""

import re
from pathlib import Path

from vlm.checkpoint.files import invalid

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_SETTINGS = re.compile(r"[^/]+\.json|(original/)?tokenizer\.model")
_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PTH = re.compile(r"(original/)?(consolidated(\.\d\d)?\.pth|params\.json)")


def resolve(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of `source`: a folder, or a Hub name such as "owner/name", which is downloaded.

    With HF_HUB_OFFLINE=1, or without a network, what was downloaded before is used.

    Raises VLMError where there is no such folder and no such repository.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise invalid(f"{folder.name} is a file; give the folder of the checkpoint that it belongs to")
    if not isinstance(source, str) or not _NAME.fullmatch(source):
        raise invalid(f"there is no folder {str(source)!r:.120}; give a folder, or a Hub name such as owner/name")
    return _checkpoint_folder(_download(source, revision))


def _download(name: str, revision: str | None) -> Path:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    try:
        try:
            files = huggingface_hub.list_repo_files(name, revision=revision)
        except (errors.OfflineModeIsEnabled, httpx.TransportError):
            return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_wanted(files)))
    except errors.GatedRepoError:
        why = "it is gated: accept its licence on huggingface.co, then `hf auth login`"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision!r:.40}; leave revision out for the newest"
    except errors.RepositoryNotFoundError:
        why = "the Hub has no such repository, or it is private: check the name, or `hf auth login`"
    except errors.LocalEntryNotFoundError:
        why = "the Hub cannot be reached and nothing was downloaded before: connect, or give a local folder"
    except (errors.HfHubHTTPError, httpx.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"the Hub answered {status or 'nothing'}: try again later, or give a local folder"
    except OSError as error:
        why = f"the download could not be stored ({error.strerror or type(error).__name__}): free some space"
    raise invalid(f"{name} is no local folder and could not be downloaded; {why}")


def _wanted(files: list[str]) -> list[str]:
    """Return what a model needs: settings, tokenizer, and one set of weights (safetensors where there are any)."""
    weights = [file for file in files if _SAFETENSORS.fullmatch(file)] or [
        file for file in files if _PTH.fullmatch(file)
    ]
    return [file for file in files if _SETTINGS.fullmatch(file)] + weights


def _checkpoint_folder(snapshot: Path) -> Path:
    """Return the folder of a snapshot that the weights are in."""
    original = snapshot / "original"
    has_weights = any(snapshot.glob("*.safetensors")) or any(snapshot.glob("consolidated*.pth"))
    return original if not has_weights and (original / "params.json").exists() else snapshot
