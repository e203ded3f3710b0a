"""How a tokenizer's file is refused, and how what it holds is shown: clipped, for it may be of any size."""

from vlm.errors import VLMError
from vlm.tokenizer_files import JSON_FILE

TAKE_AGAIN = "take the file again from where the checkpoint came from"


def invalid(found: str, expected: str, fix: str = TAKE_AGAIN) -> VLMError:
    """Return the error of a tokenizer that cannot be used."""
    return VLMError("checkpoint_invalid", f"{found}; expected {expected}; {fix}")


def unsupported(found: str, expected: str) -> VLMError:
    """Return the error of a `tokenizer.json` that describes what Llama 3 has not."""
    return invalid(f"{JSON_FILE} has {found}", expected, "remove it where the folder has a tokenizer.model too")


def clip(value: object) -> str:
    """Show the beginning of a string or of bytes, escaped; the type of anything else."""
    if isinstance(value, str | bytes):
        return repr(value[:40]) + ("…" if len(value) > 40 else "")
    return "null" if value is None else f"of type {type(value).__name__}"


def describe(value: object) -> str:
    """Show a number, but the type of anything else: what is not a number may be of any size."""
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else f"of type {type(value).__name__}"
