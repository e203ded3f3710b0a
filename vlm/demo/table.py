"""A table out of what a model writes, and its file."""

import csv
import io
import re
from typing import NamedTuple

TABLE_REQUEST = (
    "Write the data of this chart as a table: the first line names the columns, then one line for each row, "
    "the cells separated by |. Write nothing else."
)
MAX_ROWS, MAX_COLUMNS = 500, 50

_RULE = re.compile(r"[\s|:+-]*-[\s|:+-]*")
_NUMBER = re.compile(r"[-+]?[\d.,\s]*\d\s?%?")


class Table(NamedTuple):
    """Cells as text, each row as long as `header`."""

    header: list[str]
    rows: list[list[str]]

    def csv(self) -> str:
        """Return the content of a CSV file that a spreadsheet reads as text and numbers, never as formulas."""
        file = io.StringIO()
        csv.writer(file).writerows([[_harmless(cell) for cell in row] for row in (self.header, *self.rows)])
        return file.getvalue()


def read_table(text: str) -> Table | None:
    """Return the table in `text`, lines of cells separated by |, with or without Markdown's rules; None without one."""
    # The linearised form of DePlot (arXiv 2212.10505) ends lines so.
    lines = text.replace("<0x0A>", "\n").splitlines()
    rows = [_cells(line) for line in lines if "|" in line and not _RULE.fullmatch(line)][: MAX_ROWS + 1]
    if len(rows) < 2:
        return None
    width = min(max(map(len, rows)), MAX_COLUMNS)
    header, *rest = [(row + [""] * width)[:width] for row in rows]
    return Table(header, rest)


def _cells(line: str) -> list[str]:
    line = line.strip()
    if line.startswith("|") and line.endswith("|") and len(line) > 1:
        line = line[1:-1]
    return [cell.strip() for cell in line.split("|")]


def _harmless(cell: str) -> str:
    """Return `cell` so that no spreadsheet takes it for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(cell) else cell
