"""The settings of a run, as they stand in a file for `vlm train`."""

from dataclasses import dataclass, fields
from typing import Literal

from vlm.training.schedules import share_of_peak

INFINITY = float("inf")
MAX_STEPS = 2**53
"""Up to which a float tells one step from the next."""


def _at_least_0(part: object, *names: str) -> None:
    """Raise ValueError for a number of `part` that is below 0, infinite or none (nan)."""
    for name in names:
        value = getattr(part, name)
        if value is not None and not 0 <= value < INFINITY:
            raise ValueError(f"{name} is {value}; expected at least 0")


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """A text decoder of one's own: `vlm.config.DecoderConfig`, here apart since settings need no torch."""

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    mlp_dim: int = 384
    max_context: int = 256
    tied: bool = True
    """Whether the output head is the embedding."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """What is trained: a checkpoint, or a preset with weights drawn anew."""

    source: str | None = None
    """A checkpoint's folder or a name on the Hugging Face Hub."""
    preset: str | None = None
    """Sizes of a model that begins from nothing."""
    decoder: DecoderSizes | None = None
    """Sizes of a decoder without images that begins from nothing."""
    tokenizer: str = "bytes"
    """Of a model that begins from nothing: "bytes", or a folder that holds one."""
    reference: Literal["meta", "transformers"] = "meta"
    """Whose forward pass is trained."""
    quantize: Literal["int8", "int4"] | None = None
    """Keep the decoder's frozen matrices so, under an adapter (QLoRA)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights; bfloat16 for frozen ones alone, under an adapter, which itself is float32."""
    added_tokens: tuple[str, ...] = ()
    """Words that the vocabulary gains as tokens, each with a row in the embedding and in the head."""

    def __post_init__(self):
        if sum(choice is not None for choice in (self.source, self.preset, self.decoder)) != 1:
            raise ValueError("expected either source, a checkpoint, or preset or decoder, a model from nothing")


