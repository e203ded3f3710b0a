"""What the page's events do, called as Gradio calls them."""

import importlib.util

import pytest
from PIL import Image

from tests.image_files import encode, smooth_pixels
from vlm.demo.desk import MAX_PICTURES, Desk
from vlm.demo.models import SHIPPED, ModelShelf
from vlm.demo.talk import Talk
from vlm.errors import CODES

if importlib.util.find_spec("gradio") is None:
    pytest.skip("not run: gradio", allow_module_level=True)

import gradio as gr

from vlm.demo.handlers import Handlers
from vlm.demo.notices import PLAIN

SKIP = gr.skip()


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


def test_other_pictures_end_the_conversation_but_not_the_notice(handlers):
    over = Talk(("a.png",)).asked("which?").ended()
    for talk in (Talk(), over):
        after = handlers.other_pictures(talk, "")
        assert (after.chat, after.talk, after.notice) == ([], Talk(), SKIP)
        assert "value" not in after.question.constructor_args


def test_a_question_that_other_pictures_interrupt_is_not_lost(handlers):
    asked = Talk(("a.png",)).asked("which?").ended().asked("and why?")
    assert handlers.other_pictures(asked, "").question.value == "and why?"
    # Unless another one is being written.
    assert "value" not in handlers.other_pictures(asked, "or").question.constructor_args
    # What a person stopped was not interrupted.
    stopped = handlers.stopped(asked).talk
    assert "value" not in handlers.other_pictures(stopped, "").question.constructor_args


def test_pictures_that_are_some_end_the_last_notice(handlers, paths):
    pictures, notice, checked = handlers.check_pictures([(paths[0], None)], ())
    assert (pictures, notice.visible, checked) == (SKIP, False, (paths[0],))


def test_what_is_no_picture_is_taken_out_and_the_reason_stays(handlers, paths):
    pictures, notice, checked = handlers.check_pictures([(path, None) for path in paths], ())
    assert (pictures, checked) == ([paths[0]], (paths[0],))
    assert notice.visible
    assert PLAIN["image_truncated"].replace("'", "&#x27;") in notice.value
    # Gradio tells of what was taken out, too. The reason is still shown then.
    assert handlers.check_pictures([(paths[0], None)], checked) == (SKIP, SKIP, SKIP)


def test_the_same_file_that_is_none_is_refused_again(handlers, paths):
    for _ in range(2):
        pictures, notice, checked = handlers.check_pictures([(paths[1], None)], ())
        assert (pictures, checked, notice.visible) == ([], (), True)
        assert handlers.check_pictures([], checked) == (SKIP, SKIP, SKIP)


def test_more_pictures_than_the_page_lets_through_are_refused_before_one_is_read(handlers, monkeypatch):
    """A call may be forged, or come before the pictures are checked."""
    monkeypatch.setattr(handlers.desk, "read", lambda path: pytest.fail("it was read"))
    monkeypatch.setattr(handlers.shelf, "get", lambda *chosen: None)
    pictures, settings = [("a.png", None)] * (MAX_PICTURES + 1), (SHIPPED, "auto", 0, 8)
    notices = [
        next(handlers.ask("which?", pictures, Talk(), *settings)).notice,
        next(handlers.describe(pictures, *settings))[2],
        handlers.read_chart(pictures, *settings)[3],
        handlers.prepare(pictures, *settings[:2]),
    ]
    assert all("9 pictures are too many" in each.value for each in notices)


def test_plain_words_are_for_errors_that_there_are():
    assert set(PLAIN) <= CODES
    assert all(text.endswith(".") and len(text) < 120 for text in PLAIN.values())
