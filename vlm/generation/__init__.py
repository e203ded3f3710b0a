"""From prompts that are encoded to replies: prefill and decode steps, the choice of a token, text as it grows."""
