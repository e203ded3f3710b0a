"""What the page asks of a model: answers as they grow, and where it looked."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vision_encoder.decode_worker import DecodeWorker
from vlm.demo.heat_map import MAP_SIDE, Place, overlay, preview, strongest_place
from vlm.demo.talk import Talk
from vlm.demo.words import words_of
from vlm.errors import VLMError, public
from vlm.generation.sampling import GenerationConfig
from vlm.pipeline import VLM

MAX_PICTURES = 8


def check_num_pictures(paths: tuple[str, ...]) -> None:
    """Refuse more pictures than are asked about together. Raises: VLMError."""
    if len(paths) > MAX_PICTURES:
        raise VLMError("invalid_request", f"{len(paths)} pictures are too many; give at most {MAX_PICTURES}")


class Look(NamedTuple):
    """Where the model looked when it wrote one word."""

    pictures: list[Image.Image]
    """Each picture of the conversation with the heat on it."""
    shares: list[float]
    """How much of the attention each one got."""
    strongest: int
    """The picture with the strongest place."""
    place: Place
    is_marked: bool
    """Whether a ring is drawn there: around what a number was read from."""


class Desk:
    """Reads pictures in a process of its own, which no picture can take along, and asks models about them."""

    def __init__(self):
        self._worker = DecodeWorker()

    @public
    def read(self, path: str) -> Image.Image:
        """Return the picture at `path`, upright. Raises: VLMError."""
        if not Path(path).is_file():
            raise VLMError("invalid_request", "this picture is not kept any longer; add it again")
        return self._worker.read_image(path)

    def close(self) -> None:
        self._worker.close()

    def checked(self, paths: tuple[str, ...]) -> tuple[tuple[str, ...], VLMError | None]:
        """Return the `paths` that hold a picture, and what is wrong with another."""
        good, wrong = [], None
        for path in paths[:MAX_PICTURES]:
            try:
                self.read(path)
                good.append(path)
            except VLMError as error:
                wrong = error
        try:
            check_num_pictures(paths)
        except VLMError as error:
            wrong = error
        return tuple(good), wrong

    def prepare(self, model: VLM, paths: tuple[str, ...]) -> None:
        """Encode pictures, so that the first question about them need not wait for it. Raises: VLMError."""
        for path in paths:
            model.encode_image(self.read(path))

    def answers(self, model: VLM, talk: Talk, config: GenerationConfig) -> Iterator[Talk]:
        """Yield `talk` again and again, as the answer to its last question grows.

        Raises: VLMError before the first, if the pictures or the conversation cannot be read.
        """
        pieces = model.stream(talk.messages(self.read), config=config)
        try:
            for _ in pieces:
                yield talk.answered(pieces.reply)
            yield talk.answered(pieces.reply)
        finally:
            pieces.close()

    @public
    def look(self, model: VLM, talk: Talk, place: int, layer: int | None = None) -> Look:
        """Return where the model looked when it wrote the word at `place` of the last answer.

        Raises: VLMError.
        """
        words = words_of(model.tokenizer, talk.reply.token_ids) if talk.reply else []
        if not 0 <= place < len(words):
            raise VLMError("invalid_request", "this word is not there any more; choose one of the last answer")
        word, messages = words[place], talk.messages(self.read)
        tokens = model.explain(messages, talk.reply, layers=layer, tokens=list(word.tokens), max_side=MAP_SIDE)
        by_picture = list(zip(*tokens, strict=True)) if len(talk.pictures) > 1 else [tokens]
        maps = [(sum(maps) / len(maps)).numpy() for maps in by_picture]
        # Side by side they share a scale: that of densities, for a small map holds its weight on fewer pixels.
        densities = [weights * weights.size for weights in maps]
        peaks = [float(weights.max()) for weights in densities]
        strongest = peaks.index(max(peaks))
        mark = strongest_place(maps[strongest])
        pictures = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        shown = [
            overlay(
                preview(picture), weights, peaks[strongest], mark if word.is_number and index == strongest else None
            )
            for index, (picture, weights) in enumerate(zip(pictures, densities, strict=True))
        ]
        return Look(shown, [float(weights.sum()) for weights in maps], strongest, mark, word.is_number)
