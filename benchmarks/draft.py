"""What a draft brings: the price of passes of several tokens, and how much sooner a reply comes as more proposals hold.

    python -m benchmarks.draft [--precision int4|int8|bfloat16] [--layers 4] [--tokens 48] [--holding 0.9]

The true shapes of the 11B with a picture of four tiles and of the 1B, random weights. These agree on nothing, so what
the draft writes, in the time it takes, is replaced: by the token that comes, as often as the first column says, or by
another. --layers takes that many of the 11B's text layers and as large a share of the 1B's. The last line is JSON.
"""

import argparse
import json
import random
import time
from dataclasses import replace

import torch

from vlm.batch import Batch, DecoderPrompt, PromptImage, build_batch
from vlm.bench.measure import machine, seconds
from vlm.bench.random_models import random_model
from vlm.config import ModelConfig, preset
from vlm.generation.draft import MAX_PROPOSED, Proposer, decode_ahead, draft_price
from vlm.generation.generate import Prefilled, decode, prefill
from vlm.generation.sampling import GenerationConfig, Sampler
from vlm.model import VisionLanguageModel

_PROMPT, _IMAGE_TOKENS, _LAYERS = 128, 4 * 1601, 32
_GREEDY = Sampler(GenerationConfig(), [], torch.device("cpu"))


class Told(Proposer):
    """Takes the time of a draft and is told what to propose."""

    def tell(self, written: list[int], holding: float) -> None:
        self.start, self.written, self.holding, self.chance = len(self._ids), written, holding, random.Random(0)

    def propose(self, most: int) -> list[int]:
        place = len(self._ids) - self.start
        coming = self.written[place : place + len(super().propose(most))]
        self._proposed = [right if self.chance.random() < self.holding else (right + 1) % 128 for right in coming]
        return self._proposed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=["int4", "int8", "bfloat16"], default="int4")
    parser.add_argument("--layers", type=int, choices=range(4, _LAYERS + 1, 4), default=_LAYERS)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--holding", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.8, 0.9, 1.0], metavar="SHARE")
    options = parser.parse_args()
    with torch.inference_mode():
        found = measured(options)
    print(json.dumps(vars(options) | machine() | found))


def measured(options: argparse.Namespace) -> dict:
    """Return prices and gains, printed as they are found."""
    large, small = (random_model(config, options.precision) for config in shapes(options.layers))
    batch = picture_prompt(large)
    price = draft_price(small, large)
    passes = prices(large, batch)
    print(f"a proposal is taken to cost {price:.2f} of a token")
    for count, taken in passes.items():
        print(f"a pass of {count}: {1e3 * taken:.1f} ms, {taken / passes[1]:.2f} of one")
    # A run leaves what was read as it was, and writes past it anew.
    prefilled, gains = prefill(large, batch, _PROMPT + options.tokens), {}
    written = plain(large, batch, prefilled, options.tokens)[0]
    for holding in options.holding:
        alone = plain(large, batch, prefilled, options.tokens)[1]
        found, took = told(large, small, batch, prefilled, written, holding, price)
        if found != written:
            raise SystemExit("a reply differs from what it is without a draft")
        gains[holding] = alone / took
        print(f"{holding:.0%} of proposals hold: {gains[holding]:.2f} times sooner", flush=True)
    return {"price": price, "passes": passes, "gains": gains}


def shapes(layers: int) -> tuple[ModelConfig, ModelConfig]:
    """Return the 11B without its encoder and the 1B, or such a share of their layers."""
    large, small = preset("11b-vision"), preset("1b")
    cross = large.adapter.cross_layers[: layers // 4]
    return (
        replace(
            large,
            decoder=replace(large.decoder, num_layers=layers),
            adapter=replace(large.adapter, cross_layers=cross),
            vision=preset("tiny").vision,
        ),
        replace(small, decoder=replace(small.decoder, num_layers=small.decoder.num_layers * layers // _LAYERS)),
    )


def picture_prompt(model: VisionLanguageModel) -> Batch:
    """Return a prompt about a picture of four tiles."""
    config = model.config.decoder
    image = model.decoder.image_kv(torch.randn(1, _IMAGE_TOKENS, config.width, dtype=torch.bfloat16))
    marker = config.vocab_size
    prompt = DecoderPrompt([marker, *range(1, _PROMPT)], [PromptImage(image, _IMAGE_TOKENS)])
    return build_batch([prompt], marker, torch.device("cpu"))


def prices(model: VisionLanguageModel, batch: Batch) -> dict[int, float]:
    """Return the seconds of a pass of one token up to as many as are ever proposed, and of the one before them."""
    decoder, mask = model.decoder, batch.reply_mask()
    cache = prefill(model, batch, _PROMPT + MAX_PROPOSED + 1).cache

    def pass_of(count: int):
        ids = torch.arange(1, count + 1)[None]
        return lambda: decoder.logits(decoder(ids, cache, batch.image, mask).hidden).float().argmax(-1).tolist()

    found = seconds({str(count): pass_of(count) for count in range(1, MAX_PROPOSED + 2)}, windows=7)
    return {int(count): taken for count, taken in found.items()}


def plain(model: VisionLanguageModel, batch: Batch, prefilled: Prefilled, tokens: int) -> tuple[list[int], float]:
    """Return what is written without a draft, and the seconds that takes."""
    start = time.perf_counter()
    steps = decode(model, batch, prefilled, [_GREEDY], [tokens], set())
    return [step.token_id for step in steps], time.perf_counter() - start


def told(
    model: VisionLanguageModel,
    small: VisionLanguageModel,
    batch: Batch,
    prefilled: Prefilled,
    written: list[int],
    holding: float,
    price: float,
) -> tuple[list[int], float]:
    """Return what is written with a draft of which such a share of proposals holds, and the seconds that takes."""
    start = time.perf_counter()
    proposer = Told(small, batch.ids[0, 1:].tolist(), len(written), price)
    proposer.tell(written, holding)
    steps = decode_ahead(model, batch, prefilled, _GREEDY, len(written), set(), proposer)
    return [step.token_id for step in steps], time.perf_counter() - start


if __name__ == "__main__":
    main()
