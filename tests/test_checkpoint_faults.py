"""Files of a checkpoint that are cut, flipped or lie: an error that names the fault."""

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import assert_same, edit_json, random_model, refusal, text_config
from tests.saved_models import INDEX, MODEL, WEIGHTS, saved
from vlm.checkpoint import load_model, save_model, verify_checksums, write_checksums
from vlm.checkpoint.files import MAX_JSON_BYTES
from vlm.checkpoint.safetensors_file import open_safetensors
from vlm.errors import VLMError


@pytest.fixture
def one(tmp_path):
    return saved(tmp_path / "one")


@pytest.fixture
def shards(tmp_path):
    return saved(tmp_path / "shards", max_shard_bytes=1e5)


@pytest.fixture
def pth(tmp_path):
    return saved(tmp_path / "pth", format="meta")


def header_of(path: Path) -> tuple[bytes, bytes]:
    """The header and the weights of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def write_header(path: Path, header: bytes | dict, weights: bytes) -> None:
    header = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(header).to_bytes(8, "little") + header + weights)


# C2: cut files


def cuts(num_bytes: int, header: int, count: int = 64) -> list[int]:
    special = [0, 7, 8, header - 1, header, num_bytes - 1]
    return special + [round(step * num_bytes / (count - 6)) for step in range(count - 6)]


def test_cut_safetensors_are_refused_with_their_sizes(shards):
    path = sorted(shards.glob("*.safetensors"))[1]
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for size in cuts(len(content), header):
        path.write_bytes(content[:size])
        message = refusal(load_model, shards).message
        assert path.name in message
        assert f"has {size:,} bytes" in message
        if size >= header:
            assert f"{len(content):,}" in message
    path.write_bytes(content + b"x")
    assert f"{len(content):,}" in refusal(load_model, shards).message


def test_cut_pth_files_are_refused(pth):
    path = pth / "consolidated.00.pth"
    content = path.read_bytes()
    for size in cuts(len(content), 64):
        path.write_bytes(content[:size])
        message = refusal(load_model, pth).message
        assert "consolidated.00.pth" in message
        assert f"{size:,} bytes" in message


# C3: headers


def flips(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The content with one bit turned over, `count` times."""
    rng = random.Random(seed)
    for _ in range(count):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


def test_flipped_headers_are_read_or_refused(one):
    path = one / WEIGHTS
    save_file({f"layers.{place}.weight": torch.ones(place, 3) for place in range(1, 5)}, path, {"format": "pt"})
    header, _ = header_of(path)
    refused = 0
    with open(path, "r+b", buffering=0) as file:
        for flipped in flips(header, 2000, 0):
            file.seek(8)
            file.write(flipped)
            try:
                with contextlib.ExitStack() as opened:
                    open_safetensors(one, WEIGHTS, opened)
            except VLMError:
                refused += 1
    assert refused > 500


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.full)])
def test_flipped_headers_give_an_error_or_the_same_model(one, count):
    path = one / WEIGHTS
    header, weights = header_of(path)
    refused = 0
    for flipped in flips(header, count, 1):
        write_header(path, flipped, weights)
        try:
            loaded = load_model(one)
        except VLMError:
            refused += 1
        else:
            assert_same(loaded, MODEL)
    assert refused > 0.9 * count


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_flipped_settings_end_in_a_model_or_one_error(shards, name, count):
    path = shards / name
    for flipped in flips(path.read_bytes(), count, 2):
        path.write_bytes(flipped)
        with contextlib.suppress(VLMError):
            load_model(shards)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "too deeply"),
        (b'{"a": ' * 10_000, "too deeply"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"\xff\xfe{}", "no valid JSON"),
        (b"", "no valid JSON"),
        (b"[]", "expected an object"),
        (b'{"a": 1}', "no safetensors header"),
        (b'{"a": {"dtype": "F32", "shape": [1]}}', "no safetensors header"),
        (b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}', "expected one of"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "expected one of"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "no list of sizes"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "no list of sizes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}', "no list of sizes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', "its shape [1] needs 4"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "its shape [2] needs 8"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "a gap or an overlap"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "a gap or an overlap",
        ),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "its header speaks of"),
        (
            b'{"a": {"dtype": "F32", "shape": ['
            + b",".join([b"4000000000000000000"] * 100_000)
            + b'], "data_offsets": [0, 4]}}',
            "no list of sizes",
        ),
    ],
    ids=range(22),
)
def test_headers_that_lie_are_refused(one, header, said):
    write_header(one / WEIGHTS, header, b"\0" * 16)
    assert said in refusal(load_model, one).message


