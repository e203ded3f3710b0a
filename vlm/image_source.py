"""From whatever stands in a prompt as an image to keys and values, encoding each picture once."""

import hashlib

import torch
from torch import Tensor

from vision_encoder.image_input import ImageLimits, pixel_key, read_image
from vision_encoder.preprocess import ImageProcessor
from vlm.batch import PromptImage
from vlm.errors import VLMError
from vlm.image_cache import EncodedImage, ImageCache, ImageEntry
from vlm.model import VisionLanguageModel

DEFAULT_CACHE_BYTES = 2 * 2**30


class ImageSource:
    """Reads, cuts and encodes images for one model, and remembers those seen last."""

    def __init__(self, model: VisionLanguageModel, *, fetch=None, cache_bytes: int = DEFAULT_CACHE_BYTES):
        self.model = model
        self.processor = ImageProcessor(model.config.vision)
        self.cache = ImageCache(cache_bytes)
        self.limits = ImageLimits()
        self._fetch = fetch
        self._model_key: str | None = None

    @property
    def model_key(self) -> str:
        """A name for the encoder and projector: of their sizes, their reference, and the projector's weights."""
        if self._model_key is None:
            weight = self.model.projector.weight.detach().cpu().contiguous()
            digest = hashlib.sha256(repr(self.model.config.vision).encode())
            digest.update(weight.view(torch.uint8).numpy())
            self._model_key = digest.hexdigest()[:16]
        return self._model_key

    def encode(self, image: object) -> ImageEntry:
        """Return `image` encoded; an `EncodedImage` of this model comes back as it is.

        Raises: ImageError for a bad picture, VLMError for an `EncodedImage` of another model.
        """
        if isinstance(image, EncodedImage):
            return self._known(image)
        picture = read_image(image, limits=self.limits, fetch=self._fetch)
        key = pixel_key(picture)
        entry = self.cache.get(key)
        if entry is None:
            entry = ImageEntry(self._encode(picture))
            self.cache.put(key, entry)
        return entry

    def prompt_image(self, image: object) -> PromptImage:
        """Return `image` as the decoder takes it."""
        entry = self.encode(image)
        tokens = entry.encoded.tokens
        if entry.kv is None:
            device = self.model.projector.weight.device
            entry.kv = self.model.decoder.image_kv(tokens.to(device).flatten(0, 1)[None])
            self.cache.shrink()
        return PromptImage(entry.kv, entry.encoded.num_tiles * tokens.shape[1])

    def _encode(self, picture) -> EncodedImage:
        pixels, canvas = self.processor(picture)
        if self.model.config.reference == "transformers":
            # There, text before the first image also attends to missing tiles.
            missing = self.model.config.vision.max_tiles - len(pixels)
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
        features, tokens = self.model.encode(pixels[None].to(self.model.projector.weight.device), [canvas])
        return EncodedImage(
            features=_finite(features[0]),
            tokens=_finite(tokens[0]),
            canvas=canvas,
            size=(picture.height, picture.width),
            model_key=self.model_key,
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
            entry = ImageEntry(image)
            self.cache.put(key, entry)
        return entry


def _finite(encoded: Tensor) -> Tensor:
    if not bool(encoded.isfinite().all()):
        raise VLMError(
            "checkpoint_invalid",
            "the encoder gave values that are not finite; expected numbers; the weights are damaged or overflow in "
            "this dtype: check the download, or load with dtype='float32'",
        )
    return encoded
