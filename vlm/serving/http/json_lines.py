"""The log as lines of JSON in ASCII, in which nothing that a client sent can pass for another line."""

import json
import logging
import sys
import threading
import traceback
from pathlib import Path


class JsonLines(logging.Formatter):
    """Writes each record as one line of ASCII, so that nothing that a client sent can begin another line.

    Of an exception the type and the places in the code: what it says may quote a prompt, and so may what follows the
    first line of a message about one.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        error = record.exc_info and record.exc_info[1]
        if isinstance(record.msg, dict):
            line |= record.msg
        else:
            message = record.getMessage()
            line |= {"logger": record.name, "message": (message.partition("\n")[0] if error else message)[:1000]}
        if error:
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
    # Python would print what ends a thread, and what was said with it.
    threading.excepthook = lambda ended: _log_end(ended.exc_value)
    sys.excepthook = lambda kind, error, traceback: _log_end(error)


def _log_end(error: BaseException | None) -> None:
    logging.getLogger("vlm.serving").error("a thread ended by what nothing handles", exc_info=error)
