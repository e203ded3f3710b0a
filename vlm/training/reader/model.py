"""The model in training: the shipped classes, and the losses that are dropped once it reads.

The answer alone teaches nothing for very long. Eight more losses say what stands where and where to look:

- characters: a head on every patch names the characters in it.
- links: in the first global layer of the encoder the patches of a value and of its label look at each other, by one
  head where they stand in a row and by another where one is below the other; a third looks at the legend entry.
- partners: some dims of the image token of a value or of its label tell where the other one is.
- shades: some dims of the image token of a value or of a legend entry tell the colour it stands for.
- magnitudes: further dims of the image token of a value, and of a label that has but one, tell where it lies between
  the smallest and the largest of the chart, and whether it is either of them.
- order: another head on every patch tells how far into its label, value or title the print in it begins.
- beginning: and another with which characters that label, value or title begins, by which a question knows it.
- pointers: in the decoder's first cross-attention layer two heads look at what the question names, in the second at
  what the answer is taken from, in the third at the patch of the very next character.
"""

from collections import Counter
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask
from vision_encoder.preprocess import normalise
from vision_encoder.thinning import Kept
from vision_encoder.transformer import VisionAttention
from vlm.attention import attention_weights
from vlm.config import ModelConfig
from vlm.model import VisionLanguageModel
from vlm.training.reader.conversations import QuestionBatch
from vlm.training.reader.data import NUM_SLOTS, ReaderBatch
from vlm.training.reader.shown import ShownBatch
from vlm.training.reader.sinusoids import place_tile
from vlm.training.reader.start import initialise
from vlm.training.reader.targets import (
    COPY,
    FIND,
    IGNORED,
    MAX_ORDER,
    NO_SHADE,
    NUM_CODES,
    NUM_FIRST,
    SPELL,
    UNSHADED,
    PatchLinks,
)
from vlm.training.reader.wires import (
    SHADE_LOUDNESS,
    cross_attentions,
    magnitude_code,
    magnitude_dims,
    partner_dims,
    shade_code,
    shade_dims,
)

POINTING_HEADS = ((FIND, [[0], [1]]), (COPY, [[0, 2], [1, 3]]), (SPELL, [[0], [2]]))
"""What which heads of each cross-attention layer look for. Of two that are named together one has to: what an answer is
taken from is the partner of what was found (see `wires.py`), or is known by what it is, as the largest value
is."""
MAX_SEEKERS = 128
"""Of a picture; more of them would take most of the time and memory of a step."""


class Losses(NamedTuple):
    """Mean losses of a batch; zero where there is nothing to learn from."""

    answer: Tensor
    characters: Tensor
    links: Tensor
    partners: Tensor
    shades: Tensor
    magnitudes: Tensor
    order: Tensor
    beginning: Tensor
    pointers: Tensor


