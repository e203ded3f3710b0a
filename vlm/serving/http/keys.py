"""Who may ask: API keys from a file, and for a server without keys, only who asks this machine by its own name."""

import hashlib
import hmac
import logging
import os
import re
import time
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from vlm.errors import VLMError
from vlm.loopback import names_this_machine
from vlm.serving.refusal import Refusal

OPEN_PATH = "/health"
"""The only path that is answered without a key."""
SAFE_KEY_CHARS = 16
"""A shorter key is taken, with a warning: who may try often enough finds it."""
MAX_KEY_CHARS = 512
CHECK_EVERY_S = 2.0

_KEY = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARS}}}")
_BEARER = re.compile(rb"bearer +([!-~]+) *", re.I)
_log = logging.getLogger(__name__)


class KeyFile:
    """Keys, one a line; empty lines and lines that begin with # are none. A changed file takes effect by itself.

    Only hashes are kept. A file that can no longer be read, or holds no key, leaves the keys as they were.

    Raises: VLMError (invalid_request) for a file that holds no proper keys at the beginning.
    """

    def __init__(self, path: Path):
        self._path = path
        self._seen, self._hashes = _read(path)
        self._next_check = time.monotonic() + CHECK_EVERY_S

    def allows(self, key: bytes) -> bool:
        """Tell whether `key` is one of the keys, in a time that does not depend on which or on how much is right."""
        self._follow_changes()
        found = hashlib.sha256(key).digest()
        return bool(sum([hmac.compare_digest(found, known) for known in self._hashes]))

    def _follow_changes(self) -> None:
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_EVERY_S
        try:
            if _fingerprint(self._path) != self._seen:
                self._seen, self._hashes = _read(self._path)
                _log.info("the API keys were read again: %d keys", len(self._hashes))
        except (OSError, VLMError):
            _log.warning("the API key file is gone or holds no proper keys; the keys read before stay valid")


class KeyCheck:
    """Lets through whom `keys` allows; without keys, and with `check_host`, whoever names this machine.

    It decides by `scope["path"]`, which is what the router decides by. Whatever a client writes into its Host header
    or its request line can make the two see different paths nowhere (CVE-2026-48746 was that).
    """

    def __init__(self, app: ASGIApp, keys: KeyFile | None, *, check_host: bool):
        self.app, self.keys, self.check_host = app, keys, check_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            return await refusal.response(scope)(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if self.keys is None:
            return _refuse_foreign_host(scope) if self.check_host else None
        if scope["path"] == OPEN_PATH:
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        bearer = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        if bearer is not None and self.keys.allows(bearer[1]):
            return None
        found = "the API key is not one of this server's" if given else "there is no API key"
        fix = "give one as 'Authorization: Bearer KEY'"
        return Refusal(401, "invalid_api_key", f"{found}; {fix}", headers={"www-authenticate": "Bearer"})


def _refuse_foreign_host(scope: Scope) -> Refusal | None:
    if names_this_machine(scope["headers"]):
        return None
    message = "the Host is not this machine; expected localhost; ask it by that name, or start it with --api-key-file"
    return Refusal(403, "forbidden_host", message)


def _read(path: Path) -> tuple[tuple, list[bytes]]:
    """Return a fingerprint of the file, and the hashes of its keys."""
    try:
        seen, text = _fingerprint(path), path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise _no_keys("cannot be read as text") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise _no_keys("holds no key")
    if not all(_KEY.fullmatch(key) for key in keys):
        raise _no_keys("holds a line that is no key")
    if any(len(key) < SAFE_KEY_CHARS for key in keys):
        _log.warning("an API key has fewer than %d characters, and may be guessed; give a longer one", SAFE_KEY_CHARS)
    return seen, [hashlib.sha256(key.encode()).digest() for key in dict.fromkeys(keys)]


def _fingerprint(path: Path) -> tuple:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _no_keys(found: str) -> VLMError:
    return VLMError(
        "invalid_request",
        f"the API key file {found}; expected a key a line, of 1 to {MAX_KEY_CHARS} ASCII characters without spaces; "
        "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
    )
