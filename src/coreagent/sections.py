"""Sections of agents.yaml about what happens around the work: hooks, ports, and who is told of what.

`config` comes in and puts them into the whole file. Nothing here runs, opens or sends anything.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]
Notice = Literal["blocked", "completed", "failed", "needs_review", "parked"]
NOTICES: Final[tuple[Notice, ...]] = ("blocked", "completed", "failed", "needs_review", "parked")

PORT_FIRST: Final = 1024
PORT_LAST: Final = 65535
EPHEMERAL: Final = 32768
"""Where Linux begins to hand out ports by itself; a block below it is not taken by somebody's outgoing connection."""


class Section(BaseModel):
    """One part of a settings file: nothing unknown is passed over, and nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SetupHook(Section):
    """What runs in a fresh workspace before the agent: a shell line, or a list of arguments."""

    run: str | list[str] = ""
    timeout_s: Seconds = 600


class TeardownHook(Section):
    """What runs before a workspace is removed: a shell line, or a list of arguments. It cannot keep the workspace."""

    run: str | list[str] = ""
    timeout_s: Seconds = 60


class Hooks(Section):
    setup: SetupHook = SetupHook()
    teardown: TeardownHook = TeardownHook()


class PortsSettings(Section):
    """The block of ports on 127.0.0.1 that each workspace has to itself."""

    base: Annotated[int, Field(ge=PORT_FIRST, le=PORT_LAST)] = 20000
    """The first port that is given out; a base below 32768 stays below it, where the system takes none by itself."""
    count: Annotated[int, Field(ge=0, le=1000)] = 10
    """Ports per workspace; 0 gives none."""

    @property
    def last(self) -> int:
        """The last port that may be given out."""
        return EPHEMERAL - 1 if self.base < EPHEMERAL else PORT_LAST

    @model_validator(mode="after")
    def _fits(self) -> PortsSettings:
        if self.base + self.count - 1 > self.last:
            raise ValueError(f"no block of {self.count} ports fits between {self.base} and {self.last}")
        return self


class WebhookSettings(Section):
    """Where notices are posted to as JSON."""

    url: str = ""
    """http:// or https://; "" posts nothing."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Header -> name of the variable of the daemon's environment that holds its value; a secret never stands here."""
    timeout_s: Seconds = 10

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and not re.match(r"https?://[^/\s]", value):
            raise ValueError("must begin with http:// or https:// and name a host")
        return value

    @field_validator("headers")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for header, name in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{header} must name an environment variable, not hold the value itself")
        return value


class NotifySettings(Section):
    """Who is told when something happens that a person may be waiting for."""

    on: list[Notice] = Field(default_factory=lambda: list(NOTICES))
    """Of what. `completed`: a task ended well, whether there is something to look at or not."""
    repos: list[str] = Field(default_factory=list)
    """Only of these repositories: org/name, where * stands for anything; none named is all."""
    agents: list[str] = Field(default_factory=list)
    """Only of these agents, as they are asked for, where * stands for anything; none named is all."""
    desktop: bool = False
    """With notify-send, or osascript on macOS."""
    command: list[str] = Field(default_factory=list)
    """A program and its arguments; it reads the notice as JSON from its standard input."""
    webhook: WebhookSettings = WebhookSettings()
