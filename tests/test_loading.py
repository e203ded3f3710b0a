"""Models loaded and saved: what they are, what they refuse, and what is said about their templates."""

import json
import logging

import pytest
import torch

from tests.conftest import random_model
from tests.conversations import MIXED, SMALL, refusal, user
from vlm import VLM, GenerationConfig, ModelConfig, Tokenizer, VLMError, preset
from vlm.config import DecoderConfig

SHORT = GenerationConfig(max_new_tokens=5)


def text_only_model(seed: int = 0) -> VLM:
    decoder = DecoderConfig(
        width=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_dim=16, vocab_size=512, max_context=128, tied=True
    )
    return VLM(random_model(ModelConfig(decoder=decoder), seed), Tokenizer.bytes_only())


@pytest.fixture(scope="module")
def text_only() -> VLM:
    return text_only_model()


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> dict:
    """The tiny model, saved in either format."""
    folders = {name: tmp_path_factory.mktemp("models") / name for name in ("hf", "meta")}
    for name, folder in folders.items():
        tiny.save_pretrained(folder, format=name)
    return folders


def test_info_says_what_was_loaded(tiny, text_only):
    info = tiny.info
    assert info.num_parameters == sum(weight.numel() for weight in tiny.model.parameters())
    assert info.num_bytes == 4 * info.num_parameters
    assert (info.dtype, str(info.device), info.max_context) == (torch.float32, "cpu", 512)
    assert (info.tile_size, info.max_tiles, info.reference) == (28, 4, "meta")
    # Tied weights count once.
    assert text_only.info.num_parameters == sum(weight.numel() for weight in set(text_only.model.state_dict().values()))
    assert (text_only.info.tile_size, text_only.info.max_tiles, text_only.info.max_context) == (None, None, 128)


def test_a_text_only_model_answers_texts_and_refuses_images(text_only):
    assert len(text_only.chat(user("hello"), config=SHORT).token_ids) <= 5
    assert text_only.logits(user("hello")).shape == (len(text_only.prompt_ids(user("hello"))), 512)
    assert text_only.score(user("hello"), ["a"])[0].logprob < 0
    assert "".join(text_only.stream(user("hello"), config=SHORT)) == text_only.chat(user("hello"), config=SHORT).text
    calls = [
        lambda: text_only.caption(SMALL),
        lambda: text_only.answer_many([(SMALL, "x")]),
        lambda: text_only.stream(user(SMALL)),
        lambda: text_only.complete([SMALL]),
        lambda: text_only.encode_image(SMALL),
        lambda: text_only.score(user(SMALL), ["a"]),
        lambda: text_only.logits(user(SMALL)),
        lambda: text_only.prompt_ids(user(SMALL)),
    ]
    for call in calls:
        error = refusal(call)
        assert error.code == "invalid_request"
        assert "text" in error.message
    replies = text_only.chat_many([user("a"), user(SMALL), user("b")], config=SHORT, return_errors=True)
    assert [isinstance(reply, VLMError) for reply in replies] == [False, True, False]


@pytest.mark.parametrize("format_name", ["hf", "meta"])
def test_a_saved_model_loads_as_it_was(tiny, saved, format_name):
    loaded = VLM.from_pretrained(saved[format_name])
    assert loaded.info == tiny.info
    for messages in MIXED[:3]:
        assert torch.equal(loaded.logits(messages), tiny.logits(messages))
    assert loaded.chat(MIXED[1], config=SHORT).token_ids == tiny.chat(MIXED[1], config=SHORT).token_ids
    encoded = loaded.encode_image(SMALL)
    assert tiny.answer(encoded, "?", config=SHORT).token_ids == loaded.answer(SMALL, "?", config=SHORT).token_ids


def test_a_text_only_model_is_saved_and_loaded(text_only, tmp_path):
    text_only.save_pretrained(tmp_path / "model")
    loaded = VLM.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(loaded.logits(user("x")), text_only.logits(user("x")))
    assert loaded.info == text_only.info


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", "float32"), ("bfloat16", "bfloat16"), ("torch.float16", "float16"), (torch.bfloat16, "bfloat16")],
)
def test_dtypes_have_names(saved, dtype, expected):
    loaded = VLM.from_pretrained(saved["hf"], dtype=dtype)
    assert loaded.info.dtype == getattr(torch, expected)
    assert loaded.logits(user(SMALL)).dtype == torch.float32
    if expected == "bfloat16":
        assert loaded.info.num_bytes == 2 * loaded.info.num_parameters
        assert loaded.chat(user(SMALL), config=SHORT).finish_reason in ("stop", "length")


