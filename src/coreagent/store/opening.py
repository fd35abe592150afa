"""Opening the database file: settings, locks, damage, versions. Everything that can be wrong gets its exact error.

Two traps shape this file. DuckDB ignores a write-ahead log that it cannot read and opens the older state without a
word; the mark beside the file (the last transaction that a caller was told is safe) is how that is noticed. And its
lock is a POSIX lock: any `open` and `close` of the file by this process would drop it, so only DuckDB ever opens it.
"""

# ruff: noqa: S608 (table and column names come from schema.py, values are parameters)
from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from coreagent.errors import CoreAgentError, told
from coreagent.paths import VERSION
from coreagent.plainfile import open_own
from coreagent.store.schema import Migration, known_fields, migrations, tables, view_statements

# One thread each: the daemon is idle most of its life and its queries are small. Nothing is fetched from the network.
SETTINGS: dict[str, str | int | float | list[str]] = {
    "threads": 1,
    "async_threads": 1,
    "memory_limit": "64MB",
    "default_block_size": 16384,
    "checkpoint_threshold": "4MB",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}
REPAIR_HINT = "run `core-agent doctor --repair`: it keeps the damaged file and restores the newest good copy"
# Verifying reads every row; an event table longer than this is read only when it is asked for.
VERIFY_EVENTS_MAX = 200_000

_open_here: set[str] = set()
_open_lock = threading.Lock()


@dataclass
class Opened:
    """A connection that was verified, and what it was found to hold."""

    connection: duckdb.DuckDBPyConnection
    store_id: str
    tx: int
    """Number of the last transaction in the file."""
    last_seq: int
    recovered: bool = False
    """A write-ahead log was replayed: the last process did not close the file."""
    migrated_from: int = 0


def mark_path(path: str) -> str:
    return path + ".mark"


def copy_path(path: str) -> str:
    return path + ".bak"


def older_copy_path(path: str) -> str:
    return path + ".bak.1"


def claim(path: str) -> None:
    """Let this process open `path` once: DuckDB would hand out the same instance again instead of refusing."""
    real = os.path.realpath(path)
    with _open_lock:
        if real in _open_here:
            raise CoreAgentError(
                "store_locked",
                f"the store {path} is already open in this process (pid {os.getpid()})",
                data={"pid": os.getpid(), "found_by": "this process"},
            )
        _open_here.add(real)


def release(path: str) -> None:
    with _open_lock:
        _open_here.discard(os.path.realpath(path))


def open_file(path: str, steps: tuple[Migration, ...] | None = None) -> Opened:
    """Open, verify and migrate `path`, or create it.

    Raises: store_locked, store_newer, store_damaged, store_unopenable. None of them changes or removes anything.
    """
    steps = migrations() if steps is None else steps
    check_place(path)
    if not Path(path).exists():
        create(path, steps)
    unclean = Path(path + ".wal").exists()
    if unclean:
        # Replaying for real may throw away the tail of a log that it cannot read, so look first.
        with contextlib.closing(connect(path, read_only=True)) as look:
            verify(look, path, steps, read_mark(path))
    connection = connect(path)
    try:
        found = verify(connection, path, steps, read_mark(path))
        found.recovered = unclean
        if unclean:
            # New records must not follow a torn tail: the next replay would stop before them.
            connection.execute("CHECKPOINT")
        _migrate(connection, path, found, steps)
    except BaseException as error:
        with contextlib.suppress(duckdb.Error):
            connection.close()
        if isinstance(error, duckdb.Error):
            raise explain(error, path) from error
        raise
    return found


