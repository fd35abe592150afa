"""Which agent a new task is given to: what was asked for is looked up, found on this machine, and logged in.

Of a list (`a,b,c`) it is the first one that can be used; why the ones before it cannot is kept with the dispatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coreagent import config, runners
from coreagent.capability import Caller
from coreagent.config import Chosen, Settings
from coreagent.dispatch import fallback, launch
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Tried
from coreagent.runners import named

if TYPE_CHECKING:
    from coreagent.core import Core


@dataclass(frozen=True)
class Choice:
    agent: str
    """The part of the request that it is."""
    chosen: Chosen
    agents: list[str] = field(default_factory=list)
    """The whole list, when there is one."""
    tried: list[Tried] = field(default_factory=list)


def agents_of(text: str) -> list[str]:
    """`a, b:m` as a list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def choose(
    core: Core, caller: Caller, text: str, settings: Settings, *, by_default: bool = False, later: bool = False
) -> Choice:
    """Return the first agent of the request that can be used; with `later` the first one, when none can yet. Blocking.

    Raises: unknown_agent, remote_identity for any of them; runner_missing, runner_too_old, not_logged_in of the first
    one when none can be used.
    """
    names = agents_of(text) or [text]
    chosen = [config.resolve_agent(name, settings) for name in names]
    refused: list[CoreAgentError] = []
    tried: list[Tried] = []
    for name, one in zip(names, chosen, strict=True):
        try:
            require(core, caller, one, settings)
        except CoreAgentError as error:
            if error.slug not in fallback.UNUSABLE:
                raise
            refused.append(error)
            tried.append(Tried(agent=name, reason=error.slug, at=core.now()))
            continue
        return Choice(name, one, names if len(names) > 1 else [], tried)
    if later:
        return Choice(names[0], chosen[0], names if len(names) > 1 else [])
    if by_default and chosen[0].runner in runners.REAL and refused[0].slug != "not_logged_in":
        raise _nobody(core, caller, text, refused[0])
    raise refused[0]


def _nobody(core: Core, caller: Caller, agent: str, refusal: CoreAgentError) -> CoreAgentError:
    """The default agent cannot be used: say which others can, and what to install when there is none. Blocking."""
    env, ready = caller.env or core.env, []
    for name in runners.REAL:
        own = launch.runner_settings(core, name)
        runner = runners.load(name)
        if not runner.find(env, own).problem and runner.login(env, own).state != "no":
            ready.append(name)
    others = f"ready here: {', '.join(ready)}" if ready else f"none of {', '.join(runners.REAL)} is ready here"
    instead = f"use another: --agent {ready[0]}; or " if ready else ""
    return CoreAgentError(
        refusal.slug,
        f"the default agent is {agent}, and {refusal.message}",
        cause=others,
        hint=f"{instead}{refusal.hint}; `core-agent agents` shows all",
        data={"ready": ready},
    )


def require(core: Core, caller: Caller, chosen: Chosen, settings: Settings) -> None:
    """Raise what keeps an agent from being used here: runner_missing, runner_too_old, not_logged_in."""
    runner = runners.load(chosen.runner)
    own = launch.runner_settings(core, chosen.runner)
    env = caller.env or core.env
    found = runner.find(env, own)
    if chosen.runner in named.RUNNERS:
        named.require_chosen(chosen, settings, env)
    else:
        found.require()
    login = runner.login(env, own)
    if login.state == "no":
        raise CoreAgentError("not_logged_in", f"{chosen.runner} is not logged in", cause=login.how, hint=login.hint)
