"""What happens when something on the page is used: from what Gradio hands over to what it shows; needs extra `demo`.

Whatever a model or a user wrote is shown as text: by components that show text alone, or escaped.
"""

import html
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from vlm.demo.desk import Desk, check_num_pictures
from vlm.demo.models import ModelShelf
from vlm.demo.notices import hidden, notice, quiet, wrong_notice
from vlm.demo.table import TABLE_REQUEST, read_table
from vlm.demo.talk import Talk
from vlm.demo.words import first_number, words_of
from vlm.errors import VLMError
from vlm.generation.reply import Reply
from vlm.generation.sampling import GenerationConfig
from vlm.pipeline import CAPTION_REQUEST, VLM

ALL_LAYERS = "all"
MAX_WORDS = 120
NO_PICTURE = "Add a picture first, or take one of the examples."


class Conversation(NamedTuple):
    """What the components of the conversation become; what is left out stays as it is."""

    talk: object = gr.skip()
    chat: object = gr.skip()
    question: object = gr.skip()
    status: object = gr.skip()
    notice: object = gr.skip()
    looked: object = gr.skip()
    words: object = gr.skip()


class Settings(NamedTuple):
    """What was chosen under Settings."""

    model: str
    dtype: str
    temperature: float
    length: int

    @property
    def config(self) -> GenerationConfig:
        return GenerationConfig(temperature=float(self.temperature), max_new_tokens=int(self.length))


