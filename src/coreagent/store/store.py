"""The truth: one DuckDB file. The engine comes in here, and only this room knows DuckDB.

`commit` is the only way to write and returns after the COMMIT; reads have their own connection and do not wait for
writers. Rows of dispatches, attempts and events are never deleted: they are the history. This room does not know what
a legal move is, nor who listens to an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Attempt, Dispatch, Event, Repo
from coreagent.models.report import RescueRow
from coreagent.store import opening, reading
from coreagent.store.change import Change, writes
from coreagent.store.opening import Mark, Opened
from coreagent.store.writer import Batch, Link, Writer

COPY_EVERY_S = 900.0
T = TypeVar("T")
Read = Callable[[duckdb.DuckDBPyConnection], T]


@dataclass
class Snapshot:
    """Everything the engine needs to start."""

    dispatches: list[Dispatch] = field(default_factory=list)
    """Oldest first."""
    attempts: dict[str, Attempt] = field(default_factory=dict)
    """Dispatch id -> its last attempt."""
    repos: list[Repo] = field(default_factory=list)
    controls: dict[str, Any] = field(default_factory=dict)
    last_seq: int = 0
    problems: list[str] = field(default_factory=list)
    """Rows that this program cannot read; they stay in the file."""


class _FileLink(Link):
    """The writer's view of the open file, and the mark beside it."""

    def __init__(self, path: str, opened: Opened, on_reopen: threading.Event) -> None:
        super().__init__(opened.connection, opened.tx, opened.last_seq)
        self.path = path
        self.mark = Mark(path, opened.store_id) if path else None
        self.commits = 0
        """Transactions since the last copy."""
        self._on_reopen = on_reopen
        self.confirmed()
        self.commits = 0

    def confirmed(self) -> None:
        self.commits += 1
        if self.mark:
            self.mark.put(self.tx)

    def reopen(self) -> None:
        if not self.path:
            raise CoreAgentError("store_write_failed", "the store in memory broke and cannot be opened again")
        self._on_reopen.set()
        with contextlib.suppress(duckdb.Error):
            self.connection.close()
        opened = opening.open_file(self.path)
        self.connection, self.tx, self.last_seq = opened.connection, opened.tx, opened.last_seq
        self._on_reopen.clear()


