"""A report as a browser would read it, for the tests of what is in it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from eval.report import write_report


class Elements(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the texts in them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.texts.append((self._open[-1], data))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))


class Report:
    """A report, written and read again."""

    def __init__(self, out: Path, *folders: Path):
        write_report(folders, out)
        self.html = out.read_text(encoding="utf-8")
        self.elements = Elements(self.html)
        self.about, self.rows, self.pictures = self._data()

    def _data(self):
        blocks = re.findall(r'<script type="([a-z/]+)" id="([a-z0-9-]+)">(.*?)</script>', self.html, re.DOTALL)
        found = {name: content for _, name, content in blocks}
        pictures = {name: content for name, content in found.items() if name.startswith("picture-")}
        return json.loads(found["about"]), json.loads(found["rows"]), pictures
