"""Reading what an agent said from its recorded output, a page at a time, from either end.

A place in the log is a byte offset and the number of entries before it, so that a page costs what it shows and not
what was said before it. Nothing parsed is kept: the output file is the record.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from coreagent.models.report import LogEntry
from coreagent.plainfile import open_plain
from coreagent.runners.base import Parser

# What a look at the end of a log reads at most, whatever its lines are like.
TAIL_BYTES = 1 << 20
STDERR_SHOWN = 8000
PAGE_BYTES = 4 << 20


@dataclass(frozen=True)
class Place:
    """Where a page begins: after `entries` entries and `offset` bytes."""

    offset: int = 0
    entries: int = 0

    def __str__(self) -> str:
        return f"{self.offset}:{self.entries}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read what `str` wrote; anything else is the beginning."""
        offset, _, entries = text.partition(":")
        if offset.isdecimal() and entries.isdecimal() and len(text) < 40:
            return cls(int(offset), int(entries))
        return cls()


@dataclass(frozen=True)
class Page:
    entries: list[LogEntry]
    next: Place
    more: bool
    """There is more right now."""
    skipped_bytes: int = 0


def read_page(out: Path, parser: Parser, n: int, place: Place, limit: int, *, whole_lines: bool) -> Page:
    """Parse from `place` on until `limit` entries or PAGE_BYTES; with `whole_lines`, an unfinished last line waits.

    So does what the parser holds back: the page ends before it, for the next one begins with another parser.
    """
    entries: list[LogEntry] = []
    offset, seen = place.offset, place.entries
    whole = place
    """Where nothing was held back."""
    try:
        with open_plain(out) as file:
            file.seek(offset)
            for line in file:
                if whole_lines and not line.endswith(b"\n"):
                    break
                offset += len(line)
                for event in parser.feed(line):
                    seen += 1
                    entries.append(LogEntry(attempt=n, offset=seen, event=event))
                if not parser.pending:
                    whole = Place(offset, seen)
                elif offset - place.offset < PAGE_BYTES:
                    continue
                if len(entries) >= limit or offset - place.offset >= PAGE_BYTES:
                    entries += _held(parser, n, seen)
                    after = Place(offset, place.entries + len(entries))
                    return Page(entries, after, offset < os.fstat(file.fileno()).st_size)
    except OSError:
        pass  # not there, or no file: an agent can replace it
    if whole_lines and parser.pending:
        return Page(entries[: whole.entries - place.entries], whole, False)
    entries += _held(parser, n, seen)
    return Page(entries, Place(offset, place.entries + len(entries)), False)


def _held(parser: Parser, n: int, seen: int) -> list[LogEntry]:
    return [LogEntry(attempt=n, offset=seen + i, event=event) for i, event in enumerate(parser.flush(), 1)]


def tail_place(out: Path, lines: int) -> tuple[Place, int]:
    """Where the last `lines` lines begin (within TAIL_BYTES), and how many bytes are before that."""
    try:
        with open_plain(out) as file:
            return _tail(file, lines)
    except OSError:
        return Place(), 0


def _tail(file: BinaryIO, lines: int) -> tuple[Place, int]:
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - TAIL_BYTES)
    file.seek(start)
    block = file.read(TAIL_BYTES)
    at = len(block.removesuffix(b"\n"))
    for _ in range(lines):
        at = block.rfind(b"\n", 0, at)
        if at < 0:
            break
    if at < 0 and start:
        at = block.find(b"\n")  # the first line is cut in two
    offset = start + at + 1
    return Place(offset, 0), offset


def stderr_tail(err: Path) -> str:
    """The end of what the agent wrote to standard error."""
    try:
        with open_plain(err) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - STDERR_SHOWN))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
