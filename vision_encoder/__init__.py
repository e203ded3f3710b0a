"""Pixels to features: the image gate, the tile processor and the vision transformer. Imports nothing of ours."""

import importlib

_HOME = {
    "ImageError": "image_input",
    "ImageLimits": "image_input",
    "ImageProcessor": "preprocess",
    "ProcessedImage": "preprocess",
    "VisionConfig": "config",
    "VisionEncoder": "encoder",
    "read_image": "image_input",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    # Lazy, so that a decoding worker or `vlm --help` does not pay for torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
