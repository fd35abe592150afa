"""The tools that the registry amounts to: names, schemas and hints, and what a call of one answers.

The protocol comes in with a tool's name and arguments; nothing is declared here that a capability did not say itself.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from typing import Any

import mcp_types as types
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from coreagent.capability import REGISTRY, Caller, Capability, call, dump
from coreagent.errors import CoreAgentError, told

_log = logging.getLogger(__name__)


class _Untitled(GenerateJsonSchema):
    """A schema without the titles that only repeat the names: a client pays for every word of it in tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def named(tool: str) -> Capability | None:
    """Return the capability behind a tool name."""
    return next((found for found in REGISTRY.values() if found.tool and found.tool == tool), None)


def offered(caller: Caller) -> list[types.Tool]:
    """Return the tools that this caller's role may call."""
    return [describe(found.name) for found in REGISTRY.values() if found.tool and caller.role in found.roles]


@cache
def describe(name: str) -> types.Tool:
    """Return the tool of a capability; its schemas come from its signature."""
    found = REGISTRY[name]
    return types.Tool(
        name=found.tool,
        title=found.name,
        description=found.help,
        input_schema=_schema(found.inputs.model_json_schema(schema_generator=_Untitled)),
        output_schema=_schema(_output_schema(found)),
        annotations=types.ToolAnnotations(
            read_only_hint=found.read_only,
            destructive_hint=found.destructive,
            idempotent_hint=found.read_only,
            open_world_hint=False,
        ),
    )


async def answer(core: Any, caller: Caller, found: Capability, arguments: dict[str, Any]) -> types.CallToolResult:
    """Call a capability; what goes wrong becomes an `isError` result with the body that every face sends."""
    try:
        result = await call(core, found.name, arguments, caller)
        data = dump(found.name, result)
    except CoreAgentError as error:
        return _result(error.as_dict(), is_error=True)
    except Exception as error:
        _log.exception("tool %s failed", found.tool)
        cause = told(error)
        return _result(
            CoreAgentError("internal", f"{found.tool} failed unexpectedly", cause=cause).as_dict(), is_error=True
        )
    return _result(data if _is_object(found) else {"result": data})


def _result(data: dict[str, Any], *, is_error: bool = False) -> types.CallToolResult:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=data, is_error=is_error)


def _output_schema(found: Capability) -> dict[str, Any]:
    mode: JsonSchemaMode = "serialization"
    schema = found.result.json_schema(mode=mode, schema_generator=_Untitled)
    if _is_object(found):
        return schema
    # Protocol versions through 2025-11-25 allow nothing but an object at the root.
    definitions = schema.pop("$defs", {})
    return {"type": "object", "properties": {"result": schema}, "required": ["result"], "$defs": definitions}


def _is_object(found: Capability) -> bool:
    kind = getattr(found.result, "_type", None)
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "description")}
