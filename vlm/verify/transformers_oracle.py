"""transformers as an oracle: as it is, and with the two repairs that make it compute what Meta's code does.

The repairs touch one model, never the library; the position tables are the checkpoint's own.
Source of what they restore: llama-models models/llama3/multimodal/model.py, `ImageTransformer.forward` and
`CrossAttention.forward`.
"""

import contextlib
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, MllamaConfig, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer, MllamaVisionEncoder
from transformers.utils import logging

from vlm.errors import VLMError
from vlm.verify.cases import Answers, Question

OracleModel = MllamaForConditionalGeneration | LlamaForCausalLM


def load(folder: Path, *, has_vision: bool, dtype: torch.dtype, device: torch.device) -> OracleModel:
    """Return transformers' own reading of a Hugging Face folder.

    Raises: VLMError where transformers did not find exactly the weights it needs, and would have gone on with random
        ones.
    """
    kind = MllamaForConditionalGeneration if has_vision else LlamaForCausalLM
    with _quiet():
        model, found = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    odd = [*found["missing_keys"], *found["mismatched_keys"], *found["unexpected_keys"]]
    if odd:
        raise VLMError("checkpoint_invalid", f"transformers does not find the same weights: {', '.join(map(str, odd))}")
    return model.to(device).eval()


def repair(model: OracleModel) -> None:
    """Make a stock model compute what Meta's code computes; a text-only model already does."""
    if isinstance(model, LlamaForCausalLM):
        return
    model.model.vision_model.transformer.__class__ = _FeaturesBeforeLayers
    for layer in model.model.language_model.layers:
        if isinstance(layer, MllamaCrossAttentionDecoderLayer):
            layer.__class__ = _RowMaskedCrossLayer
            # compressed-tensors puts one of the layer's own, made of the class before, in front at the first call.
            vars(layer).pop("forward", None)


@torch.inference_mode()
def answer(model: OracleModel, question: Question) -> Answers:
    """Return what the model computes in one pass over the question."""
    device = model.device
    inputs = {"input_ids": torch.tensor([question.ids], device=device)}
    if question.images:
        inputs |= {name: tensor.to(device) for name, tensor in _vision_inputs(model.config, question).items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    seen: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        if question.images:
            vision, projector = model.model.vision_model, model.model.multi_modal_projector
            hooks.enter_context(vision.register_forward_hook(lambda *call: seen.update(features=call[-1][0])))
            hooks.enter_context(projector.register_forward_hook(lambda *call: seen.update(tokens=call[-1])))
        # On a GPU the patch convolution would otherwise round its float32 to TF32.
        hooks.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        logits = model(**inputs, use_cache=False).logits[0].float().cpu()
    return Answers(_real_tiles(seen.get("features"), question), _real_tiles(seen.get("tokens"), question), logits)


def _vision_inputs(config: MllamaConfig, question: Question) -> dict[str, Tensor]:
    """Pack images as transformers' processor does, with zeros in unused tiles.

    Source: transformers models/mllama/image_processing_mllama.py and processing_mllama.py.
    """
    vision, images = config.vision_config, question.images
    side = vision.image_size
    pixels = torch.zeros(1, len(images), vision.max_num_tiles, 3, side, side)
    used = torch.zeros(len(images), vision.max_num_tiles, dtype=torch.long)
    for index, image in enumerate(images):
        pixels[0, index, : len(image.pixels)] = image.pixels
        used[index, : len(image.pixels)] = 1
    ratios = [tuple(ratio) for ratio in vision.supported_aspect_ratios]
    visible = _visible_images(question.ids, question.marker_id)
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[1 + ratios.index(image.canvas) for image in images]]),
        "aspect_ratio_mask": used[None],
        "cross_attention_mask": (visible[:, :, None] * used)[None],
    }


def _visible_images(ids: list[int], marker_id: int) -> Tensor:
    """Return which image each id sees, bool [s, m]: the latest, together with those directly before it.

    Written from the rule, not with the intervals that our own model uses.
    Source: llama-models models/llama3/chat_format.py, create_vision_mask.
    """
    places = [place for place, token_id in enumerate(ids) if token_id == marker_id]
    visible = torch.zeros(len(ids), len(places), dtype=torch.bool)
    for row in range(len(ids)):
        seen = [image for image, place in enumerate(places) if place <= row]
        for image in reversed(seen):
            visible[row, image] = True
            if image == 0 or places[image - 1] != places[image] - 1:
                break
    return visible


def _real_tiles(per_tile: Tensor | None, question: Question) -> list[Tensor]:
    """Return [t, p, ...] of each image's real tiles from [1, m, t, p, ...] or [m, t, p, ...]."""
    if per_tile is None:
        return []
    per_tile = per_tile.reshape(len(question.images), -1, *per_tile.shape[-2:])
    return [tiles[: len(image.pixels)].cpu() for tiles, image in zip(per_tile, question.images, strict=True)]


class _FeaturesBeforeLayers(MllamaVisionEncoder):
    """Hands out the hidden state before each layer instead of after it.

    For indices from 1 on this is the same as lowering `intermediate_layers_indices` by one; lowering 0 would give -1,
    which transformers reads as the last layer.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        before = []
        for layer in self.layers:
            before.append(hidden_states)
            hidden_states = layer(hidden_states=hidden_states, attention_mask=attention_mask)
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(before))


class _RowMaskedCrossLayer(MllamaCrossAttentionDecoderLayer):
    """Multiplies the attention's output by the row mask, as the feed-forward's already is (#39379)."""

    def forward(self, hidden_states: Tensor, *, full_text_row_masked_out_mask: Tensor | None = None, **kwargs):
        kwargs["full_text_row_masked_out_mask"] = full_text_row_masked_out_mask
        if full_text_row_masked_out_mask is None:
            return super().forward(hidden_states, **kwargs)

        def cut_rows(module, args: tuple, output: tuple) -> tuple:
            return (output[0] * full_text_row_masked_out_mask[:, 0], *output[1:])

        with self.cross_attn.register_forward_hook(cut_rows):
            return super().forward(hidden_states, **kwargs)


@contextlib.contextmanager
def _quiet():
    """Keep transformers' warnings and, in a pipe, its progress bars out of the output."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
