"""From whatever stands in a prompt as an image to keys and values, encoding each picture once."""

import hashlib
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from adapters import lora
from vision_encoder.image_input import ImageLimits, pixel_key, read_image
from vision_encoder.preprocess import ImageProcessor, normalise
from vision_encoder.thinning import given
from vlm.batch import PromptImage
from vlm.errors import VLMError
from vlm.images.cache import EncodedImage, ImageCache, ImageEntry
from vlm.images.views import Shown, show
from vlm.model import VisionLanguageModel

DEFAULT_CACHE_BYTES = 2 * 2**30
SAMPLE_SIZE = 1024


class ImageSource:
    """Reads, cuts and encodes images for one model, and remembers those seen last."""

    def __init__(self, model: VisionLanguageModel, *, fetch=None, cache_bytes: int = DEFAULT_CACHE_BYTES):
        self.model = model
        self.processor = ImageProcessor(model.config.vision)
        self.cache = ImageCache(cache_bytes)
        self.limits = ImageLimits()
        self._fetch = fetch
        self._model_key: str | None = None
        self._num_changes = lora.num_changes(model)
        """Of the model's adapters, when what is remembered was made."""

    @property
    def model_key(self) -> str:
        """A name for the encoder and projector: of their sizes, reference and adapters, and a sample of each weight."""
        self._forget_other_adapters()
        if self._model_key is None:
            digest = hashlib.sha256(repr(self.model.config.vision).encode())
            for part in (self.model.encoder, self.model.projector):
                if adapters := lora.state(part):
                    digest.update(repr(adapters).encode())
                for name, weight in part.named_parameters():
                    if hasattr(weight, "full_tensor"):
                        # Shared by processes: the key is that of the whole, which inference mode cannot put together.
                        with torch.inference_mode(False), torch.no_grad():
                            weight = weight.full_tensor()
                    sample = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE_SIZE)].contiguous().cpu()
                    digest.update(f"{name} {weight.dtype} ".encode() + sample.view(torch.uint8).numpy().tobytes())
                    if self.model.release is not None:
                        self.model.release([weight])
            self._model_key = digest.hexdigest()[:16]
        return self._model_key

    def encode(self, image: object) -> ImageEntry:
        """Return `image` encoded; an `EncodedImage` of this model comes back as it is.

        Raises: ImageError for a bad picture, VLMError for an `EncodedImage` of another model.
        """
        self._forget_other_adapters()
        if isinstance(image, EncodedImage):
            return self._known(image)
        picture = read_image(image, limits=self.limits, fetch=self._fetch)
        key = pixel_key(picture)
        entry = self.cache.get(key)
        if entry is None:
            entry = ImageEntry(self._encode(picture))
            self.cache.put(key, entry)
        return entry

    def forget(self) -> None:
        """Drop every picture that was encoded: the model's weights are no longer those it was encoded by."""
        self.cache.clear()
        self._model_key = None

    def _forget_other_adapters(self) -> None:
        """Forget what was encoded under other adapters than the model's now."""
        if self._num_changes != (num_changes := lora.num_changes(self.model)):
            self.forget()
            self._num_changes = num_changes

    def prompt_views(self, image: object) -> list[PromptImage]:
        """Return `image` as the decoder takes it, in each of its views."""
        return self.keys_values(self.encode(image))

    def keys_values(self, entry: ImageEntry) -> list[PromptImage]:
        """Return an encoded image as the decoder takes it, in each of its views."""
        views = entry.encoded.views
        if not entry.kv:
            device = self.model.projector.weight.device
            entry.kv = [self.model.decoder.image_kv(view.given_tokens.to(device)[None]) for view in views]
            self.cache.shrink()
        return [PromptImage(kv, view.num_visible) for kv, view in zip(entry.kv, views, strict=True)]

    def _encode(self, picture: Image.Image) -> EncodedImage:
        config = self.model.config
        if config.reference == "transformers":
            config = config.exact()
        shown = show(picture, self.processor, config.num_views, thinned=config.is_thinned)
        first, *others = (self._encode_view(each, (picture.height, picture.width)) for each in shown)
        return replace(first, other_views=tuple(others))

    def _encode_view(self, shown: Shown, size: tuple[int, int]) -> EncodedImage:
        pixels = normalise(shown.levels)
        if self.model.config.reference == "transformers":
            # There, text before the first image also attends to missing tiles.
            missing = self.model.config.vision.max_tiles - len(pixels)
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
        device = self.model.projector.weight.device
        features, tokens = self.model.encode(pixels[None].to(device), [shown.canvas], shown.kept)
        with torch.inference_mode(False):
            # A copy made out here is an ordinary tensor, which callers may train on.
            features, tokens = features[0].clone(), tokens[0].clone()
        return EncodedImage(
            features=_finite(features),
            tokens=_finite(tokens),
            canvas=shown.canvas,
            size=size,
            model_key=self.model_key,
            scale=shown.scale,
            given=None if shown.kept is None else given(shown.kept, len(shown.levels)),
        )

    def _known(self, image: EncodedImage) -> ImageEntry:
        if image.model_key != self.model_key:
            raise VLMError(
                "invalid_request",
                "the encoded image was made by another model or reference; encode the picture again with this model",
            )
        key = f"encoded-{id(image)}"
        entry = self.cache.get(key)
        if entry is None or entry.encoded is not image:
            self._check(image)
            entry = ImageEntry(image)
            self.cache.put(key, entry)
        return entry

    def _check(self, image: EncodedImage) -> None:
        """Refuse what no encoder of this model made; a file may say anything."""
        for other in image.other_views:
            self._check(other)
        vision = self.model.config.vision
        num_tiles = vision.max_tiles if self.model.config.reference == "transformers" else image.num_tiles
        for found, width in ((image.features, vision.feature_dim), (image.tokens, self.model.config.decoder.width)):
            expected = (num_tiles, vision.tokens_per_tile, width)
            dtype = self.model.projector.weight.dtype
            if image.canvas not in vision.canvases or (tuple(found.shape), found.dtype) != (expected, dtype):
                raise VLMError(
                    "invalid_request",
                    f"the encoded image has a tensor of {list(found.shape)!s:.60} in {found.dtype} for canvas "
                    f"{image.canvas!s:.30}; expected {list(expected)} in {dtype}; encode the picture again with this "
                    "model",
                )
            _finite(found)
        _check_given(image.given, num_tiles * vision.tokens_per_tile)


def _check_given(given: Tensor | None, num_tokens: int) -> None:
    if given is None:
        return
    are_places = given.dtype == torch.int64 and given.ndim == 1 and len(given) > 0
    if not are_places or given.min() < 0 or given.max() >= num_tokens:
        raise VLMError(
            "invalid_request",
            f"the encoded image names tokens that it does not have; expected places from 0 to {num_tokens - 1}; "
            "encode the picture again with this model",
        )


def _finite(encoded: Tensor) -> Tensor:
    if not bool(encoded.isfinite().all()):
        raise VLMError(
            "checkpoint_invalid",
            "the encoder gave values that are not finite; expected numbers; the weights are damaged or overflow in "
            "this dtype: check the download, or load with dtype='float32'",
        )
    return encoded
