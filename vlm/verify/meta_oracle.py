"""Meta's llama-models as an oracle: its own layers, masks and caches, on the CPU, in one process.

Only constructors are ours, because Meta's `CrossAttentionTransformerVision` has the published sizes in its code.
Text-only models are left to transformers.
"""

import contextlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as model_parallel
from fairscale.nn.model_parallel.layers import ColumnParallelLinear
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.chat_format import create_vision_mask
from llama_models.llama3.multimodal.model import (
    CrossAttentionTransformer,
    CrossAttentionTransformerText,
    CrossAttentionTransformerVision,
    VisionEncoder,
)
from torch import Tensor, nn

from vision_encoder.config import VisionConfig
from vlm.checkpoint import meta
from vlm.checkpoint.position_tables import why_not_cells
from vlm.config import ModelConfig, RopeScaling
from vlm.model import VisionLanguageModel
from vlm.verify.cases import Answers, Question

# Positions of the text cache; every built-in prompt is shorter.
_MAX_LENGTH = 512
_TABLES = ("tile_position_before", "patch_position", "tile_position_after")


def why_not(config: ModelConfig) -> str | None:
    """Say what Meta's code has no way to compute in this model; None where it can compute it."""
    decoder = config.decoder
    if config.vision is None:
        return "text-only models are compared with transformers alone"
    scaling = decoder.rope_scaling
    if scaling not in (None, RopeScaling(factor=8.0)):
        return (
            "its code knows one RoPE scaling, by 8 from 8,192 positions; the model's is "
            f"by {scaling.factor:g} from {scaling.original_context:,}"
        )
    places = config.adapter.cross_layers
    if places[-1] == config.num_layers - 1 or any(place + 1 in places for place in places):
        return "its code wants a self-attention layer right after each cross-attention layer"
    if config.vision.norm_eps != 1e-5:
        return "its code has 1e-5 as the epsilon of the vision norms"
    return None


def why_not_tensors(model: VisionLanguageModel) -> str | None:
    """Say why a model's weights have no form in Meta's layout; None where they have one."""
    for name in _TABLES:
        if why := why_not_cells(getattr(model.encoder, name).table.detach(), model.config.vision):
            return f"the position tables have no form in its layout: {why}"
    return None


def tensors_of_model(model: VisionLanguageModel) -> dict[str, Tensor]:
    """Return a model's weights by Meta's names, sharing its memory where they can."""
    state = model.state_dict()
    return {
        key.theirs: key.layout.to_theirs(state[key.ours], model.config).cpu()
        for key in meta.keys(model.config)
        if not key.alias
    }


