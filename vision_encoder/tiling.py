"""Which canvas of tiles a picture gets, and how large it stands on it. Sizes are (height, width) or (rows, cols).

Source: llama-models models/llama3/multimodal/image_transform.py, VariableSizeImageTransform.
"""

import functools
import math

import numpy as np


@functools.cache
def supported_canvases(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (rows, cols) of at most `max_tiles` tiles, rows first.

    The order gives the canvas ids of Hugging Face's position tables.
    Source: transformers models/mllama/image_processing_mllama.py, get_all_supported_aspect_ratios.
    """
    sides = range(1, max_tiles + 1)
    return tuple((rows, cols) for rows in sides for cols in sides if rows * cols <= max_tiles)


def choose_canvas(size: tuple[int, int], *, tile_size: int, max_tiles: int) -> tuple[int, int]:
    """Return the canvas (rows, cols) that upscales `size` least, else downscales it least, then is smallest."""
    canvases = np.array(supported_canvases(max_tiles))
    # float32 as in the reference: ties are decided by its rounding.
    scales = (canvases.astype(np.float32) * np.float32(tile_size) / np.array(size, dtype=np.float32)).min(axis=1)
    enlarging = scales[scales >= 1]
    best = enlarging.min() if len(enlarging) else scales.max()
    tied = canvases[scales == best]
    rows, cols = tied[np.argmin(tied.prod(axis=1))]
    return int(rows), int(cols)


def fitted_size(size: tuple[int, int], canvas: tuple[int, int], *, tile_size: int) -> tuple[int, int]:
    """Return the (height, width) to resize to: the shape kept, inside the canvas, enlarged to one tile at most.

    Sides are at least 1, where the reference gives 0 above 2240:1.
    """
    height, width = size
    target_height = min(max(height, tile_size), canvas[0] * tile_size)
    target_width = min(max(width, tile_size), canvas[1] * tile_size)
    scale_height, scale_width = target_height / height, target_width / width
    if scale_width < scale_height:
        return max(1, min(math.floor(height * scale_width), target_height)), target_width
    return target_height, max(1, min(math.floor(width * scale_height), target_width))
