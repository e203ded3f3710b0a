"""Encoded pictures: what makes two the same, how much is kept, and how one is saved."""

import errno
import os
import stat
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import random_model
from tests.image_files import encode, exif, noise_picture, smooth_pixels
from vlm import VLM, EncodedImage, GenerationConfig, Tokenizer, VLMError, preset
from vlm.images.cache import ImageCache, ImageEntry

SHORT = GenerationConfig(max_new_tokens=4)


@pytest.fixture
def vlm(tiny_model) -> VLM:
    """A pipeline that remembers nothing yet."""
    return VLM(tiny_model, Tokenizer.bytes_only())


@pytest.fixture
def passes(tiny_model) -> list[int]:
    """Grows by the pictures of each pass of the encoder."""
    seen: list[int] = []
    hook = tiny_model.encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


def entry_of(num_bytes: int) -> ImageEntry:
    empty = torch.empty(0, dtype=torch.uint8)
    encoded = EncodedImage(
        features=torch.empty(num_bytes, dtype=torch.uint8), tokens=empty, canvas=(1, 1), size=(1, 1), model_key=""
    )
    return ImageEntry(encoded)


def paletted(pixels: list[list[int]], palette: list[int]) -> bytes:
    image = Image.fromarray(np.array(pixels, dtype=np.uint8), "P")
    image.putpalette(palette)
    return encode(image, "PNG")


# What is the same picture


def test_the_same_pixels_are_encoded_once_whatever_they_come_in(vlm, passes):
    picture = Image.fromarray(smooth_pixels((30, 40)))
    pixels = np.asarray(picture)
    ways = [picture, pixels, torch.tensor(pixels).permute(2, 0, 1), *(encode(picture, name) for name in ("PNG", "BMP"))]
    ways += [encode(picture, "TIFF"), encode(picture, "WEBP", lossless=True), encode(picture, "PNG", compress_level=0)]
    replies = {tuple(vlm.answer(way, "?", config=SHORT).token_ids) for way in ways}
    assert len(replies) == 1
    assert len(passes) == 1
    assert len(vlm.images.cache) == 1


def test_other_pictures_with_the_same_bytes_or_identifiers_are_others(vlm, passes):
    """I15: the same raw bytes in another shape; the same indices with another palette; the same ImageID."""
    raw = np.random.default_rng(0).integers(0, 256, 30 * 100 * 3, dtype=np.uint8)
    stripes = [[0, 1, 0, 1]] * 4
    identified = [encode(noise_picture(seed=seed), "PNG", exif=exif(ImageID="same")) for seed in (1, 2)]
    pictures = [
        raw.reshape(30, 100, 3),
        raw.reshape(100, 30, 3),
        paletted(stripes, [255, 0, 0, 0, 0, 255]),
        paletted(stripes, [0, 0, 255, 255, 0, 0]),
        *identified,
        Image.fromarray(raw.reshape(30, 100, 3)).convert("L"),
    ]
    encoded = [vlm.encode_image(picture) for picture in pictures]
    assert len(passes) == len(pictures) == len(vlm.images.cache)
    assert len({image.tokens.sum().item() for image in encoded}) == len(pictures)
    assert [image.size for image in encoded[:2]] == [(30, 100), (100, 30)]


def test_a_picture_changed_in_place_is_another(vlm, passes):
    pixels = smooth_pixels((30, 40))
    before = vlm.encode_image(pixels).tokens.clone()
    pixels[5, 5] = 255 - pixels[5, 5]
    assert not torch.equal(vlm.encode_image(pixels).tokens, before)
    assert len(passes) == 2


def test_a_hit_gives_what_the_first_time_gave(vlm):
    picture = noise_picture()
    first, second = (vlm.answer(picture, "?", config=SHORT) for _ in range(2))
    assert (first.token_ids, first.confidence) == (second.token_ids, second.confidence)
    vlm.answer(noise_picture(seed=9), "?", config=SHORT)
    assert vlm.answer(picture, "?", config=SHORT).token_ids == first.token_ids