def test_an_empty_tensor_may_stand_anywhere_in_a_header(tmp_path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    empty = {
        name: {"dtype": "F32", "shape": [0], "data_offsets": [place, place]} for name, place in (("b", 0), ("c", 4))
    }
    write_header(tmp_path / WEIGHTS, {"c": empty["c"], "a": entry, "b": empty["b"]}, b"\0" * 4)
    with contextlib.ExitStack() as opened:
        stored = open_safetensors(tmp_path, WEIGHTS, opened)
        assert {name: tensor.load().tolist() for name, tensor in stored.items()} == {"a": [0.0], "b": [], "c": []}


def test_headers_of_impossible_length_are_refused(one):
    path = one / WEIGHTS
    for length in (1 << 63, (1 << 64) - 1, 1 << 40):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        assert "header alone needs" in refusal(load_model, one).message
    with open(path, "wb") as file:
        file.write((MAX_JSON_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_JSON_BYTES)
    assert "expected at most" in refusal(load_model, one).message
    with open(one / "config.json", "ab") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    assert "expected at most" in refusal(load_model, one).message


# C4: what the container cannot notice


def test_a_flipped_weight_is_found_by_its_checksum(one):
    write_checksums(one)
    assert verify_checksums(one) == 3
    header, weights = header_of(one / WEIGHTS)
    flipped = bytearray(weights)
    flipped[1000] ^= 1
    write_header(one / WEIGHTS, header, bytes(flipped))
    load_model(one)
    assert WEIGHTS in refusal(verify_checksums, one).message


def test_checksums_are_those_of_sha256sum(one):
    listed = subprocess.run(["sha256sum", WEIGHTS, "config.json"], cwd=one, capture_output=True, text=True, check=True)
    (one / "SHA256SUMS").write_text(listed.stdout)
    assert verify_checksums(one) == 2
    (one / "SHA256SUMS").write_text("no such format\n")
    assert "format of sha256sum" in refusal(verify_checksums, one).message
    (one / "SHA256SUMS").write_text("0" * 64 + "  ../other\n")
    assert "plain name" in refusal(verify_checksums, one).message
    (one / "SHA256SUMS").unlink()
    assert "cannot be found" in refusal(verify_checksums, one).message


def test_weights_that_are_not_finite_are_named(one):
    state = load_file(one / WEIGHTS)
    state["model.norm.weight"][3] = float("nan")
    state["lm_head.weight"][3, 3] = float("inf")
    save_file(state, one / WEIGHTS)
    load_model(one)
    message = refusal(load_model, one, check_finite=True).message
    assert "2 tensors" in message
    assert "decoder.norm.weight" in message
    assert "decoder.head.weight" in message


# C5: names and shapes


def test_all_that_differs_is_in_one_report(one):
    state = load_file(one / WEIGHTS)
    del state["model.norm.weight"], state["model.layers.0.mlp.up_proj.weight"], state["lm_head.weight"]
    state["model.layers.9.extra"] = torch.ones(2)
    state["bias"] = torch.ones(2)
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].t().contiguous()
    state["model.layers.1.mlp.down_proj.weight"] = state["model.layers.1.mlp.down_proj.weight"].to(torch.int32)
    state["model.layers.0.input_layernorm.weight"] = state["model.layers.0.input_layernorm.weight"].to(
        torch.float8_e4m3fn
    )
    save_file(state, one / WEIGHTS)
    error = refusal(load_model, one)
    assert "3 missing, 2 unexpected and 3 misshapen" in error.message
    for part in (
        "model.norm.weight",
        "model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
        "model.layers.9.extra",
        "bias",
        "model.layers.1.mlp.up_proj.weight [32, 48], expected [48, 32]",
        "model.layers.1.mlp.down_proj.weight is int32",
        "input_layernorm.weight is float8_e4m3fn",
    ):
        assert part in error.report


def test_no_weight_is_read_when_names_differ(one, monkeypatch):
    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("vlm.checkpoint.safetensors_file.SafetensorsTensor.copy_to", read)
    edit_json(one / "config.json", lambda settings: settings.update(vocab_size=500))
    assert "2 misshapen" in refusal(load_model, one).message


def test_a_missing_head_is_not_taken_from_the_embedding(tmp_path):
    save_model(random_model(text_config(tied=True)), tmp_path / "out")
    edit_json(tmp_path / "out" / "config.json", lambda settings: settings.update(tie_word_embeddings=False))
    assert "lm_head.weight" in refusal(load_model, tmp_path / "out").report