class Store:
    """One open store. Make it with `Store.open` or `Store.memory`."""

    def __init__(self, path: str, opened: Opened, why: str = "", copy_every_s: float = COPY_EVERY_S) -> None:
        self.path = path
        self.ephemeral = not path
        self.why = why
        """Why the store is in memory only."""
        self.recovered = opened.recovered
        """The last process was killed: its log was replayed."""
        self.migrated_from = opened.migrated_from
        self.copy_problem = ""
        """Why the last copy could not be made; shown by doctor and status."""
        self._reopening = threading.Event()
        self._link = _FileLink(path, opened, self._reopening)
        self._writer = Writer(self._link)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._read_cursor: tuple[duckdb.DuckDBPyConnection, duckdb.DuckDBPyConnection] | None = None
        self._copy_every_s = copy_every_s
        self._copied_at = time.monotonic()
        self._copy_lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: str, *, copy_every_s: float = COPY_EVERY_S) -> Store:
        """Open or create the file at `path`; `copy_every_s` 0 makes no copies by itself.

        Raises: store_locked (with the pid), store_newer, store_damaged, store_unopenable.
        """
        opening.claim(path)
        try:
            return cls(path, opening.open_file(path), copy_every_s=copy_every_s)
        except BaseException:
            opening.release(path)
            raise

    @classmethod
    def memory(cls, why: str) -> Store:
        """A store that is lost with the process; `why` is what people are told."""
        return cls("", opening.memory(), why)

    async def commit(self, *changes: Change) -> list[Event]:
        """Write all changes in one transaction; return the saved events, numbered, once they are durable.

        What other tasks commit at the same time shares the transaction. A cancelled caller's changes are still written.
        Raises: no_space, store_write_failed; then none of these changes was written.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Event]] = loop.create_future()

        def settle(batch: Batch) -> None:
            if future.done():
                return
            if batch.error:
                future.set_exception(batch.error)
            else:
                future.set_result(batch.numbered)

        def done(batch: Batch) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, batch)
            self._copy_when_due()

        self._submit(changes, done)
        return await future

    def commit_now(self, *changes: Change) -> list[Event]:
        """`commit` for callers without an event loop."""
        ready = threading.Event()
        box: list[Batch] = []

        def done(batch: Batch) -> None:
            box.append(batch)
            ready.set()

        self._submit(changes, done)
        ready.wait()
        if box[0].error:
            raise box[0].error
        return box[0].numbered

    def _submit(self, changes: Sequence[Change], done: Callable[[Batch], None]) -> None:
        if self._closed:
            raise CoreAgentError("store_write_failed", "the store is closed")
        rows, events = writes(changes)
        self._writer.submit(Batch(rows, events, done))

    def load(self) -> Snapshot:
        """Read what the engine starts with."""
        return self._read(self._load)

    def _load(self, cursor: duckdb.DuckDBPyConnection) -> Snapshot:
        snapshot = Snapshot(last_seq=self._link.last_seq)
        rows = cursor.execute(reading.select("dispatches", "ORDER BY created_at, id")).fetchall()
        snapshot.dispatches, bad = reading.models("dispatches", Dispatch, rows)
        last = "QUALIFY row_number() OVER (PARTITION BY dispatch_id ORDER BY n DESC) = 1"
        rows = cursor.execute(reading.select("attempts", last)).fetchall()
        attempts, bad_attempts = reading.models("attempts", Attempt, rows)
        snapshot.attempts = {attempt.dispatch_id: attempt for attempt in attempts}
        rows = cursor.execute(reading.select("repos", "ORDER BY org, name")).fetchall()
        snapshot.repos, bad_repos = reading.models("repos", Repo, rows)
        rows = cursor.execute("SELECT key, value FROM controls WHERE key <> 'store.tx'").fetchall()
        snapshot.controls = {key: json.loads(value) for key, value in rows}
        snapshot.problems = bad + bad_attempts + bad_repos
        return snapshot

    async def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run one reading statement on the read connection."""
        return await self._read_soon(lambda cursor: reading.plain_rows(cursor.execute(sql, list(params))))

    async def history(self, limit: int = 50) -> list[Dispatch]:
        """The last dispatches, newest first."""
        sql = reading.select("dispatches", "ORDER BY created_at DESC, id DESC LIMIT ?")
        return await self._models("dispatches", Dispatch, sql, [limit])

    async def batch(self, name: str) -> list[Dispatch]:
        """The dispatches of one batch, oldest first."""
        sql = reading.select(
            "dispatches", "WHERE json_extract_string(t.rest, '$.options.batch') = ? ORDER BY created_at, id"
        )
        return await self._models("dispatches", Dispatch, sql, [name])

    async def batches(self, beginning: str = "") -> list[str]:
        """Names of batches that begin so."""
        found = await self.query(
            "SELECT DISTINCT json_extract_string(rest, '$.options.batch') AS batch FROM dispatches"
            " WHERE starts_with(json_extract_string(rest, '$.options.batch'), ?)",
            [beginning],
        )
        return sorted(str(row["batch"]) for row in found if row["batch"])

    async def starts(self, since: datetime) -> list[tuple[str, datetime, str]]:
        """(pool, when, attempt id) of every claim since then that came to an exec, or may still."""
        sql = """
            SELECT coalesce(nullif(json_extract_string(a.rest, '$.pool'), ''), d.pool) AS pool, a.claimed_at, a.id
            FROM attempts a JOIN dispatches d ON d.id = a.dispatch_id
            WHERE a.claimed_at >= ? AND (a.started_at IS NOT NULL OR a.ended_at IS NULL)"""
        found = await self.query(sql, [since.astimezone(UTC).replace(tzinfo=None)])
        return [(str(row["pool"]), row["claimed_at"], str(row["id"])) for row in found]

    async def attempts_of(self, dispatch_id: str) -> list[Attempt]:
        """All attempts of a dispatch, first to last."""
        sql = reading.select("attempts", "WHERE dispatch_id = ? ORDER BY n")
        return await self._models("attempts", Attempt, sql, [dispatch_id])

    async def rescues_of(self, org: str, repo: str) -> list[RescueRow]:
        """Rescued work of every workspace of a repository, oldest first."""
        return [row for row in await self.rescues() if row.workspace.startswith(f"{org}/{repo}/")]

    async def rescues(self, workspace: str = "") -> list[RescueRow]:
        """Rescued work, oldest first; of one workspace (`org/repo/name`) or of all."""
        sql = reading.select("rescues", "WHERE ? IN ('', workspace) ORDER BY t.at, n")
        return await self._models("rescues", RescueRow, sql, [workspace])

    async def events(self, after: int = 0, limit: int = 1000, dispatch_id: str = "") -> list[Event]:
        """Events with a greater sequence number than `after`, in order."""
        sql = reading.select("events", "WHERE seq > ? AND ? IN ('', dispatch_id) ORDER BY seq LIMIT ?")
        return await self._read_soon(
            lambda cursor: [reading.event(row) for row in cursor.execute(sql, [after, dispatch_id, limit]).fetchall()]
        )

    async def _models(self, name: str, kind: type[reading.M], sql: str, params: list[Any]) -> list[reading.M]:
        return await self._read_soon(
            lambda cursor: reading.models(name, kind, cursor.execute(sql, params).fetchall())[0]
        )

    async def _read_soon(self, read: Read[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read_here, read)

    def _read(self, read: Read[T]) -> T:
        return self._reader.submit(self._read_here, read).result()

    def _read_here(self, read: Read[T]) -> T:
        """On the reader thread: run `read` in a transaction that cannot write."""
        parent = self._link.connection
        if self._read_cursor is None or self._read_cursor[0] is not parent:
            # The writer has opened the file again: a cursor of the old instance is dead.
            self._read_cursor = (parent, parent.cursor())
        cursor = self._read_cursor[1]
        try:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            try:
                return read(cursor)
            finally:
                cursor.execute("ROLLBACK")
        except duckdb.Error as error:
            if isinstance(error, duckdb.IOException | duckdb.FatalException | duckdb.InternalException):
                raise opening.explain(error, self.path or "in memory") from error
            raise CoreAgentError(
                "internal", "a query on the store failed", cause=str(error).strip().splitlines()[0]
            ) from error

    def backup(self, target: str = "") -> str:
        """Copy the whole store to `target` (default: `<path>.bak`, the one before becomes `.bak.1`); return the path.

        Others read and commit meanwhile. Raises: no_space, store_write_failed, store_ephemeral.
        """
        if self.ephemeral:
            raise CoreAgentError("store_ephemeral", "a store in memory has no copies", cause=self.why)
        with self._copy_lock:
            commits = self._link.commits
            place = target or opening.copy_path(self.path)
            try:
                cursor = self._link.connection.cursor()
                try:
                    draft = place + ".next"
                    opening.copy_to(cursor, draft)
                finally:
                    cursor.close()
                if not target and Path(place).exists():
                    Path(place).replace(opening.older_copy_path(self.path))
                Path(draft).replace(place)
            except (duckdb.Error, OSError) as error:
                said = str(error).strip().splitlines()[0]
                slug = "no_space" if "No space left" in said else "store_write_failed"
                raise CoreAgentError(slug, f"the store could not be copied to {place}", cause=said) from error
            if not target:
                self._link.commits = max(0, self._link.commits - commits)
                self._copied_at = time.monotonic()
                self.copy_problem = ""
            return place

    def _copy_when_due(self) -> None:
        """After a commit, so that no timer is needed: an idle store has nothing new to copy."""
        if not self._copy_every_s or self.ephemeral or time.monotonic() - self._copied_at < self._copy_every_s:
            return
        self._copied_at = time.monotonic()
        threading.Thread(target=self._copy_quietly, name="store-copy", daemon=True).start()

    def _copy_quietly(self) -> None:
        try:
            self.backup()
        except CoreAgentError as error:
            self.copy_problem = f"{error.message}: {error.cause}"

    def close(self) -> None:
        """Write what is waiting, copy when something changed since the last copy, and close the file."""
        if self._closed:
            return
        self._closed = True
        self._writer.stop()
        if self._copy_every_s and not self.ephemeral and self._link.commits:
            self._copy_quietly()
        self._reader.shutdown(wait=True)
        if self._read_cursor:
            with contextlib.suppress(duckdb.Error):
                self._read_cursor[1].close()
        with contextlib.suppress(duckdb.Error), self._copy_lock:
            self._link.connection.close()
        if self._link.mark:
            self._link.mark.close()
            opening.release(self.path)
