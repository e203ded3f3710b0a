"""The report in a real browser: what people see, the filters, the keys, and that nothing in it runs but its script."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from eval.report import write_report
from eval.report.run import read_runs
from eval.verdicts import verdicts
from tests.eval_data_sets import write_ai2d
from tests.eval_reports import HOSTILE, some_differ, write_questions, write_run
from tests.listening import listening

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class View(NamedTuple):
    """A page that is open, and everything it complained about or asked for."""

    page: object
    complaints: list[str]
    requests: list[str]

    def open(self, path: Path, address: str = "") -> "View":
        self.page.goto("about:blank")
        self.page.goto(f"{path.as_uri()}{address}")
        return self

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def ids(self) -> list[str]:
        """The ids of the samples that are listed, from what the page offers to copy."""
        self.page.evaluate("document.querySelector('.ids').open = true")
        self.page.locator(".ids textarea").focus()
        found = self.page.locator(".ids textarea").input_value()
        return found.split(",") if found else []

    def focused(self) -> str:
        return self.page.evaluate("(document.activeElement.closest('li.sample') || document.activeElement).id")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="not run: playwright")
    if CHROMIUM is None:
        pytest.skip("not run: chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, **context) -> Iterator[View]:
    made = browser.new_context(**context)
    page = made.new_page()
    page.set_default_timeout(20_000)
    view = View(page, [], [])
    page.on("pageerror", lambda error: view.complaints.append(str(error)))
    page.on("console", lambda message: view.complaints.append(message.text))
    page.on("dialog", lambda dialog: (view.complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: view.requests.append(request.url))
    yield view
    made.close()


@pytest.fixture
def view(browser) -> Iterator[View]:
    yield from opened(browser, viewport={"width": 1280, "height": 900})


@pytest.fixture
def phone(browser) -> Iterator[View]:
    yield from opened(browser, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of thirty samples with a bit of everything, another on the same samples, and their reports."""
    path = tmp_path_factory.mktemp("browser")
    write_questions(path / "data", 30)
    write_run(path / "first", path / "data", differs=some_differ)
    write_run(path / "second", path / "data", differs=lambda number: {"prediction": "0"} if number == 5 else {})
    write_run(path / "labels", write_ai2d(path / "labelled"), task="ai2d")
    write_report([path / "first"], path / "one.html")
    write_report([path / "first", path / "second"], path / "both.html")
    write_report([path / "first", path / "labels"], path / "tasks.html")
    return path


# Opening it


def test_the_page_opens_without_a_request_or_a_complaint(view, folder):
    view.open(folder / "both.html")
    assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []
    assert [url for url in view.requests if url.startswith("file:")] == [(folder / "both.html").as_uri()]
    assert view.complaints == []
    assert view.text("h1") == "Evaluation report"
    assert view.count("table.scores tbody tr") > 6


def test_a_planted_script_and_a_planted_request_are_refused(view, folder):
    """What the other tests take for granted: that the browser enforces the policy, and that refusals are heard."""
    with listening() as (address, heard):
        planted = f'<script>window.harmed = 1</script><img src="{address}"><b onclick="window.harmed = 2">b</b>'
        whole = (folder / "one.html").read_text().replace("<main>", f"<main>{planted}", 1)
        (folder / "planted.html").write_text(whole)
        view.open(folder / "planted.html")
        view.page.locator("main > b").click()
        assert view.page.evaluate("window.harmed") is None
        assert heard == []
        assert len([text for text in view.complaints if "Content Security Policy" in text]) >= 3
        # Without the policy all three would have come through.
        free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", whole)
        (folder / "planted.html").write_text(free)
        view.open(folder / "planted.html")
        view.page.locator("main > b").click()
        assert view.page.evaluate("window.harmed") == 2
        assert heard == ["/picture"]


def test_the_list_begins_with_one_page_of_samples(view, folder):
    view.open(folder / "one.html")
    assert view.count("li.sample") == 20
    assert view.text("#found") == "1 to 20 of 30 samples"
    assert view.page.locator("#show-wrong").inner_text() == "wrong 2"


