"""Bars on a terminal for what a large model takes long for; what is done within a second shows none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.model import VisionLanguageModel

DELAY_S = 1


@contextmanager
def weights_read() -> Iterator[Callable[[int, int], None]]:
    """Give what is to be called with the number of weights read so far and of all."""
    with _bar("weights", total=1, unit_scale=True) as bar:

        def reach(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield reach


@contextmanager
def layers_run(model: "VisionLanguageModel") -> Iterator[None]:
    """Show through how many of its layers each picture went, and the prompt, up to the first token that is written.

    What looks on at the layers keeps a token from going through all of them in one call.
    """
    if not sys.stderr.isatty():
        yield
        return
    stages = {"prompt": (model.decoder, model.decoder.layers)}
    if model.encoder is not None:
        stages["picture"] = (model.encoder, [*model.encoder.local_layers, *model.encoder.global_layers])
    # Never shown: each stage has one of its own.
    bar = _bar("", total=0)

    def step(*_) -> None:
        bar.update()

    with ExitStack() as hooks:
        for name, (whole, layers) in stages.items():

            def begin(_, inputs, name=name, layers=layers) -> None:
                nonlocal bar
                bar.close()
                if name == "prompt" and inputs[0].shape[1] == 1:
                    hooks.close()
                else:
                    bar = _bar(name, total=len(layers), unit="layer")

            hooks.enter_context(whole.register_forward_pre_hook(begin))
            for layer in layers:
                hooks.enter_context(layer.register_forward_hook(step))
        try:
            yield
        finally:
            bar.close()


def _bar(name: str, **options: object):
    from tqdm import tqdm

    return tqdm(desc=name, delay=DELAY_S, leave=False, disable=None, **options)
