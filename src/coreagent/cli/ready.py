"""Which real agent is ready on this machine: what `init` writes as the default, and who plays in the demo.

Looks at programs and logins by the environment of whoever asks; asks neither the network nor the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coreagent import config, runners
from coreagent.config import Settings
from coreagent.errors import CoreAgentError
from coreagent.runners.base import Found, Login


@dataclass(frozen=True)
class Candidate:
    """One real agent, as it was found."""

    name: str
    found: Found
    login: Login

    @property
    def ready(self) -> bool:
        return not self.found.problem and self.login.state != "no"


def candidates(env: Mapping[str, str], settings: Settings | None = None) -> list[Candidate]:
    """Every real agent, the first the default. Blocking."""
    own = (settings or Settings()).runners
    looked = []
    for name in runners.REAL:
        runner, said = runners.load(name), own.get(name) or config.RunnerSettings()
        found = runner.find(env, said)
        login = Login("unknown") if found.problem else runner.login(env, said)
        looked.append(Candidate(name, found, login))
    return looked


def best(looked: list[Candidate]) -> tuple[str, str]:
    """The first agent that is there and logged in, else the first that is there, else the first; and why."""
    for one in looked:
        if one.ready:
            return one.name, f"version {one.found.version} was found"
    for one in looked:
        if not one.found.problem:
            return one.name, f"found, but not logged in: {one.login.hint}"
    return looked[0].name, f"no agent's CLI was found: {looked[0].found.hint}"


def why_none(looked: list[Candidate]) -> str:
    """Why no real agent works: in plain words, each that is there with its reason."""
    there = [one for one in looked if one.found.path]
    if not there:
        return "because no agent CLI is installed"
    out = [one for one in there if not one.found.problem]
    if not out:
        return "because no agent CLI is new enough: " + "; ".join(one.found.message for one in there)
    return f"because no agent CLI is logged in ({', '.join(one.name for one in out)})"


def settings_of(home: str, env: Mapping[str, str]) -> Settings:
    """The person's settings, or the defaults where theirs are wrong: who needs them says so."""
    try:
        return config.load(home, dict(env)).settings
    except CoreAgentError:
        return Settings()
