"""Bars of the command line: what they count, and that they leave nothing behind."""

import functools
import io
from contextlib import redirect_stderr

import pytest
import tqdm

from tests.conversations import FOUR_TILES, SMALL, user
from vlm import GenerationConfig
from vlm.commands import progress

SHORT = GenerationConfig(max_new_tokens=3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Every step is shown, however soon it comes after the one before."""
    monkeypatch.setattr(progress, "DELAY_S", 0)
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm.tqdm, mininterval=0, miniters=1))


def test_pictures_and_the_prompt_are_counted_layer_by_layer(tiny, at_once):
    tiny.images.forget()
    layers = [*tiny.model.encoder.local_layers, *tiny.model.encoder.global_layers]
    with redirect_stderr(Terminal()) as terminal, progress.layers_run(tiny.model):
        pieces = tiny.stream(user(FOUR_TILES, SMALL, "what?"), config=SHORT)
        next(pieces, None)
    shown = terminal.getvalue()
    for count in range(1, len(layers) + 1):
        assert shown.count(f"picture: {100 * count // len(layers):3d}%") >= 2, "each of two pictures"
        assert f"{count}/{len(layers)}" in shown
    assert f"{len(tiny.model.decoder.layers)}/{len(tiny.model.decoder.layers)}" in shown.split("prompt: ")[-1]
    for part in tiny.model.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_what_is_soon_done_shows_nothing(tiny):
    tiny.images.forget()
    with redirect_stderr(Terminal()) as terminal, progress.layers_run(tiny.model):
        assert tiny.chat(user(FOUR_TILES, "what?"), config=SHORT).token_ids
        # From the first token on nothing looks on.
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in tiny.model.modules())
    assert terminal.getvalue() == ""


def test_an_error_leaves_no_hooks(tiny):
    with redirect_stderr(Terminal()), pytest.raises(KeyboardInterrupt), progress.layers_run(tiny.model):
        raise KeyboardInterrupt
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in tiny.model.modules())


def test_in_a_pipe_nothing_looks_on(tiny, capfd):
    with progress.layers_run(tiny.model), progress.weights_read() as reach:
        reach(1, 2)
        assert not any(part._forward_hooks for part in tiny.model.modules())
    assert capfd.readouterr() == ("", "")


def test_weights_show_how_many_are_left(at_once):
    with redirect_stderr(Terminal()) as terminal, progress.weights_read() as reach:
        reach(5_000_000, 20_000_000)
        reach(20_000_000, 20_000_000)
    assert "25%" in terminal.getvalue()
    assert "20.0M/20.0M" in terminal.getvalue()
