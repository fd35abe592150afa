"""What the commands print that run in the person's own process, without a capability that answers."""

from __future__ import annotations

from pydantic import BaseModel

from coreagent.models.agent import Reason
from coreagent.models.dispatch import State


class InitReply(BaseModel):
    """What `init` prints."""

    home: str
    settings: str
    """The settings file."""
    written: bool
    """False when there was one and it stays as it is."""
    kept: str = ""
    """Where the settings of before are kept; "" when there were none, or they stay."""
    default_agent: str | None = None
    """None when nothing was written."""


class OpenReply(BaseModel):
    """What `open --json` prints; no editor is opened then."""

    workspace: str
    path: str
    """The checkout."""


class AttachCommand(BaseModel):
    """What `attach --json` prints: what a person would paste. No turn is ended then."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    """What must be set for it; no secret is among it."""
    from_your_shell: list[str]
    """Names of variables that it needs besides, and that the person's own shell has."""


class DemoReply(BaseModel):
    """What `demo` prints at its end; what it did not come to is empty."""

    agent: str
    accepted: bool = False
    repository: str = ""
    test_before: bool | None = None
    """Whether the test passed before the agent worked: it does not."""
    workspace: str = ""
    branch: str = ""
    state: State | None = None
    reason: Reason | None = None
    files: int = 0
    """Changed ones."""
    test_after: bool | None = None
    """Whether the test passes on the agent's branch; nothing is accepted where it fails."""
    forgotten: bool = False
    """The repository was removed again (`--clean`)."""


class VersionReply(BaseModel):
    """What `version` prints."""

    version: str
    python: str
    platform: str


class CompletionReply(BaseModel):
    """What `completion` prints."""

    shell: str
    script: str = ""
    """With `--install` it is in the file."""
    path: str = ""
    """The file that was written."""
    hint: str = ""
    """What a person still has to do."""


class DaemonLogLine(BaseModel):
    """One line of `daemon logs`."""

    line: str
