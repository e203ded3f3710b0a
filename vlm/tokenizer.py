"""Text to token ids and back, with the ids of Meta's tokenizer; leaves chat headers and images to `vlm.prompt`.

The encoder inside knows no special token at all: whatever a text spells, `<|eot_id|>` included, it becomes ordinary
tokens. Special ids enter a prompt only where `vlm.prompt` puts them.
"""

import base64
import binascii
import codecs
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tiktoken

from vlm.errors import VLMError

logger = logging.getLogger(__name__)

# What bounds the time of one call: about 30 characters for each position of the longest context (131,072).
MAX_CHARS = 4_000_000
MAX_FILE_BYTES = 128 * 2**20

# Source: llama-models, models/llama3/tokenizer.py (TIKTOKEN_MAX_ENCODE_CHARS, MAX_NO_WHITESPACES_CHARS, pat_str).
# The cuts change ids, so they are part of the format, not a precaution.
MAX_CALL_CHARS = 400_000
MAX_RUN_CHARS = 25_000
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Source: tokenizers, src/pre_tokenizers/byte_level.rs, what `ByteLevel` with `use_regex` splits by.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

BEGIN_OF_TEXT, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END_OF_MESSAGE, END_OF_TURN = "<|eom_id|>", "<|eot_id|>"
IMAGE = "<|image|>"
REQUIRED_SPECIALS = (BEGIN_OF_TEXT, END_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN)

