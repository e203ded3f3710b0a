"""The demo on a tiny model that writes what a test wants, in a process of its own: `python -m tests.demo_server`.

Arguments: a folder to work in, a port, and a folder of controls: `delay` holds seconds to wait at each token, `answer`
what is written, and `outside` gets a line for each connection that is attempted to anything but this machine.
"""

import ipaddress
import sys
import time
from pathlib import Path

import app
from tests.conftest import random_model
from vlm import VLM, Tokenizer, preset
from vlm.demo.models import ModelShelf


class OneModel(ModelShelf):
    """A shelf with one model on it, already there."""

    def __init__(self, model: VLM):
        super().__init__([], ["auto"])
        self.model = model

    def writes_tables(self, name: str) -> bool:
        return "|" in (controls / "answer").read_text()

    def get(self, name: str, dtype: str) -> VLM:
        return self.model


def scripted(model: VLM, controls: Path) -> None:
    """Make `model` write what is in `answer`, whatever it is asked."""
    decoder = model.model.decoder
    given, steps, place = decoder.logits, [], [0]

    def begin(_, inputs) -> None:
        if inputs[0].shape[1] > 1:
            place[0] = 0
            steps[:] = [*(controls / "answer").read_bytes(), model.tokenizer.eot_id]

    def logits(hidden):
        began = time.monotonic()
        while time.monotonic() - began < float((controls / "delay").read_text()):
            time.sleep(0.01)
        out = given(hidden).clone()
        out[:, steps[min(place[0], len(steps) - 1)]] += 1e6
        place[0] += 1
        return out

    decoder.register_forward_pre_hook(begin)
    decoder.logits = logits


def tell_of_connections(controls: Path) -> None:
    def hear(event: str, arguments: tuple) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
            host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
            host = host[0] if isinstance(host, tuple) else host
            if not is_local(host):
                with (controls / "outside").open("a") as file:
                    file.write(f"{event} {host}\n")

    sys.addaudithook(hear)


def is_local(host: object) -> bool:
    try:
        return host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return not isinstance(host, str) or host.startswith(("/", "\0"))


if __name__ == "__main__":
    work, port, controls = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    tell_of_connections(controls)
    vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    scripted(vlm, controls)
    page = app.make_page(OneModel(vlm), work)
    app.launch(page.blocks, page.handlers.folder, host="127.0.0.1", port=port)
