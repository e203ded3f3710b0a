"""From settings to parts: the model with what is trained of it, the objective, and the data."""

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from adapters.lora import LoRAConfig
from vision_encoder.preprocess import ImageProcessor
from vlm.config import DecoderConfig, ModelConfig, preset
from vlm.errors import VLMError, public
from vlm.loading import choose_device
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer
from vlm.training.config import MAX_STEPS, ModelChoice, ObjectiveChoice, TrainConfig
from vlm.training.data.batches import Source, StepBatches
from vlm.training.data.digest import digest_files
from vlm.training.data.selection import select
from vlm.training.data.source import open_rows
from vlm.training.frozen import let_gradients_through
from vlm.training.objectives import (
    GRPO,
    PPO,
    DirectPreference,
    FunctionReward,
    ModelReward,
    NextToken,
    Objective,
    SupervisedReplies,
)
from vlm.training.trained import train_adapter, train_parts
from vlm.training.vocabulary import add_tokens

SHIPPED = "default"
INITIAL_STD = 0.02


@public
def open_model(config: TrainConfig) -> VLM:
    """Return the model of a run in float32, with what is trained of it marked by `requires_grad`."""
    device, choice = choose_device(config.device), config.model
    # What is drawn is drawn on the CPU, by the seed; the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if choice.source is not None:
            source = None if choice.source == SHIPPED else choice.source
            vlm = VLM.from_pretrained(
                source,
                device=device,
                dtype=choice.dtype,
                quantize=choice.quantize,
                reference=choice.reference,
                low_memory=False,
            )
        else:
            vlm = _fresh(choice, device)
        if choice.added_tokens:
            vlm = add_tokens(vlm, choice.added_tokens)
        let_gradients_through(vlm.model)
        if config.trained.lora is not None:
            train_adapter(vlm.model, LoRAConfig(**dataclasses.asdict(config.trained.lora)))
        else:
            train_parts(vlm.model, config.trained.parts or ("all",))
    return vlm


def open_objective(config: TrainConfig, vlm: VLM, device: torch.device) -> Objective:
    """Return what the run learns; `device`: where it computes."""
    objective = _objective(config.objective, vlm, _max_length(config, vlm), device)
    objective.pack = config.pack
    return objective


def _objective(choice: ObjectiveChoice, vlm: VLM, max_length: int, device: torch.device) -> Objective:
    tokenizer, num_ids = vlm.tokenizer, vlm.model.config.decoder.vocab_size
    if choice.name == "supervised":
        return SupervisedReplies(tokenizer, num_ids)
    if choice.name == "next_token":
        return NextToken(tokenizer, num_ids, max_length)
    if choice.name == "dpo":
        return DirectPreference(tokenizer, num_ids, beta=choice.beta)
    if choice.reward is not None:
        reward = FunctionReward(choice.reward)
    else:
        reward = ModelReward(choice.reward_model, tokenizer, device)
    if choice.name == "grpo":
        return GRPO(tokenizer, num_ids, choice, reward)
    return PPO(tokenizer, num_ids, choice, reward, vlm.model.decoder.embedding.weight)


def open_data(config: TrainConfig, vlm: VLM, objective: Objective) -> StepBatches:
    """Return the samples of every step."""
    sources = []
    for choice in config.data:
        lines = open_rows(choice.path)
        images = Path(choice.images or lines.paths[0].parent)
        sources.append(Source(lines, images, choice.weight, digest_files(lines.paths)))
    data = StepBatches(
        select(sources, config.filters, Path(config.out)),
        objective.rows,
        ImageProcessor(vlm.model.config.vision) if vlm.model.config.vision is not None else None,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=config.shuffle,
        max_length=_max_length(config, vlm),
    )
    data.refuse_poison()
    return data


def num_steps(config: TrainConfig, data: StepBatches) -> int:
    """Return how many steps the run has."""
    wanted = config.epochs * data.num_samples / config.batch_size
    if config.steps is None and wanted > MAX_STEPS:
        raise VLMError(
            "invalid_request",
            f"epochs is {config.epochs:.3g}, which takes {wanted:.3g} steps; they are counted up to {MAX_STEPS}; "
            "stop a longer run with Ctrl-C",
        )
    return config.steps or math.ceil(wanted)


def _max_length(config: TrainConfig, vlm: VLM) -> int:
    return min(config.max_length or math.inf, vlm.model.config.decoder.max_context)


def _fresh(choice: ModelChoice, device: torch.device) -> VLM:
    tokenizer = Tokenizer.bytes_only() if choice.tokenizer == "bytes" else Tokenizer.from_folder(choice.tokenizer)
    if choice.decoder is not None:
        sizes = dataclasses.asdict(choice.decoder)
        try:
            config = ModelConfig(decoder=DecoderConfig(vocab_size=tokenizer.vocab_size, **sizes))
        except ValueError as error:
            raise VLMError("invalid_request", f"model.decoder: {error}") from None
    else:
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
