"""One training run in a folder: it can be stopped at any moment and goes on where it was.

One process a core: on small matrices two processes of one thread do more than one of two. A single process takes a CUDA
GPU where there is one, and all cores but one to draw for it.
"""

import json
import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vision_encoder.preprocess import ImageProcessor
from vlm.config import preset
from vlm.errors import VLMError
from vlm.processes import join, leave_group, num_processes
from vlm.training.reader.data import ReaderBatch, ReaderData
from vlm.training.reader.folder import load_reader, save_reader, without_positions
from vlm.training.reader.model import Losses, Reader
from vlm.training.reader.optimizers import optimizers_of, set_rates
from vlm.training.reader.real_charts import RealCharts
from vlm.training.reader.real_pictures import CANVAS
from vlm.training.reader.real_print import RealPrint
from vlm.training.reader.shown import ShownBatch, ShownData
from vlm.training.reader.sinusoids import retile
from vlm.training.reader.stages import Stage
from vlm.training.reader.start import wire_encoder
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.reader.wires import wire_pointers

logger = logging.getLogger(__name__)

ON_A_CPU = 8
"""Pictures at once, by each process."""
BYTES_A_PICTURE = 2**28
"""Of a GPU's memory, a sheet twice as much: a picture keeps 140 MB for its gradient, one of two by two tiles 460."""
WARM_UP = 40
"""Batches in which the rates rise where a stage begins at higher ones than the last ended with."""
KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
    SDPBackend.CUDNN_ATTENTION,
]
"""Of attention on a GPU, the first that fits."""
ENDLESS = 10**7
"""Batches of a stage that ends by the clock."""
SAVE_EVERY_S = 240
LOG_EVERY = 20


