"""The benchmark's own arithmetic: what it counts, and that times are taken in turn. No time is asserted."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adapters.masks import CrossMask
from benchmarks import eleven_b
from vlm import VLM, preset
from vlm.bench import operations
from vlm.bench.limits import Work
from vlm.bench.measure import machine, seconds
from vlm.bench.random_models import random_model, weights_read
from vlm.bench.run import Bench
from vlm.commands.bench import bench
from vlm.kv_cache import empty_cache


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_token_reads_the_whole_cache_and_none_of_it_is_memory_never_written(dtype, monkeypatch):
    caches = []

    def made(*sizes, **kinds):
        caches.append(empty_cache(*sizes, **kinds))
        return caches[-1]

    monkeypatch.setattr(operations, "empty_cache", made)
    model = random_model(preset("tiny"))
    with torch.inference_mode():
        operations.decode_step(model, 9, cache_dtype=dtype)()
    (cache,) = caches
    assert cache.keys.dtype == dtype
    assert operations.cache_bytes(model.config.decoder, 9, dtype) == sum(part.nbytes for part in cache.parts)
    # The token's own numbers may be quantised to zero.
    assert all((part[:, :, :, :9] != 0).all() for part in cache.parts)


def test_operations_are_those_torch_counts():
    model = random_model(preset("tiny")).float()
    # By its formula, for the kernels of a CPU are not counted.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
        for layer in (*model.encoder.local_layers, *model.encoder.global_layers):
            plan = model.encoder.plan(1, torch.device("cpu"))
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


@pytest.fixture
def machine_limits(monkeypatch):
    for name in ("reading", "product"):
        monkeypatch.setattr(eleven_b, name, lambda *_: Work(lambda: None, 1000))


def test_the_large_model_goes_through_a_folder_and_says_where_it_is(tmp_path, capsys, machine_limits, monkeypatch):
    monkeypatch.setattr(eleven_b, "_EVERY_S", 0)
    figures = eleven_b.measure(preset("tiny"), tmp_path / "model", (1, 1), 3, eleven_b.Log())
    assert {"first token, s", "tokens/s", "peak GB"} <= set(figures)
    assert all(value >= 0 for value in figures.values())
    # What any user could load, with the picture beside it.
    assert VLM.from_pretrained(tmp_path / "model").info.max_tiles == 4
    assert (tmp_path / "model" / "picture.safetensors").exists()
    said = capsys.readouterr().out
    for stage in ("random weights written", "weights read", "picture encoded", " tokens, "):
        assert stage in said
    # What is there is not written again.
    eleven_b.measure(preset("tiny"), tmp_path / "model", (1, 1), 3, eleven_b.Log())
    assert "written" not in capsys.readouterr().out


def test_a_stage_says_how_long_the_rest_takes(capsys, monkeypatch):
    now = iter([0, 0, 1, 1, 6, 6, 8, 8])
    monkeypatch.setattr(eleven_b.time, "perf_counter", lambda: next(now))
    progress = eleven_b.Progress(eleven_b.Log(), "cooking", 3)
    for _ in range(3):
        progress.step()
    lines = [line.split("] ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["cooking", "  cooking: 2 of 3, 3 s left", "  cooking: 3 of 3, took 8.0 s"]


def test_a_shortened_shape_keeps_its_widths():
    whole = preset("11b-vision")
    for num_layers in (4, 8, 32):
        short = eleven_b.shortened(whole, num_layers)
        assert (short.decoder.num_layers, short.decoder.width) == (num_layers, whole.decoder.width)
        assert len(short.adapter.cross_layers) == num_layers // 4
        assert short.vision.width == whole.vision.width
    assert replace(short, vision=whole.vision) == whole


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_file_for_llama_cpp_holds_finite_weights_of_every_layer(tmp_path, precision):
    gguf = pytest.importorskip("gguf")
    from vlm.bench.random_gguf import FORMATS, write_random_gguf

    config = replace(
        preset("1b").decoder, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=96, vocab_size=50
    )
    write_random_gguf(tmp_path / "model.gguf", config, precision)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(found) == 2 + 2 * 9
    down = found["blk.1.ffn_down.weight"]
    assert down.tensor_type == FORMATS[precision]
    weights = gguf.dequantize(down.data, down.tensor_type)
    assert weights.shape == (64, 96)
    assert 0.1 < abs(weights).max() * 96**0.5 < 2


def test_llama_cpp_reads_it_where_it_is_installed():
    pytest.importorskip("llama_cpp")
    from vlm.bench.llama_cpp_peer import Peer

    config = replace(
        preset("1b").decoder, width=256, num_layers=1, num_heads=4, num_kv_heads=2, mlp_dim=256, vocab_size=99
    )
    with closing(Peer(config, "int4", 16)) as peer:
        peer.decode_step(9)()
        peer.prefill(16)()


def test_each_part_that_may_be_chosen_is_measured():
    (chosen,) = (option for option in bench.params if option.name == "only")
    assert all(callable(getattr(Bench, part)) for part in chosen.type.choices)
