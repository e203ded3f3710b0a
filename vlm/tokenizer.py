"""Text to token ids and back, with the ids of Meta's tokenizer; leaves chat headers and images to `vlm.prompt`.

The encoder inside knows no special token at all: whatever a text spells, `<|eot_id|>` included, it becomes ordinary
tokens. Special ids enter a prompt only where `vlm.prompt` puts them.
"""

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import tiktoken

from vlm.errors import VLMError, shown
from vlm.tokenizer_files import JSON_FILE, MODEL_FILE
from vlm.tokenizer_files.disk import checked_path, read_file, write_whole
from vlm.tokenizer_files.json_reader import parse_json_file
from vlm.tokenizer_files.json_writer import write_json_files
from vlm.tokenizer_files.llama3 import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    IMAGE,
    LLAMA_PATTERN,
    META_SPECIALS,
    START_HEADER,
    check_ids,
    find_marker_id,
    meta_special_ids,
)
from vlm.tokenizer_files.model_file import parse_model_file, why_no_model_file, write_model_file
from vlm.tokenizer_files.refusal import clip, describe, invalid, unsupported

__all__ = [
    "END_HEADER",
    "MAX_CHARS",
    "META_SPECIALS",
    "START_HEADER",
    "StreamDecoder",
    "Tokenizer",
    "check_num_chars",
    "split_long_runs",
]

# What bounds the time of one call: about 30 characters for each position of the longest context (131,072).
MAX_CHARS = 4_000_000

# Source: llama-models, models/llama3/tokenizer.py (TIKTOKEN_MAX_ENCODE_CHARS, MAX_NO_WHITESPACES_CHARS).
# The cuts change ids, so they are part of the format, not a precaution.
MAX_CALL_CHARS = 400_000
MAX_RUN_CHARS = 25_000