class Run:
    """A training run in a folder: the model, where it stands, and its log."""

    def __init__(
        self,
        out: Path,
        stages: tuple[Stage, ...],
        seed: int,
        start: Path | None = None,
        real: Path | None = None,
        printed: Path | None = None,
        minutes: float | None = None,
    ):
        """Take up the run in `out`, or begin one: from nothing, or from the weights of the reader in folder `start`.

        Stages that take real charts find them in folder `real`, which is in ChartQA's layout, and those with real print
        in `printed`, which is in OpenCQA's. With `minutes` all stages end by the clock, rather than by their batches,
        and rates fall by it; each has as large a part of that time as it has of the batches.

        Raises: VLMError with `invalid_request` where the run in `out` was begun with other options.
        """
        self.out, self.stages, self.seed = out, stages, seed
        self.minutes = minutes
        self.rank, self.num_ranks = join_processes()
        self.device = torch.device("cuda" if self.num_ranks == 1 and torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.in_bfloat16 = self.device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        """Whether products are in bfloat16, weights and sums in float32: a CPU takes five sixths of the time."""
        torch.manual_seed(seed)
        self.tokenizer = reader_tokenizer()
        vision = preset("default").vision
        self.real = RealCharts(real, ImageProcessor(vision), silent=self.rank > 0) if real else None
        self.printed = RealPrint(printed, ImageProcessor(vision), silent=self.rank > 0) if printed else None
        self.reader = (load_reader(start) if start else Reader(preset("default"))).to(self.device)
        self.optimizers = optimizers_of(self.reader)
        self.stage_index = self.batch_index = 0
        self.elapsed_s = 0.0
        self.recent: Counter[str] = Counter()
        """Losses summed since they were last logged."""
        self.averaged: AveragedModel | None = None
        """The mean so far of what a stage trains, in one that ends with it."""
        self.stopping = False
        out.mkdir(parents=True, exist_ok=True)
        self._resume()

    def _trained(self) -> Iterator[nn.Parameter]:
        return (weight for weight in self.reader.parameters() if weight.requires_grad)

    def train(self) -> None:
        """Go through the stages that are left and write the model to `out`/model.

        Raises: SystemExit after `stop`, once the run is saved.
        """
        for stage in self.stages[self.stage_index :]:
            self._train_stage(stage)
            self.stage_index, self.batch_index = self.stage_index + 1, 0
            self.save()
        if self.rank == 0:
            save_reader(self.reader, self.out / "model")
        if self.num_ranks > 1:
            leave_group()

    def _train_stage(self, stage: Stage) -> None:
        on_cpu = self.device.type == "cpu"
        num_images = stage.diet.num_images
        num_parts = math.ceil(num_images / self.num_ranks / self._pictures_at_once())
        num_batches = stage.num_batches if self.minutes is None else ENDLESS
        data = (ShownData if stage.decoder_alone else ReaderData)(
            preset("default").vision,
            self.tokenizer,
            replace(stage.diet, num_images=num_images // num_parts),
            num_batches=stage.num_batches * num_parts,
            seed=self.seed + self.stage_index,
            rank=self.rank,
            num_ranks=self.num_ranks,
            real=self.real,
            printed=self.printed,
        )
        remaining = Subset(data, range(self.batch_index * num_parts, num_batches * num_parts))
        batches = DataLoader(
            remaining,
            batch_size=None,
            num_workers=1 if on_cpu else max(1, len(os.sched_getaffinity(0)) - 1),
            prefetch_factor=6 if on_cpu else 2,
            pin_memory=not on_cpu,
            worker_init_fn=_leave_signals_to_the_run,
        )
        # What is held is in the precision that it ships in, and takes half the time.
        precision = torch.bfloat16 if stage.decoder_alone else torch.float32
        self.reader.model.encoder.to(precision)
        self.reader.model.projector.to(precision)
        trained = self.reader
        if self.num_ranks > 1:
            # The decoder takes no part in a batch of pages alone, the encoder none where it is held.
            all_used = stage.diet.share_pages == 0 and not stage.decoder_alone
            trained = DistributedDataParallel(self.reader, find_unused_parameters=not all_used)
        self._average(stage, 0.0)
        since = saved = time.monotonic()
        bar = self._bar(stage)
        for parts in zip(*[iter(batches)] * num_parts, strict=True):
            self.recent.update(self._step(trained, stage, parts))
            self.batch_index += 1
            now = time.monotonic()
            bar.update(1 if self.minutes is None else round(self.elapsed_s + now - since) - round(self.elapsed_s))
            self.elapsed_s, since = self.elapsed_s + now - since, now
            if self.batch_index % LOG_EVERY == 0:
                self._log(stage)
            stopping = self._agree()
            self._average(stage, self._done(stage))
            if stopping or now - saved > SAVE_EVERY_S:
                saved = now
                self.save()
            if stopping:
                raise SystemExit(143)
            if self._done(stage) >= 1:
                break
        if self.averaged:
            self._trained_part(stage).load_state_dict(self.averaged.module.state_dict())
            self.averaged = None

    def _average(self, stage: Stage, done: float) -> None:
        """Take what `stage` trains into its mean where it is time for that; `done` of the stage is over.

        The mean is better than the last: what a short stage learns beside what it is for goes its own way each time.
        Source: Wortsman et al. 2022, "Model soups" and "Robust fine-tuning of zero-shot models".
        """
        taken = int(self.averaged.n_averaged) if self.averaged else 0
        for _ in [share for share in stage.mean_of[taken:] if share <= done]:
            part = self._trained_part(stage)
            self.averaged = self.averaged or AveragedModel(part)
            self.averaged.update_parameters(part)

    def _trained_part(self, stage: Stage) -> nn.Module:
        """Return what `stage` trains of what ships, with the positions of tiles as they ship."""
        self._retile(CANVAS)
        return self.reader.model.decoder if stage.decoder_alone else self.reader.model

    def _pictures_at_once(self) -> int:
        """Return how many single tiles fit in a process's memory; gradients of a larger batch are added up."""
        if self.device.type == "cpu":
            return ON_A_CPU
        return max(ON_A_CPU, torch.cuda.get_device_properties(self.device).total_memory // BYTES_A_PICTURE)

    def stop(self, *_) -> None:
        """Have the run save itself and end after the batch under way; a handler of signals."""
        self.stopping = True

    def _agree(self) -> bool:
        """Have all processes read the same clock and return whether any was told to stop: all end after one batch."""
        told = torch.tensor([float(self.stopping), self.elapsed_s], dtype=torch.float64)
        if self.num_ranks > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        stopping, self.elapsed_s = told.tolist()
        return bool(stopping)

    def _done(self, stage: Stage) -> float:
        """Return how much of `stage`, the one under way, lies behind."""
        if self.minutes is None:
            return self.batch_index / stage.num_batches
        began, seconds = self._time_of(stage)
        return min(1.0, max(0.0, self.elapsed_s - began) / seconds)

    def _time_of(self, stage: Stage) -> tuple[float, float]:
        """Return when the stage under way begins in a run by the clock, and how long it takes, in seconds."""
        batches = [each.num_batches for each in self.stages]
        seconds_a_batch = 60 * self.minutes / sum(batches)
        return seconds_a_batch * sum(batches[: self.stage_index]), seconds_a_batch * stage.num_batches

    def _bar(self, stage: Stage) -> tqdm:
        """Return a bar of batches, or by the clock of seconds."""
        if self.minutes is None:
            total, begun, unit = stage.num_batches, self.batch_index, "batch"
        else:
            began, seconds = self._time_of(stage)
            total, begun, unit = round(seconds), max(0.0, self.elapsed_s - began), "s"
        return tqdm(total=total, initial=round(begun), disable=None, unit=unit, desc=stage.name)

    def _step(self, trained: nn.Module, stage: Stage, parts: Sequence[ReaderBatch | ShownBatch]) -> dict[str, float]:
        """Take one optimizer step on a batch that comes in parts; one whose gradient is not finite is left out."""
        done = self._done(stage)
        before = self.stages[self.stage_index - 1].rates[1] if self.stage_index else 0.0
        warm = min(1.0, (self.batch_index + 1) / WARM_UP) if before < stage.rates[0] else 1.0
        share = warm * (stage.rates[0] + done * (stage.rates[1] - stage.rates[0]))
        set_rates(self.optimizers, share)
        self.reader.zero_grad(set_to_none=True)
        means: Counter[str] = Counter()
        for batch in parts:
            # torch's loader makes lists of tuples.
            self._retile(tuple(batch.canvas))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16), self._kernels():
                losses = trained(batch.to(self.device))
            total = sum(weight * loss for weight, loss in zip(stage.weights, losses, strict=True) if weight)
            (total / len(parts)).backward()
            # One call for all, for each waits for the GPU.
            told = torch.stack([loss.detach().float() for loss in losses]).tolist()
            means.update({name: loss / len(parts) for name, loss in zip(Losses._fields, told, strict=True)})
        norm = float(nn.utils.clip_grad_norm_(self._trained(), 1.0))
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            wire_encoder(self.reader.model.encoder)
            wire_pointers(self.reader.model)
        else:
            logger.warning("a step with a gradient that is not finite was left out")
        return means | {"norm": norm, "steps": 1}

    def _kernels(self) -> AbstractContextManager:
        """Return where a GPU tries cuDNN's attention last: it makes a plan for each shape, and questions have many.

        For the many rows of pictures, whose shapes are few, `vision_encoder.attention` puts it first.
        """
        return sdpa_kernel(KERNELS, set_priority=True) if self.device.type == "cuda" else nullcontext()

    def _retile(self, canvas: tuple[int, int]) -> None:
        """Spare single tiles the missing ones that the model would encode beside them."""
        vision = preset("default").vision
        vision = replace(vision, max_tiles=1) if canvas == (1, 1) else vision
        if self.reader.model.config.vision != vision:
            retile(self.reader.model, vision)

    def _log(self, stage: Stage) -> None:
        """Append mean losses since the last time and the shares of whole replies that were right, of this process."""
        right = self.reader.shares_right()
        num_steps = self.recent.pop("steps")
        if self.rank == 0:
            row = {
                "stage": stage.name,
                "batch": self.batch_index,
                "elapsed_s": round(self.elapsed_s),
                **{name: round(total / num_steps, 4) for name, total in self.recent.items()},
                "exact": right,
            }
            with (self.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        self.recent.clear()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        if self.rank:
            return
        state = {
            "options": self._options(),
            "reader": without_positions(self.reader),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "elapsed_s": self.elapsed_s,
            "stage": self.stage_index,
            "batch": self.batch_index,
            "averaged": self.averaged and without_positions(self.averaged),
        }
        torch.save(state, self.out / "checkpoint.pt.new")
        (self.out / "checkpoint.pt.new").replace(self.out / "checkpoint.pt")

    def _options(self) -> dict[str, object]:
        """Return what a run is begun with and has to go on with; of real pictures only whether there are any."""
        return {
            "stages": [stage.name for stage in self.stages],
            "minutes": self.minutes,
            "seed": self.seed,
            "real": self.real is not None,
            "print": self.printed is not None,
        }

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        for option, begun in state.get("options", {}).items():
            if begun != (now := self._options()[option]):
                raise VLMError(
                    "invalid_request",
                    f"the run in {self.out.name} was begun with {option} = {begun}, not {now}; give what it was begun "
                    "with, or another folder for --out",
                )
        self.reader.load_state_dict(state["reader"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if averaged := state.get("averaged"):
            self.averaged = AveragedModel(self._trained_part(self.stages[state["stage"]]))
            self.averaged.load_state_dict(averaged, strict=False)
        self.elapsed_s, self.stage_index, self.batch_index = state["elapsed_s"], state["stage"], state["batch"]


def _leave_signals_to_the_run(_: int) -> None:
    """Ignore SIGTERM in a process that draws: torchrun sends it to all, and the run must take its last step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def join_processes() -> tuple[int, int]:
    """Return this process's rank and how many there are, on CPUs."""
    if (count := num_processes()) > 1:
        join(torch.device("cpu"))
    return (torch.distributed.get_rank() if count > 1 else 0), count
