"""preprocessor_config.json of Hugging Face folders: how transformers cuts pictures into our tiles.

Source: transformers models/mllama/image_processing_mllama.py, MllamaImageProcessor.
"""

from PIL import Image

from vision_encoder.config import VisionConfig
from vision_encoder.preprocess import MEAN, STD

PICTURES = "preprocessor_config.json"


def write_picture_settings(config: VisionConfig) -> dict:
    """Return the preprocessor_config.json of an encoder."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_processor_type": "MllamaImageProcessor",
        "image_std": list(STD),
        "max_image_tiles": config.max_tiles,
        "resample": int(Image.Resampling.BILINEAR),
        "rescale_factor": 1 / 255,
        "size": {"height": config.tile_size, "width": config.tile_size},
    }
