"""The benchmark's own arithmetic: what it counts, and that times are taken in turn. No time is asserted."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adapters.masks import CrossMask
from benchmarks import eleven_b
from vlm import preset
from vlm.bench import operations
from vlm.bench.measure import machine, seconds
from vlm.bench.random_models import random_model, weights_read


def test_functions_are_measured_in_turn():
    calls: list[str] = []
    found = seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, windows=3, window_s=0)
    assert "".join(calls) == "ab" + "ab" * 3
    assert set(found) == {"a", "b"}


def test_the_machine_is_named():
    assert machine()["versions"]["torch"] == torch.__version__
    assert machine()["processor"]


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_random_models_give_numbers_that_depend_on_the_picture(precision):
    model = random_model(preset("tiny"), precision)
    tokens = [torch.randn(1, 5, model.config.decoder.width).bfloat16() for _ in range(2)]
    with torch.inference_mode():
        first, second = (model(torch.arange(6)[None], model.decoder.image_kv(x), CrossMask(None, None)) for x in tokens)
    assert first.isfinite().all()
    assert first.std() > 0
    assert not torch.equal(first, second)


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_reads_every_matrix_but_the_embedding_and_those_of_image_keys(tied):
    config = preset("tiny")
    config = replace(config, decoder=replace(config.decoder, tied=tied, num_extra_embeddings=0 if tied else 8))
    config = replace(config, adapter=None, vision=None) if tied else config
    model = random_model(config)
    read = {
        name: weight for name, weight in model.decoder.named_parameters() if tied or not name.startswith("embedding")
    }
    cross = [f"layers.{index}.attention.{part}.weight" for index in (1, 3) for part in ("k_proj", "v_proj")]
    read = {name: weight for name, weight in read.items() if tied or name not in cross}
    # The last norm, and norms of image keys, are counted either way: they are nothing beside a matrix.
    total = sum(weight.nbytes for weight in read.values())
    assert abs(weights_read(model, with_image=not tied) - total) <= model.decoder.norm.weight.nbytes


def test_operations_are_those_torch_counts():
    model = random_model(preset("tiny")).float()
    # By its formula, for the kernels of a CPU are not counted.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
        for layer in (*model.encoder.local_layers, *model.encoder.global_layers):
            plan = model.encoder._plan(1, torch.device("cpu"))
            layer(torch.randn(1, len(plan.slots), model.config.vision.width), plan.layout)
    counted = counter.get_total_flops()
    # Padding rows do not see each other, which is a little less.
    needed = operations.encode_operations(model.config, 1)
    assert 0.9 * needed <= counted <= needed
    text = random_model(replace(preset("tiny"), adapter=None, vision=None)).float()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for layer in text.decoder.layers:
            layer.mlp(torch.randn(16, 32))
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.attention, name)(torch.randn(16, 32))
    assert counter.get_total_flops() == operations.prefill_operations(text, 16)


def test_the_large_model_goes_through_the_disk_part_by_part(tmp_path, capsys):
    figures = eleven_b.measure(preset("tiny"), tmp_path, (1, 1), 3)
    assert {"first token, s", "tokens/s", "peak GB"} <= set(figures)
    assert all(value >= 0 for value in figures.values())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"vision.safetensors", "embedding.safetensors", "layer-0.safetensors", "picture.safetensors"} <= names
