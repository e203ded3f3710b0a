"""Broken, hostile and half-written checkpoints: an error that names the fault, nothing run, nothing lost."""

import contextlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import assert_same, edit_json, random_model, refusal, text_config
from vlm.checkpoint import load_model, read_config, save_model, staged, verify_checksums, write_checksums
from vlm.checkpoint.files import MAX_JSON_BYTES
from vlm.checkpoint.safetensors_file import open_safetensors
from vlm.errors import VLMError

MODEL = random_model(text_config())
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def one(tmp_path):
    """A saved model in one file."""
    save_model(MODEL, tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def shards(tmp_path):
    save_model(MODEL, tmp_path / "shards", max_shard_bytes=1e5)
    return tmp_path / "shards"


@pytest.fixture
def pth(tmp_path):
    save_model(MODEL, tmp_path / "pth", format="meta")
    return tmp_path / "pth"


def header_of(path: Path) -> tuple[bytes, bytes]:
    """The header and the weights of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def write_header(path: Path, header: bytes | dict, weights: bytes) -> None:
    header = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(header).to_bytes(8, "little") + header + weights)


# C1: pickles that run code. Each gets the canary's path and is the content of data.pkl.


def _reduced(function, *arguments) -> bytes:
    class Payload:
        def __reduce__(self):
            return function, arguments

    return pickle.dumps({"norm.weight": Payload()}, protocol=2)


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}"
    text = command.encode()
    short = b"\x8c" + bytes([len(text)]) + text
    return {
        "reduce os.system": _reduced(os.system, command),
        "reduce subprocess": _reduced(subprocess.check_call, ["touch", str(canary)]),
        "reduce exec": _reduced(exec, f"open({str(canary)!r}, 'w')"),
        "reduce eval": _reduced(eval, f"open({str(canary)!r}, 'w')"),
        "reduce getattr": _reduced(getattr, complex, "real"),
        "reduce open": _reduced(open, str(canary), "w"),
        "reduce import": _reduced(__import__, "antigravity"),
        "global": b"cos\nsystem\n(V" + text + b"\ntR.",
        "global of builtins": b"c__builtin__\nexec\n(Vopen('" + str(canary).encode() + b"','w')\ntR.",
        "global in torch": b"ctorch.hub\nload\n(V" + text + b"\ntR.",
        "global torch.load": b"ctorch\nload\n(V" + text + b"\ntR.",
        "global with dots": b"ctorch\n_utils.os.system\n(V" + text + b"\ntR.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "inst": b"(V" + text + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nV" + text + b"\no.",
        "newobj": b"\x80\x02cos\nsystem\n(V" + text + b"\nt\x81.",
        "newobj_ex": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85}\x92.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R}V__setstate__\ncos\nsystem\nsV" + text + b"\nb.",
        "build on a module": b"\x80\x02ctorch\nserialization\n}V_load\ncos\nsystem\nsb.",
        "extension code": b"\x80\x02\x82\x01(V" + text + b"\ntR.",
        "persistent id": b"P" + text + b"\n.",
        "reduce in numpy": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\nI0\ntV" + text + b"\nR.",
        "memo tricks": b"\x80\x02cos\nsystem\nq\x000h\x00(V" + text + b"\ntR.",
        "two pickles in one": pickle.dumps({}, protocol=2) + b"cos\nsystem\n(V" + text + b"\ntR.",
        "partial": b"cfunctools\npartial\n(cos\nsystem\nV" + text + b"\ntR)R.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 30) + b"\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "endless memory": b"\x80\x02" + b"\x8e" + struct.pack("<Q", 1 << 60) + b".",
        "list of itself": b"\x80\x02]q\x00h\x00a.",
    }


def rewrite_pth(path: Path, pickled: bytes | None = None, *, compression=zipfile.ZIP_STORED, more=()) -> None:
    """Write the archive again with another data.pkl, and with more entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, pickled if pickled is not None and name.endswith("/data.pkl") else content)
        for name, content in more:
            archive.writestr(name, content)


NAMES = sorted(hostile_pickles(Path("canary")))


