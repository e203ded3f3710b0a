"""What the page's events do, called as Gradio calls them."""

import importlib.util

import pytest
from PIL import Image

from tests.image_files import encode, smooth_pixels
from vlm.demo.desk import Desk
from vlm.demo.models import ModelShelf
from vlm.errors import CODES

if importlib.util.find_spec("gradio") is None:
    pytest.skip("not run: gradio", allow_module_level=True)

import gradio as gr

from vlm.demo.handlers import Conversation, Handlers
from vlm.demo.notices import PLAIN

SKIP = gr.skip()
NUM = len(Conversation())


@pytest.fixture(scope="module")
def handlers(tmp_path_factory):
    desk = Desk()
    yield Handlers(ModelShelf([], []), desk, tmp_path_factory.mktemp("made"))
    desk.close()


@pytest.fixture
def paths(tmp_path) -> tuple[str, str]:
    """A picture, and half of one."""
    content = encode(Image.fromarray(smooth_pixels()), "PNG")
    for name, kept in (("good.png", len(content)), ("half.png", len(content) // 2)):
        (tmp_path / name).write_bytes(content[:kept])
    return str(tmp_path / "good.png"), str(tmp_path / "half.png")


def told(outputs: tuple) -> tuple[Conversation, object, object]:
    """Return the conversation, the pictures and the known paths that an event ends in."""
    return Conversation(*outputs[:NUM]), *outputs[NUM:]


def test_new_pictures_end_the_conversation_and_the_last_notice(handlers, paths):
    after, pictures, known = told(handlers.new_pictures([(paths[0], None)], ()))
    assert (after.chat, after.talk.turns, after.notice.visible) == ([], (), False)
    assert pictures == SKIP
    assert known == (paths[0],)


def test_what_is_no_picture_is_taken_out_and_the_reason_stays(handlers, paths):
    after, pictures, known = told(handlers.new_pictures([(path, None) for path in paths], ()))
    assert (pictures, known) == ([paths[0]], (paths[0],))
    assert after.notice.visible
    assert PLAIN["image_truncated"].replace("'", "&#x27;") in after.notice.value
    # Gradio tells of what was taken out, too. The reason is still shown then, and an answer under way is left alone.
    assert told(handlers.new_pictures([(paths[0], None)], known)) == (Conversation(), SKIP, SKIP)


def test_the_same_file_that_is_none_is_refused_again(handlers, paths):
    for _ in range(2):
        after, pictures, known = told(handlers.new_pictures([(paths[1], None)], ()))
        assert (pictures, known, after.notice.visible) == ([], (), True)
        assert told(handlers.new_pictures([], known))[0] == Conversation()


def test_plain_words_are_for_errors_that_there_are():
    assert set(PLAIN) <= CODES
    assert all(text.endswith(".") and len(text) < 120 for text in PLAIN.values())
