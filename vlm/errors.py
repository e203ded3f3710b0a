"""The one error type of the public API, and the gate that turns the lower packages' errors into it."""

import copyreg
import functools

CODES = frozenset(
    {
        "image_unsupported",
        "image_corrupt",
        "image_truncated",
        "image_too_large",
        "image_empty",
        "context_length_exceeded",
        "invalid_request",
        "checkpoint_invalid",
        "device_unavailable",
    }
)

MAX_MESSAGE_CHARS = 300


class VLMError(Exception):
    """A refusal the caller can act on: `code` is stable, the message says found, expected and how to fix it.

    Messages are cut to 300 characters, so that they can be shown to clients as they are. `report` keeps the
    whole text for the few that list many things at once (every missing tensor of a checkpoint, say).
    """

    def __init__(self, code: str, message: str):
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}; expected one of {sorted(CODES)}")
        self.code = code
        self.report = message
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[: MAX_MESSAGE_CHARS - 1] + "…"
            # Shown below the message where the error ends a program.
            self.add_note("the whole text is in the error's `report`")
        self.message = message
        super().__init__(message)

    def __reduce__(self):
        # Left to itself Python would make it anew from `args`, which hold the message alone.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__


class UnknownName(VLMError):
    """A name that is none of those offered; on a command line that is wrong usage, not a failure."""

    def __init__(self, message: str):
        super().__init__("invalid_request", message)


def shown(value: object) -> str:
    """Return a short text or number as code, and of anything else the type: what it prints may hold an address."""
    if isinstance(value, str):
        return repr(value[:40])
    is_short = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**64)
    return repr(value) if is_short else f"of type {type(value).__name__:.40}"


def public(function):
    """Wrap a public entry: an error of a lower package that carries a known `code` leaves as a `VLMError`."""

    @functools.wraps(function)
    def entry(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except VLMError:
            raise
        except ValueError as error:
            code = getattr(error, "code", None)
            if code not in CODES:
                raise
            raise VLMError(code, str(error)) from None

    return entry


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether `error` means that memory ran out, on whatever device."""
    # The CPU's allocator, cuBLAS and MPS raise a plain RuntimeError.
    signs = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )
