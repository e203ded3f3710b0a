"""The course of the reader's training: what a step leaves alone, and a cut run that goes on as if uncut."""

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vision_encoder.preprocess import ImageProcessor, normalise
from vlm.config import PRESETS, preset
from vlm.errors import VLMError
from vlm.pipeline import VLM
from vlm.training.reader.__main__ import main
from vlm.training.reader.data import Diet, ReaderData
from vlm.training.reader.folder import TEMPERATURE, load_reader, save_reader, without_positions
from vlm.training.reader.model import Losses, Reader
from vlm.training.reader.real_charts import RealCharts
from vlm.training.reader.run import ON_A_CPU, Run
from vlm.training.reader.sinusoids import retile
from vlm.training.reader.stages import STAGES
from vlm.training.reader.start import num_shared_dims
from vlm.training.reader.targets import IGNORED, MAX_ORDER, NUM_CODES
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.reader.wires import cross_attentions

TOKENIZER = reader_tokenizer()
NAMED = {stage.name: stage for stage in STAGES}
SMALL = replace(NAMED["more of everything"], num_batches=4, diet=Diet(num_images=2, share_pages=0.3, num_questions=2))
TILE_SIZE = 152


@pytest.fixture(autouse=True, scope="module")
def no_denormals():
    """As in a run: what sharp attention lets underflow takes several times as long."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True, scope="module")
def smaller_tiles():
    """The recipe as it is on a quarter of the patches, so that a step takes a third of the time."""
    model = preset("default")
    smaller = replace(model, vision=replace(model.vision, tile_size=TILE_SIZE))
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "default", lambda: smaller)
        yield


def _write_over_positions(model):
    model.encoder.local_layers[2].fc2.bias[-1] = 1


def _write_over_colours(model):
    model.encoder.global_layers[0].attention.o_proj.weight[num_shared_dims(model.encoder), 3] = 1


def _wire_otherwise(model):
    cross_attentions(model)[0].v_proj.weight[0, -1] = 1


@pytest.mark.parametrize("spoil", [_write_over_positions, _write_over_colours, _wire_otherwise])
def test_a_reader_of_an_older_recipe_is_no_start(tmp_path, spoil):
    reader = Reader(preset("default"))
    save_reader(reader, tmp_path / "good")
    load_reader(tmp_path / "good")
    with torch.no_grad():
        spoil(reader.model)
    save_reader(reader, tmp_path / "older")
    with pytest.raises(VLMError, match="older recipe"):
        load_reader(tmp_path / "older")


def test_a_reader_that_ships_in_fewer_views_is_a_start(tmp_path):
    save_reader(Reader(preset("default")), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(f'"num_views": {preset("default").num_views}', '"num_views": 2'))
    assert VLM.from_pretrained(tmp_path).model.config.num_views == 2
    load_reader(tmp_path)


def test_heads_that_do_not_ship_begin_at_chance_and_learn_before_they_teach(tmp_path):
    save_reader(Reader(preset("default")), tmp_path)
    reader = load_reader(tmp_path)
    diet = replace(SMALL.diet, num_questions=0, share_pages=0.5)
    batch = ReaderData(preset("default").vision, TOKENIZER, diet, num_batches=1, seed=0)[0]
    retile(reader.model, replace(preset("default").vision, max_tiles=1))
    losses = reader(batch)
    for loss, num_classes in ((losses.characters, NUM_CODES), (losses.order, MAX_ORDER + 1)):
        assert loss.item() == pytest.approx(math.log(num_classes), rel=1e-4)
    (losses.characters + losses.order + losses.beginning).backward()
    for head in (reader.character_head, reader.order_head, reader.beginning_head):
        assert head.weight.grad.abs().max() > 0
        assert head.bias.grad.abs().max() > 0
    assert all(weight.grad is None or not weight.grad.any() for weight in reader.model.parameters())


def test_a_step_turns_no_head_away_from_its_neighbour_and_leaves_colours_apart(tmp_path):
    run = Run(tmp_path, (SMALL,), 0)
    vision = run.reader.model.config.vision
    layer = run.reader.model.encoder.local_layers[0]
    # Two heads of three, and what is no position of three thirds.
    held = vision.width * 2 // 3
    watched = ((layer.attention.q_proj, slice(held)), (layer.attention.k_proj, slice(held)))
    watched += ((layer.attention_norm, slice(held, None)),)
    encoder = run.reader.model.encoder
    watched += ((encoder.patch_embedding, slice(num_shared_dims(encoder), None)),)
    before = [part.weight.clone() for part, _ in watched]
    run._step(run.reader, SMALL, [ReaderData(vision, TOKENIZER, SMALL.diet, num_batches=4, seed=0)[0]])
    for (part, held), was in zip(watched, before, strict=True):
        assert torch.equal(part.weight[held], was[held])
        assert not torch.equal(part.weight, was)


def test_a_step_leaves_the_wires_as_they_are(tmp_path):
    run = Run(tmp_path, (SMALL,), 0)
    find, copy, _ = cross_attentions(run.reader.model)
    size, part = run.reader.model.config.decoder.head_dim, slice(None)
    watched = (
        (run.reader.model.projector, slice(size)), (find.v_proj, slice(size)),
        (find.o_proj, (part, slice(2 * size))), (copy.q_proj, slice(2 * size)),
        (copy.k_proj, slice(size)), (copy.v_proj, slice(size)),
        (copy.o_proj, (part, slice(2 * size))),
    )  # fmt: skip
    before = [module.weight.clone() for module, _ in watched]
    run._step(
        run.reader, SMALL, [ReaderData(preset("default").vision, TOKENIZER, SMALL.diet, num_batches=4, seed=0)[0]]
    )
    for (module, held), was in zip(watched, before, strict=True):
        assert torch.equal(module.weight[held], was[held])
        assert not torch.equal(module.weight, was)


def test_rates_rise_by_and_by_where_a_stage_begins_higher_than_the_last_ended(tmp_path, monkeypatch):
    stages = tuple(replace(SMALL, num_batches=100, rates=rates) for rates in ((1.0, 0.7), (0.7, 0.1), (0.5, 0.0)))
    run, shares = Run(tmp_path, stages, 0), []
    monkeypatch.setattr("vlm.training.reader.run.set_rates", lambda _, share: shares.append(share))
    for run.stage_index, stage in enumerate(stages):
        for run.batch_index in (0, 19, 50):
            run._step(run.reader, stage, [])
    assert shares == pytest.approx([1 / 40, 0.943 / 2, 0.85, 0.7, 0.586, 0.4, 0.5 / 40, 0.405 / 2, 0.25])


def test_a_gpu_is_given_as_many_pictures_at_once_as_its_memory_holds(tmp_path, monkeypatch):
    run = Run(tmp_path, (SMALL,), 0)
    run.device = torch.device("cpu")
    assert run._pictures_at_once() == ON_A_CPU
    run.device = torch.device("cuda")
    for gibibytes, pictures in ((1, ON_A_CPU), (24, 96), (80, 320)):
        memory = SimpleNamespace(total_memory=gibibytes * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, memory=memory: memory)
        assert run._pictures_at_once() == pictures


@pytest.fixture(scope="module")
def whole(smaller_tiles, no_denormals, tmp_path_factory) -> Run:
    """A run of three batches from beginning to end."""
    run = Run(tmp_path_factory.mktemp("whole"), (replace(SMALL, num_batches=3),), 0)
    run.train()
    return run


def test_a_cut_run_goes_on_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    cut = Run(tmp_path / "cut", whole.stages, 0)
    step = cut._step

    def stop_in_the_second(*arguments):
        if cut.batch_index == 1:
            cut.stop()
        return step(*arguments)

    monkeypatch.setattr(cut, "_step", stop_in_the_second)
    with pytest.raises(SystemExit):
        cut.train()
    resumed = Run(tmp_path / "cut", whole.stages, 0)
    assert resumed.batch_index == 2
    resumed.train()
    for (name, weight), again in zip(whole.reader.named_parameters(), resumed.reader.parameters(), strict=True):
        assert torch.equal(weight, again), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"minutes": 9}, "minutes = None, not 9"),
        ({"stages": (SMALL, SMALL)}, rf"stages = \['{SMALL.name}'\], not \['{SMALL.name}', '{SMALL.name}'\]"),
    ],
)
def test_a_run_goes_on_with_what_it_was_begun_with_alone(whole, options, said):
    with pytest.raises(VLMError, match=f"was begun with {said}; give what"):
        Run(**{"out": whole.out, "stages": whole.stages, "seed": 0, **options})


def test_a_run_leaves_a_model_that_answers(whole, tmp_path):
    # Its batches are of single tiles, which are seen without missing ones.
    assert whole.reader.model.config.vision.max_tiles == 1
    model = VLM.from_pretrained(whole.out / "model")
    assert model.info.max_tiles == preset("default").vision.max_tiles
    reply = model.answer(Image.new("RGB", (300, 200), "white"), "What is the title?")
    assert reply.finish_reason in ("stop", "length")
    further = Run(tmp_path / "further", (SMALL,), 1, start=whole.out / "model")
    for name, weight in further.reader.model.named_parameters():
        calmed = TEMPERATURE if name == "decoder.norm.weight" else 1
        assert torch.equal(weight.bfloat16(), calmed * model.model.get_parameter(name)), name


def test_a_reader_ships_less_sure_of_the_same_replies_and_goes_on_as_it_was(tmp_path):
    reader = Reader(preset("default"))
    save_reader(reader, tmp_path)
    shipped, messages = VLM.from_pretrained(tmp_path), [{"role": "user", "content": "What is the title?"}]
    calm = shipped.logits(messages)
    reader.model.bfloat16()
    shipped.model.load_state_dict(without_positions(reader.model), strict=False)
    # Weights in bfloat16 are rounded where they are divided.
    assert torch.allclose(calm, shipped.logits(messages) / TEMPERATURE, atol=0.02 * float(calm.abs().max()))
    again = load_reader(tmp_path).model.decoder.norm.weight
    assert torch.allclose(again, reader.model.decoder.norm.weight.float(), rtol=2**-8)


def test_a_batch_in_parts_is_learned_as_one(tmp_path, monkeypatch):
    """A run on a CPU adds up the gradients of parts of a batch: here of the same part twice, which is that part."""
    whole, parts = (Run(tmp_path / name, (SMALL,), 0) for name in ("whole", "parts"))
    batch = ReaderData(preset("default").vision, TOKENIZER, SMALL.diet, num_batches=4, seed=0)[0]
    losses = [run._step(run.reader, SMALL, [batch] * count) for run, count in ((whole, 1), (parts, 2))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for weight, same in zip(whole._trained(), parts._trained(), strict=True):
        assert torch.allclose(weight, same, atol=1e-6)
    seen = []
    monkeypatch.setattr("vlm.training.reader.run.ON_A_CPU", 1)
    cut = Run(tmp_path / "cut", (replace(SMALL, num_batches=1),), 0)
    monkeypatch.setattr(cut, "_step", lambda trained, stage, parts: seen.append(parts) or {"steps": 1})
    cut.train()
    assert [len(part.pixels) for part in seen[0]] == [1, 1]
    assert len(seen) == 1


def test_single_tiles_are_seen_without_missing_ones_and_sheets_with(tmp_path):
    run = Run(tmp_path, (SMALL,), 0)
    run._step(
        run.reader, SMALL, [ReaderData(preset("default").vision, TOKENIZER, SMALL.diet, num_batches=4, seed=0)[0]]
    )
    assert run.reader.model.config.vision.max_tiles == 1
    for canvas, max_tiles in (((1, 2), 4), ((2, 2), 4), ((1, 1), 1)):
        run._retile(canvas)
        assert run.reader.model.config.vision.max_tiles == max_tiles


def test_a_run_by_the_clock_gives_each_stage_its_part_and_takes_rates_down_by_it(tmp_path, monkeypatch):
    """A clock that a look at it moves by a second: each step takes one."""
    now = itertools.count()
    monkeypatch.setattr("vlm.training.reader.run.time", SimpleNamespace(monotonic=lambda: float(next(now))))
    stages = tuple(replace(SMALL, num_batches=count, rates=(1.0, 0.0)) for count in (100, 300))
    run, seen = Run(tmp_path, stages, 0, minutes=8 / 60), []

    def step(_, stage, parts):
        seen.append((run.stage_index, round(run._done(stage), 3)))
        return {"steps": 1}

    monkeypatch.setattr(run, "_step", step)
    monkeypatch.setattr(run, "save", lambda: None)
    run.train()
    assert seen == [(0, 0.0), (0, 0.5)] + [(1, round(done / 6, 3)) for done in range(6)]


def _charts(folder, sizes):
    """Write a folder in ChartQA's layout, with a question about each picture."""
    (folder / "png").mkdir(parents=True)
    for name, size in sizes.items():
        Image.new("RGB", size, "white").save(folder / "png" / name)
    rows = [{"imgname": name, "query": "How much in 2019?", "label": "7"} for name in sizes]
    (folder / "train_human.json").write_text(json.dumps(rows))
    return folder