def connect(path: str, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Connect with the store's settings, or raise the store's errors."""
    try:
        return duckdb.connect(path, read_only=read_only, config=dict(SETTINGS))
    except duckdb.Error as error:
        raise explain(error, path) from error


def memory(steps: tuple[Migration, ...] | None = None) -> Opened:
    """An empty store that lives in this process only."""
    connection = duckdb.connect(":memory:", config=dict(SETTINGS))
    _run_steps(connection, migrations() if steps is None else steps, 0)
    return verify(connection, ":memory:", migrations() if steps is None else steps, None)


def verify(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    steps: tuple[Migration, ...],
    mark: tuple[str, int] | None,
) -> Opened:
    """Read everything once and compare it with the mark. Raises: store_newer, store_damaged, store_unopenable."""
    try:
        names = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if not {"store", "migrations", "known_fields"} <= names:
            raise _damaged(path, "it is a DuckDB file, but the tables of core-agent are not in it")
        version = _number(connection, "SELECT max(version) FROM migrations")
        _refuse_newer(connection, path, version, steps)
        store_id = str((connection.execute("SELECT id FROM store").fetchone() or ("",))[0])
        tx = last_seq = 0
        for name in tables():
            if name not in names:
                if version < steps[-1].version:
                    continue
                raise _damaged(path, f"the table {name} is not in it")
            tx = max(tx, _number(connection, f'SELECT max(tx) FROM "{name}"'))
            if name != "events" or _number(connection, "SELECT count(*) FROM events") <= VERIFY_EVENTS_MAX:
                connection.execute(f'SELECT bit_xor(hash("{name}")) FROM "{name}"').fetchall()
        last_seq = _number(connection, "SELECT max(seq) FROM events")
    except duckdb.Error as error:
        raise explain(error, path) from error
    if mark is not None and mark[0] == store_id and mark[1] > tx:
        raise _damaged(
            path,
            f"it ends at transaction {tx}, but {mark[1]} was confirmed: "
            "its write-ahead log is missing or damaged, or the file was replaced by an older copy",
            data={"tx": tx, "confirmed": mark[1]},
        )
    return Opened(connection, store_id, tx, last_seq)


def explain(error: duckdb.Error, path: str) -> CoreAgentError:
    """DuckDB's error on opening or reading as the store's own."""
    said = str(error).strip().splitlines()[0]
    if "set lock on file" in said:
        return _locked(said, path)
    if re.search(r"version number \d+|newer (version|storage)|storage version", said):
        return CoreAgentError(
            "store_newer",
            f"the store {path} was written by a newer DuckDB than this installation has",
            cause=said,
            hint="upgrade core-agent; nothing was changed",
        )
    if re.search(
        r"Permission denied|Read-only file system|Is a directory|No such file|Input/output error"
        r"|Too many open files|Operation not permitted|No space left",
        said,
    ):
        return _unopenable(path, said)
    return _damaged(path, said)


def _locked(said: str, path: str) -> CoreAgentError:
    match = re.search(r"PID (\d+)", said)
    pid = int(match[1]) if match else 0
    command = ""
    if pid:
        with contextlib.suppress(OSError):
            raw = Path(f"/proc/{pid}/cmdline").read_bytes()
            command = raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200]
    who = f"process {pid}" + (f" ({command})" if command else "") if pid else "another process"
    return CoreAgentError(
        "store_locked",
        f"the store {path} is open in {who}",
        cause=f"found by the kernel's lock on the file: {said}",
        hint="use that daemon (`core-agent daemon status`) or stop it (`core-agent daemon stop`)",
        data={"pid": pid, "command": command, "found_by": "kernel lock on the file"},
    )


def _damaged(path: str, cause: str, data: dict[str, int] | None = None) -> CoreAgentError:
    return CoreAgentError(
        "store_damaged",
        f"the store {path} is damaged; it was left as it is",
        cause=cause,
        hint=REPAIR_HINT,
        data={"path": path, **(data or {})},
    )


def _unopenable(path: str, cause: str) -> CoreAgentError:
    return CoreAgentError(
        "store_unopenable",
        f"the store {path} cannot be opened",
        cause=cause,
        hint="check the owner and the mode of the file and of its directory, and that the disk is well",
        data={"path": path},
    )


def check_place(path: str) -> None:
    """Find what DuckDB would only say later, or not at all: a directory that cannot be written, a file that is gone."""
    folder = Path(path).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unopenable(path, told(error)) from error
    try:
        exists = Path(path).exists()
        is_directory = Path(path).is_dir()
    except OSError as error:
        raise _unopenable(path, told(error)) from error
    if is_directory:
        raise _unopenable(path, "Is a directory")
    # Its log is made at the first commit, in the same directory: a read-only one would fail only then.
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unopenable(path, f"{folder} cannot be written")
    if exists:
        if not os.access(path, os.R_OK | os.W_OK):
            raise _unopenable(path, "Permission denied")
        if Path(path).stat().st_size == 0:
            raise _damaged(path, "it is empty (0 bytes)")
    elif Path(path).is_symlink():
        # Its target may lie on a disk that is not mounted: nothing is made in its place, and nothing is restored.
        raise _unopenable(path, f"it is a link to {os.readlink(path)}, which is not there")
    else:
        for trace in (mark_path(path), path + ".wal", copy_path(path)):
            # Looked at again: another daemon may have made the file and its mark in between.
            if Path(trace).exists() and not Path(path).exists():
                raise _damaged(path, f"the file is gone, but {trace} is still there")


def create(path: str, steps: tuple[Migration, ...] | None = None) -> None:
    """Make a new file under another name and link it into place: a kill leaves a whole file or none."""
    draft = f"{path}.new-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        connection = connect(draft)
        try:
            _run_steps(connection, migrations() if steps is None else steps, 0)
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
        Path(draft).chmod(0o600)
        with contextlib.suppress(FileExistsError):
            # Not a rename: when two daemons start at once, the second must not replace the first one's open file.
            os.link(draft, path)
    except OSError as error:
        raise _unopenable(path, told(error)) from error
    except duckdb.Error as error:
        raise explain(error, path) from error
    finally:
        for leftover in (draft, draft + ".wal"):
            Path(leftover).unlink(missing_ok=True)


def _refuse_newer(connection: duckdb.DuckDBPyConnection, path: str, version: int, steps: tuple[Migration, ...]) -> None:
    """Raise `store_newer` when the file's version or one of its model fields is not known to this program."""
    wanted = steps[-1].version
    fields = {str(row[0]) for row in connection.execute("SELECT name FROM known_fields").fetchall()}
    strange = sorted(fields - known_fields())
    if version <= wanted and not strange:
        return
    program = connection.execute("SELECT program FROM migrations ORDER BY version DESC LIMIT 1").fetchone()
    raise CoreAgentError(
        "store_newer",
        f"the store {path} belongs to a newer core-agent than this one ({VERSION})",
        cause=f"its version is {version}, this program knows {wanted}"
        if version > wanted
        else f"it keeps {', '.join(strange[:5])}, which this program does not know",
        hint="upgrade core-agent; nothing was changed",
        data={"version": version, "known": wanted, "program": program[0] if program else "", "fields": strange},
    )


def _migrate(connection: duckdb.DuckDBPyConnection, path: str, found: Opened, steps: tuple[Migration, ...]) -> None:
    version = _number(connection, "SELECT max(version) FROM migrations")
    if version < steps[-1].version:
        try:
            copy_to(connection, f"{path}.v{version}.bak")
            _run_steps(connection, steps, version)
        except (duckdb.Error, OSError) as error:
            raise CoreAgentError(
                "store_write_failed",
                f"the store {path} could not be brought from version {version} to {steps[-1].version}",
                cause=str(error).strip().splitlines()[0],
                hint="nothing was changed; the older program can go on with it",
            ) from error
        found.migrated_from = version
    else:
        _note_fields(connection)
    for statement in view_statements():
        connection.execute(statement)


def _run_steps(connection: duckdb.DuckDBPyConnection, steps: tuple[Migration, ...], version: int) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    connection.execute("BEGIN")
    for step in steps:
        if step.version <= version:
            continue
        for statement in step.statements:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO migrations (version, name, program, run_at) VALUES (?, ?, ?, ?)",
            [step.version, step.name, VERSION, now],
        )
    if version == 0:
        connection.execute("INSERT INTO store VALUES (?, ?)", [secrets.token_hex(16), now])
    _note_fields(connection)
    for statement in view_statements():
        connection.execute(statement)
    connection.execute("COMMIT")


