"""I10: wherever the harness opens a picture itself, it goes through the one gate, as a model's does."""

import io

import pytest
from PIL import Image

from eval.datasets.ai2d_letters import draw_letters
from eval.records import ImageRef, Sample
from eval.run.selection import Selection, select
from eval.stitching import GAP_PIXELS, side_by_side
from tests.image_files import encode, exif
from vlm.errors import VLMError


def blanked(content: bytes) -> bytes:
    image = ImageRef(id="a.png", data=content)
    sample = Sample(id="1", task="chartqa", images=(image,), question="?", targets=("1",))
    return select({"chartqa": [sample]}, Selection(blank_images=True))["chartqa"][0].images[0].read()


WAYS = {
    "stitched": lambda content: side_by_side([ImageRef(id="a.png", data=content)] * 2).read(),
    "blank": blanked,
    "lettered": lambda content: draw_letters(content, [], transparent=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_postscript_reaches_no_decoder(way, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    with pytest.raises(VLMError, match=r"(image 'a\.png'|the diagram): found EPS; expected JPEG") as caught:
        WAYS[way](b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert caught.value.code == "image_unsupported"


@pytest.mark.parametrize("way", WAYS)
def test_a_turned_picture_is_upright(way):
    content = encode(Image.new("RGB", (4, 6), "red"), "PNG", exif=exif(Orientation=6))
    shown = Image.open(io.BytesIO(WAYS[way](content)))
    assert shown.size == ((6 + GAP_PIXELS + 6, 4) if way == "stitched" else (6, 4))


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_of_more_pixels_than_the_gate_lets_in_is_refused(way):
    content = encode(Image.new("1", (10_000, 5_001)), "PNG")
    with pytest.raises(VLMError, match="at most 50000000 pixels"):
        WAYS[way](content)
