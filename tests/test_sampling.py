"""How a token is chosen, beside the filters of stock transformers."""

import math
import re

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm import GenerationConfig, VLMError
from vlm.generation.sampling import MAX_STOP_CHARS, MAX_STOPS, Sampler, filtered_probabilities

CPU = torch.device("cpu")
NAN, INFINITE = float("nan"), float("inf")
MANY_DIGITS = 10**5000

REFUSED = [
    *[("max_new_tokens", value) for value in (0, -1, 1.5, True, "5", MANY_DIGITS, NAN)],
    *[("temperature", value) for value in (-1e-9, NAN, INFINITE, -INFINITE, "1", None, True, MANY_DIGITS)],
    *[("top_p", value) for value in (-0.1, 1.0000001, NAN, INFINITE, None, True)],
    *[("top_k", value) for value in (-1, 1.0, None, True, MANY_DIGITS)],
    *[("min_p", value) for value in (-0.1, 1.1, NAN, None)],
    *[("repetition_penalty", value) for value in (0, -1, NAN, INFINITE, 1e4, None)],
    *[("seed", value) for value in (-1, 2**63, 1.5, True, "1", MANY_DIGITS)],
    *[("stop", value) for value in (None, 1, "", [""], ["a", None], [b"a"], {"a"}, b"a")],
    ("stop", ["a"] * (MAX_STOPS + 1)),
    ("stop", "a" * (MAX_STOP_CHARS + 1)),
]


def logits_of(seed: int, size: int = 50) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def draws(logits: torch.Tensor, count: int = 12, **settings) -> list[int]:
    sampler = Sampler(GenerationConfig(**settings), [], CPU)
    return [sampler.choose(logits) for _ in range(count)]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: f"{value!r:.12}" if value != MANY_DIGITS else "")
def test_a_setting_out_of_its_range_is_refused_by_name(name, value):
    with pytest.raises(VLMError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert caught.value.code == "invalid_request"
    assert len(caught.value.message) < 200
    assert "give" in caught.value.message


def test_numbers_of_numpy_are_numbers():
    given = GenerationConfig(
        max_new_tokens=np.int64(3), seed=np.uint32(7), temperature=np.float32(0.5), top_k=np.int8(2)
    )
    assert given == GenerationConfig(max_new_tokens=3, seed=7, temperature=0.5, top_k=2)
    assert all(type(value) in (int, float) for value in (given.max_new_tokens, given.seed, given.temperature))
    for name in ("max_new_tokens", "temperature", "seed"):
        with pytest.raises(VLMError, match=f"{name} is -1"):
            GenerationConfig(**{name: np.int64(-1)})


def test_settings_are_frozen_and_by_name():
    with pytest.raises(AttributeError):
        GenerationConfig().seed = 1
    with pytest.raises(TypeError):
        GenerationConfig(5)


@pytest.mark.parametrize(
    ("given", "stops"), [((), ()), ("a", ("a",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ([], ())]
)
def test_stop_is_a_text_or_a_series_of_them(given, stops):
    config = GenerationConfig(stop=given)
    assert config.stops == stops
    assert isinstance(hash(config), int)


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-30, 1e-8, 1e-3, 1, 1e8, 1e30])
@pytest.mark.parametrize("top_p", [0, 1e-12, 0.5, 1])
@pytest.mark.parametrize("top_k", [0, 1, 49, 50, 51, 2**63 - 1])
@pytest.mark.parametrize("min_p", [0, 1])
def test_extreme_settings_give_probabilities(temperature, top_p, top_k, min_p):
    """N10, also with logits that fill what float32 holds."""
    config = GenerationConfig(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    for logits in (logits_of(0), logits_of(0) * 1e37, torch.zeros(50), torch.full((50,), -3e38)):
        probabilities = filtered_probabilities(logits, config)
        assert bool((probabilities >= 0).all())
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
        if temperature <= 1:
            assert probabilities[logits.argmax()] == probabilities.max()


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1e-8}, {"temperature": 1, "top_k": 1}, {"temperature": 9, "top_p": 0}, {"temperature": 2}],
    ids=str,
)
def test_what_leaves_one_token_chooses_as_greedy_does(settings):
    settings = settings | ({"min_p": 1} if settings == {"temperature": 2} else {})
    for seed in range(5):
        assert set(draws(logits_of(seed), **settings)) == set(draws(logits_of(seed)))


