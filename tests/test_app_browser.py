"""The demo in a real browser: a chart goes in, the answer streams, a word is chosen, and where it was read shows."""

import base64
import csv
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.demo_process import ANSWER, ROOT, Demo, running_demo

if importlib.util.find_spec("gradio") is None:
    pytest.skip("not run: gradio", allow_module_level=True)

# A server, a browser and a person's pace.
pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHART, OTHER = ROOT / "examples" / "river_level.png", ROOT / "examples" / "commute.png"
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", *CAMERA]
SECONDS = 1000
LONGEST_WAIT = 120 * SECONDS
"""For whatever is to be seen: on a busy machine the browser alone takes half a minute to draw the page."""


class View(NamedTuple):
    """A page that is open, and everything it complained about or asked for."""

    page: object
    complaints: list[str]
    requests: list[str]

    def add(self, *files: Path) -> None:
        """Upload pictures as a person does, and wait until they are shown and read."""
        shown = self.count("#pictures .thumbnail-item")
        with self.told_of_pictures():
            self.page.locator("#pictures input[type=file]").first.set_input_files([str(file) for file in files])
        self.wait_until(f"document.querySelectorAll('#pictures .thumbnail-item img').length == {shown + len(files)}")

    def told_of_pictures(self):
        """Wait, at the end of a block, until the page has begun again with other pictures, read or not."""
        return self.page.expect_response(lambda response: "run/predict" in response.url)

    def wait_until(self, expression: str) -> None:
        """Wait until something is true in the page; at most `LONGEST_WAIT`."""
        try:
            self.page.wait_for_function(expression)
        except Exception as error:
            seen = self.page.locator("body").inner_text()
            raise AssertionError(f"{expression}\ndid not come true\n{seen}\n{self.complaints}") from error

    def ask(self, question: str) -> None:
        box = self.page.locator("#question textarea")
        box.fill(question)
        box.press("Enter")

    def tab(self, name: str) -> None:
        """Open a tab; on a narrow page some are in a menu."""
        tab = self.page.get_by_role("tab", name=name)
        if tab.count() == 0:
            self.page.locator(".overflow-menu > button").click()
            tab = self.page.locator(".overflow-dropdown button").filter(has_text=name)
        tab.first.click()

    def wait_for(self, text: str, selector: str = "body") -> None:
        shown = f"[...document.querySelectorAll({json.dumps(selector)})]"
        self.wait_until(f"{shown}.some((each) => each.innerText.includes({json.dumps(text)}))")

    def answer(self, question: str) -> None:
        """Ask, and wait for the end of the answer: of this one, not of the one before."""
        known = self.count("#chat .bot.message")
        self.ask(question)
        self.wait_until(f"document.querySelectorAll('#chat .bot.message').length == {known + 1}")
        self.finish()

    def finish(self) -> None:
        """Wait for the end of an answer."""
        self.wait_for("confidence", "#status")
        # What is drawn may come a moment after what is told.
        last = "[...document.querySelectorAll('#chat .bot.message')].at(-1)?.innerText.trim()"
        self.wait_until(f"{last} == {json.dumps(ANSWER)}")

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def answers(self) -> list[str]:
        return [text.strip() for text in self.page.locator("#chat .bot.message").all_inner_texts()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Demo]:
    if CHROMIUM is None:
        pytest.skip("not run: chromium")
    with running_demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo
    assert demo.outside == []


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="not run: playwright")
    if CHROMIUM is None:
        pytest.skip("not run: chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def desk(browser, demo):
    """A wide window, whose cache holds the page's scripts from the second page on."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.grant_permissions(["camera", "clipboard-read", "clipboard-write"], origin=demo.url)
    yield context
    context.close()


def opened(context, demo: Demo, answer: str = ANSWER) -> Iterator[View]:
    demo.delay(0)
    demo.answer(answer)
    page = context.new_page()
    page.set_default_timeout(LONGEST_WAIT)
    view = View(page, [], [])
    page.on("pageerror", lambda error: view.complaints.append(str(error)))
    page.on("console", lambda message: view.complaints.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (view.complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: view.requests.append(request.url))
    page.goto(demo.url)
    page.wait_for_selector("#examples img")
    yield view
    demo.delay(0)
    page.close()
    assert [url for url in view.requests if not url.startswith((demo.url, "data:", "blob:"))] == []


@pytest.fixture
def view(desk, demo) -> Iterator[View]:
    yield from opened(desk, demo)


@pytest.fixture
def view_of_tables(desk, demo) -> Iterator[View]:
    """A page whose model writes tables, and says so when the page opens."""
    yield from opened(desk, demo, "year | visitors\n2018 | 627\n2019 | =1+1")


@pytest.fixture
def phone(browser, demo) -> Iterator[View]:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    yield from opened(context, demo)
    context.close()


def test_a_chart_is_asked_about_and_a_word_shows_where_it_was_read(view, demo):
    view.add(CHART)
    demo.delay(0.2)
    view.ask("How high in April?")
    view.wait_until("document.querySelector('#chat .bot.message')?.innerText.includes('ab')")
    growing = view.answers()[-1]
    demo.delay(0)
    view.finish()
    assert ANSWER.startswith(growing)
    assert len(growing) < len(ANSWER)
    assert view.answers() == [ANSWER]
    # The first number is looked at by itself, and marked.
    view.page.wait_for_selector("#heat img")
    view.wait_for("marked by the ring", "#place")
    first = view.page.locator("#heat img").get_attribute("src")
    assert view.page.locator("#words input:checked").count() == 1
    view.page.locator("#words label").filter(has_text="about").click()
    view.wait_until(f"document.querySelector('#heat img')?.getAttribute('src') != {first!r}")
    view.wait_until("!document.querySelector('#place').innerText.includes('ring')")
    assert "Strongest in the" in view.page.locator("#place").inner_text()
    view.wait_until("document.querySelector('#heat img').naturalWidth > 300")
    assert view.complaints == []


def test_a_question_is_answered_while_its_picture_is_still_being_read(view):
    """The check of the picture has not begun, or not ended, when the question comes."""
    with view.told_of_pictures():
        view.page.locator("#pictures input[type=file]").first.set_input_files([str(CHART)])
    view.answer("and?")
    assert view.answers() == [ANSWER]
    assert view.page.locator("#question textarea").input_value() == ""


def test_a_question_that_another_picture_interrupts_is_in_its_box_again(view, demo):
    view.add(CHART)
    demo.delay(0.3)
    view.ask("how many?")
    view.wait_until("document.querySelector('#chat .bot.message')?.innerText.includes('a')")
    view.add(OTHER)
    view.wait_until("document.querySelectorAll('#chat .bot.message').length == 0")
    view.wait_until("document.querySelector('#question textarea').value == 'how many?'")
    demo.delay(0)
    # The scripted model has one place in its text: the token that was under way must be over.
    view.page.wait_for_timeout(1500)
    view.page.locator("#question textarea").press("Enter")
    view.finish()
    assert view.answers() == [ANSWER]


def test_what_the_model_writes_is_text(view):
    """The answer holds HTML and Markdown."""
    view.add(CHART)
    view.answer("?")
    assert view.answers() == [ANSWER]
    view.tab("Caption")
    view.page.get_by_role("button", name="Describe the pictures").click()
    view.wait_until(f"document.querySelector('#caption textarea').value == {json.dumps(ANSWER)}")
    assert view.page.evaluate("window.harmed") is None
    assert view.count("img[src=x]") == 0
    assert view.count("#chat .bot.message strong") == 0
    assert [url for url in view.requests if url.endswith("/x")] == []


def test_a_corrupt_file_ends_in_one_friendly_sentence(view, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(CHART.read_bytes()[:5000])
    view.page.locator("#pictures input[type=file]").first.set_input_files(str(broken))
    view.page.wait_for_selector("#notice [role=alert]")
    said = view.page.locator("#notice [role=alert]").inner_text()
    assert said == "Part of this picture's file is missing; send it again."
    view.wait_until("document.querySelectorAll('#pictures .thumbnail-item').length == 0")
    assert view.page.locator("#notice [role=alert]").inner_text() == said
    # And on it goes.
    view.add(CHART)
    view.answer("?")
    assert view.answers() == [ANSWER]
    assert view.count("#notice [role=alert]") == 0


def test_without_a_picture_or_a_question_it_says_what_is_missing(view):
    view.ask("How many?")
    view.wait_for("Add a picture first", "#notice")
    assert view.page.locator("#question textarea").input_value() == "How many?"
    view.add(CHART)
    view.ask(" ")
    view.wait_for("Write a question first", "#notice")


def test_an_example_is_one_click_away(view):
    view.page.locator("#examples button").nth(3).click()
    view.page.wait_for_selector("#pictures .thumbnail-item img")
    view.wait_until("document.querySelector('#question textarea').value.endsWith('?')")
    view.page.locator("#question textarea").press("Enter")
    view.finish()
    assert view.answers() == [ANSWER]


def test_a_picture_can_be_pasted_and_photographed(view):
    copied = base64.b64encode(CHART.read_bytes()).decode()
    view.page.evaluate(
        """async (content) => {
            const picture = await (await fetch("data:image/png;base64," + content)).blob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": picture})]);
        }""",
        copied,
    )
    for number, button in ((1, "Paste from clipboard"), (2, "Paste from Clipboard"), (3, "Take a photograph")):
        with view.told_of_pictures():
            view.page.locator("#pictures").get_by_label(button, exact=True).click()
            if number == 3:
                view.page.get_by_text("Click to Access Webcam").click()
                # Before the camera shows something, nothing is taken.
                view.wait_until("document.querySelector('#pictures video')?.videoWidth > 0")
                view.page.locator("#pictures").get_by_label("capture photo").click()
        view.wait_until(f"document.querySelectorAll('#pictures .thumbnail-item img').length == {number}")
    view.answer("which?")
    view.wait_until("document.querySelectorAll('#heat img').length == 3")
    assert view.complaints == []


def test_a_chart_becomes_a_table_and_a_file(view_of_tables):
    view = view_of_tables
    view.add(CHART)
    view.tab("Chart to table")
    view.page.get_by_role("button", name="Read the chart as a table").click()
    view.wait_for("627", "#table")
    with view.page.expect_download() as download:
        view.page.get_by_text("Download as CSV").click()
    rows = [*csv.reader(Path(download.value.path()).read_text().splitlines())]
    assert rows == [["year", "visitors"], ["2018", "627"], ["2019", "'=1+1"]]
    assert view.complaints == []


def test_questions_follow_each_other_and_can_be_asked_again(view, demo):
    view.add(CHART)
    for number in (1, 2):
        view.answer(f"question {number}")
        view.wait_until(f"document.querySelectorAll('#chat .bot.message').length == {number}")
    demo.delay(0.3)
    view.page.locator("#chat").get_by_label("Retry").last.click()
    view.wait_until("!document.querySelector('#status').innerText.includes('confidence')")
    demo.delay(0)
    view.finish()
    assert view.answers() == [ANSWER] * 2
    view.add(OTHER)
    view.wait_until("document.querySelectorAll('#chat .bot.message').length == 0")
    view.answer("which?")
    view.wait_until("document.querySelectorAll('#heat img').length == 2")
    assert re.search(r"picture 1: \d+% of the attention", view.page.locator("#heat").inner_text())
    assert re.search(r"of picture [12]", view.page.locator("#place").inner_text())


def test_an_answer_can_be_stopped(view, demo):
    view.add(CHART)
    demo.delay(0.3)
    view.ask("?")
    view.wait_until("document.querySelector('#chat .bot.message')?.innerText.includes('a')")
    view.page.locator("#question .stop-button").click()
    view.wait_for("stopped", "#status")
    demo.delay(0)
    stopped = view.answers()
    view.page.wait_for_timeout(1500)
    assert view.answers() == stopped
    assert len(stopped[0]) < len(ANSWER)
    view.answer("and?")
    assert view.answers()[-1] == ANSWER
    view.page.locator("#chat").get_by_label("Clear").click()
    view.wait_until("document.querySelectorAll('#chat .message').length == 0")
    view.page.locator("#heat").wait_for(state="hidden")


def test_a_full_queue_is_told_and_the_page_is_not_stuck(view, demo):
    view.add(CHART)
    view.answer("?")
    # None may end while the others are put in.
    demo.delay(600)
    path, event = demo.upload("a.png", CHART.read_bytes()), demo.event("question", "submit")
    value = [{"image": {"path": path, "meta": {"_type": "gradio.FileData"}}, "caption": None}]
    names = [f"busy{number}" for number in range(34)]
    statuses = [demo.join(event, ["?", value, None, "shipped model", "auto", 0, 8], name).status_code for name in names]
    assert statuses.count(200) >= 32
    assert statuses[-1] == 503
    view.ask("is there room?")
    view.page.wait_for_selector(".toast-wrap .toast-body, .toast-body")
    assert "busy" in view.page.locator(".toast-body").first.inner_text().lower()
    demo.delay(0)
    for name, status in zip(names, statuses, strict=True):
        if status == 200:
            list(demo.messages(name))
    view.answer("and now?")
    assert view.answers()[-1] == ANSWER


def test_it_works_with_the_keyboard_alone(view):
    view.add(CHART)
    view.page.locator("#question textarea").focus()
    view.page.keyboard.type("How high?")
    view.page.keyboard.press("Enter")
    view.wait_for("marked by the ring", "#place")
    before = view.page.locator("#heat img").get_attribute("src")
    view.page.locator("#words input:checked").focus()
    view.page.keyboard.press("Shift+Tab")
    view.page.keyboard.press("Space")
    view.wait_until(f"document.querySelector('#heat img')?.getAttribute('src') != {before!r}")
    assert (
        view.page.locator("#words label").first.evaluate("(label) => getComputedStyle(label).outlineStyle") == "solid"
    )


def test_settings_tell_what_the_model_is(view):
    view.tab("Settings")
    view.wait_for("parameters", ".gradio-container")
    view.wait_for("What it can and cannot do", "#card")
    assert view.page.get_by_label("Temperature").count() >= 1
    view.tab("Chart to table")
    view.wait_for("Not with this model", "#no-tables")
    assert view.page.get_by_role("button", name="Read the chart as a table").count() == 0


def test_a_phone_needs_no_scrolling_sideways(phone):
    """In the dark, too."""
    phone.add(CHART)
    phone.answer("?")
    phone.page.wait_for_selector("#heat img")
    for tab in ("Caption", "Chart to table", "Settings", "Ask"):
        phone.tab(tab)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360, tab
    background = phone.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", background)[:3])) < 150
