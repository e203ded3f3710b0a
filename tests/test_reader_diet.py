"""What the reader is fed: nothing that cannot be drawn."""

import logging

import pytest

from vlm.config import preset
from vlm.training.reader import data as reader_data
from vlm.training.reader.data import ReaderData
from vlm.training.reader.diet import Diet
from vlm.training.reader.vocabulary import reader_tokenizer

VISION = preset("default").vision
DIET = Diet(num_images=2, share_pages=0.0, num_questions=2)


def _data() -> ReaderData:
    return ReaderData(VISION, reader_tokenizer(), DIET, num_batches=9, seed=3)


def test_a_picture_that_cannot_be_drawn_is_left_out_and_told(monkeypatch, caplog):
    draw, calls = reader_data.draw_chart, []

    def failing_at_first(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise IndexError("more labels than colours")
        return draw(*arguments, **options)

    monkeypatch.setattr(reader_data, "draw_chart", failing_at_first)
    with caplog.at_level(logging.WARNING):
        batch = _data()[0]
    assert len(batch.pixels) == DIET.num_images == len(calls) - 1
    assert "left out" in caplog.text
    assert "more labels than colours" in caplog.text


def test_where_nothing_can_be_drawn_a_run_ends(monkeypatch):
    def failing(*_, **__):
        raise IndexError

    monkeypatch.setattr(reader_data, "draw_chart", failing)
    with pytest.raises(RuntimeError, match="5 pictures in a row"):
        _data()[0]
