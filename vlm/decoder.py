"""The text decoder: self-attention layers, with gated cross-attention layers between them where images are read.

Source: llama-models models/llama3/model.py (text) and models/llama3/multimodal/model.py, CrossAttentionTransformerText.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.config import AdapterConfig
from adapters.cross_attention import GatedCrossAttentionLayer, ImageKV, LayerParts
from adapters.masks import CrossMask
from vlm.attention import attend
from vlm.config import DecoderConfig
from vlm.gpu import WIDTHS, StepGraphs, ready_layers, run_layers, serves
from vlm.kv_cache import KVCache, LayerKV
from vlm.native import (
    AllLayersKV,
    DecodeStep,
    Linear,
    RMSNorm,
    decode_step,
    gated,
    linear,
    rotate_in_place,
    side_by_side,
    weights_state,
)
from vlm.rope import Rotation, rotate, rotation


class DecoderOutput(NamedTuple):
    """What one pass gives."""

    hidden: Tensor
    """[b, s, d], normalised: what the output head reads."""
    cache: KVCache | None


class Packing(NamedTuple):
    """Several texts side by side in one row, which do not see each other."""

    positions: Tensor
    """[b, s] int64: of each token in its own text."""
    mask: Tensor
    """[b, 1, s, s] bool: which tokens each one sees."""


class TextDecoder(nn.Module):
    """A grouped-query decoder. Without `adapter` it is the text-only family."""

    def __init__(self, config: DecoderConfig, adapter: AdapterConfig | None = None):
        super().__init__()
        self.config = config
        self.adapter = adapter
        self.embedding = nn.Embedding(config.num_embeddings, config.width)
        cross_layers = adapter.cross_layers if adapter else ()
        self.layers = nn.ModuleList(
            self._cross_layer() if index in cross_layers else SelfAttentionLayer(config)
            for index in range(config.num_layers + len(cross_layers))
        )
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_size)
        self._step: DecodeStep | None = None
        self._graphs = StepGraphs()

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        image: ImageKV | None = None,
        mask: CrossMask | None = None,
        num_new: Tensor | None = None,
        packing: Packing | None = None,
    ) -> DecoderOutput:
        """Read token ids [b, s] on top of `cache`, looking at `image` as far as `mask` allows.

        In a batch of rows of different lengths, rows are padded on the right and `num_new` [b] says how many of the
        `s` ids are real; what stands at the others means nothing. Without a cache `ids` are the whole text, or with
        `packing` several whole texts a row.
        """
        x = self.embedding(ids)
        if ids.shape[1] > 1:
            # Another prompt: weights may have gone elsewhere since the last reply.
            self._graphs.looks_first = True
        if cache is not None and ids.shape[1] == 1 and (out := self._replayed(x, cache, image, mask)) is not None:
            return DecoderOutput(self.norm(out), cache.advanced(num_new, 1))
        context = self._context(cache, _positions(cache, ids) if packing is None else packing.positions)
        if packing is not None:
            context = context._replace(mask=packing.mask)
        if ids.shape == (1, 1) and (out := self._in_one_call(x, context, image, mask)) is not None:
            return DecoderOutput(self.norm(out), cache.advanced(num_new, 1))
        x = self._one_by_one(x, context, image, mask)
        return DecoderOutput(self.norm(x), None if cache is None else cache.advanced(num_new, ids.shape[1]))

    @property
    def num_recorded_steps(self) -> int:
        """How many decode steps are recorded on a GPU: where none is, each token goes layer by layer."""
        return self._graphs.num_recorded

    def _context(self, cache: KVCache | None, positions: Tensor) -> "SelfContext":
        """Return what all self-attention layers share when they read the tokens at `positions` [b or 1, s]."""
        return SelfContext(cache, positions, rotation(self.config, positions), _length_mask(cache, positions))

    def _one_by_one(self, x: Tensor, context: "SelfContext", image: ImageKV | None, mask: CrossMask | None) -> Tensor:
        """Return what the layers make of x [b, s, d], each called as it is."""
        num_self = num_cross = 0
        for layer in self.layers:
            if isinstance(layer, SelfAttentionLayer):
                x = layer(x, context, num_self)
                num_self += 1
            elif image is not None:
                x = layer(x, image.layer(num_cross), mask)
                num_cross += 1
        return x

    def _replayed(self, x: Tensor, cache: KVCache, image: ImageKV | None, mask: CrossMask | None) -> Tensor | None:
        """Return what the layers make of a token a row, x [b, 1, d], by one recorded call of a GPU; None where that is
        not had.

        It knows no numbers, only tensors: it has the whole cache before it, and a mask says how far that is filled.
        """
        if self.config.head_dim not in WIDTHS or cache.max_length >= cache.capacity or not serves(x):
            return None
        masks = mask or CrossMask(None, None)

        def context_of(lengths: Tensor) -> SelfContext:
            whole = cache._replace(lengths=lengths, max_length=cache.capacity - 1, is_bound=True)
            return self._context(whole, whole.positions(1))

        def by_layers(x: Tensor, lengths: Tensor, *masks: Tensor | None) -> Tensor:
            return self._one_by_one(x, context_of(lengths), image, CrossMask(*masks))

        def by_kernels(x: Tensor, lengths: Tensor, *masks: Tensor | None) -> Tensor:
            fits = len(x) == 1 and CrossMask(*masks).hides_nothing
            layers = ready_layers(self.layers, cache, image) if fits else None
            if layers is None:
                return by_layers(x, lengths, *masks)
            context = context_of(lengths)
            return run_layers(layers, x, cache, context.mask, lengths, context.rotation, image)

        def as_usual() -> Tensor:
            return self._one_by_one(x, self._context(cache, cache.positions(1)), image, mask)

        memory = (*cache.parts, *(image or ()))
        state = functools.partial(weights_state, self.layers)
        return self._graphs.run(by_kernels, as_usual, (x, cache.lengths, *masks), memory, state)

    def _in_one_call(
        self, x: Tensor, context: "SelfContext", image: ImageKV | None, mask: CrossMask | None
    ) -> Tensor | None:
        """Return what the layers make of a single token x [1, 1, d] by C; None where they have to be run one by one."""
        cache = context.cache
        if cache is None or context.mask is not None:
            return None
        if image is not None and (mask is None or not mask.hides_nothing):
            return None
        # Kept from token to token, for it takes long to make; whether it still holds is looked at each time.
        step = self._step = decode_step(self.layers, x, self._step)
        if step is None:
            return None
        text = AllLayersKV(cache.keys, cache.values, cache.scales, cache.max_length + 1)
        pictures = None if image is None else AllLayersKV(*image, None, image.keys.shape[3])
        return step.run(x, text, pictures, context.rotation, self.config.num_heads, self.config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., n] of hidden states [..., d]."""
        return linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def image_kv(self, tokens: Tensor) -> ImageKV:
        """Return the keys and values of image tokens [b, l, d] for every cross-attention layer."""
        layers = [layer for layer in self.layers if isinstance(layer, GatedCrossAttentionLayer)]
        keys, values = zip(*(layer.attention.project(tokens) for layer in layers), strict=True)
        return ImageKV(torch.stack(keys), torch.stack(values))

    def _cross_layer(self) -> GatedCrossAttentionLayer:
        config = self.config
        return GatedCrossAttentionLayer(
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.norm_eps,
            FeedForward(config.width, config.mlp_dim),
            leak_attention=self.adapter.leak_attention,
            parts=LayerParts(Linear, RMSNorm, attend),
        )