def test_auto_is_the_checkpoints_own_dtype(tmp_path):
    VLM(random_model(preset("tiny")).to(torch.bfloat16), Tokenizer.bytes_only()).save_pretrained(tmp_path / "half")
    assert VLM.from_pretrained(tmp_path / "half").info.dtype == torch.bfloat16
    assert VLM.from_pretrained(tmp_path / "half", dtype="float32").info.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "code"),
    [
        *(
            ({"dtype": dtype}, "invalid_request")
            for dtype in ("int8", "double", "", None, 5, torch.float64, torch.int8)
        ),
        *(({"quantize": name}, "invalid_request") for name in ("int2", "", 8, True)),
        *(({"reference": name}, "invalid_request") for name in ("hf", "Meta", "", None, 5, [])),
        *(({"device": name}, "device_unavailable") for name in ("gpu", "", "meta", "tpu:0", None, 1.5)),
    ],
    ids=str,
)
def test_options_out_of_their_range_are_refused_before_anything_is_loaded(saved, options, code):
    error = refusal(VLM.from_pretrained, saved["hf"], **options)
    assert error.code == code
    assert "give" in error.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_unavailable(saved):
    for device in ("cuda", "cuda:7", torch.device("cuda"), 0):
        error = refusal(VLM.from_pretrained, saved["hf"], device=device)
        assert error.code == "device_unavailable"
        assert "cuda" in error.message or device == 0


@pytest.mark.parametrize("source", ["no/such/folder/here", "/no/such/folder", ".", "not a name!"])
def test_a_source_that_is_none_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(VLM.from_pretrained, source).code == "checkpoint_invalid"


def test_the_other_reference_is_another_model(saved):
    meta, stock = (VLM.from_pretrained(saved["hf"], reference=name) for name in ("meta", "transformers"))
    assert (meta.info.reference, stock.info.reference) == ("meta", "transformers")
    assert not torch.allclose(meta.logits(user("x", SMALL)), stock.logits(user("x", SMALL)))
    assert torch.equal(meta.logits(user("x")), stock.logits(user("x")))


def test_a_tokenizer_of_another_model_is_refused(tiny, tmp_path):
    small = DecoderConfig(
        width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_dim=8, vocab_size=500, max_context=64, tied=True
    )
    model = VLM(random_model(ModelConfig(decoder=small)), Tokenizer.bytes_only())
    model.save_pretrained(tmp_path / "model")
    error = refusal(VLM.from_pretrained, tmp_path / "model")
    assert error.code == "checkpoint_invalid"
    assert "512 tokens and the model 500" in error.message


def test_a_failed_save_leaves_nothing(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    assert refusal(tiny.save_pretrained, tmp_path / "file").code == "checkpoint_invalid"
    assert refusal(tiny.save_pretrained, tmp_path / "new", format="gguf").code == "invalid_request"
    monkeypatch.chdir(tmp_path)
    assert "the folder is ''" in refusal(tiny.save_pretrained, "").message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_model_without_its_tokenizer_is_never_left_behind(tiny_model, tmp_path):
    tokenizer = Tokenizer.bytes_only()
    tokenizer.special_ids["<|odd|>"] = 3
    assert refusal(VLM(tiny_model, tokenizer).save_pretrained, tmp_path / "model").code == "checkpoint_invalid"
    assert list(tmp_path.iterdir()) == []


# Templates


LLAMA_TEMPLATE = "{{ '<|start_header_id|>' }}{{ '<|eot_id|>' }}"
ALIEN_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("name", "content", "num_warnings"),
    [
        ("chat_template.jinja", ALIEN_TEMPLATE, 1),
        ("chat_template.json", json.dumps({"chat_template": ALIEN_TEMPLATE}), 1),
        ("tokenizer_config.json", json.dumps({"chat_template": ALIEN_TEMPLATE}), 1),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": ALIEN_TEMPLATE}]}), 1),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "rag", "template": ALIEN_TEMPLATE}]}), 0),
        ("tokenizer_config.json", json.dumps({"chat_template": LLAMA_TEMPLATE}), 0),
        ("tokenizer_config.json", json.dumps({"chat_template": None}), 0),
        ("tokenizer_config.json", json.dumps({"bos_token": "x"}), 0),
        ("chat_template.jinja", LLAMA_TEMPLATE, 0),
        ("chat_template.json", "{" * 100, 1),
        ("chat_template.json", "[" * 100_000, 1),
        ("chat_template.json", "[]", 1),
    ],
)
def test_a_chat_template_of_another_kind_is_told_of_once(text_only, tmp_path, caplog, name, content, num_warnings):
    text_only.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).write_text(content)
    with caplog.at_level(logging.WARNING, logger="vlm"):
        loaded = VLM.from_pretrained(tmp_path / "model")
        for _ in range(2):
            loaded.chat(user("x"), config=SHORT)
    assert [record.name for record in caplog.records] == ["vlm.loading"] * num_warnings
    assert all("template" in record.message for record in caplog.records)
