"""The settings of a run, as they stand in a file for `vlm train`."""

from dataclasses import dataclass
from typing import Literal

from vlm.training.schedules import share_of_peak


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """What is trained: a checkpoint, or a preset with weights drawn anew."""

    source: str | None = None
    """A checkpoint's folder or a name on the Hugging Face Hub."""
    preset: str | None = None
    """Sizes of a model that begins from nothing."""
    tokenizer: str = "bytes"
    """Of a model that begins from nothing: "bytes", or a folder that holds one."""
    reference: Literal["meta", "transformers"] = "meta"
    """Whose forward pass is trained."""

    def __post_init__(self):
        if (self.source is None) == (self.preset is None):
            raise ValueError("expected either source, a checkpoint, or preset, a model from nothing")


@dataclass(frozen=True, kw_only=True)
class ObjectiveChoice:
    """What is learned."""

    name: Literal["supervised", "next_token", "dpo"] = "supervised"
    beta: float = 0.1
    """Of dpo: how hard a preference pulls away from the reference."""
    reference: Literal["start", "none"] = "start"
    """Of dpo: the model as it was when the run began, or none."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One file of JSON lines."""

    path: str
    images: str | None = None
    """Folder of the images; None: the file's own."""
    weight: float | None = None
    """Share of this source in what is learned, up to a factor; None: by its number of samples."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter in place of the weights: `adapters.lora.LoRAConfig`, here apart since settings need no torch."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ("*_proj",)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Which weights move."""

    parts: tuple[str, ...] | None = None
    """all, encoder, projector, cross_attention, decoder, embedding, head, or patterns of names; None: all."""
    lora: Lora | None = None

    def __post_init__(self):
        if self.parts is not None and self.lora is not None:
            raise ValueError("parts and lora exclude each other; give one of them")


@dataclass(frozen=True, kw_only=True)
class WeightGroup:
    """Weights with a learning rate of their own; the first group that matches counts."""

    match: str
    """A pattern of names, such as encoder.*"""
    lr: float | None = None
    weight_decay: float | None = None


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
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the run; see `schedules.share_of_peak`."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: int = 0
    final_share: float = 0.0
    """Of the peak, at the last step."""
    decay_share: float = 0.2
    """Of the run, in which "wsd" decays."""

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
class TrainConfig:
    """A whole run."""

    out: str
    """Folder of the run; run again with the same one to go on."""
    model: ModelChoice
    data: tuple[DataSource, ...]
    objective: ObjectiveChoice = ObjectiveChoice()
    trained: Trained = Trained()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = Schedule()
    checkpoints: Checkpoints = Checkpoints()
    steps: int | None = None
    """Optimizer steps; None: as `epochs` says."""
    epochs: float = 1.0
    """How many times the data is gone through, without `steps`."""
    batch_size: int = 8
    """Samples of a step."""
    micro_batch_size: int | None = None
    """Samples computed at once; None: all. Smaller ones need less memory and give the same step."""
    max_length: int | None = None
    """Longest sample in tokens; None: the model's context. Longer ones are left out, longer texts cut in windows."""
    shuffle: bool = True
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: matrix products in bfloat16, weights and sums in float32."""
    recompute: bool = False
    """Compute activations of layers again on the way back, instead of keeping them (activation checkpointing)."""
    workers: int = 0
    """Processes that read samples ahead."""
    max_bad_steps: int = 5
    """Steps in a row whose loss or gradient is not finite, after which the run stops."""
    log_every: int = 1
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model that is written at the end."""

    def __post_init__(self):
        for name in ("steps", "micro_batch_size", "max_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("batch_size", "max_bad_steps", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.data:
            raise ValueError("data is empty; expected at least one [[data]] with a path")
        if not 0 < self.epochs < float("inf"):
            raise ValueError(f"epochs is {self.epochs}; expected more than 0")
