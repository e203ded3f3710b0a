"""The command line: its help, what it refuses, and with which status it leaves."""

import io
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.command_line import draw_two_and_none, last_json, process, run, save_endless_model
from tests.conftest import random_model
from vlm import VLM, Tokenizer, VLMError
from vlm.checkpoint import hf
from vlm.cli import main
from vlm.commands.terminal import printable
from vlm.config import PRESETS, preset

COMMANDS = sorted(main.commands)
LONG = "y" * 300
"""More than a file may be called."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_endless_model(tmp_path_factory.mktemp("cli") / "tiny-model")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    config = preset("tiny")
    decoder = replace(config.decoder, num_extra_embeddings=0)
    model = random_model(replace(config, decoder=decoder, adapter=None, vision=None))
    path = tmp_path_factory.mktemp("cli") / "text-model"
    VLM(model, Tokenizer.bytes_only()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    return draw_two_and_none(tmp_path_factory.mktemp("pictures"))


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_how_the_command_is_used(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"  vlm {command}" in result.stdout
    assert "--json" in result.stdout


def test_help_imports_nothing_heavy():
    program = f"""
import sys
from click.testing import CliRunner
from vlm.cli import main
for arguments in [[], *([name] for name in {COMMANDS})]:
    assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
print([name for name in ("torch", "PIL", "numpy", "safetensors", "tiktoken", "tqdm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_torch_makes_is_searched_for_no_garbage_and_what_comes_later_is():
    program = """
import gc
from vlm.commands.options import import_torch
import_torch()
num_kept = gc.get_freeze_count()
import_torch()
print(num_kept > 100_000, gc.get_freeze_count() <= num_kept, gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_the_presets_of_the_help_are_all_there_are():
    text = " ".join(run("info", "--help").stdout.replace("-\n", "-").split()).replace("- ", "-")
    assert ", ".join(PRESETS) in text


def test_the_module_is_the_command():
    done = process("--version", stdout=subprocess.PIPE, text=True)
    assert done.communicate(timeout=60)[0].startswith("vlm, version ")
    assert done.returncode == 0


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask"], "one image or more, then the question"),
        (["ask", "{picture}"], "one image or more, then the question"),
        (["ask", "{picture}", "{picture}"], "is a file; the question comes last"),
        (["ask", "{picture}", "-"], "is a file; the question comes last"),
        (["ask", "{picture}", " "], "the question is empty"),
        (["ask", "-", "-", "Why?"], "can be given once"),
        (["caption"], "Missing argument"),
        (["caption", "-", "-"], "can be given once"),
        (["chat", "-"], "reads what you say from standard input"),
        (["ask", "{picture}", "Why?", "--temperature", "-1"], "--temperature"),
        (["ask", "{picture}", "Why?", "--temperature", "nan"], "temperature is nan"),
        (["ask", "{picture}", "Why?", "--top-p", "1.5"], "--top-p"),
        (["ask", "{picture}", "Why?", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", "{picture}", "Why?", "--stop", ""], "stop holds something that is no text"),
        (["ask", "{picture}", "Why?", "--dtype", "float8"], "float8"),
        (["ask", "{picture}", "Why?", "--reference", "openai"], "openai"),
        (["convert", "{folder}", "{folder}", "--format", "meta"], "the same folder"),
        (["convert", "{folder}", "{picture}", "--format", "meta"], "is a file"),
        (["convert", "{folder}", "", "--format", "hf"], "'DST': it is empty"),
        (["convert", "{folder}", "elsewhere"], "--format"),
        (["verify"], "Missing argument"),
        (["describe"], "No such command"),
    ],
)
def test_wrong_usage_leaves_with_2(folder, pictures, arguments, message):
    filled = [argument.format(picture=pictures[0], folder=folder) for argument in arguments]
    result = run(*filled)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ask", "missing.png", "Why?", "--model", "{folder}"], "missing.png: found no file"),
        (["ask", "{broken}", "Why?", "--model", "{folder}"], "[image_"),
        (["ask", "https://example.com/a.png", "Why?", "--model", "{folder}"], "[invalid_request]"),
        (["ask", "{picture}", "Why?", "--model", "no-such-folder"], "[checkpoint_invalid]"),
        (["ask", "{picture}", "Why?", "--model", "{folder}", "--device", "abacus"], "[device_unavailable]"),
        (["ask", "{picture}", "Why?", "--model", "{folder}", "--max-new-tokens", "9999"], "[context_length_exceeded]"),
        (["ask", "{picture}", "Why?", "--model", "{text_folder}"], "[invalid_request]"),
        (["chat", "{picture}", "--model", "{text_folder}"], "[invalid_request]"),
        (["ask", "{picture}", "Why?", "--model", LONG], "[checkpoint_invalid]"),
        (["info", "12b"], "no preset is named '12b'"),
        (["info", LONG], "[checkpoint_invalid]"),
        (["convert", "{folder}", LONG, "--format", "hf"], "cannot be looked at"),
        (["convert", "no-such-folder", "elsewhere", "--format", "hf"], "[checkpoint_invalid]"),
        (["verify", "no-such-folder"], "[checkpoint_invalid]"),
    ],
)
def test_failure_leaves_with_1_and_says_why(folder, text_folder, pictures, arguments, code):
    names = {"folder": folder, "text_folder": text_folder, "picture": pictures[0], "broken": pictures[2]}
    result = run(*(argument.format(**names) for argument in arguments), "--json")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert code in line
    error = last_json(result)["error"]
    assert line == f"error: {error['message']} [{error['code']}]"
    assert "/vlm/" not in line


def test_every_tensor_that_a_checkpoint_lacks_is_listed(folder, pictures, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    save_file({"odd": torch.zeros(1)}, tmp_path / "broken" / "model.safetensors")
    result = run("ask", pictures[0], "Why?", "--model", tmp_path / "broken", "--json")
    assert result.exit_code == 1
    assert all(key.theirs in result.stderr for key in hf.keys(preset("tiny")))
    assert len(last_json(result)["error"]["message"]) <= 300


def test_memory_that_ran_out_is_a_failure_without_a_traceback(monkeypatch, folder, pictures):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory at 0x7f")

    monkeypatch.setattr("vlm.pipeline.VLM.stream", full)
    result = run("ask", pictures[0], "Why?", "--model", folder)
    assert result.exit_code == 1
    assert "memory ran out" in result.stderr
    assert "0x7f" not in result.stderr


def test_other_errors_are_not_dressed_up(monkeypatch, folder, pictures):
    def fault(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("vlm.pipeline.VLM.stream", fault)
    assert isinstance(run("ask", pictures[0], "Why?", "--model", folder).exception, RuntimeError)


# Ends


def test_an_interrupt_leaves_with_130():
    asking = process("ask", "-", "Why?", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    asking.stdin.write(b"\0" * 200_000)  # more than a pipe holds: it returns when the command reads
    asking.send_signal(signal.SIGINT)
    errors = asking.communicate(timeout=60)[1].decode()
    assert asking.returncode == 130
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_fault():
    writing = process("info", "--help", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writing.stdout.close()
    errors = writing.stderr.read().decode()
    assert writing.wait(timeout=60) == 1
    assert errors == ""


@pytest.mark.parametrize(("arguments", "stream", "status"), [(["--help"], "stdout", 1), (["what"], "stderr", 2)])
def test_what_cannot_be_written_ends_without_a_traceback(arguments, stream, status):
    with open("/dev/full", "w") as full:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        writing = process(*arguments, **pipes)
        errors = writing.communicate(timeout=60)[1]
    assert writing.returncode == status
    if stream == "stdout":
        (line,) = errors.decode().splitlines()
        assert line.startswith("error: the output cannot be written (No space left")


@pytest.mark.parametrize(("text", "shown"), [
    ("plain\n\ttext é 文", "plain\n\ttext é 文"),
    ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
    ("a\rb\x00\x7f\x9b2J", "a\\x0db\\x00\\x7f\\x9b2J"),
])  # fmt: skip
def test_control_characters_reach_no_terminal(text, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert printable(text, Terminal()) == shown
    assert printable(text, io.StringIO()) == text


def test_a_name_with_control_characters_reaches_no_terminal_in_an_error():
    error = VLMError("image_corrupt", "a\x1b[2Jb")
    assert "\x1b" not in printable(error.message, type("T", (), {"isatty": lambda self: True})())