# How much is kept


def test_what_was_used_longest_ago_goes_first():
    cache = ImageCache(100)
    for key in "abc":
        cache.put(key, entry_of(40))
    assert [cache.get(key) is not None for key in "abc"] == [False, True, True]
    cache.get("b")
    cache.put("d", entry_of(40))
    assert [cache.get(key) is not None for key in "bcd"] == [True, False, True]
    assert (cache.num_bytes, len(cache)) == (80, 2)


def test_what_never_fits_pushes_nothing_out():
    cache = ImageCache(100)
    for key in "ab":
        cache.put(key, entry_of(50))
    cache.put("huge", entry_of(101))
    assert cache.get("huge") is None
    assert (cache.num_bytes, len(cache)) == (100, 2)


def test_a_second_entry_under_a_key_takes_the_place_of_the_first():
    cache = ImageCache(100)
    for num_bytes in (60, 70):
        cache.put("a", entry_of(num_bytes))
    assert cache.num_bytes == 70


# With room for 2.8 a third fits until its keys and values are made.
@pytest.mark.parametrize("num_kept", [0, 1, 2.5, 2.8])
def test_keys_and_values_count_and_the_bound_holds(tiny_model, num_kept):
    whole = VLM(tiny_model, Tokenizer.bytes_only())
    whole.answer(noise_picture((28, 28)), "?", config=SHORT)
    one = whole.images.cache.num_bytes
    encoded = whole.encode_image(noise_picture((28, 28)))
    assert one > encoded.features.nbytes + encoded.tokens.nbytes
    vlm = VLM(tiny_model, Tokenizer.bytes_only(), cache_bytes=int(one * num_kept))
    for seed in (0, 1, 2, 3, 2):
        picture = noise_picture((28, 28), seed)
        assert vlm.answer(picture, "?", config=SHORT).token_ids == whole.answer(picture, "?", config=SHORT).token_ids
        assert vlm.images.cache.num_bytes <= one * num_kept
    assert len(vlm.images.cache) == int(num_kept)


def test_threads_may_share_a_cache():
    cache, errors = ImageCache(500), []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            for key in generator.integers(0, 30, 1500):
                entry = cache.get(str(key))
                if entry is None:
                    cache.put(str(key), entry_of(int(key) + 10))
                assert cache.num_bytes <= 500
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_answer_many_encodes_each_picture_once_however_pairs_are_mixed(vlm, passes):
    pictures = [noise_picture(seed=seed) for seed in range(3)]
    contents = [encode(picture, "PNG") for picture in pictures]
    pairs = [(kind[place], f"{turn}?") for turn in range(4) for place in range(3) for kind in (pictures, contents)]
    replies = vlm.answer_many(pairs, config=SHORT)
    assert len(passes) == 3
    assert [reply.token_ids for reply in replies] == [vlm.answer(*pair, config=SHORT).token_ids for pair in pairs]


def test_answer_many_needs_no_more_memory_than_one_picture_at_a_time(tiny_model, passes):
    """Four pictures, nine questions each in turn, and a cache for two."""
    probe = VLM(tiny_model, Tokenizer.bytes_only())
    probe.answer(noise_picture((28, 28)), "?", config=SHORT)
    vlm = VLM(tiny_model, Tokenizer.bytes_only(), cache_bytes=2 * probe.images.cache.num_bytes)
    passes.clear()
    pictures = [noise_picture((28, 28), seed) for seed in range(4)]
    pairs = [(picture, str(turn)) for turn in range(9) for picture in pictures]
    replies = vlm.answer_many(pairs, config=GenerationConfig(max_new_tokens=1))
    assert passes == [1] * 4
    assert len(replies) == len(pairs)


# Encoded images


