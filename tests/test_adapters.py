"""What opens the decoder to images: who sees whom, the small masks, the gated layer beside a slow twin."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama_models.llama3.chat_format import create_vision_mask
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapters import CrossMask, GatedCrossAttentionLayer, ImageKV, VisionProjector, cross_mask, seen_images
from tests.nearness import difference

MARKER = 9
WIDTH, HEADS, KV_HEADS, HEAD_DIM = 24, 4, 2, 6


# Who sees whom


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([1, 2, MARKER, MARKER]), max_size=14))
@example([MARKER])
@example([MARKER, MARKER])
@example([1, MARKER, MARKER, 2, MARKER])
def test_seen_images_are_those_of_metas_intervals(ids):
    found = seen_images(ids, MARKER)
    spans = create_vision_mask(ids, MARKER)
    assert len(found) == len(ids)
    for place, (first, end) in enumerate(found):
        seen = [
            image for image, (start, stop) in enumerate(spans) if start <= place < (len(ids) if stop == -1 else stop)
        ]
        assert list(range(first, end)) == seen, place


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([1, 2], [(0, 0), (0, 0)]),
        ([1, MARKER, 2], [(0, 0), (0, 1), (0, 1)]),
        ([MARKER, MARKER, 2], [(0, 1), (0, 2), (0, 2)]),
        ([MARKER, 1, MARKER, 2], [(0, 1), (0, 1), (1, 2), (1, 2)]),
        ([MARKER, 1, MARKER, MARKER, 2], [(0, 1), (0, 1), (1, 2), (1, 3), (1, 3)]),
    ],
)
def test_text_sees_the_latest_run_of_images(ids, expected):
    assert seen_images(ids, MARKER) == expected


# Masks


@st.composite
def key_ranges(draw):
    b, s, num_keys = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 7))
    num_own = [draw(st.integers(0, num_keys)) for _ in range(b)]
    one_for_all = draw(st.booleans())
    visible = []
    for own in num_own:
        ranges = [sorted((draw(st.integers(0, own)), draw(st.integers(0, own)))) for _ in range(s)]
        visible.append(ranges[:1] * s if one_for_all else ranges)
    return torch.tensor(visible), torch.tensor(num_own), num_keys


@settings(max_examples=150, deadline=None)
@given(key_ranges())
def test_the_cross_mask_equals_brute_force_and_is_none_where_it_hides_nothing(case):
    visible, num_own, num_keys = case
    found = cross_mask(visible, num_own, num_keys)
    b, s = visible.shape[:2]
    keys, rows = torch.zeros(b, 1, s, num_keys, dtype=torch.bool), torch.zeros(b, s, 1, dtype=torch.bool)
    for row in range(b):
        for place in range(s):
            first, end = visible[row, place].tolist()
            rows[row, place] = end > first
            # A blind row sees all keys of its own: its softmax stays finite, and stock transformers leaks just these.
            seen = (first, end) if end > first else (0, num_own[row] or num_keys)
            keys[row, 0, place, seen[0] : seen[1]] = True
    assert (found.keys is None) == bool(keys.all())
    assert (found.rows is None) == bool(rows.all())
    if found.keys is not None:
        assert torch.equal(found.keys.expand_as(keys), keys)
        assert found.keys.any(-1).all(), "every softmax has something to sum"
    if found.rows is not None:
        assert torch.equal(found.rows.expand_as(rows), rows)
    if (visible == visible[:, :1]).all():
        assert found.keys is None or found.keys.shape[2] == 1
        assert found.rows is None or found.rows.shape[1] == 1


def test_the_cross_mask_leaves_its_arguments_as_they_were():
    visible, num_own = torch.tensor([[[0, 0], [0, 2]], [[0, 0], [0, 0]]]), torch.tensor([2, 0])
    before = visible.clone(), num_own.clone()
    cross_mask(visible, num_own, 3)
    assert torch.equal(visible, before[0])
    assert torch.equal(num_own, before[1])


# The gated layer


class _Mlp(nn.Module):
    """A feed-forward that is not zero at zero, so that hiding its rows matters."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.fc(x))


