"""How a reply's text grows: whole characters, nothing of a stop text, nothing of a special token."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.generation.reply import ReplyText
from vlm.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()
# Of Tokenizer.bytes_only(): bytes, then Llama's special tokens, then the image marker.
BEGIN, END_OF_TEXT, HEADER, END_OF_MESSAGE, END_OF_TURN, IMAGE, MARKER = 256, 257, 262, 264, 265, 267, 512

WORDS = Tokenizer(
    TOKENIZER.ranks | {text.encode(): 256 + rank for rank, text in enumerate(["ab", "abc", "éa", "b€", "€€€", "STOP"])},
    {name: token_id + 6 for name, token_id in TOKENIZER.special_ids.items()},
)
"""Tokens of more than a character, some cut through one."""


def write(ids, stops=(), tokenizer=TOKENIZER) -> tuple[list[str], ReplyText]:
    """Return the pieces in which `ids` come out, to their end or to a stop, and the reply."""
    reply, pieces = ReplyText(tokenizer, tuple(stops)), []
    for token_id in ids:
        pieces.append(reply.add(token_id, 0.5))
        if reply.finished:
            break
    return [*pieces, reply.close()], reply


def stopped_text(ids, stops, tokenizer) -> tuple[str, int]:
    """The slow twin: decode everything anew after each token. Returns the text and how many tokens it took."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        # What the last token left open is no character yet.
        while text.endswith("\ufffd") and count < len(ids):
            text = text[:-1]
        places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
        if places:
            return text[: min(places)], count
    return tokenizer.decode(ids), len(ids)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_pieces_of_any_bytes_joined_are_the_decoding_of_the_ids(ids):
    pieces, reply = write(ids)
    assert "".join(pieces) == reply.text == TOKENIZER.decode(ids)
    assert reply.token_ids == ids
    assert not reply.finished


def test_no_piece_ends_inside_a_character():
    text = "aé€😀ü👩‍👩‍👧é"
    pieces, _ = write(text.encode())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert [piece for piece in pieces if piece] == list(text)


@settings(max_examples=300, deadline=None)
@given(st.text("abc é€STOP", max_size=14), st.lists(st.text("abcé€STOP", min_size=1, max_size=4), max_size=3))
def test_stop_texts_across_tokens_equal_the_slow_twin(text, stops):
    for tokenizer in (TOKENIZER, WORDS):
        ids = tokenizer.encode(text)
        pieces, reply = write(ids, stops, tokenizer)
        expected, count = stopped_text(ids, stops, tokenizer)
        assert ("".join(pieces), reply.text, len(reply.token_ids)) == (expected, expected, count)
        assert reply.finished == (expected != text or any(stop in text for stop in stops))
        assert not any(stop in reply.text for stop in stops)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_held_back_but_what_may_become_a_stop_text(seed):
    pick = random.Random(seed)
    stops = ["".join(pick.choices("ab€", k=pick.randint(1, 4))) for _ in range(3)]
    text = "".join(pick.choices("ab€", k=40))
    reply, shown = ReplyText(TOKENIZER, tuple(stops)), ""
    for count, character in enumerate(text, start=1):
        for token_id in character.encode():
            shown += reply.add(token_id, 0.5)
        if reply.finished:
            break
        held = text[len(shown) : count]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("abc", ["abc"], ""),
        ("abc", ["a"], ""),
        ("abcd", ["bc", "abcd"], "a"),
        ("aab", ["ab"], "a"),
        ("ab", ["abc"], "ab"),
        ("x\n\ny", ["\n\n"], "x"),
        ("é€", ["€"], "é"),
        ("the end", ["END"], "the end"),
        ("a<|eot_id|>b", ["<|eot_id|>"], "a"),
    ],
)
def test_text_is_cut_before_a_stop_text(text, stops, shown):
    pieces, reply = write(TOKENIZER.encode(text), stops)
    assert "".join(pieces) == reply.text == shown
    assert reply.finished == (shown != text)


@pytest.mark.parametrize("end", [END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN])
def test_an_ending_token_ends_and_is_not_kept(end):
    pieces, reply = write([*b"ab", 0xE2, 0x82, end, 99])
    # What an ending token leaves open of a character comes out as one sign, as in decoding.
    assert "".join(pieces) == reply.text == "ab\ufffd" == TOKENIZER.decode(reply.token_ids)
    assert reply.finished
    assert reply.token_ids == [*b"ab", 0xE2, 0x82]


@pytest.mark.parametrize("special", [BEGIN, HEADER, IMAGE, 511, MARKER, 513, 10**6, -1])
def test_a_special_token_inside_leaves_no_trace(special):
    pieces, reply = write([97, special, 0xC3, special, 0xA9, special])
    assert "".join(pieces) == reply.text == "aé"
    assert reply.token_ids == [97, 0xC3, 0xA9]
    assert len(reply.probabilities) == 3
    assert not reply.finished


def test_special_tokens_do_not_spell_a_stop_text():
    _, reply = write([97, END_OF_TURN], ["<|eot_id|>", "x"])
    assert (reply.text, reply.token_ids) == ("a", [97])
    _, reply = write([97, IMAGE, HEADER, 98], ["<|image|>", "<|start_header_id|>"])
    assert (reply.text, reply.finished) == ("ab", False)


def test_closing_again_adds_nothing():
    reply = ReplyText(TOKENIZER, ("abc",))
    assert [reply.add(token_id, 0.5) for token_id in b"xab"] == ["x", "", ""]
    assert reply.close() == "ab"
    assert reply.close() == ""
    assert reply.text == "xab"


def test_confidence_is_the_mean_of_what_was_kept():
    reply = ReplyText(TOKENIZER, ())
    assert reply.confidence == 1
    for token_id, probability in [(97, 0.5), (HEADER, 0.001), (98, 0.25), (END_OF_TURN, 0.001)]:
        reply.add(token_id, probability)
    assert reply.confidence == pytest.approx(0.375)
