"""The models that the page offers, each loaded when it is first asked for, and what their cards say."""

import re
import threading
from pathlib import Path

from vlm import checkpoint
from vlm.pipeline import DEFAULT_MODEL, VLM

SHIPPED = "shipped model"
CAN_WRITE_TABLES = "chart-to-table"
"""The tag in a model card's head by which a model says so."""


class ModelShelf:
    """Models by name and precision. Threads may share it."""

    def __init__(self, sources: list[str], dtypes: list[str], device: str = "auto"):
        """`sources`: folders or names of the Hugging Face Hub; empty for the shipped model."""
        self.names = sources or [SHIPPED]
        self.dtypes = dtypes or ["auto"]
        self._device = device
        self._loaded: dict[tuple[str, str], VLM] = {}
        self._lock = threading.Lock()

    def get(self, name: str, dtype: str) -> VLM:
        """Return the model. Raises: KeyError for one that is not offered, VLMError if it cannot be loaded."""
        if name not in self.names or dtype not in self.dtypes:
            raise KeyError(f"{name!r:.60} in {dtype!r:.20} is not offered")
        with self._lock:
            if (name, dtype) not in self._loaded:
                source = None if name == SHIPPED else name
                self._loaded[name, dtype] = VLM.from_pretrained(source, dtype=dtype, device=self._device)
            return self._loaded[name, dtype]

    def card(self, name: str) -> str | None:
        """Return the model card, without its pictures and links, or None where there is none."""
        text = self._card_file(name)
        if text is None:
            return None
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        text = re.sub(r"!\[[^\]]*\]\([^)]*\)|<[^>\n]*>", "", text)
        # Links lead to files beside the card, which the page does not serve.
        return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).strip()

    def writes_tables(self, name: str) -> bool | None:
        """Tell whether the model's card says that it turns charts into tables; None where no card says anything."""
        text = self._card_file(name)
        head = re.match(r"---\n(.*?)\n---\n", text or "", flags=re.DOTALL)
        if head and CAN_WRITE_TABLES in head[1]:
            return True
        return False if name == SHIPPED else None

    def _card_file(self, name: str) -> str | None:
        folder = DEFAULT_MODEL if name == SHIPPED else checkpoint.resolve(name)
        try:
            return (Path(folder) / "README.md").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
