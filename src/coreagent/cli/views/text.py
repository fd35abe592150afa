"""The letters every view is set in: paint, widths, columns, and how long, how much and how dear things are said.

Views come here. It knows strings only: no capability, no terminal but its width and whether it has colour.
Plain string work instead of rich tables, because `status` is drawn a hundred times a day and a rich table costs more
than the whole call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.cells import cell_len, set_cell_size

from coreagent.cli.terminal import clean
from coreagent.models.agent import Cost
from coreagent.plural import plural

_SGR = re.compile(r"\x1b\[[0-9;]*m")


class Paint:
    """Colour as the terminal can take it; without colour every method gives back its text."""

    def __init__(self, colour: bool) -> None:
        self.colour = bool(colour)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        return self._wrap("2", text)

    def red(self, text: str) -> str:
        return self._wrap("31", text)

    def green(self, text: str) -> str:
        return self._wrap("32", text)

    def yellow(self, text: str) -> str:
        return self._wrap("33", text)

    def magenta(self, text: str) -> str:
        return self._wrap("35", text)

    def cyan(self, text: str) -> str:
        return self._wrap("36", text)


def one_line(text: str) -> str:
    """Text of an agent or a task as one safe line."""
    return clean(" ".join(text.split()))


def safe_lines(text: str) -> list[str]:
    """Text of several lines, each made safe; tabs become spaces so that widths can be told."""
    return [clean(line.expandtabs(4)) for line in text.splitlines()]


def width_of(text: str) -> int:
    """Cells that `text` takes on a screen, colour codes not counted."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    return cell_len(_SGR.sub("", text))


def fit(text: str, width: int) -> str:
    """Cut unpainted text to at most `width` cells, with an ellipsis where something is gone."""
    if width <= 0:
        return ""
    if width_of(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…"


def fit_middle(text: str, width: int) -> str:
    """Cut in the middle: what a workspace is called stands at its end, whose it is at its beginning."""
    if width_of(text) <= width or width < 8:
        return fit(text, width)
    tail = (width - 1) * 2 // 3
    return text[: width - 1 - tail] + "…" + text[-tail:]


def pad(text: str, width: int, right: bool = False) -> str:
    """Fill painted or plain text up to `width` cells."""
    gap = " " * max(0, width - width_of(text))
    return gap + text if right else text + gap


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break one line of plain text at spaces; a word longer than the line is cut into pieces."""
    room = max(8, width - len(indent))
    lines: list[str] = []
    current = ""
    for word in text.split(" "):
        piece = word
        while width_of(piece) > room:
            if current:
                lines.append(current)
                current = ""
            head = set_cell_size(piece, room).rstrip() or piece[:1]
            lines.append(head)
            piece = piece[len(head) :]
        joined = f"{current} {piece}" if current else piece
        if width_of(joined) > room:
            lines.append(current)
            current = piece
        else:
            current = joined
    if current or not lines:
        lines.append(current)
    return [indent + line for line in lines]


def next_lines(commands: Sequence[str], width: int) -> list[str]:
    """What to type next: side by side where they fit, else one below the other."""
    beside = "  next: " + "    ".join(commands)
    if width_of(beside) <= width:
        return [beside]
    return [("  next: " if i == 0 else "        ") + command for i, command in enumerate(commands)]


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], width: int, paint: Paint, *, flex: int = -1, right: str = ""
) -> list[str]:
    """Set rows in columns; column `flex` gives way when the screen is narrow, then the columns before it.

    `right` names the headings of columns that are set flush right. Cells are plain text, cut where they must be.
    """
    body = [list(row) for row in rows]
    count = len(header)
    flex %= count
    widths = [max([width_of(header[i]), *(width_of(row[i]) for row in body)]) for i in range(count)]
    flush = set(right.split())
    order = [flex, *(i for i in range(count) if i != flex)]
    for i in order:
        excess = sum(widths) + 2 * (count - 1) - width
        if excess <= 0:
            break
        widths[i] = max(min(widths[i], max(width_of(header[i]), 10)), widths[i] - excess)

    def line(cells: Sequence[str]) -> str:
        parts = []
        for i, cell in enumerate(cells):
            cut = fit(cell, widths[i])
            parts.append(pad(cut, widths[i], right=header[i] in flush))
        return "  ".join(parts).rstrip()

    return [paint.dim(line(header)), *(line(row) for row in body)]


def duration(seconds: float | None) -> str:
    """`42s`, `3m04s`, `1h05m`, `2d03h`; `-` when it is not known."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def ago(then: datetime | None, now: datetime) -> str:
    """How long ago, in the coarsest unit that says something."""
    if then is None:
        return "-"
    whole = max(0, int((now - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def clock(then: datetime, now: datetime) -> str:
    """A moment as the person's own clock says it; with the date when it is not today."""
    local = then.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == now.astimezone().date() else "%Y-%m-%d %H:%M")


def tokens(count: int) -> str:
    """`950`, `12.3k`, `1.2M`; `-` for none."""
    if count <= 0:
        return "-"
    if count < 1000:
        return str(count)
    if count < 999_950:
        return f"{count / 1000:.1f}k"
    return f"{count / 1_000_000:.1f}M"


def used(count: int) -> str:
    """`1 token`, `12.3k tokens`; "" for none."""
    return plural(count, "token", shown=tokens(count)) if count > 0 else ""


def running_words(running: int, strangers: int) -> str:
    """`2 agents running`, and how many run that the store does not know."""
    more = f", {strangers:,} more that the store does not know" if strangers else ""
    return f"{plural(running, 'agent')} running{more}"


def money(cost: Cost) -> str:
    """`$0.12` as reported, `~$0.12` from the price table, `$0.12+` when it was more, `-` when nobody knows."""
    if cost.usd is None:
        return "-"
    if cost.source == "unknown":
        return f"${cost.usd:.2f}+"
    sign = "~" if cost.source == "priced" else ""
    if 0 < cost.usd < 0.005:
        return f"{sign}<$0.01"
    return f"{sign}${cost.usd:.2f}"


def diffstat(files: int, insertions: int, deletions: int) -> str:
    """`3 files +10 -2`, or "" when nothing changed."""
    if not files and not insertions and not deletions:
        return ""
    return f"{plural(files, 'file')} +{insertions} -{deletions}"


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
