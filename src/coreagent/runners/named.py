"""Agents that are asked for by the name of a program in the settings: `command:NAME`, and `acp:NAME` of known ones too.

Choosing an agent, listing all of them and planning a run come in, so that what one says is there is there for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from coreagent.errors import CoreAgentError
from coreagent.runners.base import which

if TYPE_CHECKING:
    from coreagent.config import Chosen, Settings

RUNNERS: Final = ("acp", "command")
"""Runners that cannot be asked for without a name."""


def located(program: str, env: Mapping[str, str]) -> str:
    """Where the program is, "" when it cannot be executed; a path within the checkout stays as it is written."""
    # As a shell would have it there; whether it is there is known when there is a checkout.
    return program if "/" in program and program[0] not in "/~" else which(program, env)


def missing(program: str) -> str:
    """What people are told of a program that is not there."""
    return f"{program} cannot be executed" if "/" in program else f"{program} is not on the PATH"


def require(program: str, env: Mapping[str, str], setting: str, install: str = "") -> str:
    """Return where the program of that setting (`commands.NAME`, `acp.NAME`) is.

    Raises: runner_missing.
    """
    if path := located(program, env):
        return path
    how = f"install it with `{install}`, or name it" if install else "name it"
    raise CoreAgentError(
        "runner_missing",
        missing(program),
        cause=f"it is the program of {setting}",
        hint=f"{how} with its full path as {setting}.argv in agents.yaml; `core-agent agents` shows all",
    )


def require_chosen(chosen: Chosen, settings: Settings, env: Mapping[str, str]) -> None:
    """Raise runner_missing when the agent that was chosen is one of these, and its program is not there."""
    if chosen.runner == "command" and (command := settings.commands.get(chosen.model)):
        require(command.argv[0], {**env, **command.env}, f"commands.{chosen.model}")
    if chosen.runner == "acp":
        from coreagent.runners.acp import KNOWN

        name = chosen.model.partition(":")[0]
        own, known = settings.acp.get(name), KNOWN.get(name)
        if own is not None:
            require(own.argv[0], env, f"acp.{name}")
        elif known is not None:
            require(known.argv[0], env, f"acp.{name}", known.install)
