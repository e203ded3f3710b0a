"""The log as lines of JSON in ASCII, in which nothing that a client sent can pass for another line."""

import json
import logging
import sys
import threading
import traceback
from pathlib import Path


class JsonLines(logging.Formatter):
    """Writes each record as one line of ASCII, so that nothing that a client sent can begin another line.

    Of an exception the type and the places in the code: what it says may quote a prompt, and so may what a library says
    of it, as asyncio writes down the arguments of what failed.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(record.msg, dict):
            line |= record.msg
        else:
            is_ours = record.name.split(".")[0] == "vlm"
            message = "an exception" if error is not None and not is_ours else record.getMessage()
            line |= {"logger": record.name, "message": message[:1000]}
        if error is not None:
            line["error"] = type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)[-8:]
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


def log_to(stream) -> None:
    """Send what is logged to `stream`: requests and warnings alone, and those of Python and of libraries too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, level in (("vlm", logging.WARNING), ("vlm.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    for name in ("vlm", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    # What no handler takes would be written as it is; asyncio's word on a client that left is such a line.
    logging.lastResort = logging.StreamHandler(stream)
    logging.lastResort.setFormatter(JsonLines())
    logging.lastResort.setLevel(logging.WARNING)
    # Python would print what nobody handles, and what was said with it.
    logging.raiseExceptions = False
    threading.excepthook = lambda ended: ended.exc_type is SystemExit or _log_unhandled(ended.exc_value)
    sys.excepthook = lambda _kind, error, _places: _log_unhandled(error)
    sys.unraisablehook = lambda found: _log_unhandled(found.exc_value)


def _log_unhandled(error: BaseException | None) -> None:
    logging.getLogger("vlm.serving").error("nothing handles an exception", exc_info=error)
