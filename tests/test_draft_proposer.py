"""What a draft proposes: as much as pays, from what was written, and no further than its own context."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import random_model
from tests.conversations import MIXED, SMALL
from tests.draft_models import LONG, same, text_model, text_twin, writing_bytes
from vlm import VLM, ModelConfig, Tokenizer, preset
from vlm.generation import draft
from vlm.generation.draft import Proposer, draft_price, worthwhile
from vlm.model import VisionLanguageModel
from vlm.quantization import quantize_model

LARGE = replace(preset("tiny").decoder, width=128, mlp_dim=256, num_extra_embeddings=0)


@pytest.fixture(scope="module")
def plain() -> VLM:
    return writing_bytes(random_model(preset("tiny")))


@pytest.fixture(scope="module")
def drafted(plain) -> VLM:
    return VLM(plain.model, Tokenizer.bytes_only(), draft=text_model())


@pytest.mark.parametrize("seed", range(3))
def test_a_proposer_goes_on_as_one_that_has_read_the_same_anew(monkeypatch, seed):
    """Whatever held of what it proposed before; so its cache holds what was written, and nothing else."""
    counts = iter([3, 7, 1, 2, 0, 5, 4, 7, 1, 6])
    monkeypatch.setattr(draft, "worthwhile", lambda likelihood, price: fixed)
    model = text_twin(random_model(preset("tiny"), seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        ids = [1, 2, 3]
        proposer = Proposer(model, ids, 100, 0.1)
        for fixed in counts:
            proposed = proposer.propose(100)
            assert proposed == Proposer(model, ids, 100, 0.1).propose(100)
            assert len(proposed) == fixed
            right = int(torch.randint(0, fixed + 1, (), generator=generator))
            written = [*proposed[:right], (proposed[right] + 1) % 256 if right < fixed else 9]
            proposer.take(written)
            ids = [*ids, *written]


def test_a_draft_is_given_the_text_without_the_pictures(plain, drafted):
    marker = plain.tokenizer.image_marker_id
    ids = plain.prompt_ids(MIXED[2])
    assert ids.count(marker) == 2
    assert drafted._draft.begin(ids, 5)._ids == [token_id for token_id in ids if token_id != marker]
    bare = VLM(plain.model, Tokenizer.bytes_only(), draft=text_model())
    assert bare.complete([SMALL], config=LONG).token_ids == plain.complete([SMALL], config=LONG).token_ids


@pytest.mark.parametrize("room", [-3, -1, 0, 1, 2, 5, 11])
def test_a_draft_ends_with_its_own_context(plain, monkeypatch, room):
    monkeypatch.setattr(draft, "worthwhile", lambda likelihood, price: 4)
    context = len(plain.prompt_ids(MIXED[0])) + room
    twin = VLM(text_twin(plain.model, max_context=context), Tokenizer.bytes_only())
    vlm = VLM(plain.model, Tokenizer.bytes_only(), draft=twin)
    ends = []
    twin.model.decoder.register_forward_pre_hook(
        lambda _, inputs: ends.append(inputs[1].max_length + inputs[0].shape[1])
    )
    same(vlm.chat(MIXED[0], config=LONG), plain.chat(MIXED[0], config=LONG))
    assert max(ends, default=0) == (context if room > 0 else 0)


def test_what_pays_is_proposed():
    assert worthwhile(0.0, 0.1) == worthwhile(0.3, 0.3) == 0
    assert worthwhile(1.0, 0.3) == draft.MAX_PROPOSED
    counts = [worthwhile(likelihood / 20, 0.25) for likelihood in range(21)]
    assert counts == sorted(counts)
    assert set(counts) == set(range(draft.MAX_PROPOSED + 1))
    assert worthwhile(0.8, 0.1) > worthwhile(0.8, 0.45) > 0


def test_the_price_is_what_the_draft_reads_and_what_is_computed():
    """In 4 bits there is less to read, and as much to compute."""
    large, small = (random_model(ModelConfig(decoder=replace(LARGE, num_layers=layers))) for layers in (8, 1))
    expected = draft.DRAFT_SHARE * read_by(small) / read_by(large) + draft.POSITION_BITS / 32
    assert draft_price(small, large) == pytest.approx(expected)
    quantize_model(large, "int4")
    assert draft_price(small, large) > 4 * expected


def read_by(model: VisionLanguageModel) -> int:
    decoder = model.decoder
    return sum(weight.nbytes for part in (decoder.layers, decoder.norm, decoder.head) for weight in part.parameters())


def test_a_draft_that_is_wrong_is_asked_seldom_and_one_that_becomes_right_again():
    """With proposals at a quarter of a token 300 tokens take less than a tenth more where none is right."""
    proposer = Proposer(text_model().model, [1, 2, 3], 1000, 0.25)
    proposed, held = [], []
    with torch.inference_mode():
        for place in range(700):
            found = proposer.propose(100)
            if place < 300:
                proposed.append(len(found))
                proposer.take([(found[0] + 1) % 256 if found else 5])
            else:
                held.append(len(found))
                proposer.take([*found, 5])
            if sum(held) > 50:
                break
    assert 0 < 0.25 * sum(proposed) < 30
    assert max(held) == draft.MAX_PROPOSED
