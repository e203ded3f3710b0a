"""Where the decoder is opened to images, and which reference's rule holds for text before the first image."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The cross-attention layers of a decoder. Widths and heads are the decoder's own."""

    cross_layers: tuple[int, ...]
    """Positions of the gated cross-attention layers in the stack of all layers, in rising order."""
    leak_attention: bool = False
    """Let text before the first image attend to all image tokens, zeroing its feed-forward only (transformers
    #39379), for fine-tunes that were trained so. False is Meta's rule."""

    def __post_init__(self):
        layers = self.cross_layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError(f"cross_layers is {list(layers)}; give rising layer positions, at least one")
