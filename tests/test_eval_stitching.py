"""Several pictures as one: Meta's way with MMMU-Pro."""

import io

import pytest
from PIL import Image

from eval import tasks
from eval.records import ImageRef, Sample
from eval.stitching import GAP_PIXELS, side_by_side
from vlm.errors import VLMError


def drawn(colour: str, size: tuple[int, int], mode: str = "RGB") -> ImageRef:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return ImageRef(id=f"{colour}.png", data=out.getvalue())


def test_pictures_stand_side_by_side_on_white_in_their_order():
    whole = side_by_side([drawn("red", (4, 6)), drawn("blue", (5, 3))])
    assert whole.id == "red.png+blue.png"
    picture = Image.open(io.BytesIO(whole.read()))
    assert picture.size == (4 + GAP_PIXELS + 5, 6)
    places = [(0, 5), (4, 0), (4 + GAP_PIXELS, 2), (4 + GAP_PIXELS, 3)]
    assert [picture.getpixel(place) for place in places] == [(255, 0, 0), (255,) * 3, (0, 0, 255), (255,) * 3]


def test_what_is_transparent_is_white():
    whole = side_by_side([drawn("#ff000000", (2, 2), "RGBA"), drawn("red", (2, 2))])
    assert Image.open(io.BytesIO(whole.read())).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("preset", "shown"), [("meta", ["a.png+b.png"]), ("direct", ["a.png", "b.png"])])
def test_only_meta_s_preset_of_mmmu_pro_stitches(preset, shown):
    images = tuple(ImageRef(id=name, data=drawn("red", (2, 2)).data) for name in ("a.png", "b.png"))
    sample = Sample(id="1", task="mmmu_pro", images=images, question="Which?", targets=("A",), options=("x", "y"))
    content = tasks.find("mmmu_pro").prompt(sample, preset).messages[0]["content"]
    assert [part["image"].id for part in content if part["type"] == "image"] == shown
    alone = Sample(id="1", task="mmmu_pro", images=images[:1], question="Which?", targets=("A",), options=("x", "y"))
    assert tasks.find("mmmu_pro").prompt(alone, "meta").messages[0]["content"][0]["image"] is images[0]


def test_a_picture_that_cannot_be_decoded_is_named():
    with pytest.raises(VLMError, match=r"image 'torn\.png': "):
        side_by_side([drawn("red", (2, 2)), ImageRef(id="torn.png", data=b"\x89PNG\r\n\x1a\n")]).read()
