"""B3 without a model: signals become an interrupt, and the exit status says so, also where the terminal is gone."""

import functools
import json
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from eval.run.interruption import Interrupted, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
WAITS = """
import time
import click
from eval.run.interruption import interruptible
from vlm.cli import ExitStatusGroup

@click.group(cls=ExitStatusGroup)
def main():
    pass

@main.command()
def wait():
    with interruptible():
        click.echo("waiting")
        time.sleep(60)

main(["wait"])
"""

WORKS = """
import time
import click
from vlm.cli import ExitStatusGroup
from vlm.commands.options import json_option

@click.group(cls=ExitStatusGroup)
def main():
    pass

@main.command()
@json_option
def work(as_json):
    click.echo("working")
    time.sleep(60)

main(["work", "--json"])
"""


def signalled(number: signal.Signals) -> None:
    """Get that signal, and all of them while leaving."""
    with interruptible():
        try:
            signal.raise_signal(number)
        finally:
            for each in SIGNALS:
                signal.raise_signal(each)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_those_after_it_do_not(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=number.name):
        signalled(number)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_changed():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with interruptible():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_with_json_ends_the_output_in_one_object(number):
    process = subprocess.Popen([sys.executable, "-c", WORKS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(told)["error"]["code"] == "interrupted"


def test_a_closed_terminal_leaves_with_130():
    """What click and we would say then cannot be written."""
    user, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", WAITS], preexec_fn=functools.partial(os.login_tty, terminal))
    os.close(terminal)
    shown = b""
    while b"waiting" not in shown:
        shown += os.read(user, 1000)
    os.close(user)
    assert process.wait(timeout=60) == 130