def test_real_charts_are_seen_on_sheets_of_their_size_and_teach_by_their_answers_alone(tmp_path):
    folder = _charts(tmp_path / "charts", {"small.png": (200, 150), "large.png": (800, 557)})
    diet = replace(SMALL.diet, share_pages=0.0, share_sheets=1.0, share_real=1.0)
    run = Run(tmp_path, (replace(SMALL, diet=diet),), 0, real=folder)
    data = ReaderData(preset("default").vision, TOKENIZER, diet, num_batches=12, seed=0, real=run.real)
    batches = [data[index] for index in range(12)]
    assert {batch.canvas for batch in batches} > {(2, 2)}
    for batch in batches:
        kinds = {kind for group in batch.groups for kind in group.kinds}
        assert (kinds == {"real"}) == (batch.canvas == (2, 2))
        if kinds != {"real"}:
            continue
        assert len(batch.pixels) == 1
        assert (batch.characters == IGNORED).all()
        assert not batch.links.order.any()
        (group,) = batch.groups
        assert not group.pointers.any()
        answer = group.labels[group.labels != IGNORED].tolist()
        assert TOKENIZER.decode(answer[:-1]) == "7"
        losses = run._step(run.reader, SMALL, [batch])
        assert losses["answer"] > 1
        assert all(losses[name] == 0 for name in Losses._fields if name != "answer")
        break


