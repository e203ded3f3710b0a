"""How the demo ends when it is asked to while a model computes."""

import signal
import subprocess
import sys

import pytest

COMPUTING = """
import os, sys, threading, time
import torch
from vlm.demo.ending import ended_by_signals

def compute():
    number = torch.randn(64, 64)
    while True:
        number = (number @ number).tanh()

with ended_by_signals():
    for _ in range(4):
        threading.Thread(target=compute, daemon=True).start()
    try:
        print("computing", flush=True)
        # In steps, as the page's server waits: a signal may come to another thread.
        for _ in range(600):
            time.sleep(0.1)
    finally:
        print("tidied up")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_tidies_up_and_ends_with_status_0_while_a_model_computes(number):
    """Left to Python, the threads abort the process more often than not."""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", COMPUTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"computing\n"
        process.send_signal(number)
        said, complaint = process.communicate(timeout=60)
        assert (process.returncode, said, complaint) == (0, b"tidied up\n", b"")