def _note_fields(connection: duckdb.DuckDBPyConnection) -> None:
    have = {str(row[0]) for row in connection.execute("SELECT name FROM known_fields").fetchall()}
    for name in sorted(known_fields() - have):
        connection.execute("INSERT INTO known_fields VALUES (?)", [name])


def copy_to(connection: duckdb.DuckDBPyConnection, target: str) -> None:
    """Write a consistent copy of the whole database to `target`, while others go on committing. Atomic."""
    draft = f"{target}.new"
    for old in (draft, draft + ".wal"):
        Path(old).unlink(missing_ok=True)
    source = str((connection.execute("SELECT current_database()").fetchone() or ("",))[0])
    quoted = '"' + source.replace('"', '""') + '"'
    literal = "'" + draft.replace("'", "''") + "'"
    connection.execute(f"ATTACH {literal} AS copy_target (BLOCK_SIZE {SETTINGS['default_block_size']})")
    try:
        connection.execute(f"COPY FROM DATABASE {quoted} TO copy_target")
    finally:
        connection.execute("DETACH copy_target")
    Path(draft).chmod(0o600)
    sync(draft)
    Path(draft).replace(target)
    sync(str(Path(target).parent))


def read_mark(path: str) -> tuple[str, int] | None:
    """The store's id and the last confirmed transaction; None when there is no readable mark."""
    try:
        store_id, tx = Path(mark_path(path)).read_text().split()
        return store_id, int(tx)
    except (OSError, ValueError):
        return None


class Mark:
    """The last confirmed transaction, written beside the file after each commit.

    It is never synchronised: after a power cut it may be older than the database, which says nothing; it is never
    newer, because it is written after the database was.
    """

    def __init__(self, path: str, store_id: str) -> None:
        self._store_id = store_id
        try:
            self._fd = open_own(mark_path(path), os.O_WRONLY)
        except OSError as error:
            raise _unopenable(mark_path(path), told(error)) from error

    def put(self, tx: int) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, f"{self._store_id} {tx:020d}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._fd)


def _number(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
