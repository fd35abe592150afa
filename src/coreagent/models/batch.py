"""Tasks that belong together: what a person writes of them, and what is told of them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from coreagent.models.agent import Cost, Reason
from coreagent.models.dispatch import Fate, State
from coreagent.models.report import AcceptReply, MoveReply

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_S = 30 * 86400.0


def _joined(given: Any) -> Any:
    """A list of agents, tried one after the other, as `--agent a,b` takes it."""
    return ",".join(given) if isinstance(given, list) and all(isinstance(one, str) for one in given) else given


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _seconds(given: Any) -> Any:
    """`90s`, `10m`, `1h30m`, or a number of seconds."""
    if not isinstance(given, str):
        return given
    parts = list(_DURATION.finditer(given.strip()))
    if not parts or "".join(part.group(0) for part in parts) != given.strip():
        raise ValueError("must be a time like 90s, 10m, 2h or 1h30m")
    return sum(float(part.group(1)) * _UNITS[part.group(2)] for part in parts)


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=LONGEST_S)]
Agents = Annotated[str, BeforeValidator(_joined)]
Names = Annotated[list[str], BeforeValidator(_listed)]


class TaskDefaults(BaseModel):
    """What the tasks of a file have in common, under `defaults:`; each task may say it for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    agent: Agents = ""
    """Who does it; a list is tried in order."""
    repo: str = ""
    """A path, seen from where the file is given, or org/name of a registered one."""
    template: str = ""
    plan: str = ""
    persona: str = ""
    vars: dict[str, str] = Field(default_factory=dict)
    """Values of placeholders, for the texts of the tasks as for their templates."""
    branch: str | None = None
    tag: str | None = None
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    timeout: Duration | None = None
    idle_timeout: Duration | None = None
    expect: Literal["changes", "none"] = "changes"
    permissions: Literal["edits", "bypass"] | None = None
    with_changes: bool = False
    fetch: bool = False
    """Fetch first, and start from where the remote has the branch."""
    escalate: bool = False
    ephemeral: bool = False
    args: Names = Field(default_factory=list)
    """More arguments for the agent's own CLI."""
    script: str = ""
    """For the `scripted` runner: the YAML text."""


class TaskEntry(TaskDefaults):
    """One task."""

    task: str
    """What is to be done, in the words the agent gets."""
    name: str = ""
    """What its workspace is called, and how other tasks of the file name it; made of the task's words by default."""
    after: Names = Field(default_factory=list)
    """Names of the tasks of this file that must have ended well before."""
    on_top: bool = False
    """Start from the result of the one task that it comes after."""
    issue: int | None = None
    pr: int | None = None


class TaskFile(BaseModel):
    """A whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal["1"] = "1"
    batch: str = ""
    """Name of the whole; a second run of the same name uses again what the first one queued."""
    vars: dict[str, str] = Field(default_factory=dict)
    defaults: TaskDefaults = TaskDefaults()
    tasks: list[TaskEntry] = Field(min_length=1, max_length=1000)


class BatchRow(BaseModel):
    """One task of a batch as it was queued, or would be."""

    key: str
    """What the file, or the command, calls it."""
    workspace: str
    dispatch_id: str = ""
    state: State
    waiting_for: str = ""
    agent: str
    pool: str
    branch: str
    base_ref: str = ""
    base_sha: str = ""
    after: list[str] = Field(default_factory=list)
    """Names of the tasks before it."""
    on_top: str = ""
    """The one of them whose result it starts from."""
    reused: bool = False
    """It was there already, from an earlier run of the same batch."""
    note: str = ""
    task: str = ""
    """First line, at most 120 characters."""


class BatchReply(BaseModel):
    """Answer of `dispatch --file`, `--count` and `--agents`."""

    batch: str
    """What `compare`, `wait` and `pick` know the whole by."""
    tasks: list[BatchRow]
    """In an order in which each comes after those it waits for."""
    dry_run: bool = False
    notes: list[str] = Field(default_factory=list)


class TrialResult(BaseModel):
    """What is known of the tests of one result."""

    verdict: Literal["unknown", "passed", "failed", "timeout", "error"] = "unknown"
    """`unknown`: nobody ran any here. `error`: the command could not be run."""
    exit_code: int | None = None
    seconds: float | None = None
    tail: list[str] = Field(default_factory=list)
    """The last lines of what the command said."""


class CompareRow(BaseModel):
    """One of several results of the same task."""

    workspace: str
    dispatch_id: str
    agent: str
    model: str = ""
    state: State
    reason: Reason | None = None
    fate: Fate = Fate.OPEN
    sha: str = ""
    """The commit that was compared, "" when there is none."""
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    tests: TrialResult = TrialResult()
    cost: Cost = Cost()
    tokens: int = 0
    worked_s: float | None = None
    same_as: str = ""
    """The first workspace of the list with the very same changes, "" when nobody has them."""
    created_at: datetime


class CompareReport(BaseModel):
    """Answer of `compare`."""

    batch: str = ""
    rows: list[CompareRow]
    test: str = ""
    """The command that was run in a clean checkout of each."""
    diff: str = ""
    """What lies between the two that were named with `--diff`."""
    truncated: bool = False
    notes: list[str] = Field(default_factory=list)


class PickReply(BaseModel):
    """Answer of `pick`."""

    workspace: str
    accepted: AcceptReply | None = None
    """How it landed; null when it had landed before."""
    rejected: list[MoveReply] = Field(default_factory=list)
    """The others, with what became of their work."""
    undo: str = ""
    """The git command that takes the landing back."""


class AdoptCandidate(BaseModel):
    """A worktree that could be adopted."""

    path: str
    branch: str = ""
    source: Literal["git worktree", "claude-squad", "vibe-kanban"] = "git worktree"
    title: str = ""
    """What its tool calls it."""
    base_sha: str = ""
    commits: int = 0
    """Commits above the base."""
    dirty: int = 0
    """Changed and untracked files."""
    session_id: str = ""
    """The newest session of claude there, "" when none was found."""
    adopted_as: str = ""
    """The workspace that it was adopted as already."""


class AdoptReply(BaseModel):
    """Answer of `adopt`."""

    workspace: str
    dispatch_id: str
    state: State
    path: str
    """The new workspace's directory."""
    source: str
    """Where it came from; nothing there was changed."""
    branch: str
    """Where its work is in the repository; "" when it could not be brought there."""
    base_ref: str = ""
    base_sha: str = ""
    agent: str
    commits: int = 0
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    session_id: str = ""
    again: bool = False
    """It had been adopted before."""
    notes: list[str] = Field(default_factory=list)
