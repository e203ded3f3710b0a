"""Lists as answers of ChartQA and its kin have them: in Python's notation."""

import ast
import warnings


def python_list(text: str) -> list | None:
    """Return the list that `text` is, None when it is none. Only literals are read, nothing is run."""
    if "[" not in text:
        return None
    try:
        with warnings.catch_warnings():
            # A reply may be written as no program would be.
            warnings.simplefilter("ignore")
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None
