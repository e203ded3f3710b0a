"""transformers as an oracle: as it is (`stock`), and with the repairs that make it equal to Meta (`repaired`).

The repairs touch one model instance, never the library. The third one, position tables spread from one cell table,
is a matter of weights: `weights.random_hf_state(tables="cells")`.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer, MllamaVisionEncoder

from .cases import Case, Picture, visible_images
from .weights import State


def stock(config: MllamaConfig, state: State) -> MllamaForConditionalGeneration:
    """Build transformers' model as it is, in float32, eager attention, evaluation mode."""
    model = MllamaForConditionalGeneration._from_config(deepcopy(config), attn_implementation="eager")
    model.load_state_dict(state, strict=True)
    return model.eval()


def repaired(
    config: MllamaConfig, state: State, *, features: bool = True, rows: bool = True
) -> MllamaForConditionalGeneration:
    """Build transformers' model so that it computes what Meta's does; the flags leave one repair out.

    `features`: intermediate features are taken before their layers. `rows`: text before the first image is cut off
    after the attention too (#39379).
    """
    model = stock(config, state)
    if features:
        model.model.vision_model.transformer.__class__ = FeaturesBeforeLayers
    if rows:
        for layer in model.model.language_model.layers:
            if isinstance(layer, MllamaCrossAttentionDecoderLayer):
                layer.__class__ = RowMaskedCrossLayer
    return model


class FeaturesBeforeLayers(MllamaVisionEncoder):
    """Hands out the hidden state before each layer instead of after it.

    For indices from 1 on this equals lowering `intermediate_layers_indices` by one. Lowering 0 gives -1, which
    transformers reads as the state after the *last* layer; Meta's is the encoder's input.
    Source: llama-models, multimodal/model.py `ImageTransformer.forward`.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        before = []
        for layer in self.layers:
            before.append(hidden_states)
            hidden_states = layer(hidden_states=hidden_states, attention_mask=attention_mask)
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(before))


class RowMaskedCrossLayer(MllamaCrossAttentionDecoderLayer):
    """Multiplies the attention's output by the row mask, as the feed-forward's already is.

    Source: llama-models, multimodal/model.py `CrossAttention.forward`.
    """

    def forward(self, hidden_states: Tensor, *, full_text_row_masked_out_mask: Tensor | None = None, **kwargs):
        def cut_rows(module: nn.Module, args: tuple, output: tuple) -> tuple:
            return (output[0] * full_text_row_masked_out_mask[:, 0], *output[1:])

        kwargs["full_text_row_masked_out_mask"] = full_text_row_masked_out_mask
        if full_text_row_masked_out_mask is None:
            return super().forward(hidden_states, **kwargs)
        with self.cross_attn.register_forward_hook(cut_rows):
            return super().forward(hidden_states, **kwargs)


def vision_inputs(config: MllamaConfig, images: Sequence[Picture]) -> dict[str, Tensor]:
    """Pack images as transformers' processor does: `pixel_values` `[1, m, t, 3, x, x]` with t = max_tiles and zeros
    in unused tiles, `aspect_ratio_ids` `[1, m]` from 1, `aspect_ratio_mask` `[1, m, t]`.

    Source: transformers, image_processing_mllama.py.
    """
    vision = config.vision_config
    size = (vision.image_size, vision.image_size)
    pixels = torch.zeros(1, len(images), vision.max_num_tiles, 3, *size)
    mask = torch.zeros(1, len(images), vision.max_num_tiles, dtype=torch.long)
    for image, picture in enumerate(images):
        pixels[0, image, : len(picture.pixels)] = picture.pixels
        mask[0, image, : len(picture.pixels)] = 1
    ids = [vision.supported_aspect_ratios.index(list(picture.grid)) + 1 for picture in images]
    return {"pixel_values": pixels, "aspect_ratio_ids": torch.tensor([ids]), "aspect_ratio_mask": mask}


def text_inputs(config: MllamaConfig, case: Case) -> dict[str, Tensor]:
    """`input_ids` `[1, s]` and, with images, `cross_attention_mask` `[1, s, m, t]`: visible image and used tile."""
    inputs = {"input_ids": torch.tensor([case.ids])}
    if case.images:
        visible = visible_images(case.ids, config.image_token_index)
        used = vision_inputs(config, case.images)["aspect_ratio_mask"][0]
        inputs["cross_attention_mask"] = (visible[:, :, None] * used)[None]
    return inputs


@torch.no_grad()
def features(model: MllamaForConditionalGeneration, images: Sequence[Picture]) -> Tensor:
    """The vision encoder's output `[m, t, p, f]` of one prompt's images, unused tiles included (t = max_tiles)."""
    return model.model.vision_model(**vision_inputs(model.config, images)).last_hidden_state[0]


@torch.no_grad()
def image_tokens(model: MllamaForConditionalGeneration, images: Sequence[Picture]) -> Tensor:
    """The projector's output `[m, t, p, d]`."""
    return model.model.multi_modal_projector(features(model, images))


@torch.no_grad()
def layer_outputs(model: MllamaForConditionalGeneration, case: Case) -> list[Tensor]:
    """The output `[1, s, d]` of each decoder layer that ran, in order (a text-only prompt skips cross layers)."""
    outputs: list[Tensor] = []
    layers = model.model.language_model.layers
    hooks = [layer.register_forward_hook(lambda module, args, output: outputs.append(output)) for layer in layers]
    logits(model, case)
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
def logits(model: MllamaForConditionalGeneration, case: Case) -> Tensor:
    """The logits `[1, s, n]` of one full pass."""
    inputs = text_inputs(model.config, case)
    if case.images:
        inputs |= vision_inputs(model.config, case.images)
    return model(**inputs, use_cache=False).logits