NUM_SPECIALS = 256
_NAMED_SPECIALS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    START_HEADER,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    "<|python_tag|>",
    IMAGE,
)
# Source: llama-models, models/llama3/tokenizer.py, in the order of their ids, which follow the last rank.
META_SPECIALS = (
    *_NAMED_SPECIALS,
    *(f"<|reserved_special_token_{2 + i}|>" for i in range(NUM_SPECIALS - len(_NAMED_SPECIALS))),
)

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"


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
        self._check_ids()

        self.bos_id = self.special_ids[BEGIN_OF_TEXT]
        self.eos_id = self.special_ids[END_OF_TEXT]
        self.eot_id = self.special_ids[END_OF_TURN]
        # Source: llama-models, models/llama3/tokenizer.py, `stop_tokens`. Llama 3.0 has no <|eom_id|>.
        self.stop_ids = tuple(
            self.special_ids[name] for name in (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN) if name in self.special_ids
        )
        self.image_marker_id = self._find_marker_id(image_marker_id)

        self._token_bytes = {token_id: token for token, token_id in self.ranks.items()}
        for text, token_id in (self.special_ids | self.text_ids).items():
            self._token_bytes[token_id] = text.encode()
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
        folder = Path(folder)
        if (folder / JSON_FILE).is_file():
            return cls.from_json_file(folder / JSON_FILE, image_marker_id=image_marker_id)
        for path in (folder / MODEL_FILE, folder / "original" / MODEL_FILE):
            if path.is_file():
                return cls.from_model_file(path, image_marker_id=image_marker_id)
        raise VLMError(
            "checkpoint_invalid",
            f"folder {_clip(folder.name)} has no tokenizer; expected {JSON_FILE}, {MODEL_FILE} or "
            f"original/{MODEL_FILE}; copy one there from where the checkpoint came from",
        )

    @classmethod
    def from_model_file(cls, path: str | os.PathLike, *, image_marker_id: int | None = None) -> "Tokenizer":
        """Read Meta's `tokenizer.model`: a line a token, base64 of its bytes and its rank."""
        ranks = _parse_model_file(_read_file(path))
        return cls(ranks, _meta_special_ids(len(ranks)), image_marker_id=image_marker_id)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike, *, image_marker_id: int | None = None) -> "Tokenizer":
        """Read Hugging Face's `tokenizer.json` when it describes a byte-level BPE."""
        content = _read_file(path)
        parts = _parse_json_file(content)
        return cls(**parts, image_marker_id=image_marker_id, json_file=content)

    @classmethod
    def bytes_only(cls) -> "Tokenizer":
        """Build the vocabulary of small models: 256 bytes, each its own id, then Llama's 256 special tokens."""
        return cls({bytes([value]): value for value in range(256)}, _meta_special_ids(256))

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the ids of a text; what it spells is never read as a special token.

        Lone surrogates, which no encoding of Unicode can hold, become U+FFFD, as in Meta's tokenizer.

        Raises:
            VLMError: `context_length_exceeded` past 4,000,000 characters (before any work is done),
                `invalid_request` for what is not a string or what the encoder cannot take.
        """
        if not isinstance(text, str):
            raise VLMError(
                "invalid_request", f"text is of type {_clip(type(text).__name__)}; expected str; decode bytes first"
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

    def files(self) -> dict[str, bytes]:
        """Return name and content of the files a checkpoint's folder needs.

        A `tokenizer.json` is returned as it was read. `tokenizer.model` is there whenever Meta's format can say the
        same: Meta's pattern and special tokens, and no added words.
        """
        files = {} if self._json_file is None else {JSON_FILE: self._json_file}
        if self._fits_model_file():
            lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in _by_rank(self.ranks))
            files[MODEL_FILE] = b"".join(lines)
        return files

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Write `files()` into a folder, each as a whole or not at all, and return their paths."""
        folder = Path(folder)
        files = self.files()
        if not files:
            raise _invalid(
                "the tokenizer was built with what no file it can write has a place for",
                "Meta's pattern and special tokens and no added words, or one read from tokenizer.json",
                "write its tokenizer.json with the library it came from",
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_whole(folder / name, content)
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
            found = f"id {_describe(error.args[0])} is no token's"
        except TypeError:
            found = f"ids of type {type(ids).__name__} are no list of integers"
        raise VLMError(
            "invalid_request",
            f"{found}; expected ids below {self.vocab_size} or the image marker {self.image_marker_id}; "
            "leave other ids out, or pass skip_special=True",
        )

    def _find_marker_id(self, given: int | None) -> int | None:
        """Return the id given, else the one after Meta's 256 special tokens, else the file's own.

        None where a text model's fine-tune gave that id to a word of its own.
        """
        num_ranks = len(self.ranks)
        own = self.special_ids.get(IMAGE)
        taken = {*self.ranks.values(), *self.text_ids.values(), *self.special_ids.values()} - {own}
        if given is not None:
            if given in taken:
                raise _invalid(
                    f"the image marker's id {given} is that of another token",
                    "one of its own",
                    "check image_token_index in the checkpoint's config",
                )
            return given
        if own is not None and own != num_ranks + META_SPECIALS.index(IMAGE):
            return own
        return None if num_ranks + NUM_SPECIALS in taken else num_ranks + NUM_SPECIALS

    def _fits_model_file(self) -> bool:
        num_ranks = len(self.ranks)
        expected = _meta_special_ids(num_ranks)
        if self.pattern != LLAMA_PATTERN or self.text_ids or max(self.ranks.values()) != num_ranks - 1:
            return False
        for name, token_id in self.special_ids.items():
            if name == IMAGE and token_id == self.image_marker_id:
                continue
            # Hugging Face's files count the reserved tokens in another way; nothing is ever built of these.
            if name.startswith("<|reserved_special_token_"):
                fits = num_ranks <= token_id < num_ranks + NUM_SPECIALS
            else:
                fits = expected.get(name) == token_id
            if not fits:
                return False
        return self.image_marker_id == num_ranks + NUM_SPECIALS

    def _check_ids(self):
        missing = [name for name in REQUIRED_SPECIALS if name not in self.special_ids]
        if missing:
            raise _invalid(
                f"the tokenizer lacks the special tokens {', '.join(missing)}",
                "those of Llama 3, which prompts are built of",
                "take the tokenizer of a Llama 3 checkpoint",
            )
        missing = [value for value in range(256) if bytes([value]) not in self.ranks]
        if missing:
            raise _invalid(
                f"the tokenizer lacks {len(missing)} of the 256 single bytes, 0x{missing[0]:02x} first",
                "a byte-level vocabulary, which can spell any text",
                "take the file again from where the checkpoint came from",
            )
        seen: dict[int, bytes | str] = {}
        for tokens in (self.ranks, self.special_ids, self.text_ids):
            for token, token_id in tokens.items():
                if token_id in seen:
                    raise _invalid(
                        f"tokens {_clip(seen[token_id])} and {_clip(token)} have the same id {token_id}",
                        "one token an id",
                        "take the file again from where the checkpoint came from",
                    )
                seen[token_id] = token


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


def _parse_model_file(content: bytes) -> dict[bytes, int]:
    """Return the ranks of a `tokenizer.model`, having checked that they are 0, 1, 2, ... each once.

    Meta's reader skips lines it does not understand, which moves the id of every special token.
    """
    fix = "take the file again from where the checkpoint came from"
    if b"\0" in content:
        raise _invalid(
            f"{MODEL_FILE} is binary, perhaps of SentencePiece (Llama 2)", "Llama 3's text file of base64 ranks", fix
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            encoded, digits = fields
            token = base64.b64decode(encoded, validate=True)
            if not token or not re.fullmatch(rb"[0-9]{1,9}", digits):
                raise ValueError
        except (ValueError, binascii.Error):
            raise _invalid(
                f"line {number} of {MODEL_FILE} is {_clip(line)}", "base64 of a token, a space and its rank", fix
            ) from None
        if token in ranks:
            raise _invalid(f"line {number} of {MODEL_FILE} has token {_clip(token)} again", "every token once", fix)
        ranks[token] = int(digits)
    if sorted(ranks.values()) != list(range(len(ranks))):
        first = next(rank for rank, found in enumerate([*sorted(ranks.values()), None]) if rank != found)
        raise _invalid(f"{MODEL_FILE} has {len(ranks)} tokens, but rank {first} not once", "ranks 0, 1, 2, ...", fix)
    return ranks


def _parse_json_file(content: bytes) -> dict:
    """Return the arguments of `Tokenizer` that a `tokenizer.json` of a byte-level BPE holds."""
    try:
        root = json.loads(content, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        found = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise _invalid(
            f"{JSON_FILE} cannot be read ({_clip(found)})", "JSON", "take it again from where it came from"
        ) from None
    model = _expect(root, "model", dict)
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind != "BPE":
        raise _unsupported(f"model type {_clip(kind)}", "BPE over bytes")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise _unsupported(f"{name} {_clip(model[name])}", "none")
    normalizer = root.get("normalizer")
    if normalizer not in (None, {"type": "Sequence", "normalizers": []}):
        raise _unsupported("a normalizer, which changes the text", "none")

    special_ids, text_ids = _parse_added_tokens(root.get("added_tokens") or [])
    added_ids = special_ids | text_ids
    vocab = {token: index for token, index in _expect(model, "vocab", dict).items() if added_ids.get(token) != index}
    ranks = _parse_vocab(vocab)
    _check_merges(vocab, _expect(model, "merges", list), ignore_merges=bool(model.get("ignore_merges")))
    pattern = _parse_pre_tokenizer(root.get("pre_tokenizer"))
    return {"ranks": ranks, "special_ids": special_ids, "pattern": pattern, "text_ids": text_ids}


_LEGAL_TEXT = re.compile(r"[^\ud800-\udfff]+")


def _parse_added_tokens(tokens: object) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of added special tokens and of added words.

    What is spelt `<|...|>` is special even where the file says otherwise, for a user's text must never become it.
    """
    special_ids: dict[str, int] = {}
    text_ids: dict[str, int] = {}
    for index, token in enumerate(tokens if isinstance(tokens, list) else [tokens]):
        content, token_id = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or not _LEGAL_TEXT.fullmatch(content) or not _is_id(token_id):
            raise _unsupported(f"added_tokens[{index}] without a legal content and id", "both of every added token")
        if content in special_ids or content in text_ids:
            raise _unsupported(f"added token {_clip(content)} twice", "every added token once")
        if token.get("special") or re.fullmatch(r"<\|.+\|>", content):
            special_ids[content] = token_id
            continue
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise _unsupported(f"{flag} of added word {_clip(content)}", "added words that match anywhere")
        text_ids[content] = token_id
    return special_ids, text_ids


def _parse_vocab(vocab: dict[str, object]) -> dict[bytes, int]:
    """Return bytes and id of every token of a vocabulary."""
    byte_of_letter = _byte_of_letter()
    ranks = {}
    for spelling, token_id in vocab.items():
        if not _is_id(token_id):
            raise _unsupported(f"id {_describe(token_id)} of token {_clip(spelling)}", "whole numbers from 0")
        try:
            ranks[spelling.translate(byte_of_letter).encode("latin-1")] = token_id
        except UnicodeEncodeError:
            raise _unsupported(f"token {_clip(spelling)}", "tokens spelt in GPT-2's 256 letters for bytes") from None
    return ranks


def _parse_pre_tokenizer(pre_tokenizer: object) -> str:
    """Return the pattern that text is split by: of a `Split` before a `ByteLevel`, or of a `ByteLevel` alone."""
    expected = "one Split by Regex, isolated, then ByteLevel without a prefix space"
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers")
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    if kinds not in (["Split", "ByteLevel"], ["ByteLevel"]):
        raise _unsupported(f"pre_tokenizer {_clip(' '.join(map(str, kinds)))}", expected)
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space") or byte_level.get("use_regex", True) != (len(steps) == 1):
        raise _unsupported("a ByteLevel that adds a space or splits again", expected)
    if len(steps) == 1:
        return GPT2_PATTERN
    split = steps[0]
    pattern = split["pattern"].get("Regex") if isinstance(split.get("pattern"), dict) else None
    if not isinstance(pattern, str) or not pattern or split.get("behavior") != "Isolated" or split.get("invert"):
        raise _unsupported(f"a Split by {_clip(split.get('pattern'))}", expected)
    if pattern in (LLAMA_PATTERN, GPT2_PATTERN):
        return pattern
    # "Isolated" keeps what stands between the matches; tiktoken would drop it.
    return rf"{pattern}|(?:(?!{pattern})[\s\S])+"


def _check_merges(vocab: Mapping[str, int], merges: Sequence, *, ignore_merges: bool):
    """Refuse merges that do not give what tiktoken does: join the two neighbours that make the lowest id.

    Where every way to halve every token is a merge, and merges stand in the order of the ids they make, the two are
    the same. Else each token is taken apart by the ids below its own: when two parts are left that are a merge, the
    token comes about as in training. (Merges never cross the token's ends on the way, so its surroundings do not
    matter.)
    """
    pairs: set[tuple[str, str]] = set()
    last_id = -1
    for index, merge in enumerate(merges):
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            token_id = vocab[left + right]
            makes_token = left in vocab and right in vocab
        except (KeyError, TypeError, ValueError):
            makes_token = False
        if not makes_token:
            raise _unsupported(f"merges[{index}] {_clip(merge)}", "two tokens that make a third")
        if token_id < last_id:
            raise _unsupported(f"merges[{index}] out of the order of ids", "merges in the order of the ids they make")
        last_id = token_id
        pairs.add((left, right))

    halves = ((token[:cut], token[cut:]) for token in vocab for cut in range(1, len(token)))
    num_halvings = sum(left in vocab and right in vocab for left, right in halves)
    if ignore_merges and num_halvings == len(pairs):
        return
    num_whole = 0
    for token, token_id in vocab.items():
        parts = tuple(_merge_below(token, vocab, token_id))
        num_whole += len(parts) > 2
        if len(parts) == 2 and parts not in pairs:
            raise _unsupported(f"token {_clip(token)} without the merge that makes it", "a merge for every token")
    if num_whole and not ignore_merges:
        logger.warning(
            "tokenizer.json does not set ignore_merges, and %d of its tokens come about by no merges; they are used "
            "wherever a word is spelt like one, as Meta's tokenizer does and the `tokenizers` library would not",
            num_whole,
        )


def _merge_below(token: str, vocab: Mapping[str, int], limit: int) -> list[str]:
    """Return the parts of a token after all merges that make an id below `limit`."""
    parts = list(token)
    while len(parts) > 1:
        made = [vocab.get(left + right, limit) for left, right in itertools.pairwise(parts)]
        lowest = min(made)
        if lowest >= limit:
            break
        index = made.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _byte_of_letter() -> dict[int, str]:
    """Return what turns the letters of a `tokenizer.json` into Latin-1, and all else into what Latin-1 has not.

    Source: openai/gpt-2, src/encoder.py, bytes_to_unicode: printable bytes stand for themselves, the others for the
    letters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return dict.fromkeys(others, "Ā") | {256 + index: chr(value) for index, value in enumerate(others)}


def _meta_special_ids(num_ranks: int) -> dict[str, int]:
    return {name: num_ranks + index for index, name in enumerate(META_SPECIALS)}


def _by_rank(ranks: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    return sorted(ranks.items(), key=lambda item: item[1])


def _build_encoding(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    try:
        return tiktoken.Encoding("sightline", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except BaseException as error:
        if not isinstance(error, ValueError) and not _is_panic(error):
            raise
    raise _unsupported(f"the pattern {_clip(pattern)}", "one that tiktoken can compile")


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("the same key twice in one object")
    return entries


def _expect(section: object, name: str, kind: type):
    value = section.get(name) if isinstance(section, dict) else None
    if not isinstance(value, kind):
        raise _unsupported(f"no {name!r}", "BPE over bytes")
    return value


def _read_file(path: str | os.PathLike) -> bytes:
    path = Path(path)
    if not path.is_file():
        raise _invalid(f"{_clip(path.name)} is no file", "a tokenizer file", "check the path")
    num_bytes = path.stat().st_size
    if num_bytes > MAX_FILE_BYTES:
        raise _invalid(
            f"{_clip(path.name)} has {num_bytes} bytes",
            f"at most {MAX_FILE_BYTES}",
            "take the file again from where the checkpoint came from",
        )
    return path.read_bytes()


def _write_whole(path: Path, content: bytes):
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _invalid(found: str, expected: str, fix: str) -> VLMError:
    return VLMError("checkpoint_invalid", f"{found}; expected {expected}; {fix}")


def _unsupported(found: str, expected: str) -> VLMError:
    return _invalid(f"{JSON_FILE} has {found}", expected, "remove it where the folder has a tokenizer.model too")


def _describe(value: object) -> str:
    """Show a number, but the type of anything else: what is not a number may be of any size."""
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else f"of type {type(value).__name__}"


def _clip(value: object) -> str:
    """Show the beginning of a string or of bytes, escaped; the type of anything else."""
    if isinstance(value, str | bytes):
        return repr(value[:40]) + ("…" if len(value) > 40 else "")
    return "null" if value is None else f"of type {type(value).__name__}"