class SelfContext(NamedTuple):
    """What all self-attention layers of a pass share."""

    cache: KVCache | None
    positions: Tensor
    rotation: Rotation
    mask: Tensor | None


class SelfAttentionLayer(nn.Module):
    """Pre-norm causal attention and feed-forward."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = SelfAttention(config)
        self.mlp_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config.width, config.mlp_dim)

    def forward(self, x: Tensor, context: SelfContext, index: int) -> Tensor:
        """Map x [b, s, d] to the same shape; `index` is the layer's place in the cache."""
        x = x + self.attention(self.attention_norm(x), context, index)
        return x + self.mlp(self.mlp_norm(x))


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.queries_per_key = config.num_heads // config.num_kv_heads
        self.q_proj = Linear(config.width, config.num_heads * config.head_dim)
        self.k_proj = Linear(config.width, config.num_kv_heads * config.head_dim)
        self.v_proj = Linear(config.width, config.num_kv_heads * config.head_dim)
        self.o_proj = Linear(config.num_heads * config.head_dim, config.width)

    def forward(self, x: Tensor, context: SelfContext, index: int) -> Tensor:
        """Map x [b, s, d] to the same shape."""
        q, k, v = self._heads(x, context.rotation)
        kv, cache = LayerKV(k, v), context.cache
        if cache is not None:
            cache.write(index, k, v, context.positions)
            # What was quantised is read so from the first chunk on: how a prompt is cut changes nothing.
            if cache.max_length > 0 or cache.scales is not None:
                kv = cache.read(index, cache.max_length + x.shape[1])
        # Padding on the right is hidden from every real position by causality.
        attended = attend(q, *kv, mask=context.mask, causal=context.mask is None and x.shape[1] > 1)
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [b, h, s, e] and keys [b, g, s, e] of x [b, s, d], both rotated, and values [b, g, s, e]."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # All in one, and one rotation: on a CPU it is calls that take the time of a decode step, not numbers.
        heads = side_by_side(x, *projections)
        if heads is None:
            heads = torch.cat([projection(x) for projection in projections], dim=-1)
        # unflatten and transpose rather than einops: views in the innermost loop.
        heads = heads.unflatten(-1, (-1, self.head_dim))
        groups = heads.shape[2] // (self.queries_per_key + 2)
        turned = groups * (self.queries_per_key + 1)
        in_place = rotate_in_place(heads, turned, *by)
        q, k, v = heads.transpose(1, 2).split([turned - groups, groups, groups], dim=1)
        if not in_place:
            q, k = rotate(heads[:, :, :turned].transpose(1, 2), by).split([turned - groups, groups], dim=1)
        return q, k, v


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.gate_proj = Linear(width, mlp_dim)
        self.up_proj = Linear(width, mlp_dim)
        self.down_proj = Linear(mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to the same shape."""
        hidden = gated(x, self.gate_proj, self.up_proj)
        if hidden is None:
            hidden = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(hidden)


def _positions(cache: KVCache | None, ids: Tensor) -> Tensor:
    """Return the positions [b or 1, s] of new ids [b, s]."""
    if cache is None:
        return torch.arange(ids.shape[1], device=ids.device)[None]
    return cache.positions(ids.shape[1])


def _length_mask(cache: KVCache | None, positions: Tensor) -> Tensor | None:
    """Return which cached keys the tokens at `positions` [b or 1, s] may see, [b, 1, s, l]; None where each sees
    those up to its own.

    No larger than one chunk of the prompt; a decode step has s = 1.
    """
    if cache is None or cache.max_length == 0 or cache.is_even:
        return None
    index = torch.arange(cache.max_length + positions.shape[1], device=positions.device)
    return index <= positions[:, None, :, None]