@pytest.mark.parametrize("trick", NAMES)
def test_no_pickle_runs_code(pth, tmp_path, monkeypatch, trick):
    canary = tmp_path / "canary"
    path = pth / "consolidated.00.pth"
    started = []
    pickled = hostile_pickles(canary)[trick]
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **named: started.append(args))
    monkeypatch.setattr(os, "system", started.append)
    rewrite_pth(path, pickled)
    report = refusal(load_model, pth).report
    assert "consolidated.00.pth" in report
    assert not canary.exists()
    assert not started
    if trick not in (
        "extension code",
        "persistent id",
        "endless memory",
        "list of itself",
        "two pickles in one",
        "build on a module",
    ):
        assert "refused: only tensors" in report
        assert re.search(r"system|check_call|exec|eval|getattr|open|import|hub|load|partial|_reconstruct", report)


@pytest.mark.parametrize("trick", NAMES)
def test_torch_itself_runs_no_code_where_our_look_at_the_names_is_passed(pth, tmp_path, monkeypatch, trick):
    """`weights_only`, the second of two gates."""
    monkeypatch.setattr("vlm.checkpoint.torch_file._refused_names", lambda pickled: [])
    reader, started = torch.serialization._load, []
    # One trick replaces it, after which no other runs: put back in any case.
    monkeypatch.setattr(torch.serialization, "_load", reader)
    pickled = hostile_pickles(tmp_path / "canary")[trick]
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **named: started.append(args))
    monkeypatch.setattr(os, "system", started.append)
    rewrite_pth(pth / "consolidated.00.pth", pickled)
    assert "consolidated.00.pth" in refusal(load_model, pth).report
    assert not (tmp_path / "canary").exists()
    assert not started
    assert torch.serialization._load is reader