@pytest.mark.parametrize("reference", ["meta", "transformers"])
@pytest.mark.parametrize("size", [(28, 28), (20, 100), (56, 56)])
def test_an_encoded_image_saved_and_loaded_goes_wherever_an_image_goes(tmp_path, reference, size):
    vlm = VLM(random_model(preset("tiny").with_reference(reference)), Tokenizer.bytes_only())
    picture = noise_picture(size)
    encoded = vlm.encode_image(picture)
    encoded.save(tmp_path / "image.safetensors")
    loaded = EncodedImage.load(str(tmp_path / "image.safetensors"))
    for name in ("canvas", "size", "model_key", "num_tiles"):
        assert getattr(loaded, name) == getattr(encoded, name)
    assert torch.equal(loaded.features, encoded.features)
    assert torch.equal(loaded.tokens, encoded.tokens)
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": loaded}]}]
    expected = vlm.answer(picture, "?", config=SHORT).token_ids
    assert vlm.answer(loaded, "?", config=SHORT).token_ids == expected
    assert vlm.answer(encoded, "?", config=SHORT).token_ids == expected
    assert vlm.complete([loaded, "?"], config=SHORT).token_ids == vlm.complete([picture, "?"], config=SHORT).token_ids
    assert vlm.chat(messages, config=SHORT).token_ids
    assert vlm.encode_image(loaded) is loaded


def test_an_encoded_image_holds_real_tiles_and_ordinary_tensors(vlm, tiny_model):
    vision, width = tiny_model.config.vision, tiny_model.config.decoder.width
    encoded = vlm.encode_image(noise_picture((20, 50)))
    assert (encoded.canvas, encoded.size, encoded.num_tiles) == ((1, 2), (20, 50), 2)
    assert encoded.features.shape == (2, vision.tokens_per_tile, vision.feature_dim)
    assert encoded.tokens.shape == (2, vision.tokens_per_tile, width)
    for tensor in (encoded.features, encoded.tokens):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    # As a caller would who trains something on it.
    torch.nn.Linear(width, 1)(encoded.tokens).sum().backward()
    assert encoded == encoded
    assert encoded != vlm.encode_image(noise_picture((20, 51)))
    assert {encoded: 1}[encoded] == 1


def test_an_encoded_image_is_not_encoded_again(vlm, passes):
    encoded = vlm.encode_image(noise_picture())
    vlm.answer_many([(encoded, "a"), (encoded, "b")], config=SHORT)
    assert len(passes) == 1


@pytest.mark.parametrize("other", ["encoder", "projector", "reference", "dtype"])
def test_an_encoded_image_of_another_model_is_refused(vlm, other):
    config = preset("tiny").with_reference("transformers" if other == "reference" else "meta")
    model = random_model(config)
    if other == "dtype":
        model = model.to(torch.bfloat16)
    elif other != "reference":
        with torch.no_grad():
            *_, last = getattr(model, other).parameters()
            last.mul_(1.01)
    encoded = VLM(model, Tokenizer.bytes_only()).encode_image(noise_picture())
    with pytest.raises(VLMError, match="another model") as caught:
        vlm.answer(encoded, "?", config=SHORT)
    assert caught.value.code == "invalid_request"


def test_the_same_model_loaded_again_takes_an_encoded_image(vlm):
    again = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    encoded = again.encode_image(noise_picture())
    assert vlm.answer(encoded, "?", config=SHORT).token_ids == again.answer(encoded, "?", config=SHORT).token_ids


@pytest.mark.parametrize(
    "change",
    [
        {"canvas": (2, 2)},
        {"canvas": (9, 9)},
        {"canvas": (0, 0)},
        {"tokens": torch.zeros(1, 17, 31)},
        {"tokens": torch.zeros(1, 16, 32)},
        {"features": torch.zeros(3)},
        {"tokens": torch.zeros(1, 17, 32, dtype=torch.float64)},
        {"features": torch.zeros(1, 17, 96, dtype=torch.int8)},
    ],
    ids=str,
)
def test_an_encoded_image_that_does_not_fit_together_is_refused(vlm, change):
    encoded = vlm.encode_image(noise_picture((28, 28)))
    fields = {name: getattr(encoded, name) for name in ("features", "tokens", "canvas", "size", "model_key")}
    with pytest.raises(VLMError, match="the encoded image has a tensor of") as caught:
        vlm.answer(EncodedImage(**fields | change), "?", config=SHORT)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("name", ["features", "tokens"])
