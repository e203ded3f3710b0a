"""`vlm verify` passes what is right and finds what is wrong, in the files and in what is computed."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.conftest import random_model
from vlm import VLM, Tokenizer, VLMError
from vlm.checkpoint import load_model, read_config, write_checksums
from vlm.cli import main
from vlm.config import ModelConfig, RopeScaling, preset
from vlm.verify import Report, verify
from vlm.verify.cases import Answers, Case, Question, case_names
from vlm.verify.comparison import _row
from vlm.verify.report import Row

WEIGHTS = "model.safetensors"
VISION_CASES, TEXT_CASES = case_names(True), case_names(False)
QUERIES = "vision_model.transformer.layers.0.self_attn.q_proj.weight"
KEYS = "vision_model.transformer.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def all_cases() -> None:
    """Asked for by the tests of what is right."""


@pytest.fixture(autouse=True)
def few_cases(request, monkeypatch):
    """Two of the cases are enough to see a fault."""
    if "all_cases" not in request.fixturenames:
        few = {True: ["text only", "two tiles, text first"], False: ["short"]}
        monkeypatch.setattr("vlm.verify.comparison.case_names", few.__getitem__)


def meta_config() -> ModelConfig:
    """A tiny model whose RoPE Meta's code knows."""
    config = preset("tiny")
    return replace(config, decoder=replace(config.decoder, rope_scaling=RopeScaling(factor=8.0)))


