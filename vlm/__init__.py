"""Sightline: vision-language models of the Llama 3.2 Vision kind."""

import importlib

_HOME = {
    "VLM": "pipeline",
    "VLMError": "errors",
    "EncodedImage": "images.cache",
    "GenerationConfig": "generation.sampling",
    "ModelConfig": "config",
    "ModelInfo": "generation.reply",
    "Reply": "generation.reply",
    "Score": "generation.reply",
    "TextDecoder": "decoder",
    "Tokenizer": "tokenizer",
    "VisionLanguageModel": "model",
    "preset": "config",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    # Lazy, so that `vlm --help` does not pay for torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
