"""What is claimed as numbers: each claim with what was measured, and whether it holds; tables and JSON of both."""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=130)


@dataclass(frozen=True)
class Bar:
    """A claim.

    Attributes:
        claim: in words.
        measured: the number.
        bound: that it must not be below.
        at_most: whether it must not be above instead.
    """

    claim: str
    measured: float
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the number is on the right side."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound


def print_bars(bars: Iterable[Bar]) -> None:
    """A line a claim, with PASS or FAIL."""
    table = Table("claim", "bar", "measured", "")
    for bar in bars:
        verdict = "[green]PASS[/]" if bar.holds else "[bold red]FAIL[/]"
        table.add_row(bar.claim, f"{'≤' if bar.at_most else '≥'} {bar.bound:g}", f"{bar.measured:.3f}", verdict)
    CONSOLE.print(table)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table whose numbers stand to the right; the first column is words."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    CONSOLE.print(table)


def save(path: Path, bars: Iterable[Bar], figures: Mapping[str, Any]) -> None:
    """The numbers as JSON, with the machine they are from."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "load": [round(load, 1) for load in psutil.getloadavg()],
    }
    claims = [asdict(bar) | {"holds": bar.holds} for bar in bars]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "bars": claims, **figures}, indent=1) + "\n")
    CONSOLE.print(f"The numbers are in {path}.")
