"""llama.cpp on random weights of the same shape, written as GGUF at about as many bits: Q8_0 and Q4_0.

Import only where `llama_cpp` (llama-cpp-python, built on this machine) and `gguf` are installed.
"""

import tempfile
from pathlib import Path

import llama_cpp
import torch

from vlm.bench.measure import Call
from vlm.bench.random_gguf import FORMATS, write_random_gguf
from vlm.config import DecoderConfig


class Peer:
    """A text model that llama.cpp has loaded; close it when done."""

    def __init__(self, config: DecoderConfig, precision: str, max_context: int):
        """Write random weights of the shape, have them read, and delete them."""
        self.name = f"llama.cpp {FORMATS[precision].name}"
        llama_cpp.llama_log_set(_silent, None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_random_gguf(path, config, precision)
            settings = llama_cpp.llama_model_default_params()
            settings.use_mmap = False
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max_context
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp does not load the model that was written for it")

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def decode_step(self, context: int) -> Call:
        """Return a function that decodes one token after `context` others."""
        self._forget(0)
        self._read(context)

        def call() -> None:
            self._read(1)
            self._forget(context)

        return call

    def prefill(self, num_tokens: int) -> Call:
        """Return a function that reads a prompt and gives the logits of its last token."""

        def call() -> None:
            self._forget(0)
            self._read(num_tokens)

        return call

    def _read(self, num_tokens: int) -> None:
        ids = (llama_cpp.llama_token * num_tokens)(*range(1, num_tokens + 1))
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(ids, num_tokens)):
            raise RuntimeError("llama.cpp does not decode")
        llama_cpp.llama_get_logits(self._context)  # waits for them

    def _forget(self, start: int) -> None:
        """Drop what was read from the token at `start` on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, start, -1)


@llama_cpp.llama_log_callback
def _silent(*_) -> None:
    pass
