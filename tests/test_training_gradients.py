"""What a row teaches: which positions count, and gradients beside repaired transformers' and PEFT's."""

import pytest
import torch
from torch.nn import functional

from tests.nearness import difference
from tests.oracles import hf, ours
from tests.oracles.cases import CONFIGS, Case, build_case
from tests.oracles.weights import random_hf_state
from tests.training_rows import row_of
from vlm.checkpoint import hf as hf_keys
from vlm.checkpoint.peft import load_adapter
from vlm.config import preset
from vlm.training.rows import IGNORED, Row, predict, reply_log_probabilities

CONFIG = CONFIGS["default"]
TOLERANCE = 1e-4


def our_loss(model, rows: list[Row]) -> torch.Tensor:
    return -reply_log_probabilities(model, rows, CONFIG.marker).sum() / sum(row.num_targets for row in rows)


def their_loss(model, case: Case, row: Row) -> torch.Tensor:
    """The same mean over the same targets, of transformers' logits."""
    inputs = hf.text_inputs(model.config, case)
    if case.images:
        inputs |= hf.vision_inputs(model.config, case.images)
    logits = model(**inputs, use_cache=False).logits[0]
    return functional.cross_entropy(logits, torch.tensor(row.targets), ignore_index=IGNORED)


def their_gradients(model) -> dict[str, torch.Tensor]:
    """By published name; zero in the slots of position tables that stand for no tile, which we hold still."""
    found = {}
    for name, weight in model.named_parameters():
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if name.endswith("embedding.weight") and "vision" in name and "patch_embedding" not in name:
            slots = grad.unflatten(1, (CONFIG.max_tiles, -1))
            for ratio_id, (rows, cols) in enumerate(CONFIG.grids, start=1):
                slots[ratio_id, rows * cols :] = 0
        found[hf_keys.published(name, preset("tiny"))] = grad
    return found


@pytest.mark.parametrize("reference", ["meta", "transformers"])
@pytest.mark.parametrize("prompt", ["text_only", "three_tiles_wide", "two_images_of_other_grids"])
def test_gradients_of_every_tensor_equal_transformers(prompt, reference):
    state, case = random_hf_state(CONFIG), build_case(CONFIG, prompt)
    model = ours.build(*state, reference=reference)
    oracle = hf.repaired(*state) if reference == "meta" else hf.stock(*state)
    row = row_of(case, CONFIG.vocab_size)
    found, expected = our_loss(model, [row]), their_loss(oracle, case, row)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    found.backward()
    expected.backward()
    weights, gradients = dict(model.named_parameters()), their_gradients(oracle)
    keys = [key for key in hf_keys.keys(model.config) if not key.alias]
    assert {key.theirs for key in keys} == set(gradients)
    for key in keys:
        grad = weights[key.ours].grad
        grad = key.layout.to_theirs(torch.zeros_like(weights[key.ours]) if grad is None else grad, model.config)
        if not gradients[key.theirs].any():
            assert not grad.any(), key.ours
        else:
            assert difference(grad, gradients[key.theirs]) < TOLERANCE, key.ours


def test_twenty_steps_of_an_adapter_follow_pefts_losses(tmp_path):
    peft = pytest.importorskip("peft", reason="not run: peft")
    state, case = random_hf_state(CONFIG), build_case(CONFIG, "two_images_apart")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj", "fc1"])
    theirs = peft.get_peft_model(hf.repaired(*state), settings)
    theirs.save_pretrained(tmp_path)
    model = ours.build(*state)
    model.requires_grad_(False)
    load_adapter(model, tmp_path)
    row, losses = row_of(case, CONFIG.vocab_size), ([], [])
    for network, loss_of, kept in (
        (model, lambda: our_loss(model, [row]), losses[0]),
        (theirs, lambda: their_loss(theirs.base_model.model, case, row), losses[1]),
    ):
        optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=5e-3)
        for _ in range(20):
            loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            kept.append(loss.item())
    assert losses[0][-1] < losses[0][0] - 0.5
    furthest = max(abs(one - other) for one, other in zip(*losses, strict=True))
    print(f"furthest apart over twenty steps: {furthest:.1e}; losses {losses[0][0]:.4f} to {losses[0][-1]:.4f}")
    assert furthest < TOLERANCE


def test_a_batch_gives_each_row_what_it_gives_alone():
    model = ours.build(*random_hf_state(CONFIG))
    names = ["text_only", "one_tile_first", "two_images_of_other_grids", "three_images"]
    rows = [row_of(build_case(CONFIG, name), CONFIG.vocab_size, first_learned=4) for name in names]
    together = reply_log_probabilities(model, rows, CONFIG.marker)
    alone = torch.cat([reply_log_probabilities(model, [row], CONFIG.marker) for row in rows])
    assert difference(together, alone) < 1e-5


def test_each_position_predicts_the_next_id_that_is_learned_and_never_a_marker():
    assert predict([5, 6, 9, 7, 8], [False, False, True, True, False], num_ids=9) == [-100, -100, 7, -100, -100]
    assert predict([5], [True], num_ids=9) == [IGNORED]


def test_rows_without_targets_give_zero_and_leave_their_neighbours_alone():
    model = ours.build(*random_hf_state(CONFIG))
    case = build_case(CONFIG, "one_tile_middle")
    row = row_of(case, CONFIG.vocab_size)
    silent = Row(ids=row.ids, targets=[IGNORED] * len(row.ids), images=row.images)
    assert reply_log_probabilities(model, [silent], CONFIG.marker).tolist() == [0.0]
    totals = reply_log_probabilities(model, [silent, row], CONFIG.marker)
    assert totals[0] == 0
    assert torch.isfinite(totals[1])
    assert totals[1] < 0