def test_of_equal_logits_the_first_are_kept():
    logits = torch.tensor([1.0, 5, 2, 5, 5, 0, 2])
    for count, expected in [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 2, 3, 4]), (5, [1, 2, 3, 4, 6])]:
        probabilities = filtered_probabilities(logits, GenerationConfig(temperature=1, top_k=count))
        assert probabilities.nonzero()[:, 0].tolist() == expected
    assert draws(logits) == [1] * 12
    assert draws(logits, temperature=1, top_k=1) == [1] * 12
    assert draws(logits, temperature=1, top_p=0) == [1] * 12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.7, 0, 1, 0),
        (1, 5, 1, 0),
        (1, 0, 0.6, 0),
        (1, 0, 1, 0.1),
        (1.7, 20, 0.9, 0.02),
        (0.3, 7, 0.5, 0.5),
        (2, 3, 0.999, 1e-4),
    ],
)
def test_filters_equal_those_of_transformers_in_their_order(seed, temperature, top_k, top_p, min_p):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    if min_p:
        warpers.append(MinPLogitsWarper(float(min_p)))
    logits = logits_of(seed)
    expected = warpers(torch.zeros(1, 0, dtype=torch.int64), logits[None].clone())[0].softmax(-1)
    config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = filtered_probabilities(logits, config)
    assert (found > 0).tolist() == (expected > 0).tolist()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty_equals_that_of_transformers_and_grows_with_the_reply(penalty):
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    # An id past the vocabulary, as the image marker's, has no logit that could be changed.
    ids = [3, 3, 8]
    sampler = Sampler(GenerationConfig(repetition_penalty=penalty), [*ids, 50], CPU)
    for seed in range(20):
        logits = logits_of(seed)
        before = logits.clone()
        expected = int(theirs(torch.tensor([ids]), logits[None].clone()).argmax())
        assert sampler.choose(logits) == expected
        assert torch.equal(logits, before)
        ids.append(expected)


@pytest.mark.parametrize("penalty", [1e-3, 1e3])
def test_a_penalty_past_what_float32_holds_gives_a_token(penalty):
    logits = torch.tensor([3e38, -3e38, 1.0])
    assert set(draws(logits, repetition_penalty=penalty, temperature=1)) <= {0, 1, 2}
    sampler = Sampler(GenerationConfig(repetition_penalty=penalty, temperature=1), [0, 1, 2], CPU)
    assert {sampler.choose(logits) for _ in range(9)} == {0}


def test_draws_follow_the_probabilities():
    logits = logits_of(1, size=6)
    config = GenerationConfig(temperature=1.5, top_p=0.95, seed=0)
    probabilities = filtered_probabilities(logits, config)
    sampler, count = Sampler(config, [], CPU), 2000
    found = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(count)]), minlength=6) / count
    assert bool((found[probabilities == 0] == 0).all())
    # Five standard deviations.
    assert bool(((found - probabilities).abs() <= 5 * (probabilities / count).sqrt()).all())


def test_a_seed_repeats_itself_and_none_does_not():
    logits = torch.zeros(1000)
    assert draws(logits, temperature=1, seed=7) == draws(logits, temperature=1, seed=7)
    assert draws(logits, temperature=1, seed=7) != draws(logits, temperature=1, seed=8)
    assert draws(logits, temperature=1) != draws(logits, temperature=1)
    state = torch.get_rng_state()
    draws(logits, temperature=1, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    assert draws(logits, temperature=1, seed=2**63 - 1)


def test_messages_name_the_limits():
    with pytest.raises(VLMError, match=re.escape("temperature is nan; give a number from 0 to 1e+30")):
        GenerationConfig(temperature=math.nan)
    with pytest.raises(VLMError, match="seed is -1; give an integer from 0 to 9223372036854775807"):
        GenerationConfig(seed=-1)