class Reader(nn.Module):
    """The model with the heads that are dropped after training."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.model = VisionLanguageModel(config)
        self.character_head = nn.Linear(config.vision.feature_dim, NUM_SLOTS * NUM_CODES)
        self.order_head = nn.Linear(config.vision.feature_dim, MAX_ORDER + 1)
        self.beginning_head = nn.Linear(config.vision.feature_dim, NUM_FIRST * NUM_CODES)
        self.exact: Counter[tuple[str, bool]] = Counter()
        """How many replies of each kind were predicted whole, and how many not."""
        initialise(self.model)

    def forward(self, batch: ReaderBatch | ShownBatch) -> Losses:
        """Return the losses of `batch`; of pictures as they are shown when it answers that of answers alone."""
        if isinstance(batch, ShownBatch):
            return self._answers(batch)
        if self.model.config.vision.max_tiles == 1:
            place_tile(self.model.encoder, batch.offset)
        num_tiles = batch.pixels.shape[1]
        attention = self.model.encoder.global_layers[0].attention
        with _Inputs([attention]) as inputs:
            features = self._features(batch)
        tokens = self.model.projector(features)
        of_patches, told = features[:, num_tiles:], tokens[:, num_tiles:]
        characters = self._character_loss(of_patches, batch.characters)
        seekers = seekers_of(batch.links)
        log_counts = None if batch.kept is None else _of_real_rows(batch.kept, num_tiles)
        links = _link_loss(attention, inputs.taken[0], seekers, num_tiles, log_counts)
        partners = _partner_loss(told[..., partner_dims(self.model)], inputs.taken[0], seekers, num_tiles, log_counts)
        shades = _shade_loss(told[..., shade_dims(self.model)], batch.links.shade)
        magnitudes = _magnitude_loss(told[..., magnitude_dims(self.model)], batch.links.magnitude)
        printed = batch.links.order > 0
        of_text = of_patches[printed]
        order = _mean_entropy(self.order_head(of_text), batch.links.order[printed])
        beginning = _mean_entropy(
            self.beginning_head(of_text).unflatten(-1, (-1, NUM_CODES)).flatten(0, 1),
            batch.links.beginning[printed].flatten(),
        )
        answer = pointers = features.new_zeros(())
        if batch.groups:
            answer, pointers = self.asked(tokens, num_tiles, batch.groups, log_counts)
        return Losses(answer, characters, links, partners, shades, magnitudes, order, beginning, pointers)

    def _answers(self, batch: ShownBatch) -> Losses:
        """Return the losses of answers about pictures in one of their views, thinned; the encoder is held."""
        parts = []
        for picture in batch.pictures:
            view = picture.view
            with torch.no_grad():
                pixels = normalise(view.levels)[None].to(self.model.projector.weight.dtype)
                _, tokens = self.model.encode(pixels, [tuple(view.canvas)], view.kept)
            image = self.model.decoder.image_kv(tokens.flatten(1, 2)[:, picture.given].float())
            parts += [self._answer_loss(group, _of_questions(image, group), None) for group in picture.groups]
        answer = sum(part[0] for part in parts) / sum(part[1] for part in parts)
        return Losses(answer, *[answer.new_zeros(()) for _ in Losses._fields[1:]])

    def _features(self, batch: ReaderBatch) -> Tensor:
        """Return the features [m, t + n, f] of the class tokens, then of the patches that are kept."""
        encoder, pixels = self.model.encoder, normalise(batch.pixels)
        canvas_id = 1 + encoder.config.canvases.index(tuple(batch.canvas))
        canvas_ids = torch.full((len(pixels),), canvas_id, device=pixels.device)
        return encoder.encode_kept(pixels, canvas_ids, batch.kept)

    def asked(
        self, tokens: Tensor, num_tiles: int, groups: list[QuestionBatch], log_counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of answers and of pointers of questions about pictures of image tokens [m, t + n, d].

        Those of class tokens come first. `log_counts` [m, t + n]: ln of how many each stands for.
        """
        image = self.model.decoder.image_kv(tokens)
        parts = [self._question_losses(group, image, num_tiles, log_counts) for group in groups]
        answer = sum(part[0] for part in parts) / sum(part[1] for part in parts)
        sums, counts = (torch.stack([part[index] for part in parts]).sum(0) for index in (2, 3))
        return answer, (sums / counts.clamp_min(1)).sum()

    def _character_loss(self, features: Tensor, characters: Tensor) -> Tensor:
        logits = rearrange(self.character_head(features), "m p (i n) -> (m p i) n", n=NUM_CODES).float()
        # Most patches are empty; without the low weight emptiness is all that is learned.
        weight = torch.ones(NUM_CODES, device=logits.device)
        weight[0] = 0.05
        loss = functional.cross_entropy(logits, characters.flatten(), weight=weight, reduction="sum")
        return loss / weight[characters[characters != IGNORED]].sum().clamp_min(1)

    def _question_losses(
        self, group: QuestionBatch, image: ImageKV, num_tiles: int, log_counts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the summed answer loss and its weight, the three summed pointer losses and their numbers."""
        own = _of_questions(image, group)
        bias = None if log_counts is None else log_counts[group.image_index]
        layers = cross_attentions(self.model)
        with _Inputs(layers) as inputs:
            answer, weight = self._answer_loss(group, own, bias)
        sums, counts = [], []
        rows, pointers = _pointing(group)
        for index, (layer, x, (places, heads)) in enumerate(zip(layers, inputs.taken, POINTING_HEADS, strict=False)):
            queries = layer.queries(x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1])))
            weights = _weights_of(heads, queries, own.keys[index], bias)
            numbers = pointers[:, places].expand(-1, len(heads), -1)
            pointing = numbers > 0
            # One index rather than three: the gradient of several is sorted.
            chosen = weights.flatten(0, 2).index_select(0, pointing.flatten().nonzero()[:, 0])
            loss, count = _missed_mass(chosen[:, num_tiles:], group.places[numbers[pointing]])
            sums.append(loss)
            counts.append(count)
        return answer, weight, torch.stack(sums), torch.stack(counts)

    def _answer_loss(self, group: QuestionBatch, image: ImageKV, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the summed loss of answers and its weight; `image` is each question's own, `bias` [b, l] of keys."""
        seeing = torch.arange(group.ids.shape[1], device=group.ids.device) >= group.first_seeing
        keys = None if bias is None else bias[:, None, None]
        logits = self.model(group.ids, image, CrossMask(keys, seeing[None, :, None]))
        predicting = group.labels != IGNORED
        # A reply counts by the root of its length: it is right or wrong as a whole, but a table has more to learn.
        weight = (predicting / predicting.sum(1, keepdim=True).clamp_min(1).sqrt())[predicting]
        entropy = functional.cross_entropy(logits[predicting].float(), group.labels[predicting], reduction="none")
        self._count(group, logits, predicting)
        return (entropy * weight).sum(), weight.sum()

    def shares_right(self) -> dict[str, float]:
        """Return the share of replies of each kind that were predicted whole since this was last asked."""
        kinds, exact = sorted({kind for kind, _ in self.exact}), self.exact.copy()
        self.exact.clear()
        return {kind: round(exact[kind, True] / (exact[kind, True] + exact[kind, False]), 3) for kind in kinds}

    @torch.no_grad()
    def _count(self, group: QuestionBatch, logits: Tensor, predicting: Tensor) -> None:
        """Count the replies that are right as a whole: each token predicted from the right ones before it."""
        right = ((logits.argmax(-1) == group.labels) | ~predicting).all(-1)
        self.exact.update(zip(group.kinds, right.tolist(), strict=True))


def _of_questions(image: ImageKV, group: QuestionBatch) -> ImageKV:
    """Return keys and values of pictures [layers, m, g, l, e] for each question of `group`, layer by layer."""
    return ImageKV(*(_of_pictures(part, group.image_index).unbind() for part in image))


def _of_pictures(x: Tensor, image_index: Tensor) -> Tensor:
    """Return the pictures `image_index` [b] of x [n, m, ...], [n, b, ...].

    A product with ones and zeros, for the gradient of an index is added up number by number, this one's by a product.
    """
    chosen = functional.one_hot(image_index, x.shape[1]).to(x.dtype)
    return (chosen @ x.flatten(2)).unflatten(-1, x.shape[2:])


def _of_real_rows(kept: Kept, num_tiles: int) -> Tensor:
    """Return ln of how many rows each class token, one, and each patch that is kept stand for, [m, t + n]."""
    return functional.pad(kept.log_counts, (num_tiles, 0))


def _weights_of(heads: list[list[int]], queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the mean attention [b, len(heads), r, l] of heads that are named together, of queries [b, h, r, e].

    keys [b, g, l, e] are large and stay where they are: each group is asked by those of its heads that are named.
    """
    shared = queries.shape[1] // keys.shape[1]
    chosen = sorted(head for together in heads for head in together)
    groups = sorted({head // shared for head in chosen})
    weights = attention_weights(queries[:, chosen], keys[:, groups[0] : groups[-1] + 1], bias=bias)
    return torch.stack([weights[:, [chosen.index(head) for head in together]].mean(1) for together in heads], 1)


def _pointing(group: QuestionBatch) -> tuple[Tensor, Tensor]:
    """Return which positions [b, r] of each question point anywhere, and at what [b, NUM_POINTERS, r]; r is few.

    The last ones of a question where fewer do point at nothing.
    """
    pointing = (group.pointers > 0).any(1)
    rows = pointing.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(pointing.sum(1).max()))]
    return rows, group.pointers.gather(2, rows[:, None].expand(-1, group.pointers.shape[1], -1))


def _mean_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [n, classes]; zero where n is."""
    return functional.cross_entropy(logits.float(), targets.long(), reduction="sum") / max(1, len(targets))


class Seekers(NamedTuple):
    """The patches that a link begins at, of which there are few, and where their links end."""

    rows: Tensor
    """[m, r] int64: which patches; the last ones of a picture that has fewer seek nothing."""
    beside: Tensor
    """[m, r, p] bool: the label of a value or the value of a label that stands in the same row."""
    below: Tensor
    """The same, where one stands below the other."""
    entry: Tensor
    """[m, r, p] bool: the legend entry of a value."""

    def of(self, x: Tensor) -> Tensor:
        """Return the rows of x [m, p, n] that seek, [m, r, n]."""
        return x.gather(1, self.rows[..., None].expand(-1, -1, x.shape[-1]))


def seekers_of(links: PatchLinks) -> Seekers:
    """Return which patches seek what."""
    seeking = (links.label > 0) | (links.label_beside > 0) | (links.label_below > 0) | (links.value_entry > 0)
    counts = seeking.sum(1, keepdim=True)
    rows = seeking.int().argsort(dim=1, descending=True, stable=True)
    num_rows = int(counts.max())
    if num_rows > MAX_SEEKERS:
        # Of a picture that has more, every so-many-th.
        steps = torch.arange(MAX_SEEKERS, device=rows.device)
        rows = rows.gather(1, steps * counts.clamp_min(MAX_SEEKERS) // MAX_SEEKERS)
    rows = rows[:, :num_rows]
    label, beside, below, value_entry = (
        part.gather(1, rows) for part in (links.label, links.label_beside, links.label_below, links.value_entry)
    )
    return Seekers(
        rows,
        _same(beside, links.label) | _same(label, links.label_beside),
        _same(below, links.label) | _same(label, links.label_below),
        _same(value_entry, links.entry),
    )


def _link_loss(
    attention: VisionAttention, x: Tensor, seekers: Seekers, num_tiles: int, log_counts: Tensor | None = None
) -> Tensor:
    """Return how little three heads of `attention` over rows x [m, rows, v] look where the links say.

    Class tokens come first, padding and missing tiles after the patches.
    """
    wanted = torch.stack([seekers.beside, seekers.below, seekers.entry], 1)
    num_real = num_tiles + wanted.shape[-1]
    head_dim = x.shape[-1] // attention.num_heads
    dims = wanted.shape[1] * head_dim
    seeking = seekers.of(x[:, num_tiles:num_real])
    query, key = (
        functional.linear(part, projection.weight[:dims]).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for part, projection in ((seeking, attention.q_proj), (x, attention.k_proj))
    )
    bias = None if log_counts is None else functional.pad(log_counts, (0, x.shape[1] - num_real))
    weights = attention_weights(query, key, bias=bias)[..., num_tiles:num_real]
    # Each on its own, for legend entries are few.
    missed = [_missed_mass(weights[:, head], wanted[:, head]) for head in range(wanted.shape[1])]
    return sum(loss / count.clamp_min(1) for loss, count in missed)


def _partner_loss(
    sought: Tensor, x: Tensor, seekers: Seekers, num_tiles: int, log_counts: Tensor | None = None
) -> Tensor:
    """Return how little `sought` [m, n, e], of each patch, is like the position of its partner in `x`, see above."""
    wanted = seekers.beside | seekers.below
    positions = x[:, num_tiles : num_tiles + wanted.shape[-1], -sought.shape[-1] :].detach()
    bias = None if log_counts is None else log_counts[:, num_tiles:]
    weights = attention_weights(seekers.of(sought)[:, None], positions[:, None], bias=bias)[:, 0]
    loss, count = _missed_mass(weights, wanted)
    return loss / count.clamp_min(1)


def _shade_loss(told: Tensor, shades: Tensor) -> Tensor:
    """Return how far `told` [m, p, n], of each patch, is from the code of its shade in `shades` [m, p, 3]."""
    printed = shades[..., 0] != NO_SHADE
    coded = shade_code(shades[printed].float() / 255) * (shades[printed][:, :1] != UNSHADED)
    return functional.mse_loss(told[printed].float() / SHADE_LOUDNESS, coded, reduction="sum") / max(1, coded.numel())


def _magnitude_loss(told: Tensor, magnitudes: Tensor) -> Tensor:
    """Return how far `told` [m, p, n], of each patch, is from the code of `magnitudes` [m, p]."""
    known = magnitudes > 0
    coded = magnitude_code(magnitudes[known])
    return functional.mse_loss(told[known].float() / SHADE_LOUDNESS, coded, reduction="sum") / max(1, coded.numel())


def _same(seeker: Tensor, sought: Tensor) -> Tensor:
    """Return which patches [m, p, p] of `sought` belong to the same as a patch of `seeker`, both [m, p]."""
    return (seeker[:, :, None] == sought[:, None]) & (seeker > 0)[..., None]


def _missed_mass(weights: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed -ln of the attention on `wanted`, both [..., p], over rows that want any, and their number."""
    pointing = wanted.any(-1)
    mass = (weights * wanted).sum(-1)[pointing]
    return -mass.clamp_min(1e-6).log().sum(), pointing.sum()


class _Inputs:
    """Takes down what enters each of `modules` while it is open."""

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        self.taken: list[Tensor] = []

    def __enter__(self) -> "_Inputs":
        self._hooks = [module.register_forward_pre_hook(self._take) for module in self.modules]
        return self

    def _take(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.taken.append(arguments[0])

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()