def test_a_batch_with_real_charts_is_a_function_of_its_index_and_of_its_process(tmp_path):
    vision, sizes = preset("default").vision, {f"{number}.png": (800, 500 + number) for number in range(9)}
    real = RealCharts(_charts(tmp_path, sizes), ImageProcessor(vision), silent=True)
    diet = Diet(num_images=24, share_pages=0.2, num_questions=2, share_sheets=1.0, share_real=0.5)
    data, again, other = (
        ReaderData(vision, TOKENIZER, diet, num_batches=9, seed=0, rank=rank, num_ranks=2, real=real)
        for rank in (0, 0, 1)
    )
    index = next(index for index in range(9) if data[index].canvas == (2, 2))
    batch, twin, others = data[index], again[index], other[index]
    is_real, is_others = ((each.characters == IGNORED).flatten(1).all(1) for each in (batch, others))
    assert 0 < is_real.sum() < len(is_real) == 6
    assert not batch.links.order[is_real].any()
    for group in batch.groups:
        assert [kind == "real" for kind in group.kinds] == is_real[group.image_index].tolist()
        assert not group.pointers[is_real[group.image_index]].any()
    assert torch.equal(batch.pixels, twin.pixels)
    assert (batch.canvas, batch.offset) == (others.canvas, others.offset)
    chosen = list(zip(batch.pixels[is_real], others.pixels[is_others], strict=False))
    assert chosen
    assert not all(torch.equal(*pair) for pair in chosen)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [({}, "holds no questions"), ({"tall.png": (30, 200)}, f"give charts larger than {TILE_SIZE} pixels both ways")],
)
def test_a_folder_without_charts_that_can_be_learned_from_is_told_without_a_traceback(tmp_path, sizes, said):
    folder = _charts(tmp_path / "charts", sizes)
    done = CliRunner().invoke(main, ["--real", str(folder), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 1
    assert said in done.output
    assert str(tmp_path) not in done.output


def test_a_real_chart_that_cannot_be_read_is_named(tmp_path):
    folder = _charts(tmp_path / "charts", {"a.png": (800, 557), "gone.png": (800, 557)})
    (folder / "png/gone.png").unlink()
    with pytest.raises(VLMError, match=r"^png/gone\.png: "):
        Run(tmp_path / "out", (SMALL,), 0, real=folder)


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path, caplog, monkeypatch):
    run = Run(tmp_path, (SMALL,), 0)
    vision = run.reader.model.config.vision
    batch = ReaderData(vision, TOKENIZER, SMALL.diet, num_batches=4, seed=0)[0]
    before = [weight.clone() for weight in run._trained()]
    monkeypatch.setattr("vlm.training.reader.model.normalise", lambda levels: normalise(levels) * float("nan"))
    run._step(run.reader, SMALL, [batch])
    assert all(torch.equal(weight, old) for weight, old in zip(run._trained(), before, strict=True))
    assert "left out" in caplog.text
