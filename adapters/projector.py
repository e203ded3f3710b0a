"""Features to image tokens of the decoder's width."""

from torch import nn


class VisionProjector(nn.Linear):
    """One linear map with bias, from features [..., f] to image tokens [..., d]."""

    def __init__(self, feature_dim: int, width: int):
        super().__init__(feature_dim, width)
