"""Workloads as data, their samples over interleaved rounds, and the table of medians, spread and ratios."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    Samples = dict[str, list[list[float]]]  # of each contender, by rounds


_WARM_UPS = 2


@dataclass(frozen=True)
class Workload:
    """A row of the table.

    Attributes:
        name: What is done.
        unit: Of the samples; ``ms``, ``MiB`` and ``bytes`` are better when small.
        reach: What is to be reached.
        work: Contender → one round's samples.
    """

    name: str
    unit: str
    reach: str
    work: dict[str, Callable[[], list[float]]]

    @property
    def is_latency(self) -> bool:
        """Whether the tail counts as well as the middle."""
        return self.unit == "ms"


def measure(table: Sequence[Workload], rounds: int, console: Console) -> list[Samples]:
    """Interleave the contenders of each workload over the rounds; row → contender → samples of each round."""
    found: list[Samples] = [{who: [] for who in each.work} for each in table]
    for each in table:  # what is done once per process has been done before it counts, in a worker's second child too
        for work in each.work.values():
            for _ in range(_WARM_UPS if each.is_latency else 1):
                work()
    for number in range(rounds):
        for each, samples in zip(table, found, strict=True):
            for who, work in each.work.items():
                samples[who].append(work())
                middle = statistics.median(samples[who][-1])
                console.log(f"round {number + 1}: {each.name}: {who}: {middle:,.1f} {each.unit}")
    return found


def show(title: str, bases: Mapping[str, str], table: Sequence[Workload], found: list[Samples], out: Console) -> None:
    """Print the medians, the spread and the ratios.

    Args:
        title: Of the table.
        bases: Contender → the one whose figure is divided by its own for the ratio; itself for none.
        table: The workloads.
        found: Their samples.
        out: Where to.
    """
    view = Table(title=f"{title}: median (spread) over the rounds; for ms: p50 / p99 of all samples")
    for column in ("workload", "unit", *bases, "to reach"):
        view.add_column(column)
    for each, samples in zip(table, found, strict=True):
        cells = []
        for who, base in bases.items():
            if who not in samples:
                cells.append("–")
                continue
            ratio = (
                "" if who == base or base not in samples else f" → {middle(samples[base]) / middle(samples[who]):.2f}"
            )
            cells.append((points if each.is_latency else spread)(samples[who]) + ratio)
        view.add_row(each.name, each.unit, *cells, each.reach)
    out.print(view)


def middle(rounds: list[list[float]]) -> float:
    """The median of all samples."""
    return statistics.median(value for samples in rounds for value in samples)


def spread(rounds: list[list[float]]) -> str:
    """Render the median and what lies around it."""
    values = [statistics.median(samples) for samples in rounds]
    return f"{middle(rounds):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def points(rounds: list[list[float]]) -> str:
    """Render the 50th and 99th percentile."""
    ordered = sorted(value for samples in rounds for value in samples)
    return f"{statistics.median(ordered):.1f} / {ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]:.1f}"