class Tokenizer:
    """A byte-level BPE vocabulary, its special tokens, and the marker id that the model is fed for an image.

    `special_ids` holds the tokens a text can never become, `text_ids` the tokens that a fine-tune added as ordinary
    words: these are found in a text before it is split, the longest first.

    `image_marker_id` is what the model is fed for an image: the id after the special tokens (128256), where the second
    embedding begins, and not Meta's own id of `<|image|>` (128011). None where a text model's fine-tune took that id.
    Source: llama-models, chat_format.py, ChatFormat._model_input_from_tokens_images; multimodal/model.py,
    get_partially_trainable_embedding (ids past the vocabulary read `learnable_embedding`).

    A tokenizer is not changed after it was built, and threads may share it.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        special_ids: Mapping[str, int],
        *,
        pattern: str = LLAMA_PATTERN,
        text_ids: Mapping[str, int] | None = None,
        image_marker_id: int | None = None,
        json_file: bytes | None = None,
    ):
        self.ranks = dict(ranks)
        self.special_ids = dict(special_ids)
        self.text_ids = dict(text_ids or {})
        self.pattern = pattern
        self._json_file = json_file
        check_ids(self.ranks, self.special_ids, self.text_ids)

        self.bos_id = self.special_ids[BEGIN_OF_TEXT]
        self.eos_id = self.special_ids[END_OF_TEXT]
        self.eot_id = self.special_ids[END_OF_TURN]
        # Source: llama-models, models/llama3/tokenizer.py, `stop_tokens`. Llama 3.0 has no <|eom_id|>.
        stops = (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)
        self.stop_ids = tuple(self.special_ids[name] for name in stops if name in self.special_ids)
        self.image_marker_id = find_marker_id(image_marker_id, self.ranks, self.special_ids, self.text_ids)

        names = self.special_ids | self.text_ids
        self._token_bytes = {token_id: token for token, token_id in self.ranks.items()}
        self._token_bytes |= {token_id: name.encode() for name, token_id in names.items()}
        # One more than the largest id that the output layer can produce.
        self.vocab_size = 1 + max(token_id for token_id in self._token_bytes if token_id != self.image_marker_id)
        self._no_text_ids = {*self.special_ids.values(), self.image_marker_id}
        if self.image_marker_id is not None:
            self._token_bytes[self.image_marker_id] = IMAGE.encode()

        longest_first = sorted(self.text_ids, key=len, reverse=True)
        self._text_tokens = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._encoding = _build_encoding(self.ranks, pattern)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, *, image_marker_id: int | None = None) -> "Tokenizer":
        """Read `tokenizer.json`, or `tokenizer.model`, or `original/tokenizer.model`: the first that is there.

        `image_marker_id` is for checkpoints whose config names the id (`image_token_index`).

        Raises:
            VLMError: `checkpoint_invalid` when none is there or the one found is not understood.
        """
        folder = checked_path(folder)
        if (folder / JSON_FILE).is_file():
            return cls.from_json_file(folder / JSON_FILE, image_marker_id=image_marker_id)
        for path in (folder / MODEL_FILE, folder / "original" / MODEL_FILE):
            if path.is_file():
                return cls.from_model_file(path, image_marker_id=image_marker_id)
        raise VLMError(
            "checkpoint_invalid",
            f"folder {clip(folder.name)} has no tokenizer; expected {JSON_FILE}, {MODEL_FILE} or "
            f"original/{MODEL_FILE}; copy one there from where the checkpoint came from",
        )

    @classmethod
    def from_model_file(cls, path: str | os.PathLike, *, image_marker_id: int | None = None) -> "Tokenizer":
        """Read Meta's `tokenizer.model`: a line a token, base64 of its bytes and its rank."""
        ranks = parse_model_file(read_file(path))
        return cls(ranks, meta_special_ids(len(ranks)), image_marker_id=image_marker_id)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike, *, image_marker_id: int | None = None) -> "Tokenizer":
        """Read Hugging Face's `tokenizer.json` when it describes a byte-level BPE."""
        content = read_file(path)
        parts = parse_json_file(content)
        return cls(**parts, image_marker_id=image_marker_id, json_file=content)

    @classmethod
    def bytes_only(cls) -> "Tokenizer":
        """Build the vocabulary of small models: 256 bytes, each its own id, then Llama's 256 special tokens."""
        return cls({bytes([value]): value for value in range(256)}, meta_special_ids(256))

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the ids of a text; what it spells is never read as a special token.

        Lone surrogates, which no encoding of Unicode can hold, become U+FFFD, as in Meta's tokenizer.

        Raises:
            VLMError: `context_length_exceeded` past 4,000,000 characters (before any work is done),
                `invalid_request` for what is not a string or what the encoder cannot take.
        """
        if not isinstance(text, str):
            raise VLMError(
                "invalid_request", f"text is of type {clip(type(text).__name__)}; expected str; decode bytes first"
            )
        check_num_chars(len(text))
        ids = [self.bos_id] if bos else []
        # With one group in the pattern, `split` returns text and token in turn.
        segments = self._text_tokens.split(text) if self._text_tokens else [text]
        for index, segment in enumerate(segments):
            if index % 2:
                ids.append(self.text_ids[segment])
                continue
            for piece in split_long_runs(segment):
                ids += self._encode_piece(piece)
        if eos:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD.

        Special tokens and image markers appear by name. `skip_special` leaves out every id for which `is_special`
        holds, among them ids of no token.

        Raises:
            VLMError: `invalid_request` for an id of no token, unless `skip_special`.
        """
        return self._join_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def count(self, text: str) -> int:
        """Return the number of ids of a text."""
        return len(self.encode(text))

    def decode_single_token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, which may be a part of a character; the name of a special token."""
        return self._join_bytes([token_id], skip_special=False)

    def is_special(self, token_id: int) -> bool:
        """Tell whether an id has no place in an answer: special tokens, the image marker, ids of no token."""
        return token_id in self._no_text_ids or token_id not in self._token_bytes

    def files(self, format: Literal["hf", "meta"] = "hf") -> dict[str, bytes]:
        """Return name and content of the files that a checkpoint's folder of one format needs.

        "hf": a `tokenizer.json` as it was read, or else one written anew with its `tokenizer_config.json`; and
        `tokenizer.model` where Meta's format can say the same. "meta": `tokenizer.model`.

        Raises:
            VLMError: `checkpoint_invalid` where the format has no place for what the tokenizer holds,
                `invalid_request` for another format.
        """
        if format not in ("hf", "meta"):
            raise VLMError("invalid_request", f'format is {shown(format)}; give "hf" or "meta"')
        why_not = why_no_model_file(self.ranks, self.special_ids, self.text_ids, self.pattern, self.image_marker_id)
        if why_not and (format == "meta" or self._json_file is None):
            raise invalid(
                f"the tokenizer cannot be written as {MODEL_FILE} ({why_not})",
                "Meta's pattern and special tokens and no added words",
                "write its tokenizer.json with the library it came from"
                if self._json_file is None
                else 'save with format="hf"',
            )
        files = {}
        if format == "hf":
            files = write_json_files(self.ranks) if self._json_file is None else {JSON_FILE: self._json_file}
        return files if why_not else files | {MODEL_FILE: write_model_file(self.ranks)}

    def save(self, folder: str | os.PathLike, format: Literal["hf", "meta"] = "hf") -> list[Path]:
        """Write `files(format)` into a folder, each as a whole or not at all, and return their paths.

        Raises:
            VLMError: as `files` does, and `invalid_request` where they cannot be written.
        """
        folder = checked_path(folder)
        files = self.files(format)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                write_whole(folder / name, content)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise VLMError(
                "invalid_request",
                f"the tokenizer cannot be written into {clip(folder.name)} ({why}); free some space, or give a folder "
                "that you may write to",
            ) from None
        return [folder / name for name in files]

    def _encode_piece(self, piece: str) -> list[int]:
        try:
            return self._encoding.encode(piece, disallowed_special=())
        except BaseException as error:
            # A panic in tiktoken's Rust code is no Exception, and would end the worker that serves the request.
            if not isinstance(error, ValueError) and not _is_panic(error):
                raise
        raise VLMError(
            "invalid_request",
            f"a piece of text of {len(piece)} characters could not be tokenised; "
            "expected text that the tokenizer's pattern can split; shorten it or remove its longest repeats",
        )

    def _join_bytes(self, ids: Iterable[int], skip_special: bool) -> bytes:
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        try:
            if skip_special:
                ids = [token_id for token_id in ids if not self.is_special(token_id)]
            return b"".join([self._token_bytes[token_id] for token_id in ids])
        except KeyError as error:
            found = f"id {describe(error.args[0])} is no token's"
        except TypeError:
            found = f"ids of type {type(ids).__name__} are no list of integers"
        raise VLMError(
            "invalid_request",
            f"{found}; expected ids below {self.vocab_size} or the image marker {self.image_marker_id}; "
            "leave other ids out, or pass skip_special=True",
        )


class StreamDecoder:
    """Turns ids into text as they come, never splitting a character.

    The pieces that `feed` returns and what `flush` returns, joined, are `decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """Return the text that these ids complete; empty while a character is still incomplete."""
        return self._utf8.decode(self._tokenizer._join_bytes(ids, self._skip_special))

    def flush(self) -> str:
        """Return what an incomplete last character becomes, and start anew."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def check_num_chars(num_chars: int):
    """Refuse what is too long to be tokenised at all, by its length alone."""
    if num_chars > MAX_CHARS:
        raise VLMError(
            "context_length_exceeded",
            f"text has {num_chars} characters; expected at most {MAX_CHARS}; shorten it or send it in parts",
        )


# Source: llama-models, models/llama3/tokenizer.py, Tokenizer._split_whitespaces_or_nonwhitespaces. The look-behinds
# let a match begin only where a run begins, which keeps the search linear.
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{MAX_RUN_CHARS + 1},}}|(?<!\s)\s{{{MAX_RUN_CHARS + 1},}}")


def split_long_runs(text: str) -> Iterator[str]:
    """Yield the pieces that Meta's tokenizer gives to tiktoken one by one; joined, they are the text.

    Cuts stand at every 400,000 characters, and between these wherever 25,000 characters went by with only space or
    without any.
    """
    for call_start in range(0, len(text), MAX_CALL_CHARS):
        call = text[call_start : call_start + MAX_CALL_CHARS]
        start = 0
        for run in _LONG_RUN.finditer(call):
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield call[start:cut]
                start = cut
        yield call[start:]


def _build_encoding(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    try:
        return tiktoken.Encoding("sightline", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except BaseException as error:
        if not isinstance(error, ValueError) and not _is_panic(error):
            raise
    raise unsupported(f"the pattern {clip(pattern)}", "one that tiktoken can compile")


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"
