"""The process that holds the model: its jobs, the batch that runs, and what both sides say to each other."""
