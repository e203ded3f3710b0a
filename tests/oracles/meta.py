"""llama-models, Meta's reference code, as an oracle: its own classes in small shapes, float32, one CPU process.

Only constructors are ours, because Meta's `CrossAttentionTransformerVision` has the real sizes in its code; every
forward, mask and cache is Meta's. Hugging Face weights are turned into Meta's in `meta_weights.py`.
"""

import atexit
import contextlib
import io
from collections.abc import Callable, Sequence

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
from transformers import MllamaConfig

from .cases import Case, Picture
from .meta_weights import fusion_schedule, meta_state
from .weights import State

MAX_LENGTH = 64  # positions of the text cache; every small prompt is shorter


def build(config: MllamaConfig, state: State) -> "SmallTransformer":
    """Build Meta's model with the weights of a Hugging Face state, in evaluation mode.

    Raises ValueError for weights that no Meta checkpoint can hold (position tables not spread from cells).
    """
    start_model_parallel()
    model = SmallTransformer(config)
    model.load_state_dict(meta_state(config, state), strict=True)
    model.setup_cache(max_batch_size=1, device=torch.device("cpu"), dtype=torch.float32)
    return model.eval()


class SmallTransformer(CrossAttentionTransformer):
    """Meta's whole model around the small parts below; it takes `Picture`s where Meta's takes PIL images."""

    def __init__(self, config: MllamaConfig) -> None:
        nn.Module.__init__(self)
        self.params = model_args(config)
        self.model_dim = self.params.dim
        self.vision_model = SmallVision(config)
        self.text_model = SmallText(self.params, fusion_schedule(config))
        self.image_res = self.params.vision_chunk_size
        self.max_num_chunks = self.params.vision_max_num_chunks
        self.image_transform = tuple  # a Picture already is what Meta's transform returns: tiles, (rows, cols)


class SmallVision(CrossAttentionTransformerVision):
    """Meta's encoder and projection with sizes from the config."""

    def __init__(self, config: MllamaConfig) -> None:
        nn.Module.__init__(self)
        vision = config.vision_config
        self.image_res, self.patch_size = vision.image_size, vision.patch_size
        self.vision_encoder = VisionEncoder(
            max_num_tiles=vision.max_num_tiles,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            layers=vision.num_hidden_layers,
            heads=vision.attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            n_global_layers=vision.num_global_layers,
            global_model=True,
            return_intermediate=vision.intermediate_layers_indices,
        )
        width = config.text_config.hidden_size
        self.vision_projection = ColumnParallelLinear(vision.vision_output_dim, width, bias=True)


class SmallText(CrossAttentionTransformerText):
    """Meta's decoder with its cross-attention layers where the config wants them, not only evenly spread."""

    def __init__(self, args: ModelArgs, schedule: list[int]) -> None:
        self.schedule = schedule  # read by the hook below while Meta's constructor runs
        super().__init__(args)

    def _init_fusion_schedule(self, num_layers: int) -> list[int]:
        return self.schedule


def model_args(config: MllamaConfig) -> ModelArgs:
    """Meta's arguments for a Hugging Face config.

    Raises ValueError for a RoPE factor other than 8, which Meta's code cannot express.
    """
    text, vision = config.text_config, config.vision_config
    if text.rope_parameters["factor"] != 8:
        raise ValueError(f"Meta's RoPE factor is 8 in its code, found {text.rope_parameters['factor']}")
    return ModelArgs(
        dim=text.hidden_size,
        n_layers=text.num_hidden_layers - len(text.cross_attention_layers),
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        # Meta rounds the feed-forward's width up to this multiple: from at most that width, it is that width.
        multiple_of=text.intermediate_size,
        ffn_dim_multiplier=1 / text.hidden_size,
        norm_eps=text.rms_norm_eps,
        rope_theta=text.rope_parameters["rope_theta"],
        use_scaled_rope=True,
        max_batch_size=1,
        max_seq_len=MAX_LENGTH,
        vision_chunk_size=vision.image_size,
        vision_max_num_chunks=vision.max_num_tiles,
        vision_num_cross_attention_layers=len(text.cross_attention_layers),
    )


def start_model_parallel() -> None:
    """Start fairscale's groups of one process, once; they end with the interpreter. Uses no port and no file."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(stop_model_parallel)
    if not model_parallel.model_parallel_is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # fairscale announces itself
            model_parallel.initialize_model_parallel(1)


def stop_model_parallel() -> None:
    """End what `start_model_parallel` started."""
    if dist.is_initialized():
        model_parallel.destroy_model_parallel()
        dist.destroy_process_group()


@torch.no_grad()
def features(model: SmallTransformer, images: Sequence[Picture]) -> Tensor:
    """The vision encoder's output `[m, t, p, f]` of one prompt's images, unused tiles included (t = max_tiles)."""
    return _record(model.vision_model.vision_encoder, lambda: _vision(model, images))[0][0]


@torch.no_grad()
def image_tokens(model: SmallTransformer, images: Sequence[Picture]) -> Tensor:
    """The projection's output `[m, t, p, d]`."""
    return _record(model.vision_model, lambda: _vision(model, images))[0][0]


@torch.no_grad()
def layer_outputs(model: SmallTransformer, case: Case) -> list[Tensor]:
    """The output `[1, s, d]` of each decoder layer that ran, in order: Hugging Face's numbering of the layers."""
    blocks = [*model.text_model.layers, *model.text_model.cross_attention_layers]
    return _record(blocks, lambda: logits(model, case))


@torch.no_grad()
def logits(model: SmallTransformer, case: Case, *, prompt_length: int | None = None) -> Tensor:
    """The logits `[1, s, n]` of one pass.

    With `prompt_length` the images' spans are made from that many ids, as for a prompt whose other ids were generated.
    Source: llama-models, llama3/generation.py `Llama3.generate`.
    """
    spans = create_vision_mask(case.ids[:prompt_length], model.text_model.vocab_size)
    caches, masks, rows = _vision(model, case.images, spans, len(case.ids))
    positions = torch.arange(len(case.ids))
    return model(positions, torch.tensor([case.ids]), masks, rows, caches, text_only_inference=not case.images)


def _vision(
    model: SmallTransformer, images: Sequence[Picture], spans: list[list[int]] | None = None, length: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Meta's cross-attention caches, masks and row masks of one prompt; without spans each image is seen by all."""
    spans = [[0, length] for _ in images] if spans is None else spans
    return model.compute_vision_tokens_masks([list(images)], [spans], length, torch.device("cpu"))


def _record(modules: nn.Module | list[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """What these modules return while `run` runs, in the order of their calls."""
    modules = [modules] if isinstance(modules, nn.Module) else modules
    outputs: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda module, args, output: outputs.append(output)) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return outputs
