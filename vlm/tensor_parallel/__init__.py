"""A model whose layers several processes share, for inference and for training."""
