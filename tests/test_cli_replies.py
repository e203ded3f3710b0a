"""`vlm ask`, `caption` and `chat`: what they print is what the model says."""

import os
import pty
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.command_line import asked, draw_two_and_none, last_json, run, save_endless_model
from vlm import VLM, GenerationConfig, VLMError
from vlm.cli import main

SHORT = ("--max-new-tokens", "6")
SHORT_CONFIG = GenerationConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_endless_model(tmp_path_factory.mktemp("cli") / "tiny-model")


@pytest.fixture(scope="module")
def model(folder) -> VLM:
    return VLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    return draw_two_and_none(tmp_path_factory.mktemp("pictures"))


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


@pytest.mark.parametrize(("options", "settings"), [(("--views", "2"), {"num_views": 2}), (("--thin",), {"thin": True})])
def test_how_pictures_are_looked_at_reaches_the_model(folder, pictures, options, settings):
    confidences = [
        last_json(run("ask", pictures[0], "Why?", "--model", folder, "--json", *SHORT, *more))["replies"][0][
            "confidence"
        ]
        for more in (options, ())
    ]
    expected = VLM.from_pretrained(folder, **settings).answer(pictures[0], "Why?", config=SHORT_CONFIG).confidence
    assert confidences[0] == pytest.approx(expected)
    assert confidences[1] != confidences[0]


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
