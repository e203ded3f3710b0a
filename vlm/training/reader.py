"""Train a small reader of charts from nothing, on the CPU: the simplest recipe that reads.

Three losses: the answer; the characters printed in each patch, from a head that is dropped afterwards; and two
pointers. At every position that predicts the answer one head of the first cross-attention layer should look at the
evidence's label, one of the second at its value. Without the characters nothing is read, without the pointers no label
is bound to its value. The first batches only read: until that works, asking is wasted.

    torchrun --nproc-per-node 2 -m vlm.training.reader --out runs/reader --minutes 60

One process a core: on small matrices two processes of one thread do more than one of two.
"""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import click
import torch
import torch.distributed
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from adapters.cross_attention import GatedCrossAttentionLayer, ImageKV
from adapters.masks import CrossMask
from vlm.attention import attention_weights
from vlm.config import preset
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer
from vlm.training.reader_data import IGNORED, QuestionBatch, ReaderBatch, ReaderData

logger = logging.getLogger(__name__)

NUM_CODES = 256
CHARACTERS_PER_PATCH = 3
POINTER_WEIGHT = 0.3
BATCH_IMAGES = 16


class Losses(NamedTuple):
    """Mean losses of a batch."""

    answer: Tensor
    characters: Tensor
    pointer: Tensor


class Reader(nn.Module):
    """The model with the head that is dropped after training."""

    def __init__(self):
        super().__init__()
        self.model = VisionLanguageModel(preset("default"))
        vision = self.model.config.vision
        self.character_head = nn.Linear(vision.feature_dim, CHARACTERS_PER_PATCH * NUM_CODES)
        _initialise(self.model)

    def forward(self, batch: ReaderBatch) -> Losses:
        """Return the losses of `batch`."""
        features, tokens = self.model.encode(batch.pixels, [(1, 1)] * len(batch.pixels))
        characters = self._character_loss(features[:, 0, 1:], batch.characters)
        if not batch.groups:
            return Losses(characters.new_zeros(()), characters, characters.new_zeros(()))
        image = self.model.decoder.image_kv(tokens[:, 0])
        parts = [self._question_losses(group, image) for group in batch.groups]
        answer, pointer, num_labels = (torch.stack(part).sum() for part in zip(*parts, strict=True))
        return Losses(answer / num_labels, characters, pointer / num_labels)

    def _character_loss(self, features: Tensor, characters: Tensor) -> Tensor:
        logits = rearrange(self.character_head(features), "m p (i n) -> (m p i) n", n=NUM_CODES).float()
        # Most patches are empty; without the low weight emptiness is all that is learned.
        weight = torch.ones(NUM_CODES)
        weight[0] = 0.1
        return functional.cross_entropy(logits, characters.flatten(), weight=weight)

    def _question_losses(self, group: QuestionBatch, image: ImageKV) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed answer loss, the summed pointer loss and the number of predicted tokens."""
        own = ImageKV(*(part[:, group.image_index] for part in image))
        layers = [layer for layer in self.model.decoder.layers if isinstance(layer, GatedCrossAttentionLayer)][:2]
        inputs: list[Tensor] = []
        hooks = [
            layer.attention.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
            for layer in layers
        ]
        try:
            logits = self.model(group.ids, own, CrossMask(None, None))
        finally:
            for hook in hooks:
                hook.remove()
        predicting = group.labels != IGNORED
        answer = functional.cross_entropy(logits[predicting].float(), group.labels[predicting], reduction="sum")
        pointer = torch.zeros(())
        for index, (layer, x, wanted) in enumerate(zip(layers, inputs, (group.find, group.copy), strict=True)):
            query = layer.attention.queries(x)[:, :1]
            weights = attention_weights(query, own.keys[index, :, :1])[:, 0, :, 1:]
            mass = (weights * wanted[:, None]).sum(-1)[predicting & wanted.any(-1, keepdim=True)]
            pointer = pointer - mass.clamp_min(1e-6).log().sum()
        return answer, pointer, predicting.sum().float()


def _initialise(model: VisionLanguageModel) -> None:
    """Open the gates and shrink the embedding: shut gates are for a decoder that can already speak."""
    nn.init.normal_(model.decoder.embedding.weight, std=0.05)
    for layer in model.decoder.layers:
        if isinstance(layer, GatedCrossAttentionLayer):
            nn.init.ones_(layer.attention_gate)
            nn.init.ones_(layer.mlp_gate)


class Progress:
    """How much of the run is done, by batches or by time, whichever is further."""

    def __init__(self, num_batches: int, minutes: float):
        self.num_batches, self.seconds = num_batches, minutes * 60
        self.elapsed_s = 0.0
        self._since = time.monotonic()

    def done(self, batch: int) -> float:
        """Return the share that is done, the same in every process."""
        now = time.monotonic()
        elapsed = torch.tensor(self.elapsed_s + now - self._since, dtype=torch.float64)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(elapsed, 0)
        self.elapsed_s, self._since = float(elapsed), now
        return min(1.0, max(batch / self.num_batches, self.elapsed_s / self.seconds))


def learning_rate(peak: float, batch: int, done: float, *, warmup: int = 300, decay_from: float = 0.75) -> float:
    """Warm up, stay, and fall to zero over the last quarter."""
    falling = min(1.0, (1 - done) / (1 - decay_from))
    return peak * min(1.0, (batch + 1) / warmup) * falling


def character_weight(done: float) -> float:
    """From 1 to 0.3 over the second half."""
    return 1.0 - 0.7 * max(0.0, 2 * done - 1)


def train(
    out: Path, *, num_batches: int, num_reading: int, minutes: float, peak: float = 1.2e-3, seed: int = 0
) -> None:
    """Train until `num_batches` or `minutes` are over, with a checkpoint every five minutes; run again to go on.

    The trained model is written to `out`/model, without the head for characters.
    """
    torch.manual_seed(seed)
    rank, num_processes = _join_processes()
    out.mkdir(parents=True, exist_ok=True)
    reader = Reader()
    matrices = [weight for weight in reader.parameters() if weight.ndim > 1]
    others = [weight for weight in reader.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    progress = Progress(num_batches, minutes)
    batch_index = _resume(out, reader, optimizer, progress)
    num_images = BATCH_IMAGES // num_processes
    data = ReaderData(reader.model.config.vision, seed=seed, rank=rank, num_images=num_images, num_reading=num_reading)
    remaining = Subset(data, range(batch_index, num_batches))
    batches = DataLoader(remaining, batch_size=None, num_workers=1, prefetch_factor=8)
    # The decoder takes no part in the batches that only read.
    trained = DistributedDataParallel(reader, find_unused_parameters=True) if num_processes > 1 else reader
    saved_s = progress.elapsed_s
    bar = tqdm(total=num_batches, initial=batch_index, disable=None, unit="batch")
    for batch in batches:
        done = progress.done(batch_index)
        if rank == 0 and (done >= 1 or progress.elapsed_s - saved_s > 300):
            saved_s = progress.elapsed_s
            _save(out, reader, optimizer, progress, batch_index)
        if done >= 1:
            break
        losses = step(trained, optimizer, batch, learning_rate(peak, batch_index, done), character_weight(done))
        batch_index += 1
        bar.update()
        if rank == 0 and batch_index % 50 == 0:
            _log(out, batch_index, progress.elapsed_s, losses)
    if rank == 0:
        VLM(reader.model, Tokenizer.bytes_only()).save_pretrained(out / "model")
    if num_processes > 1:
        torch.distributed.destroy_process_group()


def _join_processes() -> tuple[int, int]:
    """Return this process's rank and how many there are; torchrun names them in the environment."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        torch.distributed.init_process_group("gloo")
    return int(os.environ.get("RANK", "0")), num_processes


