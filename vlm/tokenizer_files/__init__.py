"""The two formats in which tokenizers come, Meta's `tokenizer.model` and Hugging Face's `tokenizer.json`.

Other people's names for the parts of a tokenizer appear here only. Nothing here needs torch, which is why this is no
part of `vlm.checkpoint`.
"""

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
