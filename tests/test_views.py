"""Pictures in several views: each is looked at alone, and the mean decides."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import random_model
from tests.conversations import FOUR_TILES, MIXED, SMALL, WIDE, user
from tests.image_files import noise_picture, smooth_pixels
from tests.nearness import difference
from tests.test_batcher import Bench, job
from vision_encoder.preprocess import ImageProcessor
from vlm import VLM, EncodedImage, GenerationConfig, Tokenizer, VLMError, preset
from vlm.commands.options import views_option
from vlm.config import MAX_VIEWS
from vlm.generation import generate
from vlm.generation.batch_run import Clock
from vlm.images import views
from vlm.images.views import show
from vlm.serving.model_process import running_batch

VISION = replace(preset("default").vision, tile_size=400)
PROCESSOR = ImageProcessor(VISION)
SHORT = GenerationConfig(max_new_tokens=6)
TOLERANCE = 1e-5


def seeing(num_views: int, **settings) -> VLM:
    """A pipeline around the tiny model that looks at pictures in so many views."""
    vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    vlm.model.config = replace(vlm.model.config, num_views=num_views, **settings)
    return vlm


@pytest.fixture(params=[False, True], ids=["all patches", "thinned"])
def three(request, monkeypatch) -> VLM:
    monkeypatch.setattr(views, "ATTENTION", math.inf)
    return seeing(3, is_thinned=request.param)


@pytest.fixture
def one(three) -> VLM:
    return seeing(1, is_thinned=three.model.config.is_thinned)


def of_one_view(messages: list[dict], vlm: VLM, view: int) -> list[dict]:
    """Return `messages` with each image in one of its views alone."""
    messages = copy.deepcopy(messages)
    for part in images_of(messages):
        found = vlm.encode_image(part["image"]).views
        part["image"] = replace(found[view % len(found)], other_views=())
    return messages


def images_of(messages: list[dict]) -> list[dict]:
    parts = [part for turn in messages if isinstance(turn["content"], list) for part in turn["content"]]
    return [part for part in parts if part["type"] == "image"]


def chart(size: tuple[int, int] = (300, 400)) -> Image.Image:
    """White paper with some bars and dots."""
    pixels = np.full((*size, 3), 255, dtype=np.uint8)
    step = max(2, size[1] // 8)
    for bar in range(1, 5):
        pixels[size[0] // 2 : -4, step * bar : step * bar + step // 2] = (200, 40 * bar, 30)
        pixels[2 : size[0] // 3 : 4, step * bar] = 0
    return Image.fromarray(pixels)


# What is shown


@pytest.mark.parametrize("size", [(300, 400), (1, 1), (800, 800), (30, 1600), (2000, 900)])
@pytest.mark.parametrize("thinned", [False, True])
def test_the_first_view_is_the_picture_as_it_is(size, thinned):
    picture = chart(size) if min(size) > 200 else noise_picture(size)
    shown = show(picture, PROCESSOR, 3, thinned=thinned)
    levels, canvas = PROCESSOR.levels(picture)
    if shown[0].scale == 1:
        assert torch.equal(shown[0].levels, levels)
        assert shown[0].canvas == canvas
    else:
        assert thinned
        assert shown[0].scale < 1
    assert len(shown) <= 3


def test_the_second_lies_half_a_patch_further_down_and_to_the_right():
    shown = show(chart((300, 400)), PROCESSOR, 2, thinned=False)
    first, second = (each.levels[0] for each in shown)
    half = VISION.patch_size // 2
    assert torch.equal(second[:, half : half + 300, half:], first[:, :300, :-half])
    assert (second[:, :half] == 255).all()


def test_the_third_is_a_quarter_larger_where_there_is_room():
    *_, third = show(chart((300, 400)), PROCESSOR, 3, thinned=False)
    assert third.canvas == (1, 2)
    # What lies past the picture is black.
    assert (third.levels[0, 0, :375] > 0).any(1).all()
    assert not third.levels[0, 0, 376:].any()
    full = show(chart((700, 800)), PROCESSOR, 3, thinned=False)
    assert [each.scale for each in full] == [1, 1, 1]
    assert not torch.equal(full[1].levels, full[2].levels)


def test_of_a_picture_with_room_there_are_as_many_different_views_as_may_be_asked_for():
    shown = show(chart((300, 400)), PROCESSOR, MAX_VIEWS, thinned=True)
    assert len({each.levels.numpy().tobytes() for each in shown}) == MAX_VIEWS
    assert views_option(lambda: None).__click_params__[0].type.max == MAX_VIEWS


def test_a_picture_with_too_much_in_it_is_shrunk_and_has_fewer_views():
    for picture in (noise_picture((800, 800)), noise_picture((500, 900)), chart((790, 800))):
        shown = show(picture, PROCESSOR, 3, thinned=True)
        assert sum(views._cost(each, PROCESSOR) for each in shown) <= views.ATTENTION
    assert show(noise_picture((800, 800)), PROCESSOR, 3, thinned=True)[0].scale < 1
    assert show(noise_picture((800, 800)), PROCESSOR, 3, thinned=False)[0].scale == 1


def test_a_view_that_is_too_dear_is_passed_over_for_one_that_is_not(monkeypatch):
    def shown():
        return show(chart((300, 400)), PROCESSOR, 4, thinned=True)

    first, shifted, larger, further = shown()
    cheap = [views._cost(each, PROCESSOR) for each in (first, shifted, further)]
    assert views._cost(larger, PROCESSOR) > cheap[2]
    monkeypatch.setattr(views, "ATTENTION", sum(cheap) + 1e-9)
    monkeypatch.setattr(views, "VIEWS", views.VIEWS[:4])
    found = shown()
    assert [each.scale for each in found] == [1, 1, 1]
    assert torch.equal(found[2].levels, further.levels)


def test_a_single_tile_is_not_shrunk():
    processor = ImageProcessor(replace(VISION, max_tiles=1))
    [shown] = show(noise_picture((90, 90)), processor, 3, thinned=True)
    assert shown.scale == 1


# What is made of it


@pytest.mark.parametrize("place", range(len(MIXED)))
def test_logits_are_the_mean_of_those_of_each_view(three, one, place):
    messages = MIXED[place]
    counts = [len(three.encode_image(part["image"]).views) for part in images_of(messages)]
    alone = torch.stack([one.logits(of_one_view(messages, three, view)) for view in range(max(counts, default=1))])
    assert difference(three.logits(messages), alone.mean(0)) < TOLERANCE
    if counts:
        assert difference(alone[0], alone[1]) > 100 * TOLERANCE


def test_together_replies_are_what_they_are_alone(three):
    alone = [three.chat(messages, config=SHORT) for messages in MIXED]
    assert [reply.token_ids for reply in three.chat_many(MIXED, config=SHORT)] == [reply.token_ids for reply in alone]
    for messages, reply in zip(MIXED, alone, strict=True):
        logits = three.logits([*messages, {"role": "assistant", "content": reply.text}], continue_final=True)
        if three.tokenizer.encode(reply.text) == reply.token_ids:
            count = len(reply.token_ids)
            assert logits[-count - 1 : -1].argmax(-1).tolist() == reply.token_ids


def test_replies_of_unequal_length_leave_the_others_alone(three):
    rooms = [GenerationConfig(max_new_tokens=count) for count in (2, 9)]
    expected = [three.chat(MIXED[1], config=room).token_ids for room in rooms]
    prompts = [three._prepare(MIXED[1], three._requests.chat, room) for room in rooms]
    clock = Clock(three.device)
    run = three._run([prompt for prompt, _ in prompts], [room for _, room in prompts], rooms[1], clock)
    assert [reply.token_ids for reply in run.finish()] == expected


def test_view_by_view_is_what_all_together_are(three, monkeypatch):
    replies = []
    for limit in (generate.MAX_BYTES_IN_CACHES, 0):
        monkeypatch.setattr(generate, "MAX_BYTES_IN_CACHES", limit)
        replies.append([three.chat(messages, config=SHORT) for messages in MIXED])
    for alone, together in zip(*replies, strict=True):
        assert alone.token_ids == together.token_ids
        assert alone.confidence == pytest.approx(together.confidence, abs=1e-5)


def test_scores_are_of_the_same_mean(three):
    messages = user(FOUR_TILES, "which?")
    for score in three.score(messages, ["Yes", "No, none", "x"]):
        final = [*messages, {"role": "assistant", "content": score.text}]
        logits = three.logits(final, continue_final=True).log_softmax(-1)
        ids = three.tokenizer.encode(score.text)
        expected = sum(float(logits[-len(ids) - 1 + place, token_id]) for place, token_id in enumerate(ids))
        assert score.logprob == pytest.approx(expected, abs=1e-4)


def test_an_encoded_picture_has_its_views_with_it_and_in_its_file(three, one, tmp_path):
    encoded = three.encode_image(SMALL)
    assert len(encoded.views) == 3
    encoded.save(tmp_path / "picture")
    loaded = EncodedImage.load(tmp_path / "picture")
    expected = three.chat(user(SMALL, "what?"), config=SHORT).token_ids
    for image in (encoded, loaded):
        assert three.chat(user(image, "what?"), config=SHORT).token_ids == expected
    for ours, theirs in zip(encoded.views, loaded.views, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert (ours.canvas, ours.size, ours.scale) == (theirs.canvas, theirs.size, theirs.scale)
        assert (ours.given is None) == (theirs.given is None) == (not three.model.config.is_thinned)
        assert ours.given is None or torch.equal(ours.given, theirs.given)
    assert one.encode_image(SMALL).other_views == ()
    for places in ([], [-1], [10**6], [0.5], [[1]]):
        broken = replace(encoded, given=torch.tensor(places))
        with pytest.raises(VLMError, match="names tokens that it does not have"):
            three.chat(user(broken, "what?"))
    broken = replace(encoded, other_views=(replace(encoded.views[1], tokens=encoded.tokens[:, :3]),))
    with pytest.raises(VLMError, match="tensor of"):
        three.chat(user(broken, "what?"))


@pytest.mark.parametrize("goes_alone", [True, False])
def test_a_server_writes_the_same(three, monkeypatch, goes_alone):
    monkeypatch.setattr(running_batch, "rows_go_alone", lambda _: goes_alone)
    bench = Bench(three, 3)
    for place, messages in enumerate(MIXED):
        bench.add(place, job(messages, 6))
        bench.step()
    bench.finish()
    expected = [three.chat(messages, config=SHORT).token_ids for messages in MIXED]
    assert [bench.ids(place) for place in range(len(MIXED))] == expected


def test_what_is_explained_is_the_first_view_in_pixels_of_the_picture(three, one):
    messages = user(WIDE, "where?")
    ours, first = three.explain(messages, "ab"), one.explain(messages, "ab")
    assert all(torch.equal(found, expected) for found, expected in zip(ours, first, strict=True))


def test_a_shrunk_picture_is_explained_in_its_own_pixels():
    vlm = seeing(3, is_thinned=True)
    picture = noise_picture((56, 56))
    assert vlm.encode_image(picture).scale < 1
    for found in vlm.explain(user(picture, "where?"), "ab"):
        assert found.shape == (56, 56)
        assert float(found.sum()) == pytest.approx(1)
        assert bool((found[:, -1] > 0).any())


def test_of_several_thinned_pictures_each_has_its_own_map():
    """The decoder was given only some tokens of each."""
    vlm = seeing(1, is_thinned=True)
    pictures = [chart((40, 44)), chart((28, 56)), chart((20, 20))]
    content = [{"type": "image", "image": picture} for picture in pictures[:2]] + [{"type": "text", "text": "?"}]
    content.append({"type": "image", "image": pictures[2]})
    messages = [{"role": "user", "content": content}]
    assert all(len(each.given) < each.tokens[..., 0].numel() for each in map(vlm.encode_image, pictures))
    for first, second, third in vlm.explain(messages, "ab"):
        assert (first.shape, second.shape, third.shape) == ((40, 44), (28, 56), (20, 20))
        # The reply sees the last picture alone.
        assert float(third.sum()) == pytest.approx(1)
        assert not first.any()
        assert not second.any()
    del messages[0]["content"][3]
    for first, second in vlm.explain(messages, "ab"):
        assert float(first.sum() + second.sum()) == pytest.approx(1)
        assert min(float(first.sum()), float(second.sum())) > 0


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, 1e300, 2.0])
def test_a_scale_that_no_view_has_is_refused_where_it_matters(scale):
    vlm = seeing(1)
    broken = replace(vlm.encode_image(SMALL), scale=scale)
    with pytest.raises(VLMError, match="which does not go together"):
        vlm.explain(user(broken, "where?"), "ab")


# What says so


def test_a_checkpoint_says_how_pictures_are_looked_at(tmp_path):
    vlm = seeing(2, is_thinned=True)
    vlm.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["num_views"], written["thin_blank_patches"]) == (2, True)
    config = VLM.from_pretrained(tmp_path / "out").model.config
    assert (config.num_views, config.is_thinned) == (2, True)
    exact = VLM.from_pretrained(tmp_path / "out", num_views=1, thin=False)
    assert exact.model.config == preset("tiny")
    stock = VLM.from_pretrained(tmp_path / "out", reference="transformers")
    assert stock.encode_image(Image.fromarray(smooth_pixels())).other_views == ()
    seeing(1).save_pretrained(tmp_path / "plain")
    assert not {"num_views", "thin_blank_patches"} & json.loads((tmp_path / "plain" / "config.json").read_text()).keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_views": 0}, "num_views is 0; give an integer from 1 to 8"),
        ({"num_views": True}, "num_views is True; give an integer from 1 to 8"),
        ({"num_views": 9}, "num_views is 9; give an integer from 1 to 8"),
        ({"thin": 1}, "thin is 1; give True, False or None"),
        ({"thin": True, "reference": "transformers"}, 'with reference "transformers", which knows neither'),
        ({"num_views": 2, "reference": "transformers"}, 'with reference "transformers", which knows neither'),
    ],
)
def test_other_ways_are_refused(settings, message):
    with pytest.raises(VLMError, match=message) as error:
        VLM.from_pretrained(**settings)
    assert error.value.code == "invalid_request"


def test_a_file_with_other_ways_is_refused(tmp_path):
    seeing(1).save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_views": 40}))
    with pytest.raises(VLMError, match="num_views is 40; it must be from 1 to 8") as error:
        VLM.from_pretrained(tmp_path / "out")
    assert error.value.code == "checkpoint_invalid"