def step(
    reader: nn.Module, optimizer: torch.optim.Optimizer, batch: ReaderBatch, rate: float, weight: float
) -> dict[str, float]:
    """Take one optimizer step; a step whose gradient is not finite is left out."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    # On such short sequences the plain kernel is a tenth faster in training than the flash one on a CPU.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        losses = reader(batch)
        total = losses.answer + weight * losses.characters + POINTER_WEIGHT * losses.pointer
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = float(nn.utils.clip_grad_norm_(reader.parameters(), 1.0))
    if math.isfinite(norm):
        optimizer.step()
    else:
        logger.warning("a step with a gradient that is not finite was left out")
    return {name: round(loss.item(), 4) for name, loss in losses._asdict().items()} | {"norm": round(norm, 3)}


def _log(out: Path, batch_index: int, elapsed_s: float, losses: dict[str, float]) -> None:
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps({"batch": batch_index, "elapsed_s": round(elapsed_s), **losses}) + "\n")


def _save(out: Path, reader: Reader, optimizer: torch.optim.Optimizer, progress: Progress, batch_index: int) -> None:
    state = {
        "reader": reader.state_dict(),
        "optimizer": optimizer.state_dict(),
        "elapsed_s": progress.elapsed_s,
        "batch": batch_index,
    }
    torch.save(state, out / "checkpoint.pt.new")
    (out / "checkpoint.pt.new").replace(out / "checkpoint.pt")


def _resume(out: Path, reader: Reader, optimizer: torch.optim.Optimizer, progress: Progress) -> int:
    path = out / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    reader.load_state_dict(state["reader"])
    optimizer.load_state_dict(state["optimizer"])
    progress.elapsed_s = state["elapsed_s"]
    return state["batch"]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/reader", show_default=True)
@click.option("--minutes", type=float, default=120.0, show_default=True, help="Stop after this long.")
@click.option("--batches", type=int, default=8000, show_default=True, help="Stop after this many batches of 16 charts.")
@click.option("--reading-batches", type=int, default=1800, show_default=True, help="Batches that only read, first.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(out: Path, minutes: float, batches: int, reading_batches: int, seed: int) -> None:
    """Train the small reader of charts from nothing; run again with the same --out to go on."""
    train(out, num_batches=batches, num_reading=reading_batches, minutes=minutes, seed=seed)


if __name__ == "__main__":
    main()