class Handlers:
    """The page's events. Files that are made lie in `folder`."""

    def __init__(self, shelf: ModelShelf, desk: Desk, folder: Path):
        self.shelf, self.desk, self.folder = shelf, desk, folder

    # The conversation

    def ask(self, question, pictures, talk, *settings) -> Iterator[Conversation]:
        """Answer a question, piece by piece."""
        try:
            paths, question = _few_paths(pictures), question.strip()
        except VLMError as error:
            yield Conversation(notice=wrong_notice(error))
            return
        if not paths or not question:
            yield Conversation(notice=notice("Write a question first." if paths else NO_PICTURE))
            return
        known = talk if talk.pictures == paths else Talk(paths)
        yield from self._answer(known.asked(question), Settings(*settings))

    def retry(self, talk, *settings) -> Iterator[Conversation]:
        """Answer the last question once more."""
        if talk.turns:
            yield from self._answer(talk.without_last().asked(talk.turns[-1].question), Settings(*settings))

    def _answer(self, asked: Talk, settings: Settings) -> Iterator[Conversation]:
        yield Conversation(
            talk=asked,
            chat=_history(asked),
            question=gr.Textbox(value="", submit_btn=False, stop_btn=True),
            status=quiet("looking at the picture …"),
            notice=hidden(),
            looked=gr.Column(visible=False),
        )
        try:
            model = self._model(settings)
            for talk in self.desk.answers(model, asked, settings.config):
                yield Conversation(talk=talk, chat=_history(talk), status=quiet("writing …"))
        except VLMError as error:
            question, before = asked.turns[-1].question, asked.without_last()
            asking = gr.Textbox(value=question, submit_btn=True, stop_btn=False)
            yield Conversation(before, _history(before), asking, "", wrong_notice(error))
            return
        words = words_of(model.tokenizer, talk.reply.token_ids)[:MAX_WORDS]
        choices = [(word.text, index) for index, word in enumerate(words)]
        yield Conversation(
            talk=talk.ended(),
            chat=_history(talk),
            question=gr.Textbox(submit_btn=True, stop_btn=False),
            status=quiet(_told(talk.reply)),
            looked=gr.Column(visible=bool(words)),
            words=gr.Radio(choices, value=first_number(words)),
        )

    def stopped(self, talk) -> Conversation:
        """Leave what was written so far."""
        asking = gr.Textbox(submit_btn=True, stop_btn=False)
        return Conversation(talk=talk.ended(), question=asking, status=quiet("stopped"))

    def begin_again(self) -> Conversation:
        """Forget the conversation, not the pictures."""
        return Conversation(
            talk=Talk(),
            chat=[],
            question=gr.Textbox(submit_btn=True, stop_btn=False),
            status="",
            looked=gr.Column(visible=False),
            words=gr.Radio([], value=None),
        )

    def look(self, place, layer, talk, model, dtype) -> tuple:
        """Show where the model looked when it wrote a word: pictures, a sentence, a notice."""
        if place is None:
            return [], "", gr.skip()
        try:
            chosen = None if layer == ALL_LAYERS else int(layer) - 1
            found = self.desk.look(self.shelf.get(model, dtype), talk, place, chosen)
        except VLMError as error:
            return [], "", wrong_notice(error)
        several = len(found.pictures) > 1
        shown = [
            (picture, f"picture {index}: {share:.0%} of the attention" if several else None)
            for index, (picture, share) in enumerate(zip(found.pictures, found.shares, strict=True), start=1)
        ]
        where = f"Strongest in the {found.place} of {f'picture {found.strongest + 1}' if several else 'the picture'}"
        return shown, quiet(f"{where}, marked by the ring." if found.is_marked else f"{where}."), hidden()

    def other_pictures(self, talk, question) -> Conversation:
        """Begin again with other pictures; a question that they interrupt goes back into its empty box."""
        begun = self.begin_again()
        if talk.unanswered and not question:
            begun = begun._replace(question=gr.Textbox(value=talk.unanswered, submit_btn=True, stop_btn=False))
        return begun

    def check_pictures(self, pictures, checked) -> tuple:
        """Take out what is no picture: pictures, a notice, the paths that are checked now.

        Gradio tells of what is taken out here as of any change: of checked paths there is nothing to say.
        """
        paths = _paths(pictures)
        if paths == checked:
            return gr.skip(), gr.skip(), gr.skip()
        good, wrong = self.desk.checked(paths)
        return list(good) if wrong else gr.skip(), wrong_notice(wrong) if wrong else hidden(), good

    def prepare(self, pictures, model, dtype) -> gr.HTML:
        """Encode pictures while the question is still being written: a notice."""
        try:
            self.desk.prepare(self.shelf.get(model, dtype), _few_paths(pictures))
        except VLMError as error:
            return wrong_notice(error)
        return gr.skip()

    # The other tabs

    def describe(self, pictures, *settings) -> Iterator[tuple]:
        """Describe each picture, piece by piece: text, status, notice."""
        lines, settings = [], Settings(*settings)
        try:
            paths = _few_paths(pictures)
            if not paths:
                yield "", "", notice(NO_PICTURE)
                return
            for number, path in enumerate(paths, start=1):
                heading = f"{number}. " if len(paths) > 1 else ""
                asked = Talk((path,)).asked(CAPTION_REQUEST)
                for talk in self.desk.answers(self._model(settings), asked, settings.config):
                    yield "\n".join([*lines, heading + talk.reply.text]), quiet("writing …"), hidden()
                lines.append(heading + talk.reply.text)
            yield "\n".join(lines), quiet(_told(talk.reply)), gr.skip()
        except VLMError as error:
            yield "\n".join(lines), "", wrong_notice(error)

    def read_chart(self, pictures, *settings) -> tuple:
        """Turn the first picture into a table and a file: table, download, status, notice."""
        nothing, settings = (gr.Dataframe(visible=False), gr.DownloadButton(visible=False)), Settings(*settings)
        try:
            paths = _few_paths(pictures)
            if not paths:
                return *nothing, "", notice(NO_PICTURE)
            *_, talk = self.desk.answers(self._model(settings), Talk(paths[:1]).asked(TABLE_REQUEST), settings.config)
        except VLMError as error:
            return *nothing, "", wrong_notice(error)
        table = read_table(talk.reply.text)
        if table is None:
            return *nothing, quiet(f"The model wrote no table. It wrote: {talk.reply.text:.500}"), hidden()
        file = Path(tempfile.mkdtemp(dir=self.folder)) / "table.csv"
        file.write_text(table.csv(), encoding="utf-8")
        shown = gr.Dataframe(table.rows, headers=table.header, visible=True)
        return shown, gr.DownloadButton(value=str(file), visible=True), quiet(_told(talk.reply)), hidden()

    def tell_about(self, name, dtype) -> tuple:
        """Tell what a model is, and offer what it can do: line, card, layers, no tables, tables, notice."""
        try:
            model, writes_tables = self.shelf.get(name, dtype), self.shelf.writes_tables(name)
            card = self.shelf.card(name) or "This model has no card."
        except VLMError as error:
            return *[gr.skip()] * 5, wrong_notice(error)
        info, adapter = model.info, model.model.config.adapter
        millions = info.num_parameters / 1e6
        size = f"{millions:.1f} million" if millions < 1000 else f"{millions / 1000:.1f} billion"
        layers = [("average", ALL_LAYERS)]
        layers += (
            [
                (f"{number} of {len(adapter.cross_layers)}", str(number))
                for number in range(1, len(adapter.cross_layers) + 1)
            ]
            if adapter
            else []
        )
        line = f"{name}: {size} parameters, {str(info.dtype).removeprefix('torch.')} on {info.device.type}"
        offered = gr.Markdown(visible=writes_tables is False), gr.Column(visible=writes_tables is not False)
        return quiet(line), card, gr.Dropdown(layers, value=ALL_LAYERS), *offered, gr.skip()

    def _model(self, settings: Settings) -> VLM:
        return self.shelf.get(settings.model, settings.dtype)


def _history(talk: Talk) -> list[dict]:
    """Return what the conversation shows. Escaped: it takes HTML for HTML, with or without Markdown."""
    said = []
    for turn in talk.turns:
        said.append({"role": "user", "content": html.escape(turn.question, quote=False)})
        said.append({"role": "assistant", "content": html.escape(turn.answer or "…", quote=False)})
    return said


def _paths(pictures) -> tuple[str, ...]:
    return tuple(path for path, _ in pictures or [] if path)


def _few_paths(pictures) -> tuple[str, ...]:
    """Return the paths of no more pictures than the page lets through. Raises: VLMError."""
    paths = _paths(pictures)
    check_num_pictures(paths)
    return paths


def _told(reply: Reply) -> str:
    seconds = reply.timings.encode_s + reply.timings.prefill_s + reply.timings.decode_s
    cut = " · cut at the greatest length" if reply.finish_reason == "length" else ""
    return f"confidence {reply.confidence:.0%} · {seconds:.1f} s{cut}"
