"""Where a draft is used, how it is given, and which models are none."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import edit_json
from tests.conftest import random_model
from tests.conversations import MIXED, refusal
from tests.draft_models import LONG, same, text_model, writing_bytes
from vlm import VLM, Tokenizer, preset
from vlm.checkpoint import stays_quantized
from vlm.cli import main
from vlm.generation.draft import Draft
from vlm.quantization import quantized_layers
from vlm.tokenizer_files.llama3 import meta_special_ids


@pytest.fixture(scope="module")
def plain() -> VLM:
    return writing_bytes(random_model(preset("tiny")))


@pytest.fixture(scope="module")
def drafted(plain) -> VLM:
    return VLM(plain.model, Tokenizer.bytes_only(), draft=text_model())


# Where it is used


def test_others_are_decoded_without(plain, drafted, monkeypatch):
    def begin(*_):
        raise AssertionError("the draft was asked")

    monkeypatch.setattr(Draft, "begin", begin)
    for config in (replace(LONG, temperature=0.5, seed=3), replace(LONG, repetition_penalty=1.2)):
        same(drafted.chat(MIXED[1], config=config), plain.chat(MIXED[1], config=config))
    for found, expected in zip(*(vlm.chat_many(MIXED, config=LONG) for vlm in (drafted, plain)), strict=True):
        same(found, expected)
    with pytest.raises(AssertionError):
        drafted.chat(MIXED[1], config=LONG)


def test_a_schema_is_decoded_without(plain, drafted, monkeypatch):
    pytest.importorskip("llguidance")
    monkeypatch.setattr(Draft, "begin", None)
    config = replace(LONG, schema={"type": "array", "items": {"type": "integer"}, "maxItems": 2})
    same(drafted.chat(MIXED[1], config=config), plain.chat(MIXED[1], config=config))


@pytest.fixture(scope="module")
def folders(plain, tmp_path_factory) -> dict[str, str]:
    """Folders of a vision model and of a text model with its vocabulary."""
    place = tmp_path_factory.mktemp("models")
    VLM(plain.model, Tokenizer.bytes_only()).save_pretrained(place / "large")
    text_model().save_pretrained(place / "draft")
    return {name: str(place / name) for name in ("large", "draft")}


def test_a_draft_is_loaded_by_name_in_the_precision_of_the_model(folders):
    assert VLM.from_pretrained(folders["large"])._draft is None
    for given in (folders["draft"], VLM.from_pretrained(folders["draft"])):
        vlm = VLM.from_pretrained(folders["large"], draft=given)
        assert vlm._draft.model.config.vision is None
    vlm = VLM.from_pretrained(folders["large"], draft=folders["draft"], quantize="int8")
    assert VLM(vlm._draft.model, vlm.tokenizer).info.quantize == "int8"


@pytest.mark.parametrize("command", ["ask", "caption", "chat"])
def test_the_commands_take_a_draft(folders, monkeypatch, command):
    given = []
    monkeypatch.setattr(VLM, "from_pretrained", lambda source, **named: given.append(named["draft"]) or 1 / 0)
    words = {"ask": ["examples/commute.png", "?"], "caption": ["examples/commute.png"], "chat": []}[command]
    CliRunner().invoke(main, [command, *words, "--model", folders["large"], "--draft", folders["draft"]])
    CliRunner().invoke(main, [command, *words, "--model", folders["large"]])
    assert given == [folders["draft"], None]


# What is refused


def test_a_vision_model_is_no_draft(plain, folders, monkeypatch):
    from vlm import checkpoint

    error = refusal(VLM, plain.model, plain.tokenizer, draft=VLM(plain.model, plain.tokenizer))
    monkeypatch.setattr(checkpoint, "load_model", None)
    same_error = refusal(VLM.from_pretrained, folders["large"], draft=folders["large"])
    assert error.message == same_error.message
    assert error.code == "invalid_request"
    assert "the draft is a vision model; expected a text-only one" in error.message


def test_a_draft_comes_in_the_models_dtype_and_as_quantised_as_it_is(folders, tmp_path):
    in_half = VLM.from_pretrained(folders["large"], dtype="bfloat16", draft=folders["draft"])
    assert in_half._draft.model.decoder.embedding.weight.dtype == torch.bfloat16
    VLM.from_pretrained(folders["draft"], quantize="int8").save_pretrained(tmp_path / "int8")
    in_four = VLM.from_pretrained(folders["large"], quantize="int4", draft=tmp_path / "int8")
    assert {layer.scheme.bits for layer in quantized_layers(in_four._draft.model).values()} == {8}
    in_four = VLM.from_pretrained(folders["large"], quantize="int4", draft=folders["draft"])
    assert quantized_layers(in_four._draft.model)


def test_a_draft_whose_stored_numbers_are_expanded_is_quantised_as_the_model_is(folders, tmp_path):
    VLM.from_pretrained(folders["draft"]).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        stored |= {name: (stored[name] * 100).to(torch.float8_e4m3fn), f"{name}_scale": torch.tensor([0.01])}
    save_file(stored, tmp_path / "model.safetensors")
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    edit_json(tmp_path / "config.json", lambda found: found.update(quantization_config=settings))
    assert not stays_quantized(tmp_path)
    vlm = VLM.from_pretrained(folders["large"], quantize="int8", draft=tmp_path)
    assert {layer.scheme.bits for layer in quantized_layers(vlm._draft.model).values()} == {8}


def test_a_draft_has_as_many_tokens(plain):
    smaller = text_model(vocab_size=520)
    error = refusal(VLM, plain.model, plain.tokenizer, draft=smaller)
    assert (error.code, "the draft has 520 tokens and the model 512" in error.message) == ("invalid_request", True)


@pytest.mark.parametrize("name", ["a byte", "an end", "a header", "an added word"])
def test_a_draft_has_the_same_ids(plain, name):
    ranks = {bytes([value]): value for value in range(256)}
    special_ids, text_ids = meta_special_ids(256), {}
    if name == "a byte":
        ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    elif name == "an added word":
        text_ids["<word>"] = special_ids.pop("<|reserved_special_token_5|>")
    else:
        first = "<|eot_id|>" if name == "an end" else "<|start_header_id|>"
        other = "<|reserved_special_token_5|>"
        special_ids[first], special_ids[other] = special_ids[other], special_ids[first]
    tokenizer = Tokenizer(ranks, special_ids, text_ids=text_ids)
    error = refusal(VLM, plain.model, plain.tokenizer, draft=VLM(text_model().model, tokenizer))
    assert error.code == "invalid_request"
    assert "the draft's tokenizer has other ids than the model's" in error.message
    assert len(error.report) <= 300


def test_names_that_are_reserved_may_differ(plain):
    special_ids = meta_special_ids(256)
    special_ids["<|other|>"] = special_ids.pop("<|reserved_special_token_5|>")
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)}, special_ids)
    VLM(plain.model, plain.tokenizer, draft=VLM(text_model().model, tokenizer))


@pytest.mark.parametrize("bad", ["a/folder", 5, object()])
def test_what_is_no_model_is_no_draft(plain, bad):
    error = refusal(VLM, plain.model, plain.tokenizer, draft=bad)
    assert error.code == "invalid_request"
    assert error.message.startswith("draft is ")


def test_a_folder_that_is_not_there_is_no_draft(folders):
    assert refusal(VLM.from_pretrained, folders["large"], draft="no/folder/here").code == "checkpoint_invalid"
