"""Oracles for parity tests: transformers (stock and repaired) and Meta's llama-models, in small random models.

`hf` and `meta` answer the same four questions: `features(model, images)`, `image_tokens(model, images)`,
`layer_outputs(model, case)`, `logits(model, case)`. None of this imports our own code.
"""
