"""The command line: what it prints, what it refuses, and with which status it leaves."""

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import random_model
from vlm import VLM, GenerationConfig, Tokenizer, VLMError
from vlm.checkpoint import hf
from vlm.cli import main
from vlm.commands.terminal import printable
from vlm.config import PRESETS, preset

COMMANDS = sorted(main.commands)
SHORT = ("--max-new-tokens", "6")
LONG = "y" * 300
"""More than a file may be called."""
SHORT_CONFIG = GenerationConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint that never ends a reply by itself, and whose tokens are all text."""
    config = preset("tiny")
    config = replace(config, decoder=replace(config.decoder, max_context=2048))
    model = random_model(config)
    with torch.no_grad():
        model.decoder.head.weight[128:] = 0
    path = tmp_path_factory.mktemp("cli") / "tiny-model"
    VLM(model, Tokenizer.bytes_only()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder) -> VLM:
    return VLM.from_pretrained(folder)


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
    """Two pictures, and a file that is none."""
    directory = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate([(40, 30), (60, 20)]):
        Image.linear_gradient("L").resize(size).rotate(90 * index, expand=True).save(directory / f"{index}.png")
    (directory / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return [str(directory / name) for name in ("0.png", "1.png", "broken.png")]


def run(*arguments: object, standard_input: bytes | str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=standard_input)


def last_json(result: Result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


def process(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "vlm", *arguments], **options)


def asked(names: list[str], text: str) -> list[dict]:
    images = [{"type": "image", "image": name} for name in names]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


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


# ask and caption


def test_ask_prints_the_reply_of_the_model(folder, model, pictures):
    result = run("ask", *pictures[:2], "What changed?", "--model", folder, *SHORT)
    assert result.exit_code == 0
    assert result.stdout == model.chat(asked(pictures[:2], "What changed?"), config=SHORT_CONFIG).text + "\n"


def test_images_stand_in_the_prompt_in_the_order_given(folder, model, pictures):
    result = run("ask", *pictures[:2], "What changed?", "--model", folder, "--json", *SHORT)
    in_order, turned = (
        model.chat(asked(names, "What changed?"), config=SHORT_CONFIG).confidence
        for names in (pictures[:2], pictures[1::-1])
    )
    assert last_json(result)["replies"][0]["confidence"] == in_order != turned


def test_an_error_in_the_middle_of_a_reply_has_a_line_of_its_own(monkeypatch, folder, pictures):
    def breaks_off(self, *_, **__):
        yield "Bak"
        raise VLMError("checkpoint_invalid", "the model gave logits that are not finite")

    monkeypatch.setattr("vlm.pipeline.VLM.stream", breaks_off)
    result = run("ask", pictures[0], "Why?", "--model", folder, "--json")
    assert result.exit_code == 1
    assert result.stdout.startswith("Bak\n")
    assert last_json(result)["error"]["code"] == "checkpoint_invalid"


def test_ask_ends_with_one_line_of_json(folder, model, pictures):
    result = run("ask", pictures[0], "Why?", "--model", folder, "--json", *SHORT)
    expected = model.answer(pictures[0], "Why?", config=SHORT_CONFIG)
    (reply,) = last_json(result)["replies"]
    assert set(reply) == {"images", "text", "finish_reason", "confidence", "timings"}
    assert (reply["images"], reply["text"], reply["finish_reason"]) == ([pictures[0]], expected.text, "length")
    assert reply["confidence"] == pytest.approx(expected.confidence)
    assert set(reply["timings"]) == {"encode_s", "prefill_s", "decode_s", "tokens_per_s"}
    assert result.stdout.startswith(expected.text + "\n")


def test_a_dash_reads_the_image_from_standard_input(folder, pictures):
    by_path = run("ask", pictures[0], "Why?", "--model", folder, *SHORT)
    piped = run("ask", "-", "Why?", "--model", folder, *SHORT, standard_input=Path(pictures[0]).read_bytes())
    assert piped.stdout == by_path.stdout


def test_generation_options_reach_the_model(folder, model, pictures):
    drawn = ("--temperature", "1.5", "--top-p", "0.9", "--seed", "3", "--max-new-tokens", "20")
    config = GenerationConfig(temperature=1.5, top_p=0.9, seed=3, max_new_tokens=20)
    expected = model.answer(pictures[0], "Why?", config=config).text
    assert run("ask", pictures[0], "Why?", "--model", folder, *drawn).stdout == expected + "\n"
    stop = expected[5:7]
    stopped = run("ask", pictures[0], "Why?", "--model", folder, *drawn, "--stop", "never", "--stop", stop)
    assert stopped.stdout == expected[: expected.index(stop)] + "\n"


def test_model_options_reach_the_model(folder, pictures):
    reply = run("ask", pictures[0], "Why?", "--model", folder, "--json", *SHORT)
    options = ("--reference", "transformers", "--dtype", "bfloat16", "--device", "cpu", "--kv-cache-dtype", "int8")
    other = run("ask", pictures[0], "Why?", "--model", folder, "--json", *SHORT, *options)
    expected = VLM.from_pretrained(folder, dtype="bfloat16", reference="transformers", kv_cache_dtype="int8")
    assert other.exit_code == 0
    assert last_json(other)["replies"][0]["confidence"] != last_json(reply)["replies"][0]["confidence"]
    confidence = expected.answer(pictures[0], "Why?", config=SHORT_CONFIG).confidence
    assert last_json(other)["replies"][0]["confidence"] == pytest.approx(confidence)


def test_caption_gives_one_caption_an_image(folder, model, pictures):
    result = run("caption", *pictures[:2], "--model", folder, "--json", *SHORT)
    expected = [model.caption(name, config=SHORT_CONFIG).text for name in pictures[:2]]
    replies = last_json(result)["replies"]
    assert [(reply["images"], reply["text"]) for reply in replies] == [
        ([name], text) for name, text in zip(pictures, expected, strict=False)
    ]
    human = "".join(f"{name}: {text}\n" for name, text in zip(pictures, expected, strict=False))
    assert result.stdout.startswith(human)
    assert "%" not in result.stderr  # no progress bar in a pipe


def test_a_bad_image_leaves_the_other_captions_alone(folder, model, pictures):
    result = run("caption", pictures[2], pictures[0], "--model", folder, "--json", *SHORT)
    assert result.exit_code == 1
    assert f"error: {pictures[2]}"[:60] in result.stderr
    broken, good = last_json(result)["replies"]
    assert broken["text"] is None
    assert broken["error"]["code"].startswith("image_")
    assert good["text"] == model.caption(pictures[0], config=SHORT_CONFIG).text


# chat


def test_chat_answers_each_line_with_the_turns_before_it(folder, model, pictures):
    result = run("chat", pictures[0], "--model", folder, *SHORT, standard_input="Hello\nAnd now?\n/quit\nno more\n")
    messages = asked(pictures[:1], "Hello")
    first = model.chat(messages, config=SHORT_CONFIG).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    assert result.stdout == first + "\n" + model.chat(messages, config=SHORT_CONFIG).text + "\n"
    assert result.exit_code == 0


def test_reset_begins_again_with_the_same_images(folder, pictures):
    result = run("chat", pictures[0], "--model", folder, *SHORT, "--json", standard_input="Hi\nMore\n/reset\nHi\n")
    first, second, third = last_json(result)["replies"]
    assert first["text"] == third["text"]
    assert (first["images"], second["images"], third["images"]) == ([pictures[0]], [], [pictures[0]])


def test_an_error_ends_a_chat_in_a_pipe(folder):
    result = run("chat", "--model", folder, "--max-new-tokens", "2040", standard_input="Hi\nHo\n")
    assert result.exit_code == 1
    assert result.stderr.count("[context_length_exceeded]") == 1


def test_chat_in_a_terminal_streams_stops_at_an_interrupt_and_leaves_at_the_end_of_input(folder, monkeypatch):
    user, terminal = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", os.fdopen(terminal, "w", encoding="utf-8", closefd=False))
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(user, 4096).decode(errors="replace")
        # One read may bring more than was waited for.
        shown = shown.partition(text)[2]

    def talk() -> None:
        wait_for("> ")
        os.write(user, b"Hello\n")
        wait_for("Hello\r\n")
        if not shown:
            os.read(user, 100)  # the first piece
        os.kill(os.getpid(), signal.SIGINT)
        wait_for("(stopped)\r\n> ")
        os.write(user, b"/rset\n")
        wait_for("there is no command /rset")
        wait_for("> ")
        os.write(user, b"\x04")

    talker = threading.Thread(target=talk, daemon=True)
    talker.start()
    with pytest.raises(SystemExit) as left:
        main(["chat", "--model", str(folder), "--max-new-tokens", "1900"])
    talker.join(timeout=30)
    os.close(user)
    assert left.value.code == 0
    assert not talker.is_alive()


# info


def test_info_knows_the_published_sizes():
    published = {"11b-vision": 10_670_220_835, "11b-vision-base": 10_642_941_475, "90b-vision": 88_593_355_323}
    for name, num_parameters in published.items():
        assert last_json(run("info", name, "--json"))["num_parameters"] == num_parameters
    sizes = last_json(run("info", "11b-vision", "--json"))
    assert sizes["weight_bytes"]["bfloat16"] == 2 * published["11b-vision"]
    assert sizes["weight_bytes"]["float32"] == 4 * published["11b-vision"]
    # The head is int8 in both; embedding and vision stay 16 bits.
    assert 1.12 < sizes["weight_bytes"]["int8"] / published["11b-vision"] < 1.15
    assert 0.74 < sizes["weight_bytes"]["int4"] / published["11b-vision"] < 0.76
    assert sizes["token_bytes"] == 131_072
    assert sizes["tile_bytes"] == 8 * 2 * 8 * 128 * 1601 * 2


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_sizes(name):
    result = run("info", name)
    assert result.exit_code == 0
    assert "bfloat16" in result.stdout
    assert "free now" in result.stdout


def test_info_reads_the_settings_of_a_folder_and_no_weights(folder, model, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    result = run("info", tmp_path, "--json", "--reference", "transformers")
    assert last_json(result)["num_parameters"] == model.info.num_parameters
    assert last_json(result)["tile_size"] == 28
    assert last_json(result)["reference"] == "transformers"
    assert "transformers (as stock transformers" in result.stdout


def test_a_model_fits_where_the_memory_is_free(monkeypatch):
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 2 * 10**9)
    fits = last_json(run("info", "1b", "--json"))["fits"]["cpu"]
    assert fits == {"float32": False, "bfloat16": False, "int8": True, "int4": True}
    assert last_json(run("info", "tiny", "--json"))["fits"]["cpu"]["float32"] is True
    # Of the 8.7 GB that the 11B needs in 4 bits, tower and embedding are 2.84.
    for free, answer in ((9, "cpu yes"), (6, "cpu yes, 2.8 GB of it left in the files"), (5, "cpu no")):
        monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda free=free: free * 10**9)
        shown = run("info", "11b-vision", "--json")
        assert f"8.7 GB: {answer}\n" in shown.stdout
        assert last_json(shown)["fits"]["cpu"]["int4"] == (free > 5)
    # The published files are bfloat16: as float32 nothing could stay in them.
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 40 * 10**9)
    assert last_json(run("info", "11b-vision", "--json"))["fits"]["cpu"]["float32"] is False


# convert


def test_converting_there_and_back_keeps_the_model(folder, model, tmp_path, pictures):
    there = run("convert", folder, tmp_path / "meta", "--format", "meta", "--json")
    back = run("convert", tmp_path / "meta", tmp_path / "hf", "--format", "hf")
    assert (there.exit_code, back.exit_code) == (0, 0), there.output + back.output
    assert last_json(there)["files"] == sorted(path.name for path in (tmp_path / "meta").iterdir())
    assert "SHA256SUMS" in last_json(there)["files"]
    messages = asked(pictures[:1], "Why?")
    for name in ("meta", "hf"):
        assert VLM.from_pretrained(tmp_path / name).logits(messages).equal(model.logits(messages))


def test_convert_replaces_a_checkpoint_only_when_told_to(folder, tmp_path):
    assert run("convert", folder, tmp_path / "new", "--format", "hf").exit_code == 0
    refused = run("convert", folder, tmp_path / "new", "--format", "hf", "--dtype", "bfloat16")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    done = run("convert", folder, tmp_path / "new", "--format", "hf", "--dtype", "bfloat16", "--overwrite")
    assert done.exit_code == 0
    assert VLM.from_pretrained(tmp_path / "new").info.dtype == torch.bfloat16


def test_convert_brings_along_what_the_source_says_of_its_tokenizers_use(folder, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(folder, source)
    texts = {"tokenizer_config.json": '{"chat_template":  "{{ 1 }}"}', "chat_template.jinja": "{{ 2 }}\n"}
    for name, text in texts.items():
        (source / name).write_text(text)
    (source / "tokenizer.model").unlink()
    assert run("convert", source, target, "--format", "hf").exit_code == 0
    assert {name: (target / name).read_text() for name in texts} == texts
    assert all(name in (target / "SHA256SUMS").read_text() for name in texts)
    assert run("convert", source, tmp_path / "meta", "--format", "meta").exit_code == 0
    assert not any((tmp_path / "meta" / name).exists() for name in texts)
    (source / "chat_template.jinja").unlink()
    (source / "chat_template.jinja").symlink_to(folder / "config.json")
    assert "outside the folder" in run("convert", source, tmp_path / "linked", "--format", "hf").stderr


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
