"""Hostile files of torch.save: nothing in them is run, by two gates of which each holds alone."""

import os
import pickle
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from tests.checkpoint_models import refusal
from tests.saved_models import saved
from vlm.checkpoint import load_model


@pytest.fixture
def pth(tmp_path):
    return saved(tmp_path / "pth", format="meta")


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
