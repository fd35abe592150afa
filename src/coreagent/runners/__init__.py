"""The family of agent runners: name -> `module:Class`, resolved on use: nobody pays for what is not dispatched."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Final

from coreagent.errors import CoreAgentError, told

if TYPE_CHECKING:
    from coreagent.runners.base import Runner

FAMILY: Final[dict[str, str]] = {
    "acp": "coreagent.runners.acp:Acp",
    "claude": "coreagent.runners.claude:Claude",
    "codex": "coreagent.runners.codex:Codex",
    "command": "coreagent.runners.command:Command",
    "gemini": "coreagent.runners.gemini:Gemini",
    "opencode": "coreagent.runners.opencode:Opencode",
    "scripted": "coreagent.runners.scripted:Scripted",
}

REAL: Final = tuple(name for name in FAMILY if name not in ("acp", "command", "scripted"))
"""Agents that work on a task by themselves, with a CLI of a known name; the first is the default."""


def load(name: str) -> Runner:
    """Return the runner of that name, or of a dotted path `package.module:Class`.

    Raises: unknown_agent.
    """
    target = FAMILY.get(name, name if ":" in name and "." in name else "")
    module_name, _, class_name = target.partition(":")
    if not class_name:
        near = difflib.get_close_matches(name, FAMILY, n=1)
        known = ", ".join(sorted(FAMILY))
        raise CoreAgentError(
            "unknown_agent",
            f"no runner is called {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known runners: {known}",
        )
    try:
        runner: Runner = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError) as error:
        raise CoreAgentError("unknown_agent", f"runner {name!r} cannot be loaded", cause=told(error)) from error
    return runner