def test_pictures_are_shown(view, folder):
    view.open(folder / "one.html")
    view.page.wait_for_function(
        "[...document.querySelectorAll('.thumb img')].every((each) => each.naturalWidth === 160)"
    )
    assert view.count(".thumb img") == 20


def test_without_its_pictures_there_are_placeholders(view, folder, tmp_path):
    data = write_questions(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", data)
    (data / "0.png").unlink()
    write_report([run], tmp_path / "report.html")
    view.open(tmp_path / "report.html")
    assert view.texts(".thumb") == ["no picture"] * 3
    assert view.complaints == []


# A sample


def test_a_sample_shows_everything_about_it(view, folder):
    view.open(folder / "one.html")
    view.page.locator("li.sample .summary").nth(4).click()
    detail = view.page.locator("li.sample .detail")
    assert detail.locator("p.question").inner_text() == "How many in year 4?"
    assert detail.locator("pre.reply").inner_text() == "FINAL ANSWER: 14"
    assert detail.locator("pre.reply mark").inner_text() == "14"
    verdicts = {
        row.split("\t")[0]: row.split("\t")[1:] for row in detail.locator(".verdicts tbody tr").all_inner_texts()
    }
    assert verdicts["ours"] == ["✓ right", "14"]
    assert verdicts["pix2struct"][0] == "✗ wrong"
    detail.locator("details summary").click()
    assert "How many in year 4?" in detail.locator("details pre").inner_text()
    assert detail.locator(".pictures img").evaluate("(image) => image.naturalWidth") == 160
    assert "confidence 60.0 %" in detail.inner_text()
    view.page.locator("li.sample .summary").nth(4).click()
    assert view.count(".detail") == 0


def test_an_error_shows_its_reason(view, folder):
    view.open(folder / "one.html", "#show=error")
    view.page.locator(".summary").click()
    assert view.text(".detail pre.error") == "the picture cannot be read [image_corrupt]"
    assert view.count(".detail .verdicts") == 0


def test_options_are_lettered_and_the_right_one_is_told(view, folder):
    view.open(folder / "tasks.html", "#task=ai2d")
    view.page.locator(".summary").first.click()
    assert view.texts(".options .gold") == ["leaf"]
    assert "B. leaf" in view.text(".detail .texts")


# Filters


@pytest.mark.parametrize(
    ("show", "ids"),
    [
        ("wrong", ["q1", "q2"]),
        ("unparsed", ["q2"]),
        ("cut", ["q2"]),
        ("error", ["q3"]),
    ],
)
def test_each_filter_shows_its_samples(view, folder, show, ids):
    view.open(folder / "one.html")
    chip = view.page.locator(f"#show-{show}")
    chip.click()
    assert view.ids() == ids
    assert view.count("li.sample") == len(ids)
    assert chip.inner_text().split()[-1] == str(len(ids))
    assert chip.get_attribute("aria-pressed") == "true"
    view.page.locator("#all").click()
    assert len(view.ids()) == 30


def test_samples_on_which_scorers_disagree_are_found(view, folder):
    view.open(folder / "one.html")
    view.page.locator("#show-differ").click()
    records = [outcome.record for outcome in read_runs([folder / "first"])[0].outcomes if outcome.is_answer]
    values = {each.id: {verdict.value for verdict in verdicts(each).values() if verdict} for each in records}
    assert view.ids() == [name for name, each in values.items() if len(each) > 1]
    assert "q4" in view.ids()


def test_filters_hold_together(view, folder):
    view.open(folder / "one.html")
    view.page.locator("#show-wrong").click()
    view.page.locator("#show-cut").click()
    assert view.ids() == ["q2"]
    view.page.locator("#groups summary").click()
    view.page.locator("select#choice-split").select_option("human")
    assert view.page.locator("#groups summary").inner_text() == "groups (1 chosen)"
    assert view.ids() == []
    assert view.text("#found").startswith("No sample is like this.")


def test_another_scorer_judges_otherwise(view, folder):
    view.open(folder / "one.html")
    view.page.locator("select#choice-judged\\ by").select_option("pix2struct")
    view.page.locator("#show-wrong").click()
    assert view.ids() == ["q1", "q2", "q4"]


def test_what_changed_against_another_run_is_found(view, folder):
    view.open(folder / "both.html")
    # The first run against the second: 1 and 2 are worse, 3 is an error, 5 is better.
    view.page.locator("#show-changed").click()
    assert view.ids() == ["q1", "q2", "q3", "q5"]
    view.page.locator("#show-changed").click()
    view.page.locator("#show-won").click()
    assert view.ids() == ["q5"]
    view.page.locator("select#choice-run").select_option("1")
    assert view.ids() == ["q1", "q2", "q3"]
    assert [text.split()[1] for text in view.texts("li.sample:first-child .verdict:first-child")] == ["wrong", "right"]


def test_the_search_looks_through_questions_replies_and_ids(view, folder):
    view.open(folder / "one.html")
    for words, ids in (("final ANSWER", ["q4"]), ("in year 17", ["q17"]), ("q29", ["q29"]), ("no such thing", [])):
        view.page.locator("#query").fill(words)
        view.page.wait_for_function("(words) => location.hash.includes(new URLSearchParams({query: words}))", arg=words)
        assert view.ids() == ids


def test_pages_turn(view, folder):
    view.open(folder / "one.html")
    assert view.page.locator("#previous").is_disabled()
    view.page.locator("#next").click()
    assert view.text("#found") == "21 to 30 of 30 samples"
    assert view.page.locator("#next").is_disabled()
    view.page.locator("select#choice-a\\ page").select_option("50")
    assert view.text("#found") == "1 to 30 of 30 samples"


def test_a_view_has_an_address(view, folder):
    view.open(folder / "both.html")
    view.page.locator("#show-wrong").click()
    view.page.locator(".summary").nth(1).click()
    address = view.page.evaluate("location.hash")
    view.open(folder / "both.html", address)
    assert view.ids() == ["q1", "q2"]
    assert view.count(".detail") == 1
    assert view.text(".detail p.question") == "How many in year 2?"


def test_an_address_that_means_nothing_shows_all(view, folder):
    view.open(
        folder / "one.html", "#task=x&run=7&show=changed,__proto__&page=-1&size=3&by:x=y&pair=a,b&scorer=z&sample=no"
    )
    assert view.text("#found") == "1 to 20 of 30 samples"
    assert view.complaints == []


def test_plots_and_tables_lead_to_their_samples(view, folder):
    view.open(folder / "one.html")
    column = view.page.locator("table.matrix thead th").evaluate_all(
        "(all) => all.findIndex((each) => each.title.split(', ').includes('pix2struct'))"
    )
    view.page.locator("table.matrix tbody tr").first.locator("td").nth(column - 1).locator("a").click()
    view.page.wait_for_function("location.hash.includes('pair=')")
    assert view.ids() == ["q4"]
    view.page.locator("svg.groups a", has_text="human").first.click()
    view.page.wait_for_function("decodeURIComponent(location.hash).includes('by:split=human')")
    assert view.ids() == [f"q{number}" for number in range(1, 30, 2)]
    view.page.locator("table.scores tbody tr").first.locator("a").first.click()
    view.page.wait_for_function("location.hash.includes('show=wrong')")
    assert view.ids() == ["q1", "q2"]


def test_tasks_are_chosen_apart(view, folder):
    view.open(folder / "tasks.html")
    assert view.count("#choice-task") == 1
    view.page.locator("select#choice-run").select_option("1")
    assert view.count("li.sample") == 3
    view.page.locator("select#choice-task").select_option("chartqa")
    # The second run has none of these: the first is shown.
    assert view.page.locator("select#choice-run").input_value() == "0"
    assert view.text("#found") == "1 to 20 of 30 samples"


# Keys


def test_everything_can_be_done_by_keys(view, folder):
    view.open(folder / "one.html")
    press = view.page.keyboard.press
    press("j")
    assert view.focused() == "sample-0"
    press("j")
    assert view.focused() == "sample-1"
    press("k")
    assert view.focused() == "sample-0"
    press("Enter")
    assert view.count("#sample-0 .detail") == 1
    press("Tab")
    press("Escape")
    assert view.count(".detail") == 0
    assert view.focused() == "sample-0"
    press("n")
    assert view.focused() == "sample-20"
    press("p")
    assert view.focused() == "sample-0"
    press("/")
    assert view.focused() == "query"
    view.page.keyboard.type("jkq29")
    assert view.page.locator("#query").input_value() == "jkq29"
    press("Escape")
    assert view.focused() != "query"


def test_a_filter_keeps_the_focus_when_it_is_pressed(view, folder):
    view.open(folder / "one.html")
    view.page.locator("#show-wrong").focus()
    view.page.keyboard.press("Space")
    assert view.focused() == "show-wrong"
    assert view.ids() == ["q1", "q2"]


# Hostile texts


def test_hostile_replies_are_texts(view, tmp_path):
    data = write_questions(tmp_path / "data", 12)

    def hostile(number: int) -> dict:
        text = HOSTILE[number % len(HOSTILE)]
        named = {"id": f"{number}{text}", "question": text, "prompt": text, "target": (text,), "options": (text, "b")}
        named["fields"] = {"split": text, text: text}
        return named | ({"error": text} if number == 11 else {"prediction": f"FINAL ANSWER: {text}"})

    names = ["<img src=x onerror=window.harmed=6>", "two"]
    write_report([write_run(tmp_path / name, data, differs=hostile) for name in names], tmp_path / "report.html")
    view.open(tmp_path / "report.html")
    for place in range(12):
        view.page.locator("#list > li > .summary").nth(place).click()
    assert view.count(".detail") == 12
    assert view.page.evaluate("window.harmed") is None
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []
    assert view.page.locator("#list pre.reply").first.inner_text() == f"FINAL ANSWER: {HOSTILE[0]}"
    sources = view.page.locator("img").evaluate_all(
        "(images) => images.map((each) => each.getAttribute('src').slice(0, 22))"
    )
    assert set(sources) <= {"data:image/webp;base64"}
    assert view.count("main script") == 0
    handlers = """[...document.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())
        .filter((name) => /^(on|style)/.test(name))"""
    assert view.page.evaluate(handlers) == []


# Looks


@pytest.mark.parametrize("name", ["one.html", "both.html", "tasks.html"])
def test_a_phone_scrolls_in_one_direction_alone(phone, folder, name):
    phone.open(folder / name)
    phone.page.locator(".summary").nth(4).click()
    wide = """[...document.querySelectorAll('body *')].filter((each) => !each.closest('.wide, svg, .skip') &&
        each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 100))"""
    assert phone.page.evaluate(wide) == []
    assert phone.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_dark_and_light_follow_the_system_and_can_be_read(view, folder):
    view.open(folder / "one.html")
    view.page.locator(".summary").nth(4).click()
    view.page.mouse.move(0, 0)
    seen = {}
    for scheme in ("light", "dark"):
        view.page.emulate_media(color_scheme=scheme)
        seen[scheme] = view.page.evaluate(CONTRASTS)
        # WCAG AA for text.
        assert {what: ratio for what, ratio in seen[scheme].items() if ratio < 4.5} == {}
    assert seen["light"] != seen["dark"]


CONTRASTS = """
() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
  };
  const found = {};
  const texts = "h1, p, dt, dd, th, td, a, label span, button, .verdict, pre, mark, .about, .gold, bdi";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.textContent.trim() || element.closest("svg, .matrix, [disabled], .skip")) continue;
    const pair = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((a, b) => b - a);
    const name = element.tagName + "." + element.className;
    found[name] = Math.min(found[name] || 99, (pair[0] + 0.05) / (pair[1] + 0.05));
  }
  return found;
}
"""


def test_only_one_page_of_rows_is_made_however_many_samples_there_are(view, tmp_path):
    data = write_questions(tmp_path / "data", 600)
    write_report([write_run(tmp_path / "run", data)], tmp_path / "report.html")
    view.open(tmp_path / "report.html")
    assert view.text("#found") == "1 to 20 of 600 samples"
    assert view.count("li.sample") == 20
    assert view.count("img") == 20
