"""The commands of `vlm`, a file a family. Only `vlm.cli` imports these."""
