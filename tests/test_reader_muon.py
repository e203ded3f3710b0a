"""The reader's own Muon beside torch's."""

import torch

from vlm.training.reader.muon import Muon, nearest_orthogonal


def test_the_nearest_orthogonal_matrix_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((24, 96), (96, 24), (32, 32)):
        values = torch.linalg.svdvals(nearest_orthogonal(torch.randn(shape)))
        assert 0.3 < values.min() <= values.max() < 1.35


def test_muon_steps_as_torchs_own_does():
    torch.manual_seed(0)
    start = torch.randn(48, 96)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for seed in range(5):
        gradient = torch.randn(48, 96, generator=torch.Generator().manual_seed(seed))
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    # torch's iteration runs in bfloat16.
    assert (ours - theirs).norm() < 0.03 * moved
