"""The one loop: samples to gradients to steps, with a checkpoint now and then; what is learned is the objective's."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from vlm.checkpoint.peft import save_adapter
from vlm.errors import VLMError
from vlm.loading import DTYPES, choose_device
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.training.answers import Answers
from vlm.training.checkpoints import CheckpointFolder, State
from vlm.training.config import TrainConfig
from vlm.training.data.ahead import Ahead
from vlm.training.data.batches import Example, StepData
from vlm.training.deterministic import deterministic_algorithms
from vlm.training.journal import Journal, draw_curves
from vlm.training.objectives import DirectPreference, Objective, PolicyGradient, StartModel
from vlm.training.optimizers import Optimizers
from vlm.training.parallel.placement import place
from vlm.training.parallel.shares import Counts, added, counted, evened, in_parts, share_of
from vlm.training.parallel.world import Silent, World
from vlm.training.reference import reference_margins
from vlm.training.run_folder import check_settings, keep_settings, lock_folder, settings_of
from vlm.training.setup import num_steps, open_data, open_model, open_objective
from vlm.training.speed import Speed
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
        self.world = World(config.parallel, choose_device(config.device))
        with self.world.main_first():
            self.lock = lock_folder(self.out) if self.world.is_main else None
        # Several processes take a model apart before they put it on their devices.
        self.vlm = open_model(config if self.world.size == 1 else replace(config, device="cpu"))
        self.model = self.vlm.model
        self.objective: Objective = open_objective(config, self.vlm, self.world.device)
        with self.world.main_first():
            self.data = open_data(config, self.vlm, self.objective)
        self.num_steps = num_steps(config, self.data)
        self.num_done = self.bad_steps = self.bad_in_row = self.failed_saves = 0
        self.loss: float | None = None
        self.elapsed_s = 0.0
        self.told_to_stop = False
        settings = settings_of(config, self.data)
        with self.world.main_first():
            check_settings(self.out, settings)
        self.checkpoints = CheckpointFolder(self.out / "checkpoints", keep=config.checkpoints.keep, world=self.world)
        self.checkpoints.clean()
        self._take_reference(settings)
        self.learner, self.weights, self.names, optimizer = place(config, self.world, self.model, self.objective)
        self.weights, self.names = {**self.weights, **self.objective.weights}, self.names | set(self.objective.weights)
        self.optimizers = Optimizers(self.weights, optimizer, self.world)
        self._take_up()
        self.journal = self.answers = Silent()
        self.speed: Speed | None = None
        if config.recompute:
            recompute_layers(self.model)
        with self.world.main_first():
            if self.world.is_main:
                self.journal = Journal(self.out, num_done=self.num_done, tensorboard=config.tensorboard)
                self.answers = Answers(config.samples, self.vlm, self.out, num_done=self.num_done)
                # Last of all: settings that are refused are not yet those of the run.
                keep_settings(self.out, settings)

    def _take_reference(self, settings: dict) -> None:
        """Give the objective what the model says before it is trained, if it looks at that."""
        wanted = self.config.objective.reference == "start"
        if isinstance(self.objective, DirectPreference) and wanted:
            with self._watch(), self._precision():
                margins = reference_margins(self.model, self.objective, self.data, self.out, self.world, settings)
            self.objective.reference = self.data.usable = margins
        if isinstance(self.objective, PolicyGradient):
            self.objective.world = self.world
            if wanted:
                self.objective.reference = StartModel(self.model, self.world.device)

    def stop(self, *_) -> None:
        """Have the run save itself and end after the step under way; a handler of signals."""
        # Nothing else: processes are told at different moments, and only what they agree on may be acted on.
        self.told_to_stop = True

    def train(self) -> Report:
        """Take the steps that are left and write what was trained.

        Raises: VLMError after `max_bad_steps` bad steps in a row; KeyboardInterrupt after `stop`, and VLMError where
        processes that read samples die again and again, once it is saved.
        """
        with self._watch():
            return self._train()

    @contextlib.contextmanager
    def _watch(self) -> Iterator[None]:
        """Hold what is computed to the settings, and have errors say what ended the run."""
        with self.world.watch(), deterministic_algorithms(self.config.deterministic):
            yield

    def _train(self) -> Report:
        steps = range(self.num_done, self.num_steps)
        device = self.vlm.device
        devices = [] if device.type == "cpu" else [device.index or 0]
        self.model.train()
        # What a step draws depends on the seed and the step alone; the caller's generator is left as it was.
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            bar = tqdm(
                total=self.num_steps, initial=self.num_done, unit="step", disable=None if self.world.is_main else True
            )
            if self.world.from_main(not bar.disable):
                dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
                self.speed = Speed(device, dtype, self.world)
            with bar, Ahead(share_of(self.data, self.world), steps, self.config.workers) as ahead:
                while self.num_done < self.num_steps:
                    told = self.told_to_stop
                    data = None if told else ahead.read()
                    self._go_on_or_end(told, ahead.failure)
                    self._advance(data, bar)
        self.model.eval()
        return self._finish()

    def _go_on_or_end(self, told: bool, failure: str | None) -> None:
        """Save the run and end it, in all processes, if one of them was told to stop or cannot read on."""
        all_told, failures = zip(*self.world.gather((told, failure)), strict=True)
        if not any(all_told) and not any(failures):
            return
        if self.num_done:
            self._save()
        if any(all_told):
            raise KeyboardInterrupt
        found = next(one for one in failures if one)
        raise VLMError(
            "device_unavailable",
            f"at step {self.num_done + 1} those that read samples died again and again ({found!s:.120}); what was "
            "learned before is saved; free some memory, or set workers = 0, and run again to go on",
        )

    def _advance(self, data: StepData, bar: tqdm) -> None:
        """Take one step, and log and save it where it is time to."""
        since = time.perf_counter()
        share = self.config.schedule.share(self.num_done, self.num_steps)
        with contextlib.nullcontext() if self.speed is None else self.speed.counting(counted(data).tokens):
            outcome = self._learn(data.examples, share)
        seconds = time.perf_counter() - since
        self.num_done += 1
        self.elapsed_s += seconds
        counts = added(self.world.gather(counted(data), "data"))
        for sample in counts.poison:
            self.journal.poison(sample)
        self.loss = outcome.loss if outcome.loss is not None else self.loss
        self._tell(counts, outcome, share * self.config.optimizer.lr, seconds, bar)
        self._judge(outcome)
        if self.num_done % self.config.checkpoints.every == 0 or self.num_done == self.num_steps:
            self._save()

    def _tell(self, counts: Counts, outcome: Outcome, lr: float, seconds: float, bar: tqdm) -> None:
        """Say in the log and on the terminal what the step came to, and what the model answers now."""
        is_last = self.num_done == self.num_steps
        if self.num_done % self.config.log_every == 0 or is_last or outcome.skipped:
            row = {"step": self.num_done, **outcome._asdict(), "lr": lr, **self.objective.figures}
            row |= {"samples": counts.samples, "tokens": counts.tokens, "elapsed_s": round(self.elapsed_s, 3)}
            self.journal.write(row)
        if self.num_done % self.config.samples.every == 0 or is_last:
            for line in self.answers.ask(self.num_done) or ():
                if not bar.disable:
                    bar.write(line)
        bar.update()
        loss, tokens_per_s = "-" if self.loss is None else f"{self.loss:.4g}", counts.tokens / seconds
        share = "" if self.speed is None else f", {self.speed.share(tokens_per_s):.0%} of peak"
        bar.set_postfix_str(f"loss {loss}, lr {lr:.2g}, {tokens_per_s:,.0f} tokens/s{share}", refresh=False)

    def _learn(self, examples: Sequence[Example], share: float) -> Outcome:
        """Take the updates of one step: one, or for what the model says itself as many as its settings say."""
        torch.manual_seed(self._seed(0))
        with self._precision():
            learned = self.objective.collect(
                self.model, examples, self.config.micro_batch_size or self.config.batch_size
            )
        for _ in range(self.objective.updates):
            outcome = self.step(learned, share)
            if outcome.skipped:
                break
        return outcome

    def step(self, examples: Sequence[Example], share: float) -> Outcome:
        """Learn from `examples` at `share` of the peak learning rate.

        Where loss or gradient is not finite neither weights nor the state of the optimizers change.
        """
        # Those that share a layer draw the same; other samples and other stages draw their own.
        place = self.world.place("pipeline") * self.world.extent("data") + self.world.place("data")
        torch.manual_seed(self._seed(place))
        weight = self.world.total(self.objective.weight(examples), "data")
        if weight == 0:
            return Outcome(None, None, skipped=False)
        parts = in_parts(examples, self.config.micro_batch_size, apart=self.objective.rows_apart)
        if self.world.size > 1:
            parts = evened(parts, self.world, self.data, self.model.config.vision, self.objective)
        total = self.world.total(self.learner.gradients(parts, weight), "data", "pipeline")
        norm = float(self.optimizers.clip())
        skipped = not (math.isfinite(total) and math.isfinite(norm))
        if not skipped:
            self.optimizers.set_share(share)
            self.optimizers.step()
        self.optimizers.zero_grad()
        return Outcome(*(value if math.isfinite(value) else None for value in (total, norm)), skipped)

    def _precision(self) -> torch.autocast:
        """Return the precision of what the model says outside of its loss, which is that of the loss."""
        return torch.autocast(self.vlm.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _seed(self, place: int) -> int:
        return (self.config.seed * 1_000_003 + self.num_done + (place << 40)) % 2**63

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
        state = self.checkpoints.load({name: self.weights.get(name) for name in self.names})
        if state is None:
            return
        fill(self.weights, state.weights)
        self.optimizers.load_state(state.optimizers)
        self.num_done = state.step
        for name, value in state.numbers.items():
            setattr(self, name, value)

    def _finish(self) -> Report:
        result = self.out / ("adapter" if self.config.trained.lora else "model")
        with self.world.main_first():
            if self.world.is_main:
                self._export(result)
        counts = (self.bad_steps, self.journal.num_poison, self.failed_saves)
        return Report(self.num_done, self.loss, *counts, result, draw_curves(self.out) if self.world.is_main else None)

    def _export(self, result: Path) -> None:
        vlm = self.vlm
        if self.world.size > 1:
            # Read back whole: no process had room for more than its share.
            vlm, state = open_model(replace(self.config, device="cpu")), self.checkpoints.newest_alone()
            if state is None or state.step != self.num_done:
                raise VLMError(
                    "checkpoint_invalid",
                    f"the last checkpoint is not of step {self.num_done}, so that nothing can be written of it; "
                    "free some space and run again to go on",
                )
            fill(trained_weights(vlm.model), state.weights)
        if self.config.trained.lora:
            save_adapter(vlm.model, result, ADAPTER, base=self.config.model.source)
        else:
            dtype = DTYPES[self.config.export_dtype]
            VLM(vlm.model.to(dtype), vlm.tokenizer).save_pretrained(result)


@torch.no_grad()
def fill(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy what a checkpoint holds into the weights."""
    for name, weight in weights.items():
        weight.copy_(values[name])


def recompute_layers(model: VisionLanguageModel) -> None:
    """Keep no activations inside the layers; they are computed again when gradients are."""
    encoder = [] if model.encoder is None else [*model.encoder.local_layers, *model.encoder.global_layers]
    for layer in [*encoder, *model.decoder.layers]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
