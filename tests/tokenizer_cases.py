"""What the tests of the tokenizer share: texts, the same vocabulary in three libraries, and how refusals are read."""

import functools
import itertools
import random
from pathlib import Path

import llama_models.llama3.tokenizer as meta_module
import pytest
import tokenizers
from tokenizers import AddedToken, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

from vlm.errors import VLMError
from vlm.tokenizer import META_SPECIALS, Tokenizer
from vlm.tokenizer_files.llama3 import LLAMA_PATTERN, REQUIRED_SPECIALS

META_FILE = Path(meta_module.__file__).with_name("tokenizer.model")
BYTES = Tokenizer.bytes_only()
# Hugging Face's files count all others of the 256 as reserved, so that 128011 is <|reserved_special_token_3|>.
KEPT_NAMES = {name for name in META_SPECIALS[:11] if "reserved" not in name} - {"<|step_id|>"}
HOSTILE = [
    "",
    "\0",
    "\0\0a\0",
    "\ufeff\ufeffa",
    "\u202eevil\u202c",
    "مرحبا بالعالم",
    "e\u0301\u0301\u0301" * 50,
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈",
    "\u0085\u2028\u2029\u180e\u3000",
    "\x1c\x1d\x1e\x1f",
    "\U0010ffff\U000e0001",
    "ſ'ſ 'S 'ſt I'LL \u212a",
    "\r\n\r\n \r \n\t\n  x",
    "٣٤٥٦ ½ Ⅷ ⁴⁵ 1234567",
    "{{7*7}} ${jndi:ldap://x} %s%n ../../etc/passwd '; DROP TABLE t;--",
    "<|<|image|>|> <|image|><|image|> <|eot_id|",
]


@functools.cache
def metas_tokenizer() -> meta_module.Tokenizer:
    return meta_module.Tokenizer(META_FILE)


@functools.cache
def our_tokenizer() -> Tokenizer:
    """Ours, of the file that Meta's reads."""
    return Tokenizer.from_model_file(META_FILE)


@functools.cache
def library_twin() -> tokenizers.Tokenizer:
    """The `tokenizers` library's, laid out like that of Llama-3.2-11B-Vision; write it with `save`.

    The reserved tokens are counted on, the marker comes after them, and a fine-tune added three words and a token.
    """
    twin = TikTokenConverter(str(META_FILE)).converted()
    numbers = itertools.count()
    names = [name if name in KEPT_NAMES else f"<|reserved_special_token_{next(numbers)}|>" for name in META_SPECIALS]
    twin.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in [*names, "<|image|>"]])
    twin.add_tokens(["<chart>", "Sichtlinie", "Sicht", AddedToken("<|im_start|>", normalized=False)])
    # What Hugging Face would find in a text by default; a text of ours never becomes these. It is not saved.
    twin.encode_special_tokens = True
    return twin


def small_json() -> dict:
    """Return a valid `tokenizer.json` in little: 256 bytes, two merges, the special tokens Llama's prompts need."""
    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"ab": 256, "abc": 257}
    specials = [{"id": 258 + i, "content": name, "special": True} for i, name in enumerate(REQUIRED_SPECIALS)]
    split = {"type": "Split", "pattern": {"Regex": LLAMA_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", ["ab", "c"]], "ignore_merges": True},
    }


def random_texts(seed: int, num_texts: int, surrogates: bool) -> list[str]:
    draw = random.Random(seed)
    words = ["The", "quick\tbrown", "FOX", "don't", "DON'T", "they'll", "it's", "'twas", "2024", "1234567", "3.14"]
    words += ["1e-9", "x=y;", "f(a,b)", "https://a.b/c?d", "Sightline", "a"]
    scripts = [
        "漢字仮名交じり文",
        "Привет мир",
        "ελληνικά",
        "हिन्दी भाषा",
        "ไทย",
        "한국어",
        "עברית",
        "Ünïcödé ß ſ İ ı",
        "Dž ǅ",
    ]
    marks = ["\u0301", "\u200d", "\ufe0f", "\u00a0", "\u3000", "\u0085", "\u2028", "\ufeff", "\0", "\x1f", "\u180e"]
    emoji = ["😀", "👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "👍🏽"]
    spaces = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\r"]
    signs = [*"!?.,;:'\"-_()[]{}<>|/\\@#$%^&*+=~`", "...", "--", "<|", "|>", "'s", "'S", "'", "’s"]
    pool = words + scripts + marks + emoji + spaces * 3 + signs + list(META_SPECIALS[:14])
    if surrogates:
        pool += ["\ud800", "\udc00", "\ude00\ud83d"]
    texts = []
    for _ in range(num_texts):
        parts = draw.choices(pool, k=draw.randint(0, 12))
        if draw.random() < 0.3:
            parts.insert(
                draw.randint(0, len(parts)), chr(draw.choice((draw.randrange(0xD800), draw.randrange(65536, 0x110000))))
            )
        texts.append("".join(parts))
    return texts


def refusal(code, call, *args, **kwargs) -> str:
    """Return the message of the error that a call ends in, having checked what holds for all of them."""
    with pytest.raises(VLMError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    assert len(caught.value.report) <= 300
    assert str(caught.value).isprintable()
    assert "0x7f" not in str(caught.value)
    return str(caught.value)
