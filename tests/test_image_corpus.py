"""What the benchmark of the image gate takes for a verdict of plain Pillow."""

from PIL import Image

from benchmarks.image_corpus import plain_pillow


def test_over_the_pixel_limit_are_only_files_that_plain_pillow_reads(tmp_path):
    Image.new("1", (8000, 7000)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    Image.new("1", (80, 70)).save(tmp_path / "small.png")
    found = {path.name: plain_pillow(path) for path in tmp_path.iterdir()}
    assert found == {"whole.png": "over limit", "cut.png": "refuses", "small.png": "reads"}
