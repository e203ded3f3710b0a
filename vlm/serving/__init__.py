"""The server behind `vlm serve`: the model in a process of its own, and HTTP in front of it."""
