"""Tables, views and migrations of the database file: what stands in it, and how an older one becomes this one.

What is queried or counted is a typed column; the long tail of a model is one JSON column `rest`, so that a new model
field needs no migration. No table has a primary key or an index: the one writer replaces rows by key itself, which is
measured at a third of the cost of DuckDB's upsert, and an index cannot be damaged that is not there.
Every row carries `tx`, the number of the transaction that wrote it; the highest one tells what the file holds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from coreagent.models.dispatch import Attempt, Dispatch, Event, Repo
from coreagent.models.report import RescueRow

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Table:
    """One table: its typed columns with their SQL types, its key, and the model its rows are made of."""

    name: str
    types: dict[str, str]
    key: tuple[str, ...]
    model: type[BaseModel] | None = None
    rest: bool = False

    @functools.cached_property
    def typed(self) -> tuple[str, ...]:
        return tuple(self.types)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        return (*self.types, "rest") if self.rest else self.typed

    @functools.cached_property
    def column_types(self) -> tuple[str, ...]:
        return (*self.types.values(), "JSON") if self.rest else tuple(self.types.values())

    @functools.cached_property
    def rest_fields(self) -> set[str]:
        """The model's fields that have no column of their own."""
        return set(self.model.model_fields) - set(self.types) if self.model else set()

    @property
    def ddl(self) -> str:
        columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(self.columns, self.column_types, strict=True))
        return f'CREATE TABLE "{self.name}" ({columns}, tx BIGINT NOT NULL)'


def _columns(**kinds: str) -> dict[str, str]:
    return {name: kind for kind, names in kinds.items() for name in names.split()}


@functools.cache
def tables() -> dict[str, Table]:
    """Every table that a commit writes, by name."""
    dispatch = _columns(
        VARCHAR="id org repo name state reason stage fate agent runner model pool task base_ref attempt_id waiting_for",
        BIGINT="priority runs attempts",
        TIMESTAMP="waiting_until created_at queued_at started_at ended_at changed_at",
    )
    attempt = _columns(
        VARCHAR="id dispatch_id kind stopped_by reason",
        BIGINT="n shim_pid shim_start exit_code exit_signal",
        TIMESTAMP="claimed_at started_at ended_at",
    )
    event = {
        "seq": "BIGINT",
        "at": "TIMESTAMP",
        "name": "VARCHAR",
        "dispatch_id": "VARCHAR",
        "workspace": "VARCHAR",
        "data": "JSON",
    }
    repo = _columns(VARCHAR="org name path default_branch", TIMESTAMP="added_at")
    rescue = _columns(VARCHAR="workspace ref sha reason", BIGINT="n files", TIMESTAMP="at")
    found = (
        Table("dispatches", dispatch, ("id",), Dispatch, rest=True),
        Table("attempts", attempt, ("id",), Attempt, rest=True),
        Table("repos", repo, ("org", "name"), Repo, rest=True),
        Table("rescues", rescue, ("workspace", "n"), RescueRow, rest=True),
        Table("controls", {"key": "VARCHAR", "value": "JSON"}, ("key",)),
        Table("events", event, ("seq",), Event),
    )
    return {table.name: table for table in found}


def table_of(name: str) -> Table:
    return tables()[name]


# The contract's groups (section 15.3) as views: `key` and a JSON `value`, and what the value holds as columns.
VIEWS: Final[dict[str, str]] = {
    "queue": """
        SELECT org || '/' || repo || '/agent/' || name AS key,
               json_object('task', task, 'agent', agent, 'status', state, 'priority', priority) AS value,
               id, task, agent, pool, state AS status, priority, waiting_for, waiting_until, queued_at
        FROM dispatches WHERE state = 'queued'""",
    "concurrency": """
        WITH used AS (
          SELECT pool, count(*) AS running FROM dispatches WHERE state IN ('preparing', 'running') GROUP BY pool),
        limits AS (
          SELECT substr(key, 7) AS pool, TRY_CAST(value AS BIGINT) AS total FROM controls WHERE key LIKE 'limit:%'),
        pools AS (SELECT pool FROM used UNION SELECT pool FROM limits UNION SELECT DISTINCT pool FROM dispatches)
        SELECT pool AS key,
               json_object('running', coalesce(running, 0), 'limit', coalesce(total, 0)) AS value,
               coalesce(running, 0)::BIGINT AS running, coalesce(total, 0)::BIGINT AS "limit"
        FROM pools LEFT JOIN used USING (pool) LEFT JOIN limits USING (pool)""",
    "registry": """
        SELECT org || '/' || repo || '/' || name AS key,
               json_object('status', state, 'pid', coalesce(a.shim_pid, 0), 'agent', agent,
                           'branch', 'agent/' || name) AS value,
               d.id, state AS status, coalesce(a.shim_pid, 0) AS pid, agent, 'agent/' || name AS branch
        FROM dispatches d
        LEFT JOIN attempts a ON a.id = d.attempt_id AND a.ended_at IS NULL
        QUALIFY row_number() OVER (PARTITION BY org, repo, name ORDER BY created_at DESC, d.id DESC) = 1""",
}


@dataclass(frozen=True)
class Migration:
    """One step from the version before to `version`; its statements run in one transaction."""

    version: int
    name: str
    statements: tuple[str, ...]


def first_statements() -> tuple[str, ...]:
    """The statements that make version 1 out of nothing."""
    return (
        "CREATE TABLE store (id VARCHAR, created_at TIMESTAMP)",
        "CREATE TABLE migrations (version BIGINT, name VARCHAR, program VARCHAR, run_at TIMESTAMP)",
        "CREATE TABLE known_fields (name VARCHAR)",
        *(table.ddl for table in tables().values()),
    )


def migrations() -> tuple[Migration, ...]:
    """All steps, oldest first; a released step is never edited."""
    return (Migration(1, "first", first_statements()),)


def view_statements() -> list[str]:
    """Views hold no data, so they are simply made anew by every program that opens the file."""
    return [f"CREATE OR REPLACE VIEW {name} AS {sql}" for name, sql in VIEWS.items()]


def known_fields() -> set[str]:
    """Every model field this program can keep. A file with others was written by a newer program.

    An older program would drop the new field from each row that it saves again, so it must not open such a file.
    """
    return {f"{table.name}.{field}" for table in tables().values() if table.model for field in table.model.model_fields}


def literal(value: Any) -> str:
    """A SQL string literal, for the statements that take no parameters (ATTACH)."""
    return "'" + str(value).replace("'", "''") + "'"