def test_a_bare_pickle_and_other_archives_are_refused(pth, tmp_path):
    path = pth / "consolidated.00.pth"
    canary = tmp_path / "canary"
    torch.save({"norm.weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert "no archive of torch.save" in refusal(load_model, pth).message
    path.write_bytes(hostile_pickles(canary)["reduce os.system"])
    assert "no archive of torch.save" in refusal(load_model, pth).message
    shutil.make_archive(str(tmp_path / "packed"), "tar", pth)
    (tmp_path / "packed.tar").replace(path)
    assert "no archive of torch.save" in refusal(load_model, pth).message
    assert not canary.exists()


def test_a_script_module_is_refused(pth):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(pth / "consolidated.00.pth"))
    assert "consolidated.00.pth" in refusal(load_model, pth).message


def test_archives_in_archives_and_appended_ones_are_refused(pth, tmp_path):
    path = pth / "consolidated.00.pth"
    good = path.read_bytes()
    bad = hostile_pickles(tmp_path / "canary")["reduce os.system"]
    rewrite_pth(path, more=[("evil/data.pkl", bad)])
    assert "2 pickles" in refusal(load_model, pth).message
    path.write_bytes(good)
    rewrite_pth(path, bad)
    path.write_bytes(good + path.read_bytes())
    assert "more than one archive" in refusal(load_model, pth).message
    path.write_bytes(good)
    rewrite_pth(path, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(load_model, pth).message
    assert not (tmp_path / "canary").exists()


def test_an_old_torch_reads_no_pickle(pth, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert "torch 2.10" in refusal(load_model, pth).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(2)], "expected a dictionary of tensors"),
        ({}, "expected a dictionary of tensors"),
        ({"a": 3}, "expected tensors only"),
        ({3: torch.ones(2)}, "expected tensors only"),
        ({"a": torch.ones(2, 2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"a": torch.ones(2, device="meta")}, "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(pth, content, said):
    torch.save(content, pth / "consolidated.00.pth")
    assert said in refusal(load_model, pth).message


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


# C6: the index and the folder


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that Python opens meanwhile."""
    seen: list[str] = []
    watching = True
    # A hook stays for good; later tests of this process must not be listened to, and what they open not be kept.
    sys.addaudithook(lambda event, args: seen.append(str(args[0])) if watching and event == "open" else None)
    yield seen
    watching = False


def test_an_index_that_lies_is_refused(opened, shards, tmp_path):
    good = (shards / INDEX).read_text()
    outside = tmp_path / "outside.safetensors"
    shutil.copy(sorted(shards.glob("*.safetensors"))[0], outside)
    first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    assert len(list(shards.glob("*.safetensors"))) == 3
    key = "model.embed_tokens.weight"

    def says(said, change):
        (shards / INDEX).write_text(good)
        edit_json(shards / INDEX, change)
        opened.clear()
        assert said in refusal(load_model, shards).message
        inside = {str(shards), str(shards.resolve())}
        assert all(str(Path(name).parent) in inside for name in opened if name.endswith((".json", ".safetensors")))

    says("cannot be found", lambda index: index["weight_map"].update({key: "model-00009-of-00003.safetensors"}))
    says("disagree about 1 tensors", lambda index: index["weight_map"].update({key: second}))
    says("disagree about 1 tensors", lambda index: index["weight_map"].pop(key))
    says("disagree about 1 tensors", lambda index: index["weight_map"].update({"new": first}))
    says("total_size 5", lambda index: index["metadata"].update(total_size=5))
    says("total_size '5'", lambda index: index["metadata"].update(total_size="5"))
    says("plain name", lambda index: index["weight_map"].update({key: "../outside.safetensors"}))
    says("plain name", lambda index: index["weight_map"].update({key: str(outside)}))
    says("plain name", lambda index: index["weight_map"].update({key: "..\\outside.safetensors"}))
    says("plain name", lambda index: index["weight_map"].update({key: ""}))
    says("plain name", lambda index: index["weight_map"].update({key: ".."}))
    says("no weight_map", lambda index: index["weight_map"].update({key: 7}))
    says("no weight_map", lambda index: index.pop("weight_map"))


def test_one_tensor_in_two_shards_is_refused(shards):
    first, second, _ = sorted(shards.glob("*.safetensors"))
    state = load_file(second)
    save_file(state | {"model.embed_tokens.weight": load_file(first)["model.embed_tokens.weight"]}, second)
    assert "disagree about 1 tensors: model.embed_tokens.weight" in refusal(load_model, shards).message


def test_links_out_of_the_folder_are_refused(one, tmp_path):
    (one / WEIGHTS).rename(tmp_path / "outside")
    (one / WEIGHTS).symlink_to(tmp_path / "outside")
    assert "outside the folder" in refusal(load_model, one).message
    (one / WEIGHTS).unlink()
    (one / WEIGHTS).symlink_to("/dev/zero")
    assert "outside the folder" in refusal(load_model, one).message
    (one / WEIGHTS).unlink()
    (one / WEIGHTS).symlink_to(WEIGHTS)
    (tmp_path / "outside").rename(one / "weights")
    refusal(load_model, one)
    (one / WEIGHTS).unlink()
    (one / WEIGHTS).symlink_to("weights")
    assert_same(load_model(one), MODEL)


def test_a_snapshot_of_the_hubs_cache_is_links_into_its_blobs(one, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in one.iterdir():
        shutil.copy(path, repository / "blobs" / f"hash-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-{path.name}")
    assert_same(load_model(snapshot), MODEL)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(one / WEIGHTS)
    assert "outside the folder" in refusal(load_model, snapshot).message


def test_pipes_devices_and_folders_are_refused_without_waiting(one, pth):
    for folder, name in ((one, WEIGHTS), (pth, "consolidated.00.pth"), (one, "config.json")):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "no regular file" in refusal(load_model, folder).message
        (folder / name).unlink()
        (folder / name).mkdir()
        assert "no regular file" in refusal(load_model, folder).message


def test_files_without_permission_are_refused(one, monkeypatch):
    def denied(*_args, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "Permission denied" in refusal(read_config, one).message


# C8: saving


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("format", ["hf", "meta"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, format, exists):
    folder = tmp_path / "out"
    if exists:
        save_model(MODEL, folder, format=format)
    before = contents(folder) if exists else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = refusal(save_model, random_model(text_config(), seed=1), folder, format=format).message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "nothing was saved" in message
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    if exists:
        assert contents(folder) == before
        assert_same(load_model(folder), MODEL)


def test_dev_full_says_no_space_is_left(tmp_path):
    with pytest.raises(VLMError, match="No space left"), staged(tmp_path / "out"), open("/dev/full", "wb") as file:
        file.write(b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_refusing_disk_leaves_everything_as_it_was(one, monkeypatch, call):
    before = contents(one)

    def refuse(*_args, **_named):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(*((Path, "mkdir") if call == "mkdir" else (os, call)), refuse)
    message = refusal(save_model, random_model(text_config(), seed=1), one).message
    assert "Read-only file system" in message
    monkeypatch.undo()
    after = contents(one)
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    if call != "replace":
        assert after == before


def test_a_read_only_folder_is_refused(one):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    one.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "Permission denied" in refusal(save_model, MODEL, one).message


def test_saving_over_what_was_loaded_is_safe(one, pth):
    for folder, format in ((one, "hf"), (pth, "meta")):
        loaded = load_model(folder)
        path = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth"))
        path.write_bytes(b"")
        assert_same(loaded, MODEL)
        save_model(loaded, folder, format=format)
        assert_same(load_model(folder), MODEL)
        assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def test_fewer_shards_leave_no_old_ones(shards):
    (shards / "tokenizer.json").write_text("{}")
    save_model(MODEL, shards, max_shard_bytes=1.5e5)
    assert_same(load_model(shards), MODEL)
    assert not list(shards.glob("*of-00003*"))
    save_model(MODEL, shards)
    assert sorted(path.name for path in shards.iterdir()) == [
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "tokenizer.json",
    ]


def test_the_other_format_is_not_mixed_in(one, pth):
    assert "other format" in refusal(save_model, MODEL, one, format="meta").message
    assert "other format" in refusal(save_model, MODEL, pth).message
    assert "is a file" in refusal(save_model, MODEL, one / WEIGHTS).message


def test_more_files_are_saved_with_the_model_or_not_at_all(tmp_path):
    save_model(MODEL, tmp_path / "out", write_more=lambda staging: (staging / "tokenizer.json").write_text("{}"))
    assert (tmp_path / "out" / "tokenizer.json").exists()

    def fail(_):
        raise KeyError("no tokenizer")

    with pytest.raises(KeyError):
        save_model(MODEL, tmp_path / "other", write_more=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_that_is_not_its_configs_is_refused(tmp_path):
    model = random_model(text_config())
    model.decoder.norm.register_parameter("bias", torch.nn.Parameter(torch.ones(3)))
    assert "decoder.norm.bias" in refusal(save_model, model, tmp_path / "out").message


def test_killed_while_files_move_in_a_folder_is_refused_not_mixed(one, monkeypatch):
    """After the first file moved the settings are gone; nothing reads the folder as a checkpoint."""
    moved = []

    class Killed(BaseException):
        pass

    real = os.replace

    def replace(source, target):
        if moved:
            raise Killed
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        save_model(random_model(text_config(), seed=1), one)
    assert "neither config.json nor params.json" in refusal(load_model, one).message


# C10: memory


def test_a_model_larger_than_free_memory_is_refused_before_reading(one, monkeypatch):
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 1000)
    with pytest.raises(VLMError, match="of memory are free") as caught:
        load_model(one)
    assert caught.value.code == "device_unavailable"


def test_nothing_stays_open(one, shards, pth):
    before = len(os.listdir("/proc/self/fd"))
    for folder in (one, shards, pth):
        load_model(folder)
        (folder / "config.json").unlink(missing_ok=True)
        (folder / "params.json").unlink(missing_ok=True)
        refusal(load_model, folder)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.full
def test_peak_memory_of_a_gigabyte(tmp_path):
    benchmark = Path(__file__).parents[1] / "benchmarks" / "load_memory.py"
    found = subprocess.run(
        [sys.executable, benchmark, "--folder", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert "hf, one file" in found
    assert "OVER" not in found, found