def layer(*, gate: float = 0.7, leak: bool = False, dtype: torch.dtype = torch.float32) -> GatedCrossAttentionLayer:
    torch.manual_seed(0)
    made = GatedCrossAttentionLayer(WIDTH, HEADS, KV_HEADS, HEAD_DIM, 1e-5, _Mlp(), leak_attention=leak)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
        made.attention_gate.fill_(gate)
        made.mlp_gate.fill_(-gate)
    return made.to(dtype)


def inputs(made: GatedCrossAttentionLayer, b: int = 2, s: int = 4, num_keys: int = 5) -> tuple[Tensor, ImageKV]:
    """Return text [b, s, d] and projected image tokens."""
    generator = torch.Generator().manual_seed(1)
    dtype = made.attention_gate.dtype
    x = torch.randn(b, s, WIDTH, generator=generator).to(dtype)
    with torch.no_grad():
        return x, made.attention.project(torch.randn(b, num_keys, WIDTH, generator=generator).to(dtype))


def twin(made: GatedCrossAttentionLayer, x: Tensor, tokens: Tensor, visible: list[list[tuple[int, int]]]) -> Tensor:
    """The layer in float64, a row and a head at a time, from image tokens [b, l, d]; `visible` are key ranges."""
    weights = {name: weight.double() for name, weight in made.named_parameters()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    out = x.double().clone()
    for row, ranges in enumerate(visible):
        for place, (first, end) in enumerate(ranges):
            if first == end:
                continue
            here, seen = out[row, place], tokens[row, first:end].double()
            normed, heads = norm(here, weights["attention_norm.weight"]), []
            for head in range(HEADS):
                mine = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                shared = head // (HEADS // KV_HEADS)
                group = slice(shared * HEAD_DIM, (shared + 1) * HEAD_DIM)
                q = norm(weights["attention.q_proj.weight"][mine] @ normed, weights["attention.q_norm.weight"])
                k = norm(seen @ weights["attention.k_proj.weight"][group].T, weights["attention.k_norm.weight"])
                v = seen @ weights["attention.v_proj.weight"][group].T
                heads.append((k @ q / math.sqrt(HEAD_DIM)).softmax(0) @ v)
            taken = weights["attention.o_proj.weight"] @ torch.cat(heads)
            here = here + weights["attention_gate"].tanh() * taken
            inner = weights["mlp.fc.weight"] @ norm(here, weights["mlp_norm.weight"]) + weights["mlp.fc.bias"]
            out[row, place] = here + weights["mlp_gate"].tanh() * inner * torch.sigmoid(inner)
    return out


RANGES = [[(0, 0), (0, 2), (2, 5), (0, 5)], [(0, 0), (0, 0), (0, 3), (0, 3)]]


def masked(ranges: list[list[tuple[int, int]]], num_own: list[int], num_keys: int = 5) -> CrossMask:
    return cross_mask(torch.tensor(ranges), torch.tensor(num_own), num_keys)


@pytest.mark.parametrize(
    ("ranges", "num_own"),
    [
        (RANGES, [5, 3]),
        ([[(0, 5)] * 4] * 2, [5, 5]),
        ([[(0, 0)] * 4, [(0, 4)] * 4], [0, 4]),
        ([[(0, 0)] * 4] * 2, [0, 0]),
    ],
)
def test_the_layer_equals_the_slow_twin(ranges, num_own):
    made = layer()
    tokens = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    x, _ = inputs(made)
    with torch.no_grad():
        found = made(x, made.attention.project(tokens), masked(ranges, num_own))
        assert difference(found, twin(made, x, tokens, ranges)) < 1e-5


def test_a_new_layer_is_shut_and_changes_nothing():
    made = GatedCrossAttentionLayer(WIDTH, HEADS, KV_HEADS, HEAD_DIM, 1e-5, _Mlp())
    x, image = inputs(made)
    assert (made.attention_gate.item(), made.mlp_gate.item()) == (0, 0)
    assert torch.equal(made(x, image, masked(RANGES, [5, 3])), x)


def test_each_gate_opens_its_own_half():
    x, image = inputs(layer())
    mask = CrossMask(None, None)
    for opened, shut in (("attention_gate", "mlp_gate"), ("mlp_gate", "attention_gate")):
        made = layer()
        with torch.no_grad():
            getattr(made, shut).zero_()
            found = made(x, image, mask)
            attended = made.attention(made.attention_norm(x), image, mask)
            part = attended if opened == "attention_gate" else made.mlp(made.mlp_norm(x))
            assert torch.equal(found, x + getattr(made, opened).tanh() * part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_no_image_come_back_bit_unchanged(dtype):
    made = layer(dtype=dtype)
    x, image = inputs(made)
    mask = masked(RANGES, [5, 3])
    with torch.no_grad():
        found = made(x, image, mask)
    blind = ~mask.rows[..., 0]
    assert blind.tolist() == [[True, False, False, False], [True, True, False, False]]
    assert torch.equal(found[blind], x[blind])
    assert (found[~blind] != x[~blind]).any(-1).all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_rows_that_see_no_image_come_back_bit_unchanged_from_keys_that_are_no_numbers(broken):
    made = layer()
    x, image = inputs(made)
    image.keys[0], image.values[0] = broken, broken
    with torch.no_grad():
        found = made(x, image, masked(RANGES, [5, 3]))
        clean = made(x, inputs(made)[1], masked(RANGES, [5, 3]))
    assert torch.equal(found[0, 0], x[0, 0])
    assert torch.equal(found[1], clean[1]), "the neighbour"
    assert not found[0, 1:].isfinite().any(-1).any()


def test_a_row_is_the_same_whatever_stands_in_keys_it_may_not_see():
    made = layer()
    x, image = inputs(made)
    other = ImageKV(image.keys.clone(), image.values.clone())
    other.keys[0, :, 2:], other.values[0, :, 2:] = 1000, -1000
    other.keys[1, :, 3:], other.values[1, :, 3:] = 1000, -1000
    mask = masked(RANGES, [5, 3])
    with torch.no_grad():
        found, expected = made(x, other, mask), made(x, image, mask)
    assert torch.equal(found[0, :2], expected[0, :2])
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[0, 2], expected[0, 2])


def test_masks_that_hide_nothing_and_no_masks_give_the_same():
    made = layer()
    x, image = inputs(made)
    full = CrossMask(torch.ones(2, 1, 4, 5, dtype=torch.bool), torch.ones(2, 4, 1, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(made(x, image, full), made(x, image, CrossMask(None, None)))


def test_leaking_lets_blind_rows_attend_to_their_own_keys_and_skips_their_feed_forward():
    """transformers #39379, kept for fine-tunes that were trained so."""
    ranges, num_own = [[(0, 0), (0, 0), (0, 3), (0, 3)], [(0, 0)] * 4], [4, 0]
    made, leaking = layer(), layer(leak=True)
    x, image = inputs(made)
    image.keys[1], image.values[1] = 0, 0  # a row without images, as a batch pads it
    mask = masked(ranges, num_own)
    with torch.no_grad():
        found = leaking(x, image, mask)
        own = ImageKV(image.keys[:, :, :4], image.values[:, :, :4])
        attended = leaking.attention(leaking.attention_norm(x), own, CrossMask(None, None))
        expected = x + leaking.attention_gate.tanh() * attended
        torch.testing.assert_close(found[0, :2], expected[0, :2])
        assert torch.equal(found[0, 2:], made(x, image, mask)[0, 2:])
        assert torch.equal(found[1], x[1]), "zero keys and values give nothing"


def test_the_layer_leaves_its_inputs_as_they_were():
    made = layer()
    x, image = inputs(made)
    before = [part.clone() for part in (x, *image)]
    made(x, image, masked(RANGES, [5, 3]))
    assert all(torch.equal(part, old) for part, old in zip((x, *image), before, strict=True))


def test_keys_are_normalised_per_head_values_are_not():
    made = layer()
    tokens = torch.randn(2, 5, WIDTH)
    image, larger = made.attention.project(tokens), made.attention.project(10 * tokens)
    assert image.keys.shape == image.values.shape == (2, KV_HEADS, 5, HEAD_DIM)
    torch.testing.assert_close(larger.keys, image.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(larger.values, 10 * image.values, atol=1e-4, rtol=1e-4)
    size = (image.keys / made.attention.k_norm.weight).square().mean(-1)
    torch.testing.assert_close(size, torch.ones_like(size), atol=1e-2, rtol=0)


def test_image_keys_and_values_of_one_layer_are_taken_from_all():
    image = ImageKV(torch.randn(3, 1, 2, 4, 6), torch.randn(3, 1, 2, 4, 6))
    for index in range(3):
        assert torch.equal(image.layer(index).keys, image.keys[index])
        assert torch.equal(image.layer(index).values, image.values[index])


# Gradients, and rows that are hidden whole on every kernel (faults N5)


def test_blind_rows_pass_their_gradient_on_unchanged_and_give_none_to_the_image():
    made = layer()
    x, image = inputs(made)
    x.requires_grad_()
    image = ImageKV(*(part.requires_grad_() for part in image))
    towards = torch.randn(x.shape)
    made(x, image, masked([[(0, 0)] * 4, [(0, 0), (0, 0), (0, 3), (0, 3)]], [0, 3])).backward(towards)
    assert torch.equal(x.grad[0], towards[0])
    assert torch.equal(x.grad[1, :2], towards[1, :2])
    for part in image:
        assert (part.grad[0] == 0).all()
        assert (part.grad[1, :, 3:] == 0).all()
        assert part.grad[1, :, :3].abs().sum() > 0
    assert all(weight.grad.isfinite().all() for weight in made.parameters() if weight.grad is not None)


def test_shut_gates_learn():
    """tanh has slope 1 at 0: the gates are what lets a fresh layer start."""
    made = layer(gate=0.0)
    x, image = inputs(made)
    made(x, image, masked(RANGES, [5, 3])).square().sum().backward()
    assert made.attention_gate.grad.abs() > 0
    assert made.mlp_gate.grad.abs() > 0


KERNELS: dict[str, Callable] = {
    "default": lambda: sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]),
    "math": lambda: sdpa_kernel(SDPBackend.MATH),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("hidden", ["some rows", "a whole row of the batch", "all"])
def test_rows_that_see_nothing_are_finite_forwards_and_backwards(hidden, leak, dtype, kernel, device):
    ranges, num_own = {
        "some rows": (RANGES, [5, 3]),
        "a whole row of the batch": ([[(0, 0)] * 4, [(0, 5)] * 4], [0, 5]),
        "all": ([[(0, 0)] * 4] * 2, [0, 0]),
    }[hidden]
    made = layer(leak=leak, dtype=dtype).to(device)
    x, image = (part for part in inputs(layer(dtype=dtype)))
    x = x.to(device).requires_grad_()
    image = ImageKV(*(part.to(device).requires_grad_() for part in image))
    mask = cross_mask(torch.tensor(ranges), torch.tensor(num_own), 5, device)
    with KERNELS[kernel]():
        found = made(x, image, mask)
        found.float().square().sum().backward()
    assert found.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *image))
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in made.parameters())
    if not leak:
        blind = ~mask.rows[..., 0].expand(2, 4)
        assert torch.equal(found[blind], x[blind])


# The projector


def test_the_projector_is_one_linear_map_with_bias():
    projector = VisionProjector(7, 5)
    features = torch.randn(2, 3, 7)
    expected = torch.einsum("btf,df->btd", features, projector.weight) + projector.bias
    torch.testing.assert_close(projector(features), expected)
    assert sorted(name for name, _ in projector.named_parameters()) == ["bias", "weight"]
