"""Digests of plain values."""

import hashlib

import msgspec


def digest(*parts: object) -> str:
    """Return 32 hex digits for `parts`: texts, numbers, None, and tuples and lists of these."""
    try:
        written = msgspec.msgpack.encode(parts)
    except (TypeError, ValueError, OverflowError):  # as for half of a surrogate pair, or a number beyond 64 bits
        written = ascii(parts).encode("ascii")
    return hashlib.sha256(written).hexdigest()[:32]
