"""The 256 letters in which a `tokenizer.json` spells bytes.

Source: openai/gpt-2, src/encoder.py, bytes_to_unicode: printable bytes stand for themselves, the others for the letters
from U+0100 on.
"""

_PRINTABLE = frozenset({*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)})
_OTHERS = tuple(value for value in range(256) if value not in _PRINTABLE)


def letter_of_byte() -> dict[int, str]:
    """Return what turns Latin-1, a character a byte, into letters: a table for `str.translate`."""
    return {value: chr(256 + index) for index, value in enumerate(_OTHERS)}


def byte_of_letter() -> dict[int, str]:
    """Return what turns letters into Latin-1, and all else into what Latin-1 has not: a table for `str.translate`."""
    return dict.fromkeys(_OTHERS, "Ā") | {256 + index: chr(value) for index, value in enumerate(_OTHERS)}
