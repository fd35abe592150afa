"""What can be written: the changes a caller commits, turned into rows in the caller's thread.

Rows are made when `commit` is called, not when the writer gets to them: a caller may change its object while it waits.
This file knows the models and the columns; it knows nothing of DuckDB.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from coreagent.models.dispatch import Attempt, Dispatch, Event, Repo
from coreagent.models.report import RescueRow
from coreagent.store.schema import Table, table_of

Key = tuple[Any, ...]


@dataclass(frozen=True)
class SaveDispatch:
    dispatch: Dispatch


@dataclass(frozen=True)
class SaveAttempt:
    attempt: Attempt


@dataclass(frozen=True)
class SaveEvent:
    """Appended; its `seq` is given by the writer and comes back from `commit`."""

    event: Event


@dataclass(frozen=True)
class SaveRepo:
    repo: Repo


@dataclass(frozen=True)
class DropRepo:
    org: str
    name: str


@dataclass(frozen=True)
class SaveRescue:
    rescue: RescueRow


@dataclass(frozen=True)
class SetControl:
    """Any JSON value under a key: frozen pools, parked pools, limits (`limit:<pool>` feeds the concurrency view)."""

    key: str
    value: Any
    """None removes the key."""


Change = SaveDispatch | SaveAttempt | SaveEvent | SaveRepo | DropRepo | SaveRescue | SetControl


@dataclass(frozen=True)
class Write:
    """One row to replace (or, without `row`, to remove) in a table."""

    table: str
    key: Key
    row: tuple[Any, ...] | None
    """Values in the order of `Table.columns`, without the transaction number."""


def writes(changes: Sequence[Change]) -> tuple[list[Write], list[Event]]:
    """Turn changes into rows; events come back apart because only the writer can number them."""
    rows: list[Write] = []
    events: list[Event] = []
    for change in changes:
        match change:
            case SaveDispatch(dispatch):
                rows.append(_model_write("dispatches", dispatch))
            case SaveAttempt(attempt):
                rows.append(_model_write("attempts", attempt))
            case SaveRepo(repo):
                rows.append(_model_write("repos", repo))
            case SaveRescue(rescue):
                rows.append(_model_write("rescues", rescue))
            case DropRepo(org, name):
                rows.append(Write("repos", (org, name), None))
            case SetControl(key, None):
                rows.append(Write("controls", (key,), None))
            case SetControl(key, value):
                rows.append(Write("controls", (key,), (key, to_json(value))))
            case SaveEvent(event):
                events.append(event.model_copy(update={"data": json.loads(to_json(event.data))}))
    return rows, events


def event_row(event: Event) -> tuple[Any, ...]:
    return (
        event.seq,
        to_column(event.at),
        text(event.name),
        text(event.dispatch_id),
        text(event.workspace),
        to_json(event.data),
    )


def _model_write(name: str, model: BaseModel) -> Write:
    table = table_of(name)
    row = [to_column(getattr(model, column)) for column in table.typed]
    if table.rest:
        row.append(_rest_json(table, model))
    key = tuple(to_column(getattr(model, column)) for column in table.key)
    return Write(name, key, tuple(row))


def _rest_json(table: Table, model: BaseModel) -> str:
    # Defaults are left out: most of 10,000 rows then parse in a fraction of the time.
    try:
        return model.model_dump_json(include=table.rest_fields, exclude_defaults=True)
    except (PydanticSerializationError, UnicodeEncodeError):
        # Agent-made bytes that were decoded with surrogates; the row matters more than the odd byte.
        return to_json(model.model_dump(mode="python", include=table.rest_fields, exclude_defaults=True))


def to_json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def to_column(value: Any) -> Any:
    """One Python value as DuckDB shall see it: times are naive UTC (its zoned type needs an extra package)."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None)
    return value


def text(value: str) -> str:
    """`value` as valid Unicode: lone surrogates, which nothing can store, become U+FFFD."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if value is None or isinstance(value, bool | int | float):
        return value
    return text(str(value))
