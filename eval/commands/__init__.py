"""The commands of `vlm-eval`, a file each."""
