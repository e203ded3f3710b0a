"""Errors as callers see them: of one type, with a stable code, short, and with nothing from inside."""

import copy
import pickle
import re
import traceback
from pathlib import Path

import numpy as np
import pytest

from eval.run.manifest import Difference, RunDiffers
from tests.conversations import user
from tests.image_files import encode, noise_picture
from vision_encoder.image_input import ImageError
from vlm import VLM, EncodedImage, GenerationConfig, VLMError
from vlm.errors import CODES, MAX_MESSAGE_CHARS, UnknownName, public, shown

CHECKOUT = re.escape(f"{Path(__file__).parent.parent}/")
LEAK = re.compile(rf"0x[0-9a-f]{{4,}}|Traceback|object at|\.py\b|site-packages|{CHECKOUT}|/tmp/|/usr/", re.I)
PROMISED = {
    *("image_unsupported", "image_corrupt", "image_truncated", "image_too_large", "image_empty"),
    *("context_length_exceeded", "invalid_request", "checkpoint_invalid", "device_unavailable"),
}


def test_the_codes_are_those_that_are_promised():
    assert CODES == PROMISED


@pytest.mark.parametrize("code", ["", "image", "IMAGE_EMPTY", None])
def test_another_code_is_a_fault_of_ours(code):
    with pytest.raises(ValueError, match="unknown error code"):
        VLMError(code, "message")


def test_a_message_is_cut_at_its_limit_and_the_report_is_whole():
    for length in (MAX_MESSAGE_CHARS - 1, MAX_MESSAGE_CHARS, MAX_MESSAGE_CHARS + 1, 10_000):
        error = VLMError("invalid_request", "a" * length)
        assert len(error.message) == min(length, MAX_MESSAGE_CHARS)
        assert str(error) == error.message
        assert error.message.endswith("…") == (length > MAX_MESSAGE_CHARS)
        assert error.report == "a" * length
        assert ("`report`" in "".join(traceback.format_exception(error))) == (length > MAX_MESSAGE_CHARS)


def test_errors_of_the_lower_packages_leave_as_ours_without_a_trace_of_theirs():
    @public
    def entry(error):
        raise error

    with pytest.raises(VLMError, match="too large") as caught:
        entry(ImageError("image_too_large", "too large"))
    assert caught.value.code == "image_too_large"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    own = VLMError("checkpoint_invalid", "own")
    with pytest.raises(VLMError) as caught:
        entry(own)
    assert caught.value is own


@pytest.mark.parametrize("error", [ValueError("x"), TypeError("x"), KeyError("x"), OSError("x"), KeyboardInterrupt()])
def test_other_errors_are_left_alone(error):
    """A fault of ours must not pass for a refusal."""

    @public
    def entry():
        raise error

    with pytest.raises(type(error)) as caught:
        entry()
    assert caught.value is error


def test_a_value_error_with_a_code_of_its_own_is_left_alone():
    class Other(ValueError):
        code = "nothing of ours"

    with pytest.raises(Other):
        public(lambda: (_ for _ in ()).throw(Other("x")))()


@pytest.mark.parametrize(
    "error",
    [VLMError("image_empty", "a" * 999), UnknownName("no"), RunDiffers([Difference("model.name", "a", "b")])],
    ids=lambda error: type(error).__name__,
)
def test_an_error_can_be_copied_and_sent_to_another_process(error):
    versions = range(pickle.HIGHEST_PROTOCOL + 1)
    for twin in (copy.copy(error), *(pickle.loads(pickle.dumps(error, version)) for version in versions)):
        assert type(twin) is type(error)
        assert (str(twin), vars(twin)) == (str(error), vars(error))


