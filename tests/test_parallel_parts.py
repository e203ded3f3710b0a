"""The parts of runs on several processes, in one process: what is shared, evened out, cut, and refused."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional

from adapters.lora import AdapterError, LoRAConfig, adapters_of, add_adapter
from tests.conftest import random_model
from tests.nearness import difference
from tests.training_rows import examples_of
from vision_encoder.preprocess import ProcessedImage
from vlm import Tokenizer, VLMError, preset
from vlm.config import DecoderConfig, ModelConfig
from vlm.quantization import QuantizedLinear, Scheme, quantize, quantize_model
from vlm.tensor_parallel.layers import dropout_of_shares, plan, share_layers
from vlm.tensor_parallel.quantized import cut_columns, cut_rows
from vlm.training.config import ObjectiveChoice, OptimizerConfig, Parallel, TrainConfig, WeightGroup
from vlm.training.data.batches import Example, Poison, StepBatches, StepData
from vlm.training.objectives import GRPO, PPO, DirectPreference, Objective, SupervisedReplies
from vlm.training.optimizers import Optimizers
from vlm.training.parallel.learner import Learner, Loss
from vlm.training.parallel.pipeline import Stage, groups_here
from vlm.training.parallel.placement import place
from vlm.training.parallel.shares import Part, added, counted, evened, in_parts, share_of
from vlm.training.parallel.world import World
from vlm.training.rows import Row, predict
from vlm.training.settings import build
from vlm.training.trained import train_adapter, trained_weights

CPU = torch.device("cpu")
TOKENIZER = Tokenizer.bytes_only()
MARKER = TOKENIZER.image_marker_id


class Neighbours(World):
    """A process among made-up others, which say `said` each time they are asked."""

    def __init__(self, said=(), **extents):
        super().__init__(Parallel(), CPU, size=1)
        self.said, self.extents = said, extents

    def gather(self, value, dim=None):
        return [value, *self.said]

    def extent(self, dim):
        return self.extents.get(dim, 1)

    def place(self, dim):
        return 1


def row(*ids: int, tiles: tuple[int, ...] = ()) -> Row:
    side = preset("tiny").vision.tile_size
    images = [ProcessedImage(torch.randn(count, 3, side, side), (1, count)) for count in tiles]
    return Row(ids=list(ids), targets=predict(ids, [True] * len(ids), 512), images=images)


def some_rows() -> list[Row]:
    torch.manual_seed(0)
    return [row(3, MARKER, 4, 5, 6, tiles=(2,)), row(7, 8, 9), row(MARKER, 1, MARKER, 2, tiles=(1, 3))]


def loss_of(config: ModelConfig) -> Loss:
    return Loss(random_model(config), SupervisedReplies(TOKENIZER, config.decoder.vocab_size))


def gradients(loss: Loss, parts: list[Part]) -> tuple[float, dict[str, torch.Tensor]]:
    total = Learner(loss).gradients(parts, 1.0)
    return total, {name: weight.grad for name, weight in loss.model.named_parameters() if weight.grad is not None}


class Samples:
    """Stands for the data of a run."""

    def __init__(self, *examples):
        self.examples = examples

    def every(self):
        return iter(self.examples)


# What is added so that all processes go the same way


@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_a_blank_image_and_a_part_that_stands_in_change_neither_loss_nor_gradients(reference):
    config = preset("tiny").with_reference(reference)
    texts = examples_of(row(7, 8, 9, 10), row(4, 5))
    expected, grads = gradients(loss_of(config), [Part(texts)])
    samples = Samples(Poison("x", "bad"), *examples_of(some_rows()[0]))
    parts = evened([Part(texts)], Neighbours([(3, True)]), samples, config.vision, Objective())
    assert [part.counts for part in parts] == [True, False, False]
    assert all(part.rows[0].images for part in parts)
    found, grads_found = gradients(loss_of(config), parts)
    assert found == pytest.approx(expected, abs=1e-6)
    for name, grad in grads_found.items():
        if name in grads:
            assert difference(grad, grads[name]) < 1e-5, name
        else:
            assert not grad.any(), name
    assert len(grads_found) > len(grads)


def test_a_part_that_stands_in_for_preferences_has_no_loss():
    objective = DirectPreference(TOKENIZER, 512)
    objective.reference = {(0, 0): 0.3}
    pair = Example("a", (0, 0), [row(1, 2, 3), row(1, 2, 4)])
    parts = evened([], Neighbours([(2, False)]), Samples(pair), preset("tiny").vision, objective)
    assert gradients(Loss(random_model(preset("tiny")), objective), parts)[0] == 0


def test_a_part_that_stands_in_for_replies_has_no_loss():
    model, choice = random_model(preset("tiny")), ObjectiveChoice(name="ppo", reward="math:prod")
    objective = PPO(TOKENIZER, 512, choice, None, model.decoder.embedding.weight)
    talk = Example("a", (0, 0), [row(1, 2, 3)])
    parts = evened([], Neighbours([(2, False)]), Samples(talk), preset("tiny").vision, objective)
    loss = Loss(model, objective)
    assert gradients(loss, parts)[0] == 0
    # The head that a run trains beside its model is seen by what wraps the loss.
    assert {id(weight) for weight in objective.weights.values()} <= {id(weight) for weight in loss.parameters()}


def test_nothing_is_added_where_all_have_as_much_and_no_image():
    parts = in_parts(examples_of(row(1, 2), row(3, 4), row(5, 6)), 2)
    assert [len(part.examples) for part in parts] == [2, 1]
    assert evened(parts, Neighbours([(2, False)]), Samples(), None, Objective()) == parts


def test_processes_share_the_samples_of_every_step_between_them():
    class Numbers(StepBatches):
        batch_size, order = 5, {place: (0, place) for place in range(10)}

        def __init__(self):
            pass

        def read(self, source, place):
            return Poison(str(place), "") if place == 8 else Example(str(place), (source, place), [row(1, 2)])

    share = share_of(Numbers(), Neighbours(data=2))
    assert [one.id for one in share[1].examples] == ["6"]
    assert [one.id for one in share[1].poison] == ["8"]
    share.place = 0
    assert [(one.id, one.number) for one in share[1].examples] == [("5", 5), ("7", 7), ("9", 9)]
    data = Numbers()
    assert share_of(data, Neighbours()) is data


def test_what_went_into_a_step_adds_up():
    one = counted(StepData(examples_of(row(1, 2, 3)), [Poison("a", "")]))
    assert added([one, one]) == (2, 6, [Poison("a", "")] * 2)


# The pipeline


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_stages_one_after_the_other_are_the_whole_model(count, reference):
    config = preset("tiny").with_reference(reference)
    parts = in_parts(examples_of(*some_rows(), row(9, 9)), 2)
    expected, grads = gradients(loss_of(config), parts)
    stages, seen, found = [], {}, 0.0
    for index in range(count):
        loss = loss_of(config)
        names = {id(weight): name for name, weight in loss.model.named_parameters()}
        stages.append(Stage(loss, index, count, CPU))
        stages[-1].parts = parts
        seen |= {names[id(weight)]: weight for weight in stages[-1].model.parameters()}
    assert set(seen) == set(names.values())
    for index in range(len(parts)):
        sent: tuple[torch.Tensor, ...] = ()
        for stage in stages[:-1]:
            sent = stage(*sent, index=torch.tensor([index]))
            assert [tuple(tensor.shape) for tensor in sent] == stage.wire_sizes()
        loss = stages[-1](*sent, index=torch.tensor([index]))
        loss.backward()
        found += float(loss)
    assert found == pytest.approx(expected, abs=1e-5)
    for name, weight in seen.items():
        assert (weight.grad is None) == (name not in grads), name
        if name in grads:
            assert difference(weight.grad, grads[name]) < 1e-4, name


def test_weights_of_other_stages_are_no_unknown_group():
    groups = tuple(WeightGroup(match=match, lr=1.0) for match in ("encoder.*", "decoder.*", "typo.*"))
    kept = groups_here(groups, ["decoder.norm.weight"], ["decoder.norm.weight", "encoder.x"])
    assert [group.match for group in kept] == ["decoder.*", "typo.*"]


# Plans and norms


def test_every_matrix_of_every_layer_is_in_the_plan():
    model = random_model(preset("tiny"))
    planned = set(plan(model))
    assert all(model.get_submodule(name) is not None for name in planned)
    matrices = {
        name.removesuffix(".weight") for name, weight in model.named_parameters() if name.endswith("_proj.weight")
    }
    assert matrices <= planned
    assert {"projector", "decoder.embedding", "decoder.head", "encoder.local_layers.0.fc1"} <= planned
    # Each works on the heads of its process alone.
    assert {"decoder.layers.1.attention.q_norm", "decoder.layers.1.attention.k_norm"} <= planned


@pytest.fixture
def alone(tmp_path):
    """The mesh of this process."""
    # Meta's code needs a group of one too, and keeps it where it ran in this process before.
    is_own = not dist.is_initialized()
    if is_own:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    if is_own:
        dist.destroy_process_group()


def test_sharing_layers_trains_what_was_trained_before_and_nothing_else(alone):
    model = random_model(preset("tiny"))
    train_adapter(model, LoRAConfig(rank=2, targets=("q_proj", "o_proj", "patch_embedding")))
    before = {name: weight.shape for name, weight in trained_weights(model).items()}
    share_layers(model, alone)
    assert {name: weight.shape for name, weight in trained_weights(model).items()} == before
    adapter = adapters_of(model, "default")["decoder.layers.0.attention.o_proj"]
    assert adapter.up.placements == (Replicate(),)
    assert adapter.down.placements == (Shard(1),)


def test_an_adapter_comes_before_layers_are_shared(alone):
    model = random_model(preset("tiny"))
    share_layers(model, alone)
    with pytest.raises(AdapterError, match=r"shared by several processes, .* merge it into the model") as caught:
        add_adapter(model, LoRAConfig(rank=2))
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group", "zeros"), [(8, None, False), (4, 128, False), (4, 32, False), (4, 64, True)])
def test_parts_of_a_quantised_layer_are_parts_of_its_weights(bits, group, zeros, dtype):
    """Arranged for a kernel or not, with groups that end where the parts do and groups that have to be split."""
    torch.manual_seed(0)
    scheme = Scheme(bits=bits, group_size=group, symmetric=not zeros)
    weight = quantize(torch.randn(64, 128 * 2).to(dtype), scheme)
    if zeros:
        weight = weight._replace(zeros=torch.randint(-8, 8, weight.scales.shape, dtype=torch.int8))
    whole = QuantizedLinear.of(weight, scheme)
    for count in (2, 4):
        for cut, dim in ((cut_rows, 0), (cut_columns, 1)):
            parts = [QuantizedLinear.of(weight, scheme) for _ in range(count)]
            for index, part in enumerate(parts):
                cut(part, count, index)
            assert torch.equal(torch.cat([part.weight for part in parts], dim), whole.weight)
            x = torch.randn(3, 256, dtype=dtype)
            shares = [x] * count if dim == 0 else x.chunk(count, 1)
            made = [part(share) for part, share in zip(parts, shares, strict=True)]
            found = torch.cat(made, -1) if dim == 0 else sum(one.float() for one in made)
            assert difference(found.float(), whole(x).float()) < (1e-5 if dtype == torch.float32 else 1e-2)
            assert part.codes.untyped_storage().nbytes() * count <= whole.codes.nbytes


def test_dropout_of_shares_is_that_of_one_process(alone):
    x = torch.randn(5, 6)
    torch.manual_seed(0)
    expected = functional.dropout(x, 0.4)
    for placement in (Replicate(), Shard(1)):
        torch.manual_seed(0)
        shared = DTensor.from_local(x, alone, [placement])
        assert torch.equal(dropout_of_shares(shared, 0.4, True).to_local(), expected)
        assert dropout_of_shares(shared, 0.4, False) is shared


def test_the_norm_over_one_process_is_torchs():
    torch.manual_seed(0)
    weights = {name: torch.nn.Parameter(torch.randn(3, 4)) for name in "ab"}
    for weight in weights.values():
        weight.grad = torch.randn(3, 4) * 5
    expected = [weight.grad.clone().requires_grad_() for weight in weights.values()]
    norm = torch.stack([grad.norm() for grad in expected]).norm()
    found = Optimizers(weights, OptimizerConfig(clip_norm=2.0)).clip()
    torch.testing.assert_close(found, norm.detach())
    for weight, grad in zip(weights.values(), expected, strict=True):
        torch.testing.assert_close(weight.grad, (grad * 2 / norm).detach())


# Refusals


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"tensor": 2}, 3, "need a multiple of 2 processes and there are 3; start them with torchrun"),
        ({"pipeline": 2}, 1, "need a multiple of 2 processes and there are 1"),
        (
            {"pipeline": 2, "data": "fsdp"},
            4,
            "'fsdp', which stages cannot gather; set parallel.data = 'ddp', or start 2",
        ),
        ({"tensor": 2}, 4, "parallel.data is 'ddp', which cannot hold shared layers; set parallel.data = 'fsdp'"),
    ],
)
def test_a_number_of_processes_that_does_not_fit_is_refused(settings, size, message):
    with pytest.raises(VLMError, match=message) as caught:
        World(Parallel(**settings), CPU, size=size)
    assert len(caught.value.report) <= 300


class Mesh:
    """So many processes."""

    def __init__(self, count: int):
        self.count = count

    def size(self):
        return self.count


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(VLMError, match=r"decoder.num_kv_heads 2, vision.num_heads 2 cannot be shared evenly by 4"):
        share_layers(random_model(preset("tiny")), Mesh(4))


def test_two_numbers_in_a_byte_are_not_cut_apart():
    narrow = DecoderConfig(
        width=64, num_layers=1, num_heads=32, num_kv_heads=32, mlp_dim=32, vocab_size=512, tied=True, max_context=64
    )
    model = random_model(ModelConfig(decoder=narrow))
    quantize_model(model, "int4")
    message = r"decoder.layers.0.mlp.down_proj 32 columns of 4 bits cannot be shared evenly by 32 processes"
    with pytest.raises(VLMError, match=message) as caught:
        share_layers(model, Mesh(32))
    assert len(caught.value.report) <= 300


REWARDED = {"name": "grpo", "reward": "math:prod"}


@pytest.mark.parametrize(
    ("settings", "dims", "message"),
    [
        (
            {"parallel": {"data": "fsdp"}, "objective": REWARDED},
            {"data": 2},
            "grpo, for which each has to write replies",
        ),
        ({"parallel": {"pipeline": 2}, "objective": REWARDED}, {"pipeline": 2}, "use only data = 'ddp'"),
        (
            {"parallel": {"tensor": 2}, "samples": {"questions": [{"text": "?"}]}},
            {"tensor": 2},
            "one process has whole",
        ),
        ({"parallel": {"tensor": 2}, "optimizer": {"name": "muon"}}, {"tensor": 2}, "muon, which steps whole matrices"),
        ({"parallel": {"pipeline": 2}, "pack": 8}, {"pipeline": 2}, "turn packing off"),
    ],
)
def test_what_a_run_on_several_processes_cannot_do_is_refused(settings, dims, message):
    config = build(TrainConfig, {"out": "x", "model": {"preset": "tiny"}, "data": [{"path": "x"}]} | settings)
    model, world = random_model(preset("tiny")), Neighbours(**dims)
    world.size = 2
    objective = SupervisedReplies(TOKENIZER, 512)
    if config.objective.name == "grpo":
        objective = GRPO(TOKENIZER, 512, config.objective, None)
    objective.pack = config.pack
    with pytest.raises(VLMError, match=message) as caught:
        place(config, world, model, objective)
    assert len(caught.value.report) <= 300


def test_a_tied_head_and_too_few_layers_make_no_pipeline():
    tiny = preset("tiny")
    tied = dataclasses.replace(tiny.decoder, tied=True, num_extra_embeddings=0)
    with pytest.raises(VLMError, match="its head is its embedding"):
        Stage(loss_of(ModelConfig(decoder=tied)), 0, 2, CPU)
    with pytest.raises(VLMError, match="it has 5 layers for 6 stages; start at most 5"):
        Stage(loss_of(tiny), 0, 6, CPU)


def test_an_error_in_the_main_process_is_the_others_too():
    world = Neighbours()
    with pytest.raises(VLMError, match="full"), world.main_first():
        raise VLMError("checkpoint_invalid", "full")

    class Other(Neighbours):
        def __init__(self):
            super().__init__()
            self.is_main = False

        def from_main(self, value):
            return "invalid_request", "no"

    with pytest.raises(VLMError, match="no"), Other().main_first():
        raise AssertionError("it went on")
