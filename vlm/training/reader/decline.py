"""Fit when a trained reader declines: the one row of its output head that begins that reply, and nothing else.

    python -m vlm.training.reader.decline --model runs/reader/model --out runs/reader/fitted

No other answer begins with that token, so its row alone decides. In training one question in ten is declined, and an
unsure reader says what is likelier. It should rather say so, as often as is tolerable where it could have answered.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor
from tqdm import tqdm

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask
from vision_encoder.preprocess import normalise
from vlm.config import preset
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer
from vlm.training.reader.data import ReaderBatch, ReaderData
from vlm.training.reader.diet import Diet
from vlm.training.reader.targets import IGNORED
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.synthetic.questions import DECLINED

DIET = Diet(
    num_images=8,
    share_pages=0.0,
    num_questions=8,
    share_sheets=0.6,
    share_several_series=0.2,
    max_shrink=1.3,
    share_wide_charts=0.3,
    share_wide_questions=0.5,
    share_declined=0.45,
    share_no_charts=0.05,
)
MAX_DECLINED = 0.025
"""Of questions that can be answered, how many are declined in the end."""
RIDGE = 0.01
"""Keeps what hidden states have in common from being made of their noise."""


class FirstWords(NamedTuple):
    """What a reader makes of questions where its reply begins."""

    hidden: Tensor
    """[n, d]: what the head reads."""
    rival: Tensor
    """[n]: the largest logit of any token that does not decline."""
    declined: Tensor
    """[n] bool: whether the right reply declines."""


def declining_token(tokenizer: Tokenizer) -> int:
    """Return the token that the reply which declines begins with."""
    return tokenizer.encode(DECLINED)[0]


@torch.inference_mode()
def first_words(model: VLM, num_batches: int, *, seed: int) -> FirstWords:
    """Return what `model` makes of `num_batches` batches of questions about drawn charts of the training split."""
    token = declining_token(model.tokenizer)
    data = ReaderData(preset("default").vision, reader_tokenizer(), DIET, num_batches=num_batches, seed=seed)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in tqdm(range(num_batches), disable=None, unit="batch"):
        for hidden, answers in _beginnings(model, data[index]):
            logits = model.model.decoder.logits(hidden).float()
            logits[:, token] = -torch.inf
            found.append((hidden.float(), logits.amax(-1), answers == token))
    return FirstWords(*map(torch.cat, zip(*found, strict=True)))


def _beginnings(model: VLM, batch: ReaderBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the hidden states that replies begin from and the tokens that they should begin with."""
    pixels = normalise(batch.pixels).to(model.model.projector.weight.dtype)
    tokens = model.model.encode(pixels, [batch.canvas] * len(pixels))[1]
    image = model.model.decoder.image_kv(tokens[:, : batch.canvas[0] * batch.canvas[1]].flatten(1, 2))
    for group in batch.groups:
        own = ImageKV(*(part.index_select(1, group.image_index) for part in image))
        seeing = torch.arange(group.ids.shape[1]) >= group.first_seeing
        hidden = model.model.decoder(group.ids, None, own, CrossMask(None, seeing[None, :, None])).hidden
        first = (group.labels != IGNORED).int().argmax(1)
        rows = torch.arange(len(first))
        yield hidden[rows, first], group.labels[rows, first]


def fitted(row: Tensor, words: FirstWords) -> Tensor:
    """Return the head's row [d] moved so that `MAX_DECLINED` of what can be answered among `words` is declined.

    It moves along what all hidden states have in common, which adds about the same to the logit of each: which of two
    questions is sooner declined stays as it was learned. A row fitted freely told them apart no better.
    """
    hidden, row = words.hidden.double(), row.double()
    ridge = torch.eye(hidden.shape[1], dtype=torch.float64) * len(hidden) * RIDGE
    shared = torch.linalg.solve(hidden.T @ hidden + ridge, hidden.sum(0))
    # How far along until each is declined.
    needed = (words.rival.double() - hidden @ row) / (hidden @ shared).clamp_min(0.1)
    return row + needed[~words.declined].quantile(MAX_DECLINED) * shared


def shares_declined(row: Tensor, words: FirstWords) -> tuple[float, float]:
    """Return the shares declined of what can be answered and of what cannot."""
    declines = words.hidden.double() @ row.double() > words.rival.double()
    return float(declines[~words.declined].double().mean()), float(declines[words.declined].double().mean())


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of the reader.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for what is fitted.")
@click.option("--batches", type=click.IntRange(2), default=150, show_default=True, help="Of 8 pictures.")
@click.option("--seed", type=int, default=0xDEC, show_default=True)
def main(model: Path, out: Path, batches: int, seed: int) -> None:
    """Fit when a reader declines, on drawn charts of the training split."""
    reader = VLM.from_pretrained(model)
    words = first_words(reader, batches, seed=seed)
    weight, token = reader.model.decoder.head.weight, declining_token(reader.tokenizer)
    before = weight[token].detach().float()
    after = fitted(before, words)
    for name, row in (("before", before), ("after", after)):
        answerable, not_shown = shares_declined(row, words)
        click.echo(
            f"{name:<8}{100 * answerable:5.1f} % of {int((~words.declined).sum())} declined that can be answered, "
            f"{100 * not_shown:5.1f} % of {int(words.declined.sum())} that cannot"
        )
    with torch.no_grad():
        weight[token] = after.to(weight.dtype)
    reader.save_pretrained(out)


if __name__ == "__main__":
    main()
