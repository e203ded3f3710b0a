"""The checks in their order: sums of the files, settings, weights, then our model beside each oracle."""

import importlib.metadata
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm import checkpoint
from vlm.checkpoint import hf_config
from vlm.checkpoint.checksums import MANIFEST
from vlm.errors import VLMError
from vlm.loading import choose_device, choose_dtype
from vlm.machine import processor
from vlm.model_sizes import describe, describe_reference
from vlm.verify.comparison import Comparison
from vlm.verify.report import Report

_VERSIONS = ("sightline-vlm", "torch", "transformers", "llama-models")


def verify(source: str, *, device: str = "auto", dtype: str = "auto", reference: str = "meta") -> Report:
    """Return what there is to say about a checkpoint: a folder, or a name of the Hugging Face Hub.

    Raises: VLMError where there is nothing to look at, or no such device or dtype. What is wrong with the checkpoint
        is in the report.
    """
    chosen_device, chosen_dtype = choose_device(device), choose_dtype(dtype)
    folder = checkpoint.resolve(source)
    report = Report(model=folder.resolve().name, reference=reference)
    report.facts["versions"] = ", ".join(f"{name} {_version(name)}" for name in _VERSIONS)
    report.facts["machine"] = f"{processor()}, {platform.system()}, Python {platform.python_version()}"
    with _finding(report):
        report.facts["sha256"] = _check_sums(folder)
    with _finding(report):
        config = checkpoint.read_config(folder).with_reference(reference).exact()
        report.facts["layout"] = "Hugging Face" if (folder / hf_config.CONFIG).exists() else "Meta"
        report.facts |= describe(config)
        report.facts["reference in force"] = describe_reference(config)
        if not any((folder / name).exists() for name in (hf_config.CONFIG, "params.json")):
            raise VLMError("checkpoint_invalid", "GGUF has no oracle; vlm convert it to --format hf and verify that")
        tokenizer = checkpoint.read_tokenizer(folder)
        Comparison(folder, config, report).run(tokenizer, dtype=chosen_dtype, device=chosen_device)
    return report


@contextmanager
def _finding(report: Report) -> Iterator[None]:
    """Turn a refusal into a finding, with everything it lists."""
    try:
        yield
    except VLMError as error:
        report.problems.append(f"{error.report} [{error.code}]")


def _check_sums(folder: Path) -> str:
    if not (folder / MANIFEST).exists():
        return f"no {MANIFEST} in the folder; values that were swapped or flipped cannot be noticed by reading"
    return f"{checkpoint.verify_checksums(folder)} files match {MANIFEST}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
