"""The layers one after the other on several processes, which pass on what they have computed.

Each stage runs the objective's own code on a model of which it has some layers: what came from the stage before stands
in for the embedding, and for the encoder. Over the wire go hidden states and image tokens, padded to one size.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional

from adapters.cross_attention import GatedCrossAttentionLayer, ImageKV
from vlm.errors import VLMError
from vlm.training.config import WeightGroup
from vlm.training.parallel.learner import Loss
from vlm.training.parallel.shares import Part
from vlm.training.parallel.world import World
from vlm.training.rows import hidden_states, images_of
from vlm.training.trained import trained_weights


class _Received(nn.Module):
    """Stands in for the embedding: gives what the stage before has computed."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.register_buffer("weight", torch.empty(0, device=device), persistent=False)
        self.hidden: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        return self.hidden[: ids.shape[0], : ids.shape[1]]


class Stage(nn.Module):
    """Some layers of a model."""

    def __init__(self, loss: Loss, index: int, count: int, device: torch.device):
        """Keep of the model, in place, what stage `index` of `count` computes."""
        super().__init__()
        model, decoder, num_layers = loss.model, loss.model.decoder, len(loss.model.decoder.layers)
        if decoder.head is None:
            raise _bad("its head is its embedding, and first and last stage cannot share it; use parallel.data")
        if num_layers < count:
            raise _bad(f"it has {num_layers} layers for {count} stages; start at most {num_layers}")
        self.loss, self.model = loss, model
        self.is_first, self.is_last = index == 0, index == count - 1
        self.parts: Sequence[Part] = ()
        self.weight = 1.0
        self.tokens: Tensor | None = None
        decoder.layers = decoder.layers[index * num_layers // count : (index + 1) * num_layers // count]
        if not self.is_first:
            decoder.embedding, model.encoder, model.projector = _Received(device), None, None
        if not self.is_last:
            decoder.norm, decoder.head = nn.Identity(), None
        if not any(isinstance(layer, GatedCrossAttentionLayer) for layer in decoder.layers):
            decoder.image_kv = _no_kv
        self._encode, model.encode = model.encode, self._tokens

    def forward(self, *received: Tensor, index: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return for part `index` [1] what the next stage needs; of the last one the loss."""
        part = self.parts[int(index)]
        if received:
            self.model.decoder.embedding.hidden = received[0]
            self.tokens = received[1] if len(received) > 1 else None
        if self.is_last:
            loss = self.loss(part.examples) / self.weight * part.counts
            # What no text of this part looks at has a gradient too: zero.
            return loss + sum(tensor.sum() * 0 for tensor in received)
        with self.loss.precision():
            hidden = hidden_states(self.model, part.rows, self.loss.objective.tokenizer.image_marker_id)
        sizes = self.wire_sizes()
        if self.is_first and len(sizes) > 1 and not images_of(part.rows):
            self.tokens = hidden.new_zeros(sizes[1])
        return tuple(_padded(tensor, size) for tensor, size in zip((hidden, self.tokens), sizes, strict=False))

    def wire_sizes(self) -> list[tuple[int, ...]]:
        """Return the shapes of what goes from stage to stage in this step, the same for all of its parts."""
        rows = [part.rows for part in self.parts]
        width = self.model.config.decoder.width
        sizes = [(max(map(len, rows)), max(len(row.ids) for part in rows for row in part), width)]
        pictures = [images_of(part) for part in rows]
        if any(pictures):
            vision = self.model.config.vision
            most = max(len(image.pixels) for images in pictures for image in images)
            most = most if self.model.config.reference == "meta" else vision.max_tiles
            sizes.append((max(map(len, pictures)), most, vision.tokens_per_tile, width))
        return sizes

    def _tokens(self, pixels: Tensor, canvases: Sequence[tuple[int, int]]) -> tuple[None, Tensor]:
        """Take the place of `VisionLanguageModel.encode`."""
        if self.is_first:
            self.tokens = self._encode(pixels, canvases)[1]
        return None, self.tokens[: pixels.shape[0], : pixels.shape[1]]


class PipelineLearner:
    """Fills the gradients of one step, together with the other stages, and the same stage of other pipelines."""

    def __init__(self, loss: Loss, world: World):
        self.index, self.count = world.place("pipeline"), world.extent("pipeline")
        self.device, self.groups = world.device, {dim: world.mesh[dim].get_group() for dim in ("pipeline", "data")}
        self.stage = Stage(loss, self.index, self.count, self.device)

    def gradients(self, parts: Sequence[Part], weight: float) -> float:
        """Give this stage's weights, which have none, the gradients of `parts`; return the loss in the last stage."""
        self.stage.parts, self.stage.weight = parts, weight
        indices = torch.arange(len(parts), device=self.device)
        losses: list[Tensor] = []
        # Steps are of different sizes, and a schedule is for one.
        self._schedule(len(parts)).step(index=indices, target=indices, losses=losses, return_outputs=False)
        self.stage.tokens = None
        trained = list(trained_weights(self.stage.model).values())
        if trained and dist.get_world_size(self.groups["data"]) > 1:
            add_up(trained, self.groups["data"])
        return float(sum(loss.detach() for loss in losses))

    def _schedule(self, num_parts: int) -> Schedule1F1B | ScheduleGPipe:
        wire = [torch.empty(size, device="meta", requires_grad=True) for size in self.stage.wire_sizes()]
        received = () if self.stage.is_first else tuple(wire)
        sent = (torch.empty((), device="meta", requires_grad=True),) if self.stage.is_last else tuple(wire)
        stage = PipelineStage(
            self.stage,
            self.index,
            self.count,
            self.device,
            input_args=received,
            output_args=sent,
            group=self.groups["pipeline"],
        )
        kind = Schedule1F1B if num_parts >= self.count else ScheduleGPipe
        return kind(stage, num_parts, loss_fn=lambda loss, _: loss, scale_grads=False)


def add_up(weights: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Give all processes of `group` the sum of their gradients; a weight that has none in any of them keeps none."""
    found = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32, device=weights[0].device)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    for weight, somewhere in zip(weights, found.tolist(), strict=True):
        if somewhere:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(weight.grad, group=group)


def groups_here(groups: Sequence[WeightGroup], here: Sequence[str], everywhere: Sequence[str]) -> tuple:
    """Return the groups of weights without those whose weights are in other stages."""

    def matches(group: WeightGroup, names: Sequence[str]) -> bool:
        return any(fnmatchcase(name, group.match) for name in names)

    return tuple(group for group in groups if matches(group, here) or not matches(group, everywhere))


def _padded(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    missing = [pair for old, new in zip(reversed(tensor.shape), reversed(size), strict=True) for pair in (0, new - old)]
    padded = functional.pad(tensor, missing)
    # A stage in which nothing is trained has no gradient to give; the schedule asks it for one all the same.
    return padded if padded.requires_grad else padded.requires_grad_()


def _no_kv(tokens: Tensor) -> ImageKV:
    """Take the place of `TextDecoder.image_kv` in a stage without cross-attention."""
    nothing = tokens.new_zeros(0, len(tokens), 1, tokens.shape[1], 1)
    return ImageKV(nothing, nothing)


def _bad(why: str) -> VLMError:
    return VLMError("invalid_request", f"the model cannot be cut into a pipeline: {why}")
