"""`vlm bench`: what this machine can do at most, and how near the model comes to it, beside its peer."""
