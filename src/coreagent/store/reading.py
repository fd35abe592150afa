"""From rows back to models, many at a time."""

# ruff: noqa: S608 (table and column names come from schema.py, values are parameters)
from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import duckdb
from pydantic import BaseModel, TypeAdapter, ValidationError

from coreagent.models.dispatch import Event
from coreagent.store.schema import Table, table_of

M = TypeVar("M", bound=BaseModel)


def select(name: str, tail: str = "") -> str:
    """`SELECT` of a table's columns in their own order; `tail` is WHERE, ORDER BY, LIMIT."""
    columns = ", ".join(f't."{column}"' for column in table_of(name).columns)
    return f'SELECT {columns} FROM "{name}" t {tail}'


def models(name: str, kind: type[M], rows: Sequence[tuple[Any, ...]]) -> tuple[list[M], list[str]]:
    """The rows of `select(name)` as models, and one line for each row that is none (it is left out)."""
    table = table_of(name)
    raw = [_as_dict(table, kind, row) for row in rows]
    try:
        return TypeAdapter(list[kind]).validate_python(raw), []  # type: ignore[valid-type]
    except ValidationError:
        # One row that this program cannot read must not hide the others.
        return _one_by_one(table, kind, raw)


def _one_by_one(table: Table, kind: type[M], raw: list[dict[str, Any]]) -> tuple[list[M], list[str]]:
    good: list[M] = []
    problems: list[str] = []
    for values in raw:
        try:
            good.append(kind.model_validate(values))
        except ValidationError as error:
            key = "/".join(str(values.get(column)) for column in table.key)
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            problems.append(f"{table.name} {key}: {field}: {first['msg']}")
    return good, problems


def _as_dict(table: Table, kind: type[BaseModel], row: tuple[Any, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if table.rest:
        rest = row[-1]
        if rest and rest != "{}":
            values.update(json.loads(rest))
    for column, value in zip(table.typed, row, strict=False):
        if value is None:
            continue
        if isinstance(value, datetime):
            value = value.replace(tzinfo=UTC)
        values[column] = value
    return values


def event(row: tuple[Any, ...]) -> Event:
    seq, at, name, dispatch_id, workspace, data = row
    return Event(
        seq=seq,
        at=at.replace(tzinfo=UTC),
        name=name,
        dispatch_id=dispatch_id,
        workspace=workspace,
        data=json.loads(data),
    )


def plain_rows(result: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Every row as a dict: times aware, JSON columns parsed."""
    description = result.description or []
    names = [str(column[0]) for column in description]
    is_json = [str(column[1]) == "JSON" for column in description]
    return [
        {name: _plain_value(value, parse) for name, value, parse in zip(names, row, is_json, strict=True)}
        for row in result.fetchall()
    ]


def _plain_value(value: Any, parse: bool) -> Any:
    if parse and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value
