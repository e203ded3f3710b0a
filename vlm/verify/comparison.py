"""Our model beside every oracle that is installed, one model in memory at a time.

An oracle reads a folder of its own layout by itself. For a folder of the other layout Meta's code gets our weights in
its arrangement, and transformers a temporary copy in its own, as large as the checkpoint.
"""

import gc
import importlib.util
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vlm.checkpoint import hf_config, load_model, save_model
from vlm.config import ModelConfig
from vlm.errors import VLMError
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer
from vlm.verify.cases import Answers, Case, Question, build_case, case_names
from vlm.verify.report import Report, Row

# Largest difference over the largest value. Seen in float32: 1e-6; a wrong RoPE factor alone gives 1e-4.
TOLERANCES = {torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TRANSFORMERS, META = "transformers", "llama-models"
_MODULES = {TRANSFORMERS: ("transformers",), META: ("llama_models", "fairscale")}
_INSTALL = {TRANSFORMERS: 'pip install "transformers>=5.17"', META: "pip install llama-models fairscale"}


class Comparison:
    """The rows of a report: our answers to the built-in cases beside those of the oracles."""

    def __init__(self, folder: Path, config: ModelConfig, report: Report):
        self.folder, self.config, self.report = folder, config, report
        self.is_hf = (folder / hf_config.CONFIG).exists()
        self.oracles = [name for name in (META, TRANSFORMERS) if self._can_answer(name)]
        self.cases: list[Case] = []
        self.bar: tqdm | None = None

    def run(self, tokenizer: Tokenizer, *, dtype: torch.dtype | None, device: torch.device) -> None:
        """Load and ask our model, then each oracle.

        Raises: VLMError for what is wrong with the checkpoint.
        """
        names = case_names(self.config.vision is not None)
        num_passes = 1 + len(self.oracles) + (TRANSFORMERS in self.oracles and self.config.vision is not None)
        with (
            tqdm(total=len(names) * num_passes, unit="case", disable=None, leave=False) as self.bar,
            tempfile.TemporaryDirectory(prefix="vlm-verify-") as scratch,
        ):
            copy = Path(scratch) / "copy"
            dtype, meta_tensors = self._ask_ours(tokenizer, names, dtype, device, copy)
            gc.collect()
            if META in self.oracles and self.cases:
                self._foreign(META, lambda: self._ask_meta(meta_tensors, dtype))
            meta_tensors.clear()
            gc.collect()
            if TRANSFORMERS in self.oracles and self.cases:
                readable = self.folder if self.is_hf else copy
                self._foreign(TRANSFORMERS, lambda: self._ask_transformers(readable, dtype, device))

    def _ask_ours(
        self, tokenizer: Tokenizer, names: list[str], dtype: torch.dtype | None, device: torch.device, copy: Path
    ) -> tuple[torch.dtype, dict[str, Tensor]]:
        """Collect our answers; return the dtype, and our weights in Meta's arrangement where Meta's code needs them."""
        self.bar.set_description("our model")
        model = load_model(self.folder, config=self.config, dtype=dtype or "auto", device=device, check_finite=True)
        vlm = VLM(model, tokenizer)
        found = vlm.info
        facts = self.report.facts
        facts["weights"] = f"{found.num_parameters:,} parameters; every name and shape is right, all numbers are finite"
        facts["computed as"] = f"{str(found.dtype).removeprefix('torch.')} on {_device_name(device)}"
        facts["tolerance"] = f"{TOLERANCES[found.dtype]:.0e} of the oracle's largest value"
        for name in names:
            case = build_case(vlm, name)
            if case is None:
                self.report.notes.append(f"{name!r} was left out: it is longer than the model's context")
            else:
                self.cases.append(case)
            self.bar.update()
        if not self.is_hf and TRANSFORMERS in self.oracles:
            save_model(model, copy)
        if self.is_hf and META in self.oracles:
            from vlm.verify import meta_oracle

            if why := meta_oracle.why_not_tensors(model):
                self._leave_out(META, why)
            else:
                return found.dtype, meta_oracle.tensors_of_model(model)
        return found.dtype, {}

    def _ask_meta(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        from vlm.verify import meta_oracle

        if not tensors:
            tensors = meta_oracle.tensors_of_folder(self.folder, self.config, dtype)
        model = meta_oracle.load(self.config, tensors, dtype)
        self._add_rows(META, "meta", dtype, lambda question: meta_oracle.answer(model, question))

    def _ask_transformers(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        from vlm.verify import transformers_oracle as oracle

        model = oracle.load(folder, has_vision=self.config.vision is not None, dtype=dtype, device=device)
        if self.config.vision is None:
            self._add_rows("transformers", self.config.reference, dtype, lambda one: oracle.answer(model, one))
            return
        self._add_rows("transformers, stock", "transformers", dtype, lambda one: oracle.answer(model, one))
        oracle.repair(model)
        self._add_rows("transformers, repaired", "meta", dtype, lambda one: oracle.answer(model, one))

    def _add_rows(self, oracle: str, reference: str, dtype: torch.dtype, ask: Callable[[Question], Answers]) -> None:
        """Add a row for each case; only an oracle of the reference in force decides about the verdict."""
        self.bar.set_description(oracle)
        counts = reference == self.config.reference
        for case in self.cases:
            self.report.rows.append(_row(oracle, case, ask(case.question), counts, TOLERANCES[dtype]))
            self.bar.update()

    def _can_answer(self, oracle: str) -> bool:
        if any(importlib.util.find_spec(module) is None for module in _MODULES[oracle]):
            self._leave_out(oracle, f"not installed; {_INSTALL[oracle]}")
            return False
        if oracle == META:
            from vlm.verify import meta_oracle

            if why := meta_oracle.why_not(self.config):
                self._leave_out(oracle, why)
                return False
        return True

    def _leave_out(self, oracle: str, why: str) -> None:
        self.report.notes.append(f"{oracle} was not asked: {why}")
        self.oracles = [name for name in getattr(self, "oracles", []) if name != oracle]

    def _foreign(self, oracle: str, ask: Callable[[], None]) -> None:
        """Run an oracle's code: whatever it raises is a finding."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ask()
        except VLMError as error:
            self.report.problems.append(f"{oracle}: {error.report}")
        except Exception as error:  # noqa: BLE001
            self.report.problems.append(f"{oracle} failed with {type(error).__name__}: {error!s:.300}")


def _row(oracle: str, case: Case, theirs: Answers, counts: bool, tolerance: float) -> Row:
    question, ours = case.question, case.ours
    features = [_difference(*pair) for pair in zip(ours.features, theirs.features, strict=True)]
    tokens = [_difference(*pair) for pair in zip(ours.tokens, theirs.tokens, strict=True)]
    # The row of an id holds the logits of the next one.
    replies = theirs.logits[question.num_prompt - 1 : -1]
    chosen = replies.gather(1, torch.tensor(question.ids[question.num_prompt :])[:, None])[:, 0]
    ties = replies.max(-1).values - chosen <= tolerance * theirs.logits.abs().max()
    return Row(
        oracle=oracle,
        case=case.name,
        features=max(features) if features else None,
        image_tokens=max(tokens) if tokens else None,
        logits=_difference(ours.logits, theirs.logits[: question.num_prompt]),
        num_equal=int(ties.sum()),
        num_greedy=len(ties),
        counts=counts,
        tolerance=tolerance,
    )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference over the oracle's largest value; infinity for what cannot be compared."""
    if ours.shape != theirs.shape:
        return math.inf
    largest = theirs.float().abs().max()
    difference = float((ours.float() - theirs.float()).abs().max() / largest)
    return difference if math.isfinite(difference) else math.inf


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
