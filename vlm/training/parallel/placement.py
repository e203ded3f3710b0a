"""Settings to a model that is spread over the processes of a run, with what fills its gradients."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.tensor_parallel.layers import share_layers
from vlm.training.config import OptimizerConfig, TrainConfig
from vlm.training.objectives import Objective, PolicyGradient
from vlm.training.parallel.learner import Learner, Loss, replicate, shard
from vlm.training.parallel.pipeline import PipelineLearner, groups_here
from vlm.training.parallel.world import World
from vlm.training.trained import trained_weights


class Placed(NamedTuple):
    """What of a run is in this process."""

    learner: Learner | PipelineLearner
    weights: Mapping[str, nn.Parameter]
    """What is trained here, by its name in the whole model."""
    names: frozenset[str]
    """Of what is trained anywhere."""
    optimizer: OptimizerConfig


def place(config: TrainConfig, world: World, model: VisionLanguageModel, objective: Objective) -> Placed:
    """Spread `model`, in place, as the settings say."""
    if world.size > 1:
        _check(config, world, objective)
    everywhere = trained_weights(model)
    names = frozenset(everywhere)
    loss = Loss(model, objective, bf16=config.precision == "bf16")
    if world.extent("pipeline") > 1:
        learner = PipelineLearner(loss, world)
        model.to(world.device)
        kept = {id(weight) for weight in model.parameters()}
        here = {name: weight for name, weight in everywhere.items() if id(weight) in kept}
        groups = groups_here(config.optimizer.groups, list(here), list(everywhere))
        return Placed(learner, here, names, replace(config.optimizer, groups=groups))
    if world.extent("tensor") > 1:
        share_layers(model, world.mesh["tensor"])
    learner = Learner(loss)
    if world.extent("data") > 1 and config.parallel.data == "fsdp":
        learner = shard(loss, world.mesh["data"])
    loss.to(world.device)
    if world.extent("data") > 1 and config.parallel.data == "ddp":
        learner = replicate(loss, world.mesh["data"])
    return Placed(learner, trained_weights(model), names, config.optimizer)


def _check(config: TrainConfig, world: World, objective: Objective) -> None:
    """Raise VLMError for what several processes cannot do yet."""
    cut = world.extent("tensor") > 1 or (world.extent("data") > 1 and config.parallel.data == "fsdp")
    if cut and config.optimizer.name == "muon":
        found = "optimizer.name is muon, which steps whole matrices; use adamw, or parallel.data = 'ddp'"
    elif (cut or world.extent("pipeline") > 1) and isinstance(objective, PolicyGradient):
        found = f"objective.name is {config.objective.name}, for which each has to write replies; use only data = 'ddp'"
    elif (cut or world.extent("pipeline") > 1) and config.samples.questions:
        found = "samples.questions are for a model that one process has whole; use only parallel.data = 'ddp'"
    elif world.extent("pipeline") > 1 and objective.pack is not None:
        found = "the objective packs its rows, and a pipeline passes them on one by one; turn packing off"
    else:
        return
    raise VLMError("invalid_request", f"a run on {world.size} processes cannot do this yet: {found}")
