"""Replies in the form of a JSON schema: at each step, the tokens with which the reply can still become valid JSON.

The grammar is llguidance's, which comes with the extra `serve` and is imported when a schema is first used.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm.errors import VLMError
from vlm.packages import missing
from vlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SCHEMA_CHARS = 65_536
MAX_SCHEMA_DEPTH = 64
NUM_KEPT = 32
"""Compiled grammars that are kept: those of the schemas used last."""

_ALLOWED = 200
"""What llguidance writes for a token that may come next, a byte a token; 0 for the others."""

# Between two parts of the JSON at most a space, or a line's end and its indentation: without a bound, a weak model
# writes spaces until its length runs out.
_WHITESPACE = r"( |\n[ \t]{0,20})?"


def check_schema(schema: object) -> None:
    """Refuse what no JSON schema can be, or what is too large to compile, without compiling it."""
    if not isinstance(schema, Mapping):
        raise VLMError(
            "invalid_request",
            f'schema is of type {type(schema).__name__:.40}; give a JSON schema as a dict, as {{"type": "object"}}',
        )
    depth = _depth(schema)
    if depth > MAX_SCHEMA_DEPTH:
        raise VLMError("invalid_request", f"schema is nested deeper than {MAX_SCHEMA_DEPTH} levels; make it flatter")
    try:
        num_chars = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError):
        raise VLMError(
            "invalid_request", "schema holds something that JSON cannot; expected texts, numbers, lists and dicts alone"
        ) from None
    if num_chars > MAX_SCHEMA_CHARS:
        raise VLMError(
            "invalid_request", f"schema has {num_chars} characters as JSON; expected at most {MAX_SCHEMA_CHARS}"
        )


class Grammars:
    """The grammars of JSON schemas over the tokens of one tokenizer. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        """`vocab_size` counts the logits, which may be more than the tokenizer has tokens."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, schema: Mapping | None) -> "Constraint | None":
        """Return what holds one reply to `schema`; None without one.

        Raises: VLMError (invalid_request) for a schema that cannot be followed.
        """
        if schema is None:
            return None
        text = json.dumps(schema)
        with self._lock:
            if text not in self._compiled:
                self._compiled[text] = self._compile(text)
                if len(self._compiled) > NUM_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(text)
            return Constraint(self._compiled[text].deep_copy())

    def _compile(self, schema: str) -> "LLMatcher":
        try:
            from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise missing("a schema", "llguidance") from None
        if self._vocabulary is None:
            words = TokenizerWrapper(_Words(self._tokenizer, self._vocab_size))
            self._vocabulary = LLTokenizer(words, n_vocab=self._vocab_size, eos_token=list(self._tokenizer.stop_ids))
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITESPACE})
        except ValueError as error:
            raise _unusable(str(error)) from None
        # Its limits bound what one step costs, so that no schema holds up the other replies for long.
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _unusable(matcher.get_error())
        return matcher


class Constraint:
    """One reply's way through a grammar."""

    def __init__(self, matcher: "LLMatcher"):
        self._matcher = matcher

    def allowed(self) -> bytes:
        """Return a byte for each token, which is 0 where it cannot come next.

        Where the JSON may be complete, the tokens that end a reply are among those that can.

        Raises: VLMError where nothing can, or finding out would take too long.
        """
        allowed = self._matcher.compute_logit_bias()
        # In its error state the library allows the end, which would pass half a document for a whole one.
        if self._matcher.is_error() or _ALLOWED not in allowed:
            raise _unusable(self._matcher.get_error() or "no token can follow")
        return allowed

    def advance(self, token_id: int) -> None:
        """Take in the token that was chosen."""
        self._matcher.consume_token(token_id)


def restrict(logits: Tensor, constraints: Mapping[int, Constraint]) -> tuple[Tensor, dict[int, VLMError]]:
    """Return logits [b, n] with those of tokens that cannot come next at minus infinity, and the rows that are stuck.

    `constraints` holds what some of the rows are held by. All rows are done at once: what is done row by row costs
    small models more than their own step.
    """
    if not constraints:
        return logits, {}
    num_rows, vocab_size = logits.shape
    allowed, stuck = [bytes([_ALLOWED]) * vocab_size] * num_rows, {}
    for row, constraint in constraints.items():
        try:
            allowed[row] = constraint.allowed()
        except VLMError as error:
            stuck[row] = error
    hidden = torch.frombuffer(bytearray().join(allowed), dtype=torch.uint8).to(logits.device).logical_not()
    return logits.masked_fill(hidden.view(num_rows, vocab_size), -torch.inf), stuck


class _Words:
    """The tokenizer as llguidance reads one."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.eot_id
        # Ids of no token are special too: they have no place in a text.
        self.special_token_ids = [token_id for token_id in range(vocab_size) if tokenizer.is_special(token_id)]
        special = set(self.special_token_ids)
        self.tokens = [
            f"<|{token_id}|>".encode() if token_id in special else tokenizer.decode_single_token_bytes(token_id)
            for token_id in range(vocab_size)
        ]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _unusable(reason: str) -> VLMError:
    # The library's messages quote the schema: the first line, without control characters.
    line = re.sub(r"[^\x20-\x7e]", "?", reason.strip().partition("\n")[0])[:160]
    return VLMError(
        "invalid_request", f"the JSON schema cannot be followed: {line}; simplify it, or leave out what is named here"
    )


def _depth(schema: object) -> int:
    """Return how deep dicts and lists stand in each other, as far as it matters; without recursion, for it is input."""
    depth, level = 0, [schema]
    while level and depth <= MAX_SCHEMA_DEPTH:
        children = [child.values() if isinstance(child, Mapping) else child for child in level]
        level = [child for group in children for child in group if isinstance(child, Mapping | list | tuple)]
        depth += 1
    return depth
