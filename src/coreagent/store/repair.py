"""Repair of a damaged store: nothing is deleted, the newest good copy comes back, readable newer rows are merged in.

Only `doctor --repair` comes in here, with the daemon stopped. The repaired file is made beside the damaged one and
takes its place at the very end, so that a kill in the middle leaves the damage as it was.
"""

# ruff: noqa: S608 (table and column names come from schema.py, values are parameters)
from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from coreagent.errors import CoreAgentError
from coreagent.store import opening
from coreagent.store.schema import Table, migrations, tables


@dataclass
class RepairReport:
    """What `repair` did."""

    path: str
    healthy: bool = False
    """There was nothing to repair and nothing was touched."""
    moved: list[str] = field(default_factory=list)
    """Where the damaged files are now."""
    restored_from: str = ""
    """The copy that was used; "" when there was none and the store starts empty."""
    copy_tx: int = 0
    salvaged: dict[str, int] = field(default_factory=dict)
    """Table -> newer rows that could still be read from the damaged file."""
    unreadable: list[str] = field(default_factory=list)
    """Tables of the damaged file that could not be read."""
    lost: int = 0
    """Confirmed transactions of which nothing was found; 0 when all is there or nobody can tell."""
    rows: dict[str, int] = field(default_factory=dict)
    """Table -> rows after the repair."""


def repair(path: str) -> RepairReport:
    """Bring the store at `path` back. Raises: store_locked, store_newer, store_unopenable (nothing is touched then)."""
    opening.claim(path)
    try:
        return _repair(path)
    finally:
        opening.release(path)


def _repair(path: str) -> RepairReport:
    report = RepairReport(path)
    if Path(path).exists():
        try:
            opening.open_file(path).connection.close()
        except CoreAgentError as error:
            if error.slug != "store_damaged":
                raise
        else:
            report.healthy = True
            return report
    mark = opening.read_mark(path)
    draft = f"{path}.repaired"
    for old in (draft, draft + ".wal"):
        Path(old).unlink(missing_ok=True)
    copy = _newest_good_copy(path)
    if copy:
        shutil.copyfile(copy[0], draft)
        report.restored_from, report.copy_tx = copy
    else:
        opening.create(draft)
    target = opening.open_file(draft)
    try:
        _salvage(path, target, report)
        if mark:
            have = opening.verify(target.connection, draft, migrations(), None).tx
            report.lost = max(0, mark[1] - have)
            # Numbers of lost transactions are not given again, or an old copy could look newer than what follows.
            last = max(mark[1], have)
            target.connection.execute("DELETE FROM controls WHERE key = 'store.tx'")
            target.connection.execute("INSERT INTO controls VALUES ('store.tx', 'true', ?)", [last])
        _count(target.connection, report)
        found = opening.verify(target.connection, draft, migrations(), None)
        target.connection.execute("CHECKPOINT")
    finally:
        target.connection.close()
    Path(draft).chmod(0o600)
    _swap(path, draft, report, found)
    return report


def _newest_good_copy(path: str) -> tuple[str, int] | None:
    best: tuple[str, int] | None = None
    folder, name = Path(path).parent, Path(path).name
    for copy in sorted(folder.glob(f"{name}*.bak*")):
        if copy.name.endswith((".new", ".next", ".wal")):
            continue
        try:
            with contextlib.closing(opening.connect(str(copy), read_only=True)) as connection:
                found = opening.verify(connection, str(copy), migrations(), None)
        except CoreAgentError:
            continue
        if best is None or found.tx > best[1]:
            best = (str(copy), found.tx)
    return best


def _salvage(path: str, target: opening.Opened, report: RepairReport) -> None:
    """Merge every row of the damaged file that can be read and is newer than what the copy has."""
    names = list(tables())
    if not Path(path).exists():
        return
    try:
        damaged = opening.connect(path, read_only=True)
    except CoreAgentError:
        try:
            damaged = _without_the_damage(path, f"{path}.salvage")
        except (OSError, CoreAgentError):
            report.unreadable = names
            _remove_salvage(path)
            return
    try:
        for name in names:
            try:
                count = _merge(damaged, target.connection, tables()[name])
            except duckdb.Error:
                with contextlib.suppress(duckdb.Error):
                    target.connection.execute("ROLLBACK")
                report.unreadable.append(name)
                continue
            if count:
                report.salvaged[name] = count
    finally:
        damaged.close()
        _remove_salvage(path)


def _without_the_damage(path: str, bare: str) -> duckdb.DuckDBPyConnection:
    """Open a copy of the file, whose log cannot be replayed, with as much of the log as can be.

    A log that ends in the middle of an entry is replayed up to there, as after a crash, so every length before the
    damage opens and none behind it.

    Raises: store_damaged, OSError.
    """
    shutil.copyfile(path, bare)
    try:
        log = Path(path + ".wal").read_bytes()
    except FileNotFoundError:
        log = b""
    good, bad = 0, len(log)
    while bad - good > 1:
        middle = (good + bad) // 2
        Path(bare + ".wal").write_bytes(log[:middle])
        try:
            opening.connect(bare, read_only=True).close()
        except CoreAgentError:
            bad = middle
        else:
            good = middle
    Path(bare + ".wal").write_bytes(log[:good])
    return opening.connect(bare, read_only=True)


def _remove_salvage(path: str) -> None:
    for name in (f"{path}.salvage", f"{path}.salvage.wal"):
        Path(name).unlink(missing_ok=True)


def _merge(damaged: duckdb.DuckDBPyConnection, target: duckdb.DuckDBPyConnection, table: Table) -> int:
    columns = [*table.columns, "tx"]
    quoted = ", ".join(f'"{column}"' for column in columns)
    rows = damaged.execute(f'SELECT {quoted} FROM "{table.name}"').fetchall()
    width = len(table.key)
    at = [columns.index(column) for column in table.key]
    keys = ", ".join(f'"{column}"' for column in table.key)
    have = {
        tuple(row[:width]): row[width] for row in target.execute(f'SELECT {keys}, tx FROM "{table.name}"').fetchall()
    }
    newer = [row for row in rows if row[-1] > have.get(tuple(row[i] for i in at), -1)]
    target.execute("BEGIN")
    one = " AND ".join(f'"{column}" = ?' for column in table.key)
    marks = ", ".join("?" * len(columns))
    for row in newer:
        target.execute(f'DELETE FROM "{table.name}" WHERE {one}', [row[i] for i in at])
        target.execute(f'INSERT INTO "{table.name}" VALUES ({marks})', list(row))
    target.execute("COMMIT")
    return len(newer)


def _count(connection: duckdb.DuckDBPyConnection, report: RepairReport) -> None:
    for name in tables():
        row = connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()
        report.rows[name] = int(row[0]) if row else 0


def _swap(path: str, draft: str, report: RepairReport, found: opening.Opened) -> None:
    """Keep the damaged files under another name and put the repaired one in their place."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    aside = f"{path}.damaged-{stamp}"
    if Path(path).exists():
        try:
            os.link(path, aside)
        except OSError:
            shutil.copyfile(path, aside)
        report.moved.append(aside)
    if Path(path + ".wal").exists():
        # Before the new file comes: it must never be replayed into that one.
        Path(path + ".wal").rename(aside + ".wal")
        report.moved.append(aside + ".wal")
    Path(draft).replace(path)
    opening.sync(str(Path(path).parent))
    mark = opening.Mark(path, found.store_id)
    mark.put(found.tx)
    mark.close()
