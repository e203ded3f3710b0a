"""Which device and dtype a checkpoint is loaded to, and what is said about it once."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vlm import checkpoint
from vlm.config import MAX_VIEWS, ModelConfig
from vlm.errors import VLMError, shown
from vlm.model import VisionLanguageModel
from vlm.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device named, or for "auto" an accelerator when there is one."""
    if device == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
        # Reading it back fails where a device is only known by name, or holds no numbers ("meta").
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError):
        raise VLMError(
            "device_unavailable", f"device {_named(device)} cannot be used here; give 'auto', 'cpu' or another one"
        ) from None
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the dtype named; None for "auto", the checkpoint's own."""
    if dtype == "auto":
        return None
    chosen = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise VLMError("invalid_request", f"dtype is {_named(dtype)}; give 'auto', {', '.join(DTYPES)}")
    return chosen


def choose_kv_cache_dtype(kv_cache_dtype: str | torch.dtype) -> torch.dtype | None:
    """Return int8; None for "auto", the model's own."""
    if kv_cache_dtype == "auto":
        return None
    if kv_cache_dtype not in ("int8", torch.int8):
        raise VLMError("invalid_request", f"kv_cache_dtype is {_named(kv_cache_dtype)}; give 'auto' or 'int8'")
    return torch.int8


def check_looking(num_views: object, thin: object, reference: object) -> None:
    """Refuse ways to look at pictures that there are not."""
    if num_views is not None and not (type(num_views) is int and 1 <= num_views <= MAX_VIEWS):
        raise VLMError("invalid_request", f"num_views is {shown(num_views)}; give an integer from 1 to {MAX_VIEWS}")
    if thin is not None and not isinstance(thin, bool):
        raise VLMError("invalid_request", f"thin is {shown(thin)}; give True, False or None for the model's own")
    if reference == "transformers" and (thin or (num_views or 1) > 1):
        raise VLMError(
            "invalid_request",
            'thin or num_views is given with reference "transformers", which knows neither; leave one of them out',
        )


def _looking(config: ModelConfig, num_views: int | None, thin: bool | None) -> ModelConfig:
    """Return `config` with the ways to look at pictures that are given."""
    given = {"num_views": num_views, "is_thinned": thin}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _named(value: object) -> str:
    return str(value) if isinstance(value, torch.device | torch.dtype) else shown(value)


def load(
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype | None,
    reference: str,
    quantize: str | None = None,
    low_memory: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    num_views: int | None = None,
    thin: bool | None = None,
) -> tuple[VisionLanguageModel, Tokenizer]:
    """Return the model and the tokenizer of a checkpoint folder; "auto" on several processes shares it among them.

    num_views, thin: how pictures are looked at; None: as the checkpoint says. See `checkpoint.load_model` for the rest.
    """
    shared = device == "auto" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = torch.device("cpu") if shared else choose_device(device)
    config = _looking(checkpoint.read_config(folder).with_reference(reference), num_views, thin)
    tokenizer = read_tokenizer(folder, config)
    model = checkpoint.load_model(
        folder,
        config=config,
        dtype=dtype or "auto",
        device=device,
        quantize=quantize,
        low_memory=False if shared else low_memory,
        progress=progress,
    )
    if shared:
        from vlm.tensor_parallel.layers import share_for_inference

        model = share_for_inference(model, choose_device("auto"))
    return model, tokenizer


def read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder. Raises: VLMError where it is not its model's."""
    tokenizer = checkpoint.read_tokenizer(folder)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise VLMError(
            "checkpoint_invalid",
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.decoder.vocab_size}; "
            "the tokenizer is another model's: put the right one beside the weights",
        )
    marker_id = tokenizer.image_marker_id
    if config.vision is not None and (marker_id is None or marker_id >= config.decoder.num_embeddings):
        raise VLMError(
            "checkpoint_invalid",
            f"the tokenizer's id for an image is {marker_id} and the model embeds {config.decoder.num_embeddings} ids; "
            "the tokenizer is another model's: put the right one beside the weights",
        )
    return tokenizer


def warn_of_other_template(folder: Path) -> None:
    """Say once that a checkpoint's own chat template is not followed, when it is not a Llama 3 one.

    Templates are programs and are never run; prompts are Meta's, id for id.
    """
    template = _own_template(folder)
    if template is not None and not ("<|start_header_id|>" in template and "<|eot_id|>" in template):
        logger.warning(
            "this checkpoint brings a chat template that is not Llama 3's; it is not used. Prompts are built in Meta's "
            "format; if the checkpoint was tuned on another one, use VLM.complete with the text it expects"
        )


def _own_template(folder: Path) -> str | None:
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                template = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
                if isinstance(template, list):
                    # Several by name; the one that plain chats take is the default.
                    template = {entry["name"]: entry["template"] for entry in template}.get("default")
                if isinstance(template, str):
                    return template
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        logger.warning("this checkpoint's chat template cannot be read; prompts are built in Meta's format")
    return None
