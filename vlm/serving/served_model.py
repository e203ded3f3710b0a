"""The one model that the server has, and the names by which clients may ask for it."""

import hashlib
import time

from vlm.errors import shown
from vlm.serving.model_process.messages import ServedInfo
from vlm.serving.refusal import Refusal
from vlm.serving.settings import ServerSettings

RETRY_AFTER_S = 5


class ServedModel:
    """What clients may know of the model."""

    def __init__(self, engine, settings: ServerSettings):
        self._engine, self._settings = engine, settings
        self.created = int(time.time())

    @property
    def about(self) -> ServedInfo:
        """Return what the engine says of its model. Raises: Refusal (503) while it is loaded."""
        if self._engine.info is None:
            message = "the model is still being loaded; expected it to be ready; try again soon (GET /ready tells)"
            raise Refusal(503, "loading", message, headers={"retry-after": str(RETRY_AFTER_S)})
        return self._engine.info

    @property
    def names(self) -> tuple[str, ...]:
        return self._settings.names or (self.about.name,)

    @property
    def digest(self) -> str:
        """Return a name for the model as it is served."""
        return hashlib.sha256(repr(self.about).encode()).hexdigest()

    def check_name(self, asked: object) -> str:
        """Return the name a request gives the model; without one, the model's own. Raises: Refusal (404)."""
        names = self.names
        if asked is None or asked == "":
            return names[0]
        # Ollama's clients may add the tag that stands for none.
        if isinstance(asked, str) and (asked in names or asked.removesuffix(":latest") in names):
            return asked
        has = ", ".join(names)
        message = f"the model {shown(asked)} is not here; this server has {has:.150}; ask for that"
        raise Refusal(404, "model_not_found", message, param="model")