def tensors_of_folder(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a Meta folder as its files hold them, not turned into our arrangement and back."""
    with ExitStack() as opened:
        stored = meta.open_tensors(folder, config, opened)
        return {name: tensor.load().to(dtype) for name, tensor in stored.items()}


def load(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> CrossAttentionTransformer:
    """Return Meta's model with these weights, whose memory it takes over."""
    with _metas_world(dtype):
        model = _Transformer(config)
        model.load_state_dict(tensors, strict=True, assign=True)
        model.setup_cache(max_batch_size=1, device=torch.device("cpu"), dtype=dtype)
    return model.eval()


@torch.no_grad()
def answer(model: CrossAttentionTransformer, question: Question) -> Answers:
    """Return what the model computes in one pass over the question."""
    seen: dict[str, Tensor] = {}
    vision, ids = model.vision_model, question.ids
    with _metas_world(next(model.parameters()).dtype), ExitStack() as hooks:
        encoder = vision.vision_encoder
        hooks.enter_context(encoder.register_forward_hook(lambda *call: seen.update(features=call[-1])))
        hooks.enter_context(vision.register_forward_hook(lambda *call: seen.update(tokens=call[-1])))
        # Over prompt and reply: what Meta generates after two images would see none of them.
        spans = create_vision_mask(ids, model.text_model.vocab_size)
        caches, masks, rows = model.compute_vision_tokens_masks(
            [list(question.images)], [spans], len(ids), torch.device("cpu")
        )
        logits = model(
            torch.arange(len(ids)), torch.tensor([ids]), masks, rows, caches, text_only_inference=not question.images
        )
    if not question.images:
        return Answers([], [], logits[0].float())
    return Answers(*(_real_tiles(seen[name], question) for name in ("features", "tokens")), logits[0].float())


class _Transformer(CrossAttentionTransformer):
    """Meta's whole model around the parts below; it takes `ProcessedImage`s where Meta's takes PIL images."""

    def __init__(self, config: ModelConfig):
        nn.Module.__init__(self)
        self.params = _arguments(config)
        self.model_dim = self.params.dim
        self.vision_model = _Vision(config.vision, config.decoder.width)
        # The self-attention layers, counted alone, before which a cross-attention layer stands.
        schedule = [place - earlier for earlier, place in enumerate(config.adapter.cross_layers)]
        self.text_model = _Text(self.params, schedule)
        self.image_res = self.params.vision_chunk_size
        self.max_num_chunks = self.params.vision_max_num_chunks
        self.image_transform = tuple  # tiles and (rows, cols) are what Meta's transform returns


class _Vision(CrossAttentionTransformerVision):
    """Meta's encoder and projection with sizes from the config."""

    def __init__(self, config: VisionConfig, width: int):
        nn.Module.__init__(self)
        self.image_res, self.patch_size = config.tile_size, config.patch_size
        self.vision_encoder = VisionEncoder(
            max_num_tiles=config.max_tiles,
            image_size=config.tile_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.num_local_layers,
            heads=config.num_heads,
            mlp_ratio=config.mlp_dim / config.width,
            n_global_layers=config.num_global_layers,
            global_model=True,
            return_intermediate=list(config.feature_layers),
        )
        self.vision_projection = ColumnParallelLinear(config.feature_dim, width, bias=True, init_method=lambda x: x)


class _Text(CrossAttentionTransformerText):
    """Meta's decoder with its cross-attention layers where the config wants them, not only evenly spread."""

    def __init__(self, args: ModelArgs, schedule: list[int]):
        self.schedule = schedule  # read by the hook below while Meta's constructor runs
        super().__init__(args)

    def _init_fusion_schedule(self, num_layers: int) -> list[int]:
        return self.schedule


def _arguments(config: ModelConfig) -> ModelArgs:
    decoder = config.decoder
    return ModelArgs(
        dim=decoder.width,
        n_layers=decoder.num_layers,
        n_heads=decoder.num_heads,
        n_kv_heads=decoder.num_kv_heads,
        vocab_size=decoder.vocab_size,
        # Meta rounds the feed-forward's width up to this multiple: from at most that width, it is that width.
        multiple_of=decoder.mlp_dim,
        ffn_dim_multiplier=1 / decoder.width,
        norm_eps=decoder.norm_eps,
        rope_theta=decoder.rope_theta,
        use_scaled_rope=decoder.rope_scaling is not None,
        max_batch_size=1,
        max_seq_len=_MAX_LENGTH,
        vision_chunk_size=config.vision.tile_size,
        vision_max_num_chunks=config.vision.max_tiles,
        vision_num_cross_attention_layers=len(config.adapter.cross_layers),
    )


def _real_tiles(per_tile: Tensor, question: Question) -> list[Tensor]:
    """Return [t, p, ...] of each image's real tiles from [1, m, t, p, ...]."""
    return [tiles[: len(image.pixels)] for tiles, image in zip(per_tile[0], question.images, strict=True)]


@contextlib.contextmanager
def _metas_world(dtype: torch.dtype) -> Iterator[None]:
    """Give Meta's code what it takes from around itself: fairscale's groups of one process, and the default dtype."""
    before, started = torch.get_default_dtype(), not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    grouped = not model_parallel.model_parallel_is_initialized()
    try:
        if grouped:
            with contextlib.redirect_stdout(io.StringIO()):  # fairscale announces itself
                model_parallel.initialize_model_parallel(1)
        # Meta's own way to say in which dtype images and masks are made.
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)
        if grouped and model_parallel.model_parallel_is_initialized():
            model_parallel.destroy_model_parallel()
        if started:
            dist.destroy_process_group()