def refused_calls(tiny, folder) -> dict:
    """Return one call for each way to be refused that needs no network; of most codes several."""
    content = encode(noise_picture(), "PNG")
    (folder / "bad.png").write_bytes(content[:100])
    (folder / "config.json").write_text("{" * 50)
    text_in_image = [{"role": "user", "content": [{"type": "image", "image": 5}]}]
    hostile = "y" * 9999
    return {
        "image_unsupported": lambda: tiny.caption(b"<svg></svg>"),
        "image_truncated": lambda: tiny.caption(folder / "bad.png"),
        "image_empty": lambda: tiny.caption(b""),
        "image_too_large": lambda: tiny.caption(np.zeros((8000, 8000, 3), np.uint8)),
        "image_corrupt": lambda: tiny.caption(content[:60] + b"\x55" * 200 + content[260:]),
        "context_length_exceeded": lambda: tiny.chat(user("a" * 1000)),
        "checkpoint_invalid": lambda: VLM.from_pretrained(folder),
        "device_unavailable": lambda: VLM.from_pretrained(folder, device=hostile),
        "invalid_request": lambda: tiny.chat([{"role": "x", "content": "x"}]),
        "text too long": lambda: tiny.chat(user("a" * 5_000_000)),
        "wanted too much": lambda: tiny.chat(user("a"), config=GenerationConfig(max_new_tokens=2**63 - 1)),
        "wrong type of image": lambda: tiny.chat(text_in_image),
        "no such image": lambda: tiny.caption(str(folder / "none.png")),
        "a folder": lambda: tiny.caption(folder),
        "a long path": lambda: tiny.caption("a" * 5000),
        "a path with a zero": lambda: tiny.caption("a\0b"),
        "a hostile role": lambda: tiny.chat([{"role": hostile, "content": "x"}]),
        "a hostile field": lambda: tiny.chat([{"role": "user", "content": "x", hostile: 1}]),
        "a hostile type": lambda: tiny.chat([{"role": "user", "content": [{"type": hostile}]}]),
        "a hostile scheme": lambda: tiny.caption("x" * 5000 + "://a"),
        "a hostile dtype": lambda: VLM.from_pretrained(folder, dtype=hostile),
        "a hostile reference": lambda: VLM.from_pretrained(folder, reference=hostile),
        "a hostile quantize": lambda: VLM.from_pretrained(folder, quantize=hostile),
        "a hostile kv_cache_dtype": lambda: VLM.from_pretrained(folder, kv_cache_dtype=hostile),
        "a hostile source": lambda: VLM.from_pretrained("y" * 250),
        "a source no file may be called": lambda: VLM.from_pretrained("y" * 300),
        "nobody's folder": lambda: VLM.from_pretrained("~nosuchuser/x"),
        "a folder no file may be called": lambda: tiny.save_pretrained(folder / ("y" * 300)),
        "a folder with a zero": lambda: tiny.save_pretrained("a\0b"),
        "an adapter no file may be called": lambda: tiny.load_adapter(folder / ("y" * 300)),
        "no adapter": lambda: tiny.load_adapter(folder / "none"),
        "an object as folder": lambda: tiny.save_pretrained(object()),
        "an object as adapter": lambda: tiny.load_adapter(object()),
        "an object as cache_bytes": lambda: VLM.from_pretrained(folder, cache_bytes=object()),
        "a hostile format": lambda: tiny.save_pretrained(folder / "new", format=hostile),
        "a hostile stop": lambda: GenerationConfig(stop=[hostile]),
        "a hostile temperature": lambda: GenerationConfig(temperature=hostile),
        "a hostile batch size": lambda: tiny.chat_many([], batch_size=hostile),
        "a hostile config": lambda: tiny.chat(user("x"), config=object()),
        "an encoded image": lambda: EncodedImage.load(folder / "bad.png"),
        "an object": lambda: tiny.caption(object()),
        "score": lambda: tiny.score(user("x"), [object()]),
        "complete": lambda: tiny.complete(object()),
        "an object as temperature": lambda: GenerationConfig(temperature=object()),
        "an object as stop": lambda: GenerationConfig(stop=object()),
        "an object as seed": lambda: GenerationConfig(seed=object()),
        "an object as batch size": lambda: tiny.chat_many([], batch_size=object()),
        "an object as device": lambda: VLM.from_pretrained(folder, device=object()),
        "an object as dtype": lambda: VLM.from_pretrained(folder, dtype=object()),
        "an object as quantize": lambda: VLM.from_pretrained(folder, quantize=object()),
        "an object as kv_cache_dtype": lambda: VLM.from_pretrained(folder, kv_cache_dtype=object()),
        "an object as source": lambda: VLM.from_pretrained(object()),
        "an object as format": lambda: tiny.save_pretrained(folder / "new", format=object()),
        "an object as role": lambda: tiny.chat([{"role": object(), "content": "x"}]),
        "an object as conversations": lambda: tiny.chat_many(object()),
        "pairs": lambda: tiny.answer_many([object()]),
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *(("a", "'a'"), ("a" * 99, "'" + "a" * 40 + "'"), (None, "None"), (True, "True"), (1.5, "1.5"), (-7, "-7")),
        *((10**30, "of type int"), (object(), "of type object"), ([1], "of type list"), (print, "of type builtin")),
    ],
)
def test_what_was_found_is_shown_without_an_address(value, said):
    assert shown(value).startswith(said)
    assert len(shown(value)) < 60
    assert shown(10**5000) == "of type int"


def test_no_refusal_says_too_much(tiny, tmp_path):
    """I12, and the promise of section 2: at most 300 characters, nothing from inside."""
    for name, call in refused_calls(tiny, tmp_path).items():
        with pytest.raises(VLMError) as caught:
            call()
        error = caught.value
        assert error.code in PROMISED, name
        assert error.code == name or name not in PROMISED, (name, error.code)
        assert 10 < len(error.message) <= 300, name
        assert not LEAK.search(error.message), (name, error.message)
        assert str(tmp_path) not in str(error), name
        assert not error.message.startswith("("), name
