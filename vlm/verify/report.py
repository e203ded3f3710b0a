"""What `vlm verify` found: a table to paste into a report, and the same for programs."""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt beside one oracle. Differences are the largest one over the oracle's largest value."""

    oracle: str
    case: str
    features: float | None
    """None where there is no image."""
    image_tokens: float | None
    logits: float
    num_equal: int
    """Greedy tokens that are the oracle's likeliest too, or tie with it within the tolerance."""
    num_greedy: int
    counts: bool
    """Whether the oracle computes the reference in force; else the row is for information."""
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether nothing differs by more than the tolerance; NaN differs."""
        differences = [one for one in (self.features, self.image_tokens, self.logits) if one is not None]
        return all(one <= self.tolerance for one in differences) and self.num_equal == self.num_greedy

    @property
    def verdict(self) -> str:
        if self.counts:
            return "PASS" if self.same else "FAIL"
        return "same (other reference)" if self.same else "differs (other reference)"

    def cells(self) -> list[str]:
        numbers = ["-" if one is None else f"{one:.1e}" for one in (self.features, self.image_tokens, self.logits)]
        return [self.oracle, self.case, *numbers, f"{self.num_equal}/{self.num_greedy}", self.verdict]


@dataclass(kw_only=True)
class Report:
    """Everything that was looked at, in the order in which it was."""

    model: str
    reference: str
    facts: dict[str, str] = field(default_factory=dict)
    """What the verdict was found on: files, sizes, dtype, device, versions."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Oracles that took no part, and why."""
    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems and all(row.same for row in self.rows if row.counts)

    @property
    def verdict(self) -> str:
        if not self.passed:
            return "FAIL"
        return "PASS" if any(row.counts for row in self.rows) else "PASS of the files alone; nothing was compared"

    def text(self) -> str:
        """Return the report in Markdown that reads well as it is."""
        lines = [f"## vlm verify {self.model}: {self.verdict}", ""]
        lines += [f"- {name}: {text}" for name, text in self.facts.items()]
        lines += [f"- PROBLEM: {problem}" for problem in self.problems]
        lines += [f"- {note}" for note in self.notes]
        if self.rows:
            head = ["oracle", "case", "features", "image tokens", "logits", "greedy tokens", "verdict"]
            lines += ["", *_table([head, *(row.cells() for row in self.rows)])]
        return "\n".join(lines)

    def record(self) -> dict:
        """Return the report as --json shows it."""
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        for row in rows:
            # JSON has no word for NaN and infinity.
            row |= {
                name: None if one is None else one if one < float("inf") else "not finite"
                for name, one in row.items()
                if name in ("features", "image_tokens", "logits")
            }
        return {
            "model": self.model,
            "passed": self.passed,
            "verdict": self.verdict,
            "reference": self.reference,
            "facts": self.facts,
            "problems": self.problems,
            "notes": self.notes,
            "rows": rows,
        }


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
