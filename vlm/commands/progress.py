"""Bars on a terminal for what a large model takes long for; what is done within a second shows none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.model import VisionLanguageModel

DELAY_S = 1


@contextmanager
def weights_read() -> Iterator[Callable[[int, int], None]]:
    """Give what is to be called with the number of weights read so far and of all."""
    with _bar("weights", unit_scale=True) as bar:

        def reach(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield reach


@contextmanager
def layers_run(model: "VisionLanguageModel") -> Iterator[None]:
    """Show through how many of its layers each picture went, and the prompt; not to be used while a reply is written.

    What looks on at the layers keeps a token from going through all of them in one call.
    """
    if not sys.stderr.isatty():
        yield
        return
    with _bar("", unit="layer") as bar:
        stages = {"prompt": (model.decoder, model.decoder.layers)}
        if model.encoder is not None:
            stages["picture"] = (model.encoder, [*model.encoder.local_layers, *model.encoder.global_layers])
        hooks = []
        for name, (whole, layers) in stages.items():

            def begin(*_, name=name, layers=layers) -> None:
                bar.set_description_str(name, refresh=False)
                bar.reset(len(layers))

            hooks.append(whole.register_forward_pre_hook(begin))
            hooks += [layer.register_forward_hook(lambda *_: bar.update() and None) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _bar(name: str, **options: object):
    from tqdm import tqdm

    return tqdm(desc=name, total=1, delay=DELAY_S, leave=False, disable=None, **options)
