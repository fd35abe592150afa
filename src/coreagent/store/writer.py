"""The one thread that writes: what waits for a commit is grouped into one transaction.

Callers hand in batches and hear back after COMMIT, or get the error that is theirs: when a group fails for the fault
of one batch, it is rolled back and every batch runs alone. The thread sleeps on a queue; an idle store costs nothing.
"""

# ruff: noqa: S608 (table and column names come from schema.py, values are parameters)
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Event
from coreagent.store.change import Key, Write, event_row
from coreagent.store.schema import Table, table_of

# More than this in one transaction only makes the first ones wait.
GROUP_ROWS_MAX = 1000
# Up to here VALUES is faster, above it one list parameter per column is (measured: 50 rows in 4 ms instead of 12).
VALUES_ROWS_MAX = 6


@dataclass
class Batch:
    """The changes of one `commit` call: they happen together or not at all."""

    writes: list[Write]
    events: list[Event]
    done: Callable[[Batch], None]
    """Called once on the writer thread, after `error` or `numbered` was set."""
    numbered: list[Event] = field(default_factory=list)
    error: CoreAgentError | None = None


class Link:
    """What the writer needs of the database: its connection, and a way back after DuckDB gave it up."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, tx: int, last_seq: int) -> None:
        self.connection = connection
        self.tx = tx
        self.last_seq = last_seq

    def reopen(self) -> None:
        """Replace `connection` and read `tx` and `last_seq` from the file. Raises the opening errors."""
        raise NotImplementedError

    def confirmed(self) -> None:
        """A transaction is durable; `tx` is its number."""


class Writer:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._broken = False
        """DuckDB invalidated the instance; it is opened again before the next transaction."""
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)

    def stop(self) -> None:
        """Write what was submitted before, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            first = self._queue.get()
            if first is None:
                return
            group, going = self._drain(first)
            self._write_group(group)
            for batch in group:
                batch.done(batch)

    def _drain(self, first: Batch) -> tuple[list[Batch], bool]:
        group = [first]
        rows = len(first.writes) + len(first.events)
        while rows < GROUP_ROWS_MAX:
            try:
                batch = self._queue.get_nowait()
            except queue.Empty:
                break
            if batch is None:
                return group, False
            group.append(batch)
            rows += len(batch.writes) + len(batch.events)
        return group, True

    def _write_group(self, group: list[Batch]) -> None:
        error = self._transaction(group)
        if error is None:
            return
        if len(group) == 1 or error.slug == "no_space" or self._broken:
            for batch in group:
                batch.error = error
            return
        for batch in group:
            batch.error = self._transaction([batch])

    def _transaction(self, group: Sequence[Batch]) -> CoreAgentError | None:
        """Run `group` as one transaction; None when it is durable."""
        link = self._link
        before = link.tx
        try:
            if self._broken:
                link.reopen()
                self._broken = False
                before = link.tx
            seq = link.last_seq
            link.connection.execute("BEGIN")
            seq = self._apply(group, before + 1, seq)
            link.connection.execute("COMMIT")
        except CoreAgentError as error:
            return error
        except Exception as error:
            # Any exception, not only DuckDB's: a value that Python cannot bind must not end the thread.
            return self._failed(error, before, group)
        link.tx = before + 1
        link.last_seq = seq
        link.confirmed()
        return None

    def _failed(self, error: Exception, before: int, group: Sequence[Batch]) -> CoreAgentError | None:
        link = self._link
        if isinstance(error, duckdb.FatalException | duckdb.InternalException | duckdb.IOException):
            # After an I/O error in COMMIT nobody knows whether it is in the log: open again and look.
            self._broken = True
            try:
                link.reopen()
                self._broken = False
            except CoreAgentError:
                return _write_error(error)
            if link.tx == before + 1:
                link.confirmed()
                return None
        else:
            try:
                link.connection.execute("ROLLBACK")
            except duckdb.TransactionException:
                pass  # BEGIN itself failed, or DuckDB has rolled back already.
            except duckdb.Error:
                self._broken = True
        for batch in group:
            batch.numbered = []
        return _write_error(error)

    def _apply(self, group: Sequence[Batch], tx: int, seq: int) -> int:
        """Send the rows of all batches, the last one of each key; return the last event number used."""
        rows: dict[str, dict[Key, tuple[Any, ...] | None]] = {}
        events: list[tuple[Any, ...]] = []
        for batch in group:
            for write in batch.writes:
                rows.setdefault(write.table, {})[write.key] = write.row
            batch.numbered = []
            for event in batch.events:
                seq += 1
                numbered = event.model_copy(update={"seq": seq})
                batch.numbered.append(numbered)
                events.append((*event_row(numbered), tx))
        connection = self._link.connection
        kept = 0
        for name, by_key in rows.items():
            table = table_of(name)
            _delete(connection, table, list(by_key))
            fresh = [(*row, tx) for row in by_key.values() if row is not None]
            kept += len(fresh)
            _insert(connection, table, fresh)
        _insert(connection, table_of("events"), events)
        if not kept and not events:
            # Nothing but removals: `tx` must still be found in the file.
            _delete(connection, table_of("controls"), [("store.tx",)])
            _insert(connection, table_of("controls"), [("store.tx", "true", tx)])
        return seq


def _delete(connection: duckdb.DuckDBPyConnection, table: Table, keys: list[Key]) -> None:
    if len(table.key) == 1:
        values = [key[0] for key in keys]
        column = table.key[0]
        if len(values) <= VALUES_ROWS_MAX:
            marks = ", ".join("?" * len(values))
            connection.execute(f'DELETE FROM "{table.name}" WHERE "{column}" IN ({marks})', values)
        else:
            kind = table.types[column]
            connection.execute(
                f'DELETE FROM "{table.name}" WHERE "{column}" IN (SELECT unnest(?::{kind}[]))',
                [values],
            )
        return
    # Tables with a key of several columns (repositories, rescues) are small and seldom written.
    one = " AND ".join(f'"{column}" = ?' for column in table.key)
    where = " OR ".join([f"({one})"] * len(keys))
    connection.execute(f'DELETE FROM "{table.name}" WHERE {where}', [part for key in keys for part in key])


def _insert(connection: duckdb.DuckDBPyConnection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    if not rows:
        return
    if len(rows) <= VALUES_ROWS_MAX:
        one = "(" + ", ".join("?" * len(rows[0])) + ")"
        values = ", ".join([one] * len(rows))
        connection.execute(f'INSERT INTO "{table.name}" VALUES {values}', [value for row in rows for value in row])
        return
    kinds = (*table.column_types, "BIGINT")
    columns = ", ".join(f"unnest(?::{kind}[])" for kind in kinds)
    connection.execute(
        f'INSERT INTO "{table.name}" SELECT {columns}', [list(column) for column in zip(*rows, strict=True)]
    )


def _write_error(error: Exception) -> CoreAgentError:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "No space left" in said or "out of disk" in said.lower():
        return CoreAgentError(
            "no_space",
            "the change was not saved: the disk of the store is full",
            cause=said,
            hint="free some space and try again; nothing that was confirmed is lost",
        )
    return CoreAgentError("store_write_failed", "the change was not saved", cause=f"{type(error).__name__}: {said}")
