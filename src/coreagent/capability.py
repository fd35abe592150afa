"""A capability is one async function; this decorator and registry give it its faces.

    @capability("status", tool="agentic_status", cli="status", roles=READ)
    async def status(core: Core, workspace: str = "") -> StatusReport: ...

The first parameter is the Core (given by the caller of `call`), the second may be `caller: Caller`; the others,
all annotated, are the inputs. The docstring is the help, the return annotation the result. Nothing is declared twice.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from coreagent.arguments import nearest, refusal
from coreagent.errors import CoreAgentError, told


@dataclass(frozen=True)
class Caller:
    """Who is asking (architecture, idea 5). `attempt` is set when the kernel says that an agent's process asks."""

    role: str = "person"
    """person | worker | mcp (an MCP client that a person started; has a person's rights) | system"""
    pid: int = 0
    uid: int = 0
    attempt: str = ""
    workspace: str = ""
    env: dict[str, str] = field(default_factory=dict)
    """The client's allow-listed environment; travels with a task."""
    cwd: str = ""
    interactive: bool = False


PERSON = frozenset({"person", "mcp", "system"})
EVERYONE = PERSON | {"worker"}


@dataclass(frozen=True)
class Capability:
    name: str
    function: Callable[..., Awaitable[Any]]
    tool: str
    """MCP tool name, "" when it has none."""
    cli: str
    roles: frozenset[str]
    read_only: bool
    destructive: bool
    inputs: type[BaseModel]
    result: TypeAdapter[Any]
    wants_caller: bool

    @property
    def help(self) -> str:
        return inspect.getdoc(self.function) or ""


REGISTRY: dict[str, Capability] = {}


def capability(
    name: str,
    *,
    tool: str = "",
    cli: str = "",
    roles: frozenset[str] = PERSON,
    read_only: bool = False,
    destructive: bool = False,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Register an async function as the capability `name`, under its contract names."""

    def register(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        if name in REGISTRY and REGISTRY[name].function.__qualname__ != function.__qualname__:
            raise AssertionError(f"capability {name} registered twice")
        hints = get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        wants_caller = bool(parameters) and parameters[0].name == "caller"
        if wants_caller:
            parameters = parameters[1:]
        fields: dict[str, Any] = {
            p.name: (hints[p.name], ... if p.default is inspect.Parameter.empty else p.default) for p in parameters
        }
        inputs = create_model(f"{function.__name__}_inputs", __config__=ConfigDict(extra="forbid"), **fields)
        REGISTRY[name] = Capability(
            name=name,
            function=function,
            tool=tool,
            cli=cli,
            roles=roles,
            read_only=read_only,
            destructive=destructive,
            inputs=inputs,
            result=TypeAdapter(hints.get("return", Any)),
            wants_caller=wants_caller,
        )
        return function

    return register


async def call(core: Any, name: str, arguments: dict[str, Any], caller: Caller) -> Any:
    """Check role and arguments, run the capability, and return its result object.

    Raises: unknown_capability, role_forbidden, invalid_argument (names the argument), and what the function raises.
    """
    found = REGISTRY.get(name)
    if found is None:
        near = nearest(name, list(REGISTRY))
        hint = f"did you mean {near}?" if near else ""
        raise CoreAgentError("unknown_capability", f"there is no capability named {name!r}", hint=hint)
    if caller.role not in found.roles:
        raise CoreAgentError(
            "role_forbidden",
            f"an agent may not call {name}" if caller.role == "worker" else f"role {caller.role} may not call {name}",
            cause=f"the call came from below attempt {caller.attempt}" if caller.attempt else "",
            hint="leave this to the person: write what you need into BLOCKED.md and stop",
        )
    try:
        inputs = found.inputs.model_validate(arguments)
    except ValidationError as error:
        raise refusal(name, found.inputs, error) from None
    values = {key: getattr(inputs, key) for key in found.inputs.model_fields}
    try:
        if found.wants_caller:
            return await found.function(core, caller, **values)
        return await found.function(core, **values)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CoreAgentError(
            "no_space",
            "there is no space left on the disk of the home directory",
            cause=told(error),
            hint="free some space and ask again; what was accepted before is kept",
        ) from error


def dump(name: str, result: Any) -> Any:
    """The result as plain JSON data, by the capability's declared return type."""
    return REGISTRY[name].result.dump_python(result, mode="json")
