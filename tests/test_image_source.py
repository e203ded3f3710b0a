"""From a picture to what is remembered of it: one pass through the gate, and a cache that is measured once."""

import pytest

from tests.image_files import noise_picture
from tests.test_image_cache import entry_of
from vision_encoder import preprocess
from vlm import VLM, Tokenizer
from vlm.images.cache import ImageCache, ImageEntry


@pytest.fixture
def vlm(tiny_model) -> VLM:
    return VLM(tiny_model, Tokenizer.bytes_only())


def test_a_picture_passes_the_gate_once(vlm, monkeypatch):
    """The second pass would be under other limits than the source's own, too."""

    def read_image(image):
        raise AssertionError("a picture was read again")

    monkeypatch.setattr(preprocess, "read_image", read_image)
    assert vlm.encode_image(noise_picture()).canvas == (2, 2)


def test_forgetting_keeps_the_cache_itself(vlm):
    """A server counts by it."""
    cache = vlm.images.cache
    vlm.encode_image(noise_picture())
    vlm.images.forget()
    assert vlm.images.cache is cache
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_entries_are_measured_once_however_many_are_dropped():
    measured = []

    class Measured(ImageEntry):
        @property
        def num_bytes(self) -> int:
            measured.append(self)
            return super().num_bytes

    cache = ImageCache(100)
    for key in range(50):
        cache.put(str(key), Measured(entry_of(2).encoded))
    measured.clear()
    cache.put("large", entry_of(90))
    assert len(cache) == 6
    assert len(measured) == 50
