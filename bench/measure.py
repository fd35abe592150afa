"""Interleaved pairs, medians, and rows that people and programs can read. Knows nothing of what is measured."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PAIRS_MIN = 9
Seconds = Callable[[], float]


@dataclass(frozen=True)
class Pairs:
    """Times of the thing measured and of its floor, in seconds, taken in turns."""

    ours: list[float]
    floor: list[float]

    @property
    def ratio(self) -> float:
        """Median of the ratios within each pair: what disturbs the machine disturbs both sides of a pair."""
        return statistics.median(a / b for a, b in zip(self.ours, self.floor, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of those ratios."""
        return quartiles([a / b for a, b in zip(self.ours, self.floor, strict=True)])

    @property
    def ours_ms(self) -> float:
        return statistics.median(self.ours) * 1000

    @property
    def floor_ms(self) -> float:
        return statistics.median(self.floor) * 1000


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def interleave(
    count: int,
    ours: Seconds,
    floor: Seconds,
    between: Callable[[], object] = lambda: None,
) -> Pairs:
    """Measure `count` pairs; who goes first changes from pair to pair, so that caches and the disk favour neither.

    Both return the seconds they took; `between` tidies up after each pair and is not measured.
    """
    measured = Pairs([], [])
    for number in range(count):
        order = [(ours, measured.ours), (floor, measured.floor)]
        for run, into in order if number % 2 == 0 else reversed(order):
            into.append(run())
        between()
    return measured


@dataclass
class Row:
    """One line of the table."""

    name: str
    value: float
    unit: str
    """`x` for a ratio to the floor, else what `value` is counted in."""
    aim: float
    """At most this."""
    ours_ms: float | None = None
    floor_ms: float | None = None
    floor: str = ""
    """What the floor is."""
    spread: tuple[float, float] | None = None
    pairs: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    """Further figures, by name with the unit in it."""
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.aim

    @classmethod
    def of_ratio(cls, name: str, aim: float, floor: str, pairs: Pairs, **more: object) -> Row:
        return cls(
            name, pairs.ratio, "x", aim, pairs.ours_ms, pairs.floor_ms, floor, pairs.spread, len(pairs.ours), **more
        )  # type: ignore[arg-type]

    @classmethod
    def of_time(cls, name: str, aim_ms: float, floor: str, pairs: Pairs, **more: object) -> Row:
        """A time that has an aim of its own; the floor is printed beside it."""
        return cls(
            name, pairs.ours_ms, "ms", aim_ms, pairs.ours_ms, pairs.floor_ms, floor, pairs.spread, len(pairs.ours),
            **more,
        )  # type: ignore[arg-type]  # fmt: skip


def lines(rows: Sequence[Row]) -> list[str]:
    """The table, as text."""
    width = max((len(row.name) for row in rows), default=0)
    said = [f"{'':{width}}  {'measured':>12} {'aim':>12}        ours / floor"]
    for row in rows:
        measured, aim = f"{_figure(row.value)} {row.unit}", f"<= {row.aim:g} {row.unit}"
        against = ""
        if row.ours_ms is not None and row.floor_ms is not None:
            ratio = f"{row.ours_ms / row.floor_ms:.2f}" if row.unit != "x" else f"{row.value:.2f}"
            against = f"{row.ours_ms:.1f} ms / {row.floor_ms:.1f} ms = {ratio}  {row.floor}"
        if row.spread and row.unit == "x":
            against += f"  (quartiles {row.spread[0]:.2f}-{row.spread[1]:.2f}, {row.pairs} pairs)"
        said.append(
            f"{row.name:{width}}  {measured:>12} {aim:>12}  {'    ' if row.met else 'over'}  {against}".rstrip()
        )
        said += [f"{'':{width}}    {name}: {_figure(figure)}" for name, figure in row.parts.items()]
        if row.note:
            said.append(f"{'':{width}}    {row.note}")
    return said


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def write(path: Path, rows: Sequence[Row], about: dict[str, object]) -> None:
    """Write all figures as JSON."""
    body = {**about, "rows": [{**asdict(row), "met": row.met} for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")