@dataclass(frozen=True, kw_only=True)
class ObjectiveChoice:
    """What is learned."""

    name: Literal["supervised", "next_token", "dpo", "ppo", "grpo"] = "supervised"
    beta: float = 0.1
    """Of dpo: how hard a preference pulls away from the reference. Of ppo and grpo: what a distance from it costs."""
    reference: Literal["start", "none"] = "start"
    """Of dpo, ppo and grpo: the model as it was when the run began, or none."""
    reward: str | None = None
    """Of ppo and grpo: "module:function", which is given prompt, reply and the sample's own answer."""
    reward_model: str | None = None
    """Of ppo and grpo, instead: a checkpoint that is asked whether the reply is good."""
    max_new_tokens: int = 64
    """Of ppo and grpo: longest reply."""
    group_size: int = 8
    """Of grpo: replies to one prompt, which are compared."""
    scale_rewards: bool = True
    """Of grpo: divide what is better or worse than the mean by the spread of its group."""
    updates: int = 1
    """Of ppo and grpo: optimizer steps on the replies of one step."""
    clip: float = 0.2
    """Of ppo and grpo: how far a token's probability moves the loss, as a share of what it was."""
    gae_lambda: float = 0.95
    """Of ppo: how far ahead an advantage looks, from 0 to 1."""
    value_weight: float = 0.5
    """Of ppo: of the value head's error in the loss."""

    def __post_init__(self):
        if self.name in ("ppo", "grpo") and (self.reward is None) == (self.reward_model is None):
            raise ValueError(f"{self.name} needs either reward, a module:function, or reward_model, a checkpoint")
        for name, least in (("max_new_tokens", 1), ("group_size", 2), ("updates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not (0 <= self.gae_lambda <= 1 and 0 <= self.beta < INFINITY and 0 < self.clip < INFINITY):
            raise ValueError("expected gae_lambda from 0 to 1, beta of at least 0 and clip above 0")
        _at_least_0(self, "value_weight")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One source of samples."""

    path: str
    """A file of JSON, parquet or text, a folder of such shards, or a pattern of names such as data/*.parquet."""
    images: str | None = None
    """Folder of the images; None: the file's own."""
    weight: float | None = None
    """Share of this source in what is learned, up to a factor; None: by its number of samples."""

    def __post_init__(self):
        if self.weight is not None and not 0 < self.weight < INFINITY:
            raise ValueError(f"weight is {self.weight}; expected more than 0, or leave it out")


FILTER_KEYS = {
    "length": ("min_chars", "max_chars"),
    "language": ("languages", "min_probability"),
    "duplicates": (),
    "near_duplicates": ("similarity",),
}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A step that leaves samples out before the run begins; see `vlm.training.data.filters`."""

    name: Literal["length", "language", "duplicates", "near_duplicates"]
    min_chars: int | None = None
    max_chars: int | None = None
    languages: tuple[str, ...] | None = None
    """Codes of those that stay, such as en."""
    min_probability: float | None = None
    """Of the language that was found; None: 0.5."""
    similarity: float | None = None
    """Share of common pieces from which on the later of two samples is left out; None: 0.8."""

    def __post_init__(self):
        given = {field.name for field in fields(self) if getattr(self, field.name) is not None} - {"name"}
        own = FILTER_KEYS[self.name]
        if strange := sorted(given.difference(own)):
            raise ValueError(f"{strange[0]} is no key of {self.name}; expected {' or '.join(own) or 'none'}")
        _at_least_0(self, "min_chars", "max_chars")
        if own and self.name != "near_duplicates" and not given:
            raise ValueError(f"{self.name} has no limit; expected {' or '.join(own)}")
        if self.name == "language" and not self.languages:
            raise ValueError("languages is missing; name those that stay, such as en")
        for name in ("min_probability", "similarity"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; expected more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter in place of the weights: `adapters.lora.LoRAConfig`, here apart since settings need no torch."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ("*_proj",)

    def __post_init__(self):
        if not 0 < self.alpha < INFINITY:
            raise ValueError(f"alpha is {self.alpha}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Which weights move."""

    parts: tuple[str, ...] | None = None
    """all, encoder, projector, cross_attention, decoder, embedding, head, or patterns of names; None: all."""
    lora: Lora | None = None

    def __post_init__(self):
        if self.parts is not None and self.lora is not None:
            raise ValueError("parts and lora exclude each other; give one of them")
        if self.parts == ():
            raise ValueError("parts is empty; name what is trained, or leave it out to train all")


@dataclass(frozen=True, kw_only=True)
class WeightGroup:
    """Weights with a learning rate of their own; the first group that matches counts."""

    match: str
    """A pattern of names, such as encoder.*"""
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self):
        _at_least_0(self, "lr", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become steps."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Of matrices; norms, biases and gates have none."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    """Of Muon."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0: no limit."""
    groups: tuple[WeightGroup, ...] = ()

    def __post_init__(self):
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < INFINITY:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        _at_least_0(self, "weight_decay", "clip_norm")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the run; see `schedules.share_of_peak`."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: int = 0
    final_share: float = 0.0
    """Of the peak, at the last step."""
    decay_share: float = 0.2
    """Of the run, in which "wsd" decays."""

    def __post_init__(self):
        _at_least_0(self, "warmup_steps")
        for name in ("final_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected from 0 to 1")

    def share(self, step: int, num_steps: int) -> float:
        return share_of_peak(
            step,
            num_steps=num_steps,
            num_warmup=self.warmup_steps,
            name=self.name,
            final_share=self.final_share,
            decay_share=self.decay_share,
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is kept to go on from."""

    every: int = 200
    """Steps from one to the next; the last step always has one."""
    keep: int = 2
    """How many of them stay."""
    on_failure: Literal["go_on", "stop"] = "go_on"
    """What happens when one cannot be written, as when the disk is full."""

    def __post_init__(self):
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"every is {self.every} and keep {self.keep}; expected at least 1 of each")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the processes that torchrun starts share the work; without it there is one."""

    data: Literal["ddp", "fsdp"] = "ddp"
    """What those have that share the samples of a step: all weights each, or (fsdp) a share of every weight."""
    tensor: int = 1
    """Processes that share each layer."""
    pipeline: int = 1
    """Processes that have some of the layers each, one after the other."""

    def __post_init__(self):
        if self.tensor < 1 or self.pipeline < 1:
            raise ValueError(f"tensor is {self.tensor} and pipeline {self.pipeline}; expected at least 1 of each")
        if self.tensor > 1 and self.pipeline > 1:
            raise ValueError("tensor and pipeline exclude each other so far; set one of them to 1")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the model is asked during training."""

    text: str
    image: str | None = None
    """Path of a picture."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the model answers during training, for people to read."""

    questions: tuple[Question, ...] = ()
    every: int = 100
    """Steps from one time to the next; the last step always counts."""
    max_new_tokens: int = 64

    def __post_init__(self):
        if self.every < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"every is {self.every}, max_new_tokens {self.max_new_tokens}; expected at least 1 of each"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run."""

    out: str
    """Folder of the run; run again with the same one to go on."""
    model: ModelChoice
    data: tuple[DataSource, ...]
    filters: tuple[Filter, ...] = ()
    """Steps that leave samples out, in their order, over all sources one after the other."""
    objective: ObjectiveChoice = ObjectiveChoice()
    trained: Trained = Trained()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = Schedule()
    checkpoints: Checkpoints = Checkpoints()
    parallel: Parallel = Parallel()
    samples: Samples = Samples()
    steps: int | None = None
    """Optimizer steps; None: as `epochs` says."""
    epochs: float = 1.0
    """How many times the data is gone through, without `steps`."""
    batch_size: int = 8
    """Samples of a step."""
    micro_batch_size: int | None = None
    """Samples computed at once, or windows of texts that were cut; None: all. Fewer need less memory and give the same
    step."""
    max_length: int | None = None
    """Longest sample in tokens; None: the model's context. Longer ones are left out, longer texts cut in windows."""
    pack: int | None = None
    """Join samples that are computed together in rows of at most so many tokens, instead of padding each; they do not
    see each other, and the step is the same."""
    shuffle: bool = True
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: matrix products in bfloat16, weights and sums in float32."""
    recompute: bool = False
    """Compute activations of layers again on the way back, instead of keeping them (activation checkpointing)."""
    deterministic: bool = False
    """Take only algorithms that give the same bits every time."""
    workers: int = 0
    """Processes that read samples ahead."""
    max_bad_steps: int = 5
    """Steps in a row whose loss or gradient is not finite, after which the run stops."""
    log_every: int = 1
    tensorboard: bool = False
    """Write what the log says for TensorBoard too."""
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model that is written at the end."""

    def __post_init__(self):
        for name in ("steps", "micro_batch_size", "max_length", "pack"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.steps is not None and self.steps > MAX_STEPS:
            raise ValueError(f"steps is above {MAX_STEPS}, up to which they are counted; stop a longer run with Ctrl-C")
        for name in ("batch_size", "max_bad_steps", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.out:
            raise ValueError("out is empty; expected the folder of the run")
        _at_least_0(self, "workers")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected at least 0 and below 2^63")
        if not self.data:
            raise ValueError("data is empty; expected at least one [[data]] with a path")
        if not 0 < self.epochs < INFINITY:
            raise ValueError(f"epochs is {self.epochs}; expected more than 0")
        lora, learns_from_itself = self.trained.lora, self.objective.name in ("ppo", "grpo")
        if lora is None and (self.model.quantize is not None or self.model.dtype != "float32"):
            raise ValueError("model.quantize and model.dtype are for frozen weights; train an adapter, [trained.lora]")
        if lora is not None and self.model.added_tokens:
            raise ValueError(
                "model.added_tokens need rows that are trained, which an adapter has not; use trained.parts"
            )
        if lora is not None and self.model.source is None:
            raise ValueError(
                "trained.lora is for a checkpoint, and model begins from nothing: its weights would be lost and the "
                "adapter left without a base; leave trained.lora out, or give model.source"
            )
        if lora is not None and lora.dropout and learns_from_itself:
            raise ValueError(f"trained.lora.dropout would blur the ratios of {self.objective.name}; set it to 0")
        if self.pack is not None and self.model.reference == "transformers":
            raise ValueError('pack needs model.reference "meta"; in the other one texts see images that are not theirs')