def test_an_encoded_image_of_no_numbers_fails_its_row_alone(vlm, name):
    """N6."""
    good = vlm.encode_image(noise_picture())
    fields = {name: getattr(good, name).clone() for name in ("features", "tokens")}
    fields[name][0, 3, 1] = float("nan")
    bad = EncodedImage(**fields, canvas=good.canvas, size=good.size, model_key=good.model_key)
    asked = [[{"role": "user", "content": [{"type": "image", "image": image}]}] for image in (good, bad, good)]
    replies = vlm.chat_many(asked, config=SHORT, return_errors=True)
    assert replies[1].code == "checkpoint_invalid"
    assert replies[0].token_ids == replies[2].token_ids == vlm.chat(asked[0], config=SHORT).token_ids


def test_files_that_hold_no_encoded_image_are_refused(tmp_path):
    def written(name: str, metadata: dict | None, tensors: dict | None = None) -> str:
        save_file(tensors or {"features": torch.zeros(1), "tokens": torch.zeros(1)}, tmp_path / name, metadata)
        return str(tmp_path / name)

    whole = {"canvas": "1 1", "size": "1 1", "model_key": "a"}
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    files = [str(tmp_path / name) for name in ("missing", "text", "empty", ".")]
    files += [written("none", None), written("other", whole, {"features": torch.zeros(1)})]
    files += [written(f"no-{name}", {key: whole[key] for key in whole if key != name}) for name in whole]
    files += [written(f"bad-{place}", whole | {"canvas": text}) for place, text in enumerate(["1", "1 2 3", "a b", ""])]
    for file in files:
        with pytest.raises(VLMError, match="holds no encoded image") as caught:
            EncodedImage.load(file)
        assert caught.value.code == "invalid_request"
        assert str(tmp_path) not in str(caught.value)


def test_an_encoded_image_that_cannot_be_written_is_an_error(vlm, tmp_path):
    with pytest.raises(VLMError, match="could not be written") as caught:
        vlm.encode_image(noise_picture()).save(tmp_path / "no" / "folder")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("path", [None, 3, b"image", ["image"], "", "a\0b"])
def test_a_path_that_is_none_is_refused(vlm, path):
    for call in (EncodedImage.load, vlm.encode_image(noise_picture()).save):
        with pytest.raises(VLMError, match="give the path of a file or folder") as caught:
            call(path)
        assert caught.value.code == "invalid_request"


def full_disk(number: int):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_saving_replaces_a_file_and_nothing_else(vlm, tmp_path, monkeypatch):
    """C8."""
    encoded, file, pipe = vlm.encode_image(noise_picture()), tmp_path / "file", tmp_path / "pipe"
    file.write_text("old")
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(VLMError, match="folder, pipe or device; expected a file or a new name"):
            encoded.save(place)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(VLMError, match="could not be written"):
            encoded.save(file)
    assert file.read_text() == "old"
    encoded.save(file)
    assert torch.equal(EncodedImage.load(file).tokens, encoded.tokens)
    os.umask(umask := os.umask(0))
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_open_files_do_not_grow(vlm, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(noise_picture(), "PNG"))
    vlm.encode_image(noise_picture()).save(tmp_path / "encoded")
    vlm.answer(path, "?", config=SHORT)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with Image.open(path) as opened:
            vlm.encode_image(opened)
        vlm.encode_image(path)
        EncodedImage.load(tmp_path / "encoded")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_pictures_of_one_prompt_are_encoded_once_each(vlm, passes):
    one, two = noise_picture(seed=1), noise_picture(seed=2)
    content = [{"type": "image", "image": image} for image in (one, two, one)]
    vlm.chat([{"role": "user", "content": content}], config=SHORT)
    assert len(passes) == 2
