"""The demo: a page in the browser on the shipped model or on any other. `python app.py --help` tells how to start it.

The page is laid out and wired here; what happens when it is used, and how it is served, lies in `vlm.demo`.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import click
import gradio as gr

from vlm.demo.desk import Desk
from vlm.demo.ending import ended_by_signals
from vlm.demo.handlers import ALL_LAYERS, Conversation, Handlers
from vlm.demo.launch import launch
from vlm.demo.models import ModelShelf
from vlm.demo.talk import Talk
from vlm.demo.theme import HEADER, NO_TABLES

EXAMPLES = Path(__file__).parent / "examples"
NUM_EXAMPLES = 8
MAX_QUESTION_CHARS = 4000

QUEUED = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
"""One call of a model at a time; the others wait."""
CHECKED = {"concurrency_id": "pictures", "concurrency_limit": 1, "show_progress": "hidden", "api_visibility": "private"}
CHECKED |= {"trigger_mode": "always_last"}
"""Pictures are read one after the other, but wait for no model; those that come meanwhile are read after that."""
AT_ONCE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Page:
    """The page, with a part of it in each attribute."""

    def __init__(self, shelf: ModelShelf, handlers: Handlers, examples: list[tuple[str, str]]):
        self.shelf, self.handlers, self.known = shelf, handlers, examples
        with gr.Blocks(title="Sightline", analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            self.talk, self.checked_paths = gr.State(Talk()), gr.State(())
            gr.HTML(HEADER, padding=False)
            self.notice = gr.HTML(visible=False, elem_id="notice", padding=False)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    self._lay_pictures()
                with gr.Column(scale=5, min_width=320), gr.Tabs():
                    with gr.Tab("Ask"):
                        self._lay_ask()
                        self._lay_looked()
                    with gr.Tab("Caption"):
                        self._lay_caption()
                    with gr.Tab("Chart to table"):
                        self._lay_table()
                    with gr.Tab("Settings"):
                        self._lay_settings()
            self._wire()

    def _lay_pictures(self) -> None:
        self.pictures = gr.Gallery(
            label="Your pictures",
            show_label=False,
            # Paths alone: Gradio opens nothing, the gate does.
            type="filepath",
            sources=["upload", "clipboard", "webcam"],
            file_types=["image"],
            columns=2,
            object_fit="contain",
            buttons=["fullscreen"],
            interactive=True,
            elem_id="pictures",
        )
        gr.HTML('<p class="quiet">Or take an example</p>', padding=False)
        self.examples = gr.Gallery(
            [path for path, _ in self.known],
            label="Example charts",
            show_label=False,
            columns=4,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )

    def _lay_ask(self) -> None:
        self.chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            height=None,
            min_height=160,
            max_height=420,
            # What a model writes is text, whatever it looks like: no Markdown, and the handlers escape HTML.
            render_markdown=False,
            allow_tags=False,
            latex_delimiters=[],
            buttons=["copy"],
            placeholder="Add a picture, then ask about it.",
            elem_id="chat",
        )
        self.question = gr.Textbox(
            label="Question",
            show_label=False,
            placeholder="What would you like to know?",
            max_length=MAX_QUESTION_CHARS,
            lines=1,
            max_lines=4,
            submit_btn=True,
            elem_id="question",
        )
        self.status = gr.HTML(elem_id="status", padding=False)

    def _lay_looked(self) -> None:
        with gr.Column(visible=False, elem_id="looked") as self.looked:
            with gr.Row():
                self.words = gr.Radio(
                    [],
                    label="Where it looked",
                    info="Choose a word of the answer.",
                    min_width=130,
                    scale=3,
                    elem_id="words",
                )
                self.layer = gr.Dropdown(
                    [ALL_LAYERS], value=ALL_LAYERS, label="Layer", min_width=130, scale=1, elem_id="layer"
                )
            self.place = gr.HTML(elem_id="place", padding=False)
            self.heat = gr.Gallery(
                label="Where it looked",
                show_label=False,
                columns=1,
                height="auto",
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="heat",
            )

    def _lay_caption(self) -> None:
        self.describe = gr.Button("Describe the pictures", variant="primary")
        self.caption = gr.Textbox(label="Description", lines=6, buttons=["copy"], interactive=False, elem_id="caption")
        self.caption_status = gr.HTML(padding=False)

    def _lay_table(self) -> None:
        self.no_tables = gr.Markdown(NO_TABLES, elem_id="no-tables")
        with gr.Column(visible=False) as self.tables:
            self.read = gr.Button("Read the chart as a table", variant="primary")
            self.table = gr.Dataframe(label="Table", datatype="str", interactive=False, visible=False, elem_id="table")
            self.csv = gr.DownloadButton("Download as CSV", visible=False)
            self.table_status = gr.HTML(padding=False)

    def _lay_settings(self) -> None:
        names, dtypes = self.shelf.names, self.shelf.dtypes
        self.about = gr.HTML(padding=False)
        with gr.Row():
            self.model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            self.dtype = gr.Dropdown(dtypes, value=dtypes[0], label="Precision", visible=len(dtypes) > 1)
        self.temperature = gr.Slider(
            0, 2, value=0, step=0.1, label="Temperature", info="0 always takes the likeliest word; more brings variety."
        )
        self.length = gr.Slider(8, 512, value=128, step=8, label="Length", info="Most tokens of an answer.")
        with gr.Accordion("What this model is good at, and what not: its card"):
            self.card = gr.Markdown(elem_id="card")

    # Wired

    def _wire(self) -> None:
        on, chosen = self.handlers, [self.model, self.dtype]
        settings = [*chosen, self.temperature, self.length]
        talking = Conversation(self.talk, self.chat, self.question, self.status, self.notice, self.looked, self.words)
        talking = list(talking)
        streamed = {"show_progress": "hidden"} | QUEUED
        asked = self.question.submit(on.ask, [self.question, self.pictures, self.talk, *settings], talking, **streamed)
        again = self.chat.retry(on.retry, [self.talk, *settings], talking, **streamed)
        # Alone, `cancels` acts at once; beside a function it waits for that, and takes what is asked meanwhile along.
        chosen_anew = (self.model.input, self.dtype.input)
        for event in (self.question.stop, self.chat.clear, self.pictures.change, *chosen_anew):
            event(None, cancels=[asked, again])
        self.question.stop(on.stopped, self.talk, talking, **AT_ONCE)
        self.chat.clear(on.begin_again, None, talking, **AT_ONCE)

        look = {"fn": on.look, "inputs": [self.words, self.layer, self.talk, *chosen]}
        look |= {"outputs": [self.heat, self.place, self.notice], "show_progress_on": self.heat, **QUEUED}
        for event in (asked.success, again.success, self.words.input, self.layer.input):
            event(**look)

        changed = self.pictures.change(on.other_pictures, [self.talk, self.question], talking, **AT_ONCE)
        found = [self.pictures, self.notice, self.checked_paths]
        checked = changed.then(on.check_pictures, [self.pictures, self.checked_paths], found, **CHECKED)
        checked.success(on.prepare, [self.pictures, *chosen], self.notice, trigger_mode="always_last", **streamed)
        self.examples.select(self.take_example, None, [self.question, self.pictures], **AT_ONCE)

        self.describe.click(
            on.describe, [self.pictures, *settings], [self.caption, self.caption_status, self.notice], **QUEUED
        )
        self.read.click(
            on.read_chart, [self.pictures, *settings], [self.table, self.csv, self.table_status, self.notice], **QUEUED
        )
        about = [self.about, self.card, self.layer, self.no_tables, self.tables, self.notice]
        self.blocks.load(on.tell_about, chosen, about, **streamed)
        gr.on(chosen_anew, on.begin_again, None, talking, **AT_ONCE).then(on.tell_about, chosen, about, **streamed)

    def take_example(self, event: gr.SelectData) -> tuple:
        """Put an example in the place of the pictures, with a question about it."""
        path, question = self.known[event.index]
        return question, [path]


def make_page(shelf: ModelShelf, work: Path) -> Page:
    """Return the page; from here on this process works in an empty folder, and keeps what it is sent in `work`."""
    for name in ("cache", "parts", "empty"):
        (work / name).mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(work / "cache")
    tempfile.tempdir = str(work / "parts")
    # Gradio would serve a file of the working directory if a callback ever returned its path.
    os.chdir(work / "empty")
    return Page(shelf, Handlers(shelf, Desk(), work / "cache"), _examples(work / "cache"))


def _examples(folder: Path) -> list[tuple[str, str]]:
    """Return (path, question) of the example charts, copied to `folder`: nothing else is served."""
    charts = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))[:NUM_EXAMPLES]
    return [(shutil.copy(EXAMPLES / chart["image"], folder), chart["questions"][1]["question"]) for chart in charts]


@click.command()
@click.option("--model", "sources", multiple=True, help="Folder or Hugging Face Hub name; give several to choose from.")
@click.option(
    "--dtype", "dtypes", multiple=True, help="auto, float32, bfloat16 or float16; give several to choose from."
)
@click.option("--device", default="auto", show_default=True, help="auto takes an accelerator when there is one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=7860, show_default=True)
def main(sources: tuple[str, ...], dtypes: tuple[str, ...], device: str, host: str, port: int):
    """Open the demo page on the shipped model, or on --model."""
    # The shipped model is small enough to be held in several precisions; of others only what was asked for is loaded.
    dtypes = dtypes or (("auto",) if sources else ("auto", "float32"))
    # Found from here, before the working directory changes.
    names = [str(Path(name).resolve()) if Path(name).exists() else name for name in sources]
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="sightline-", ignore_cleanup_errors=True) as work:
        page = make_page(ModelShelf(names, list(dtypes), device), Path(work))
        click.echo(f"Sightline is at http://{host}:{port}  (Ctrl-C ends it)")
        launch(page.blocks, page.handlers.folder, host=host, port=port)


if __name__ == "__main__":
    main()
