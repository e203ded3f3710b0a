"""What stands for an image in a prompt, made into keys and values: fetched, passed through the gate, encoded once."""
