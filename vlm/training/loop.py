"""The one loop: samples to gradients to steps, with a checkpoint now and then; what is learned is the objective's."""

import functools
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vlm.checkpoint.peft import save_adapter
from vlm.errors import VLMError
from vlm.loading import DTYPES
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.training.checkpoints import CheckpointFolder, State
from vlm.training.config import TrainConfig
from vlm.training.data.batches import Example, StepData
from vlm.training.journal import Journal, draw_curves
from vlm.training.objectives import DirectPreference, Objective
from vlm.training.optimizers import Optimizers
from vlm.training.reference import reference_margins
from vlm.training.run_folder import open_folder
from vlm.training.setup import num_steps, open_data, open_model, open_objective
from vlm.training.trained import ADAPTER, trained_weights

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What one step did."""

    loss: float | None
    """Mean over what was learned from; None where there was nothing."""
    grad_norm: float | None
    skipped: bool
    """Whether loss or gradient was not finite, and no step taken."""


class Report(NamedTuple):
    """What a run came to."""

    steps: int
    loss: float | None
    """Of the last step that had one."""
    bad_steps: int
    poison: int
    failed_saves: int
    result: Path
    """Folder of the model, or of the adapter."""
    curves: Path | None


class Training:
    """A run in the folder `config.out`: begun, or taken up where it stopped."""

    def __init__(self, config: TrainConfig):
        self.config, self.out = config, Path(config.out)
        self.vlm = open_model(config)
        self.model = self.vlm.model
        self.objective: Objective = open_objective(config, self.vlm)
        self.data = open_data(config, self.vlm, self.objective)
        self.num_steps = num_steps(config, self.data)
        self.weights = trained_weights(self.model)
        self.optimizers = Optimizers(self.weights, config.optimizer)
        self.num_done = self.bad_steps = self.bad_in_row = self.failed_saves = 0
        self.loss: float | None = None
        self.elapsed_s = 0.0
        self.stopping = False
        open_folder(self.out, config, {"samples": self.data.order.sizes})
        self.checkpoints = CheckpointFolder(self.out / "checkpoints", keep=config.checkpoints.keep)
        self.checkpoints.clean()
        if isinstance(self.objective, DirectPreference) and config.objective.reference == "start":
            self.objective.reference = reference_margins(self.model, self.objective, self.data, self.out)
        self._take_up()
        self.journal = Journal(self.out, num_done=self.num_done)
        if config.recompute:
            recompute_layers(self.model)

    def stop(self, *_) -> None:
        """Have the run save itself and end after the step under way; a handler of signals."""
        self.stopping = True

    def train(self) -> Report:
        """Take the steps that are left and write what was trained.

        Raises: VLMError after `max_bad_steps` bad steps in a row; KeyboardInterrupt after `stop`, once it is saved.
        """
        steps = Subset(self.data, range(self.num_done, self.num_steps))
        ahead = {"num_workers": self.config.workers} if self.config.workers else {}
        device = self.vlm.device
        devices = [] if device.type == "cpu" else [device.index or 0]
        self.model.train()
        # What a step draws depends on the seed and the step alone; the caller's generator is left as it was.
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            bar = tqdm(total=self.num_steps, initial=self.num_done, unit="step", disable=None)
            with bar:
                for data in DataLoader(steps, batch_size=None, collate_fn=_same, **ahead):
                    self._advance(data, bar)
                    if self.stopping and self.num_done < self.num_steps:
                        self._save()
                        raise KeyboardInterrupt
        self.model.eval()
        return self._finish()

    def _advance(self, data: StepData, bar: tqdm) -> None:
        """Take one step, and log and save it where it is time to."""
        since = time.perf_counter()
        share = self.config.schedule.share(self.num_done, self.num_steps)
        outcome = self.step(data.examples, share)
        seconds = time.perf_counter() - since
        self.num_done += 1
        self.elapsed_s += seconds
        for sample in data.poison:
            self.journal.poison(sample)
        self.loss = outcome.loss if outcome.loss is not None else self.loss
        num_tokens = sum(len(row.ids) for example in data.examples for row in example.rows)
        lr = share * self.config.optimizer.lr
        if self.num_done % self.config.log_every == 0 or self.num_done == self.num_steps or outcome.skipped:
            row = {"step": self.num_done, **outcome._asdict(), "lr": lr, "samples": len(data.examples)}
            self.journal.write(row | {"tokens": num_tokens, "elapsed_s": round(self.elapsed_s, 3)})
        bar.update()
        loss = "-" if self.loss is None else f"{self.loss:.4g}"
        bar.set_postfix_str(f"loss {loss}, lr {lr:.2g}, {num_tokens / seconds:,.0f} tokens/s", refresh=False)
        self._judge(outcome)
        if self.num_done % self.config.checkpoints.every == 0 or self.num_done == self.num_steps:
            self._save()

    def step(self, examples: Sequence[Example], share: float) -> Outcome:
        """Learn from `examples` at `share` of the peak learning rate.

        Where loss or gradient is not finite neither weights nor the state of the optimizers change.
        """
        torch.manual_seed((self.config.seed * 1_000_003 + self.num_done) % 2**63)
        weight = self.objective.weight(examples)
        if weight == 0:
            return Outcome(None, None, skipped=False)
        size = self.config.micro_batch_size or len(examples)
        total = 0.0
        for start in range(0, len(examples), size):
            with self._precision():
                # Divided by the weight of the whole step: parts of unequal length then add up to its mean.
                loss = self.objective.loss(self.model, examples[start : start + size]) / weight
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        norm = float(self.optimizers.clip())
        skipped = not (math.isfinite(total) and math.isfinite(norm))
        if not skipped:
            self.optimizers.set_share(share)
            self.optimizers.step()
        self.optimizers.zero_grad()
        return Outcome(*(value if math.isfinite(value) else None for value in (total, norm)), skipped)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.vlm.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _judge(self, outcome: Outcome) -> None:
        """Count a bad step; too many in a row end the run."""
        self.bad_in_row = self.bad_in_row + 1 if outcome.skipped else 0
        if not outcome.skipped:
            return
        self.bad_steps += 1
        logger.warning("step %d is left out: its loss or gradient is not finite", self.num_done)
        if self.bad_in_row >= self.config.max_bad_steps:
            raise VLMError(
                "invalid_request",
                f"{self.bad_in_row} steps in a row had a loss or gradient that is not finite; the run stopped at step "
                f"{self.num_done}; lower optimizer.lr, look at the data of these steps, or train in float32",
            )

    def _save(self) -> None:
        """Write a checkpoint; whether a failure ends the run is a setting."""
        numbers = {"bad_steps": self.bad_steps, "bad_in_row": self.bad_in_row, "loss": self.loss}
        numbers |= {"elapsed_s": self.elapsed_s, "failed_saves": self.failed_saves}
        try:
            self.checkpoints.save(State(self.num_done, self.weights, self.optimizers.state(), numbers))
        except VLMError as error:
            self.failed_saves += 1
            logger.error("NO CHECKPOINT of step %d: %s", self.num_done, error.message)
            if self.config.checkpoints.on_failure == "stop":
                raise

    def _take_up(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        state = self.checkpoints.load()
        if state is None:
            return
        if set(state.weights) != set(self.weights):
            raise VLMError("checkpoint_invalid", "the checkpoint trains other weights; give another folder as out")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state.weights[name])
        self.optimizers.load_state(state.optimizers)
        self.num_done = state.step
        for name, value in state.numbers.items():
            setattr(self, name, value)

    def _finish(self) -> Report:
        result = self.out / ("adapter" if self.config.trained.lora else "model")
        if self.config.trained.lora:
            save_adapter(self.model, result, ADAPTER, base=self.config.model.source)
        else:
            dtype = DTYPES[self.config.export_dtype]
            VLM(self.model.to(dtype), self.vlm.tokenizer).save_pretrained(result)
        counts = (self.bad_steps, self.journal.num_poison, self.failed_saves)
        return Report(self.num_done, self.loss, *counts, result, draw_curves(self.out))


def recompute_layers(model: VisionLanguageModel) -> None:
    """Keep no activations inside the layers; they are computed again when gradients are."""
    encoder = [] if model.encoder is None else [*model.encoder.local_layers, *model.encoder.global_layers]
    for layer in [*encoder, *model.decoder.layers]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def _same(data: StepData) -> StepData:
    return data