def text_config() -> ModelConfig:
    config = preset("tiny")
    return ModelConfig(decoder=replace(config.decoder, num_extra_embeddings=0, tied=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with nothing wrong in it."""
    folder = tmp_path_factory.mktemp("verify") / "whole"
    VLM(random_model(meta_config()), Tokenizer.bytes_only()).save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "damaged"))


def saved(config: ModelConfig, folder: Path, format: str = "hf", dtype: torch.dtype = torch.float32) -> Path:
    VLM(random_model(config).to(dtype), Tokenizer.bytes_only()).save_pretrained(folder, format=format)
    return folder


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def verdicts(report: Report) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in report.rows:
        found.setdefault(row.oracle, set()).add(row.verdict)
    return found


# What is right


@pytest.mark.usefixtures("all_cases")
def test_a_right_checkpoint_equals_meta_and_repaired_transformers_and_stock_differs(whole):
    report = verify(str(whole), device="cpu")
    assert report.passed, report.text()
    assert [row.case for row in report.rows] == 3 * VISION_CASES
    assert verdicts(report) == {
        "llama-models": {"PASS"},
        "transformers, repaired": {"PASS"},
        "transformers, stock": {"differs (other reference)", "same (other reference)"},
    }
    for row in report.rows:
        seen = [row.features, row.image_tokens]
        assert (seen == [None, None]) == (row.case == "text only")
        assert row.num_greedy == 8
        if row.oracle == "transformers, stock":
            assert row.same == (row.case == "text only")


@pytest.mark.usefixtures("all_cases")
def test_the_transformers_reference_equals_stock(tmp_path):
    report = verify(str(saved(preset("tiny"), tmp_path / "model")), reference="transformers", device="cpu")
    assert report.passed, report.text()
    assert verdicts(report)["transformers, stock"] == {"PASS"}
    assert "differs (other reference)" in verdicts(report)["transformers, repaired"]
    assert "#39379" in report.facts["reference in force"]
    assert any("llama-models was not asked: its code knows one RoPE scaling" in note for note in report.notes)


@pytest.mark.usefixtures("all_cases")
def test_a_text_only_model_equals_transformers(tmp_path):
    report = verify(str(saved(text_config(), tmp_path / "model")), device="cpu")
    assert report.passed, report.text()
    assert [(row.oracle, row.case, row.verdict) for row in report.rows] == [
        ("transformers", case, "PASS") for case in TEXT_CASES
    ]


def test_a_quantised_folder_equals_transformers(tmp_path):
    plain = saved(preset("tiny"), tmp_path / "plain")
    VLM.from_pretrained(plain, quantize="int8").save_pretrained(tmp_path / "int8")
    report = verify(str(tmp_path / "int8"), device="cpu")
    assert report.passed, report.text()
    assert verdicts(report)["transformers, repaired"] == {"PASS"}


def test_a_meta_folder_is_read_by_llama_models_itself_and_by_transformers_as_a_copy(tmp_path):
    report = verify(str(saved(meta_config(), tmp_path / "model", "meta")), device="cpu")
    assert report.passed, report.text()
    assert verdicts(report)["llama-models"] == verdicts(report)["transformers, repaired"] == {"PASS"}
    assert report.facts["layout"] == "Meta"


def test_half_precision_has_its_own_tolerance(tmp_path):
    folder = saved(meta_config(), tmp_path / "model", dtype=torch.bfloat16)
    report = verify(str(folder), device="cpu")
    assert report.passed, report.text()
    assert "bfloat16" in report.facts["computed as"]
    assert {row.tolerance for row in report.rows} == {5e-2}
    sharp = verify(str(folder), device="cpu", dtype="float32")
    assert sharp.passed, sharp.text()
    assert {row.tolerance for row in sharp.rows} == {3e-5}


def test_tables_that_no_meta_checkpoint_has_are_compared_with_transformers_alone(tmp_path):
    vlm = VLM(random_model(meta_config()), Tokenizer.bytes_only())
    with torch.no_grad():
        vlm.model.encoder.tile_position_after.table.normal_()
    vlm.save_pretrained(tmp_path / "model")
    report = verify(str(tmp_path / "model"), device="cpu")
    assert report.passed, report.text()
    assert set(verdicts(report)) == {"transformers, stock", "transformers, repaired"}
    assert any("llama-models was not asked: the position tables" in note for note in report.notes)


# What is wrong in the files


def test_every_missing_and_misshapen_tensor_is_listed(damaged):
    def change(tensors):
        del tensors[QUERIES], tensors["language_model.model.norm.weight"]
        tensors[KEYS] = tensors[KEYS][:-1].clone()

    rewrite(damaged, change)
    report = verify(str(damaged), device="cpu")
    assert (report.passed, report.rows) == (False, [])
    (problem,) = report.problems
    for name in (QUERIES, "language_model.model.norm.weight", KEYS):
        assert name in problem


def test_a_number_that_is_none_is_found(damaged):
    rewrite(damaged, lambda tensors: tensors[QUERIES].view(-1)[5:6].fill_(float("nan")))
    (problem,) = verify(str(damaged), device="cpu").problems
    assert "NaN" in problem
    assert "encoder.local_layers.0.attention.q_proj.weight" in problem


def test_tensors_that_were_swapped_are_found_by_the_sums(damaged):
    """Both read the same wrong values, so that no oracle differs; the sums do."""
    write_checksums(damaged)
    assert "match SHA256SUMS" in verify(str(damaged), device="cpu").facts["sha256"]

    def change(tensors):
        tensors[QUERIES], tensors[KEYS] = tensors[KEYS], tensors[QUERIES]

    rewrite(damaged, change)
    report = verify(str(damaged), device="cpu")
    assert not report.passed
    (problem,) = report.problems
    assert "SHA256SUMS" in problem
    assert WEIGHTS in problem
    assert all(row.same for row in report.rows if row.counts)


def test_a_folder_without_a_tokenizer_fails(damaged):
    for path in damaged.glob("tokenizer*"):
        path.unlink()
    (problem,) = verify(str(damaged), device="cpu").problems
    assert "tokenizer" in problem


# What is wrong in what is computed


def swap(model, *names: str) -> None:
    first, second = (model.get_parameter(name) for name in names)
    first.data, second.data = second.data.clone(), first.data.clone()


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (lambda model: swap(model, *(f"encoder.local_layers.1.attention.{x}_proj.weight" for x in "qk")), "features"),
        (lambda model: model.projector.bias.data.zero_(), "image_tokens"),
        (lambda model: model.decoder.layers[1].attention_gate.data.neg_(), "logits"),
        (lambda model: model.decoder.norm.weight.data[3:4].mul_(1.01), "logits"),
    ],
)
def test_a_fault_of_ours_is_seen_where_it_is(whole, monkeypatch, fault, seen):
    def faulty(*arguments, **named):
        model = load_model(*arguments, **named)
        fault(model)
        return model

    monkeypatch.setattr("vlm.verify.comparison.load_model", faulty)
    # With our faulty weights in its arrangement Meta's code would agree.
    monkeypatch.setattr(
        "vlm.verify.comparison._MODULES", {"transformers": ("transformers",), "llama-models": ("none",)}
    )
    report = verify(str(whole), device="cpu")
    assert not report.passed
    order = ["features", "image_tokens", "logits"]
    row = next(row for row in report.rows if row.oracle == "transformers, repaired" and row.features is not None)
    differing = [name for name in order if getattr(row, name) > row.tolerance]
    assert differing == order[order.index(seen) :]


def test_a_wrong_rope_factor_is_seen_in_text_alone(whole, monkeypatch):
    def other_factor(folder):
        config = read_config(folder)
        scaling = replace(config.decoder.rope_scaling, factor=32.0, original_context=32)
        return replace(config, decoder=replace(config.decoder, rope_scaling=scaling))

    monkeypatch.setattr("vlm.checkpoint.read_config", other_factor)
    row = next(row for row in verify(str(whole), device="cpu").rows if row.oracle == "transformers, repaired")
    assert (row.case, row.verdict) == ("text only", "FAIL")


def test_an_oracle_that_fails_is_a_finding(whole, monkeypatch):
    def broken(*_, **__):
        raise KeyError("rope_parameters")

    monkeypatch.setattr("vlm.verify.transformers_oracle.load", broken)
    report = verify(str(whole), device="cpu")
    assert report.problems == ["transformers failed with KeyError: 'rope_parameters'"]
    assert verdicts(report) == {"llama-models": {"PASS"}}
    assert not report.passed


def test_an_oracle_that_reads_other_weights_is_a_finding(whole, damaged, monkeypatch):
    """transformers itself would go on with random values for what is missing."""
    from vlm.verify import transformers_oracle

    rewrite(damaged, lambda tensors: tensors.pop(QUERIES))
    with pytest.raises(VLMError, match=r"self_attn\.q_proj"):
        transformers_oracle.load(damaged, has_vision=True, dtype=torch.float32, device=torch.device("cpu"))


def test_without_oracles_it_says_that_nothing_was_compared_and_how_to_install_them(whole, monkeypatch):
    real = importlib.util.find_spec
    hidden = ("transformers", "llama_models")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))
    report = verify(str(whole), device="cpu")
    assert report.verdict == "PASS of the files alone; nothing was compared"
    assert any('pip install "transformers' in note for note in report.notes)
    assert any("pip install llama-models fairscale" in note for note in report.notes)


# The verdict


def row(**changes) -> Row:
    right = {"features": 1e-6, "image_tokens": 1e-6, "logits": 1e-6, "num_equal": 8, "num_greedy": 8}
    return Row(oracle="o", case="c", counts=True, tolerance=1e-5, **(right | changes))


@pytest.mark.parametrize("changes", [{name: value} for name in ("features", "image_tokens", "logits")
                                     for value in (2e-5, float("nan"), float("inf"))] + [{"num_equal": 7}])  # fmt: skip
def test_each_column_can_fail_alone(changes):
    assert row().verdict == "PASS"
    assert row(**changes).verdict == "FAIL"
    assert not Report(model="m", reference="meta", rows=[row(), row(**changes)]).passed


def test_another_token_is_a_difference_unless_it_ties():
    theirs = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0], [2.0 - 1e-6, 2.0, 0.0], [0.0, 0.0, 0.0]])
    case = Case("c", Question([5, 2, 1, 0], 1, None, []), Answers([], [], theirs[:1]))
    assert _row("o", case, Answers([], [], theirs), True, 1e-5).num_equal == 3
    assert _row("o", case, Answers([], [], theirs), True, 1e-8).num_equal == 2


# The command


def test_the_command_prints_a_table_and_leaves_with_0_or_1(whole, damaged):
    done = CliRunner().invoke(main, ["verify", str(whole), "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    *lines, last = done.stdout.splitlines()
    assert lines[0] == "## vlm verify whole: PASS"
    table = [line for line in lines if line.startswith("|")]
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == [
        "oracle", "case", "features", "image tokens", "logits", "greedy tokens", "verdict",
    ]  # fmt: skip
    assert len(table) == 2 + 3 * 2
    record = json.loads(last)
    assert (record["passed"], record["reference"], record["problems"]) == (True, "meta", [])
    assert set(record["facts"]) >= {"versions", "machine", "reference in force", "tolerance", "decoder"}
    assert len(record["rows"]) == 6
    assert done.stderr == ""  # no bar, no warning of a library
    rewrite(damaged, lambda tensors: tensors.pop(QUERIES))
    failed = CliRunner().invoke(main, ["verify", str(damaged), "--device", "cpu", "--json"])
    assert failed.exit_code == 1
    assert failed.stdout.startswith("## vlm verify damaged: FAIL")
    assert QUERIES in failed.stdout
    assert json.loads(failed.stdout.splitlines()[-1])["passed"] is False
