"""A token's log-probability beside those of its alternatives."""

import pytest
import torch

from tests.conftest import random_model
from vlm import GenerationConfig, Tokenizer, preset
from vlm.generation.generate import choose
from vlm.generation.sampling import Sampler
from vlm.serving.model_process.batcher import Batcher

NUM_ROWS = 8


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_token_has_one_log_probability_wherever_it_stands(temperature):
    batcher = Batcher(random_model(preset("tiny")), Tokenizer.bytes_only(), NUM_ROWS)
    generator = torch.Generator().manual_seed(0)
    config = GenerationConfig(temperature=temperature, seed=0)
    for scale in (0.1, 3.0, 30.0):
        logits = torch.randn(NUM_ROWS, 256, generator=generator) * scale
        samplers = {row: Sampler(config, [], logits.device) for row in range(NUM_ROWS)}
        for step in choose(logits, samplers):
            found = batcher._logprob(step, logits[step.row], 20)
            values = [value for _, _, value in found.top]
            by_token = {token: value for _, token, value in found.top}
            assert by_token.get(found.token_bytes, found.logprob) == found.logprob
            assert temperature or found.logprob == values[0]
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx(logits[step.row].log_softmax(-1).topk(20).values.tolist(), abs=1e-5)
