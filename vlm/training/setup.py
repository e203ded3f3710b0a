"""From settings to parts: the model with what is trained of it, the objective, and the data."""

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from adapters.lora import LoRAConfig
from vision_encoder.preprocess import ImageProcessor
from vlm.config import preset
from vlm.errors import VLMError, public
from vlm.loading import choose_device
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer
from vlm.training.config import ModelChoice, TrainConfig
from vlm.training.data.batches import Source, StepBatches
from vlm.training.data.jsonl import JsonLines
from vlm.training.objectives import DirectPreference, NextToken, Objective, SupervisedReplies
from vlm.training.trained import train_adapter, train_parts

SHIPPED = "default"
INITIAL_STD = 0.02


@public
def open_model(config: TrainConfig) -> VLM:
    """Return the model of a run in float32, with what is trained of it marked by `requires_grad`."""
    device, choice = choose_device(config.device), config.model
    # What is drawn is drawn on the CPU, by the seed; the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if choice.preset is None:
            source = None if choice.source == SHIPPED else choice.source
            vlm = VLM.from_pretrained(source, device=device, dtype="float32", reference=choice.reference)
        else:
            vlm = _fresh(choice, device)
        if config.trained.lora is not None:
            train_adapter(vlm.model, LoRAConfig(**dataclasses.asdict(config.trained.lora)))
        else:
            train_parts(vlm.model, config.trained.parts or ("all",))
    return vlm


def open_objective(config: TrainConfig, vlm: VLM) -> Objective:
    """Return what the run learns."""
    num_ids = vlm.model.config.decoder.vocab_size
    if config.objective.name == "supervised":
        return SupervisedReplies(vlm.tokenizer, num_ids)
    if config.objective.name == "next_token":
        return NextToken(vlm.tokenizer, num_ids, _max_length(config, vlm))
    return DirectPreference(vlm.tokenizer, num_ids, beta=config.objective.beta)


def open_data(config: TrainConfig, vlm: VLM, objective: Objective) -> StepBatches:
    """Return the samples of every step."""
    sources = []
    for data in config.data:
        lines = JsonLines(data.path)
        weight = len(lines) if data.weight is None else data.weight
        if not (weight > 0 and math.isfinite(weight)) and len(lines):
            raise VLMError("invalid_request", f"data.weight is {data.weight}; expected more than 0, or leave it out")
        sources.append(Source(lines, Path(data.images) if data.images else lines.path.parent, weight))
    return StepBatches(
        sources,
        objective.rows,
        ImageProcessor(vlm.model.config.vision) if vlm.model.config.vision is not None else None,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=config.shuffle,
        max_length=_max_length(config, vlm),
    )


def num_steps(config: TrainConfig, data: StepBatches) -> int:
    """Return how many steps the run has."""
    return config.steps or math.ceil(config.epochs * data.num_samples / config.batch_size)


def _max_length(config: TrainConfig, vlm: VLM) -> int:
    return min(config.max_length or math.inf, vlm.model.config.decoder.max_context)


def _fresh(choice: ModelChoice, device: torch.device) -> VLM:
    tokenizer = Tokenizer.bytes_only() if choice.tokenizer == "bytes" else Tokenizer.from_folder(choice.tokenizer)
    config = preset(choice.preset).with_reference(choice.reference)
    needed, rows = tokenizer.vocab_size, config.decoder.vocab_size
    marker = tokenizer.image_marker_id
    if needed > rows or (config.vision is not None and not rows <= (marker or 0) < config.decoder.num_embeddings):
        decoder = dataclasses.replace(config.decoder, vocab_size=needed)
        config = dataclasses.replace(config, decoder=decoder)
    model = VisionLanguageModel(config)
    initialise(model)
    return VLM(model.to(device), tokenizer)


@torch.no_grad()
def initialise(model: VisionLanguageModel) -> None:
    """Draw the weights of a model that begins from nothing.

    Normal with a standard deviation of 0.02, that of the maps into the residual stream divided by the square root of
    their number, as GPT-2's (Radford et al. 2019, section 2.3); gates of the cross-attention stay shut.
    """
    num_into_stream = 2 * model.config.num_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            into_stream = name.startswith("decoder.") and name.endswith(("o_proj", "down_proj"))
            nn.init.normal_(module.weight, std=INITIAL_STD / math.sqrt(num_into_stream) ** into_stream)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
