"""What capabilities answer with: the shapes behind `--json` (docs/json.md) and behind the terminal views."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from coreagent.models.agent import AgentEvent, Cost, Reason, Usage
from coreagent.models.dispatch import Fate, Stage, State, Tried


class DispatchReply(BaseModel):
    """Answer of `dispatch`, `resume` and `prep`."""

    dispatch_id: str
    workspace: str
    state: State
    branch: str
    base_ref: str = ""
    base_sha: str = ""
    agent: str
    pool: str
    left_out: int = 0
    """Dirty files of the user's tree that the workspace starts without (`--with-changes` carries them)."""
    notes: list[str] = Field(default_factory=list)
    """Things a person should read: left-out files, consent in force, a resumed workspace."""
    resumed: bool = False
    dry_run: bool = False
    prompt: str = ""
    """Dry run: the rendered prompt."""
    argv: list[str] = Field(default_factory=list)
    """Dry run: the command line that would be executed."""
    path: str = ""
    """The workspace directory."""


class WorkspaceRow(BaseModel):
    workspace: str
    dispatch_id: str
    state: State
    reason: Reason | None = None
    stage: Stage = Stage.NONE
    fate: Fate = Fate.OPEN
    waiting_until: datetime | None = None
    waiting_for: str = ""
    detail: str = ""
    question: str = ""
    stuck: bool = False
    """Queued behind another task, and goes on only when a person does something about it, or about that one."""
    needs_me: bool = False
    """Blocked, failed, paused, or completed with changes nobody accepted or rejected."""
    attached_pid: int = 0
    """The `attach` of a person who is in its interactive session, 0 when nobody is; nothing is decided meanwhile."""
    attached_since: datetime | None = None
    agent: str
    pool: str
    model: str = ""
    bypass: bool = False
    """Runs without asking and without a sandbox (consented)."""
    branch: str = ""
    task: str = ""
    """First line, at most 120 characters."""
    priority: int = 0
    runs: int = 0
    pid: int = 0
    """The live shim, 0 when there is none."""
    elapsed_s: float | None = None
    """How long its agents have worked, all attempts together; waiting between turns is not in it."""
    since: datetime
    """Since when it is in its state."""
    last_tool: str = ""
    last_text: str = ""
    tokens: int = 0
    cost: Cost = Cost()
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    denied_tools: list[str] = Field(default_factory=list)
    harvest_reason: str = ""
    rescue_ref: str = ""
    """Where the tip of work is kept that could not be brought home; empty when no commit of it is."""
    not_carried: str = ""
    """What of the person's files was asked for and not carried into the workspace, and why."""
    created_at: datetime
    changed_at: datetime


class Counts(BaseModel):
    queued: int = 0
    preparing: int = 0
    running: int = 0
    paused: int = 0
    blocked: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class ModelCap(BaseModel):
    model: str
    running: int = 0
    limit: int = 0


class WindowRow(BaseModel):
    """A provider's usage window as live runs reported it."""

    kind: str
    """`five_hour`, `seven_day`, ..."""
    used: float
    """Share, 0 to 1."""
    resets_at: datetime


class PoolRow(BaseModel):
    pool: str
    running: int = 0
    limit: int = 0
    """0 = unlimited."""
    queued: int = 0
    frozen: bool = False
    parked_until: datetime | None = None
    parked_for: str = ""
    """`rate_limit` or `outage`."""
    models: list[ModelCap] = Field(default_factory=list)
    today: int = 0
    """Starts since the daily reset."""
    daily_limit: int = 0
    """0 = unlimited."""
    resets_at: datetime | None = None
    """When the day of `daily_limit` begins anew."""
    next_start: datetime | None = None
    """When time alone lets the next one start; None: now, or an event tells."""
    held_by: str = ""
    """What holds the whole pool up: a word of `waiting_for`."""
    windows: list[WindowRow] = Field(default_factory=list)


class StatusReport(BaseModel):
    counts: Counts = Counts()
    workspaces: list[WorkspaceRow] = Field(default_factory=list)
    """Live ones and those that need a person, oldest first; `all` adds the settled ones."""
    queued_hidden: int = 0
    """How many more wait than `workspaces` holds; `queue list` shows them in their order."""
    strangers: int = 0
    """Agents that run and that the store does not know: it is an older copy, or cannot be used. Not in `counts`."""
    pools: list[PoolRow] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    """Store in memory only, bad settings file, frozen queue, daemon draining."""


class WhyReport(BaseModel):
    workspace: str
    state: State
    headline: str
    """One sentence: why it is as it is."""
    facts: list[str] = Field(default_factory=list)
    """The evidence, oldest first."""
    next: list[str] = Field(default_factory=list)
    """Commands that a person may want now."""


class WatchReply(BaseModel):
    """Answer of one `watch` call: what happened after `since`, or nothing when the time ran out."""

    seq: int
    events: list[dict[str, Any]] = Field(default_factory=list)
    workspaces: list[WorkspaceRow] = Field(default_factory=list)
    timed_out: bool = False
    over: bool = False
    """The workspace that was asked for was let go, and all of its events were told: nothing more will come."""


class MoveReply(BaseModel):
    workspace: str
    state: State
    reason: Reason | None = None
    fate: Fate = Fate.OPEN
    note: str = ""


class AcceptReply(BaseModel):
    workspace: str
    strategy: Literal["fast-forward", "merge", "squash", "rebase", "none"]
    """`none`: a person had merged it by hand, and the branch did not move."""
    onto: str
    before: str
    after: str
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    undo: str = ""
    """The git command that takes it back."""
    since: int = 0
    """Files that changed in the checkout since the agent ended, and were taken along."""
    notes: list[str] = Field(default_factory=list)


class DiffReply(BaseModel):
    workspace: str
    base: str
    head: str
    live: bool = False
    """Taken from the working tree of a running agent."""
    since: int = 0
    """Files that changed in the checkout since the agent ended: this is the working tree as it is now."""
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    text: str = ""
    truncated: bool = False


class LogEntry(BaseModel):
    attempt: int
    offset: int
    event: AgentEvent


class LogReply(BaseModel):
    workspace: str
    entries: list[LogEntry] = Field(default_factory=list)
    next: str = ""
    """Pass as `after` to go on."""
    live: bool = False
    skipped_bytes: int = 0
    """How much output lies before the first entry, when only the end was asked for."""
    stderr: str = ""


class HistoryRow(BaseModel):
    dispatch_id: str
    workspace: str
    agent: str
    tried: list[Tried] = Field(default_factory=list)
    """Agents that had it, or were passed over, before `agent`."""
    model: str = ""
    template: str = ""
    state: State
    reason: Reason | None = None
    fate: Fate
    runs: int
    worked_s: float | None
    tokens: int
    cost: Cost
    files: int
    insertions: int
    deletions: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    task: str
    note: str = ""
    """What went wrong when its workspace was removed."""


class RescueRow(BaseModel):
    workspace: str
    n: int
    ref: str
    sha: str
    reason: str
    files: int = 0
    at: datetime
    also: list[str] = Field(default_factory=list)
    """Where files of the same workspace lie that no commit can hold; one line each."""


class QueueRow(BaseModel):
    position: int
    workspace: str
    agent: str
    pool: str
    priority: int
    waiting_for: str
    waiting_until: datetime | None = None
    queued_at: datetime


class QueueReport(BaseModel):
    total: int = 0
    """How many wait; `rows` holds the first of them."""
    frozen: bool = False
    frozen_pools: list[str] = Field(default_factory=list)
    rows: list[QueueRow] = Field(default_factory=list)
    note: str = ""
    """What still holds up what `queue start` let go on."""


class WorkspaceShow(BaseModel):
    row: WorkspaceRow
    path: str
    exists: bool
    repo_path: str
    base_ref: str
    base_sha: str
    session_id: str
    prompt: str = ""
    agents: list[str] = Field(default_factory=list)
    """All agents that may do it, in the order in which they are tried; empty when there is one."""
    tried: list[Tried] = Field(default_factory=list)
    """Agents that had it, or were passed over, before the one that has it now."""
    attempts: list[dict[str, Any]] = Field(default_factory=list)
    usage: Usage = Usage()
    permissions: str = "edits"
    ports: str = ""
    """The first and the last port of its block."""
    keep_until: datetime | None = None


class CleanReply(BaseModel):
    removed: list[str] = Field(default_factory=list)
    kept: dict[str, str] = Field(default_factory=dict)
    """workspace -> why it stays."""
    dry_run: bool = False


class RepoRow(BaseModel):
    org: str
    name: str
    path: str
    default_branch: str = ""
    trusted: bool = False
    trust_stale: bool = False
    """The repository's `.core/` settings changed after they were trusted."""
    bypass_consent: bool = False
    managed: bool = False
    """Its checkout follows its remote."""
    fetched_at: datetime | None = None
    """When its remote was last heard of, since the daemon started."""
    fetch_failures: int = 0
    """Fetches in a row that failed; the next one waits the longer."""
    fetch_error: str = ""
    next_fetch: datetime | None = None


class FetchRow(BaseModel):
    """What one fetch brought."""

    repo: str
    """`org/name`; the path of one that is not registered."""
    path: str
    remote: bool = True
    """False when it has no remote `origin`."""
    moved: list[str] = Field(default_factory=list)
    """Remote-tracking branches that are new or elsewhere now, as `origin/main`."""
    error: str = ""
    hint: str = ""


class SyncReply(BaseModel):
    """Answer of `repo sync`."""

    repo: str
    path: str
    managed: bool
    branch: str
    state: Literal["current", "forwarded", "reset", "fetched"]
    """`fetched`: the checkout is not managed, so it was not moved."""
    before: str = ""
    after: str = ""
    moved: list[str] = Field(default_factory=list)
    kept: str = ""
    """Name under which `rescue apply` brings back what a reset took away; "" when there was nothing."""
    note: str = ""


class PushedReply(BaseModel):
    """Answer of `repo pushed`."""

    repo: str
    path: str
    managed: bool
    branch: str
    state: Literal["current", "forwarded", "fetched", "failed"]
    """`current`: a managed checkout has it already. `fetched`: nothing was moved; `moved` tells of news."""
    before: str = ""
    after: str = ""
    moved: list[str] = Field(default_factory=list)
    note: str = ""
    error: str = ""
    """Why a checkout could not follow, or its remote not be fetched."""
    hint: str = ""


class RepoRemoved(BaseModel):
    """Answer of `repo remove`."""

    repo: RepoRow
    cache: Literal["none", "removed", "kept"] = "none"
    """What became of the daemon's own copy of its commits; `kept` when rescued work is in it."""
    rescued: int = 0
    """How much rescued work of it there is; `rescue apply` goes on to bring it back."""


class TrustReply(BaseModel):
    repo: RepoRow
    hash: str
    settings: dict[str, str] = Field(default_factory=dict)
    """File -> text of every `.core/` file that runs commands, as read from the base commit."""
    applied: bool = False


class AgentRow(BaseModel):
    name: str
    """As `--agent` takes it: a runner, a named identity, or `command:NAME`."""
    kind: Literal["runner", "identity", "command"]
    runner: str
    found: bool
    path: str = ""
    others: list[str] = Field(default_factory=list)
    """Further programs of that name; `path` is the one that is used."""
    version: str = ""
    minimum: str = ""
    problem: str = ""
    login: Literal["yes", "no", "unknown", "not_needed"] = "unknown"
    login_how: str = ""
    pool: str = ""
    limit: int = 0
    running: int = 0
    use: PoolRow | None = None
    """What is used of its pool, and what holds the whole pool up."""
    variants: list[PoolRow] = Field(default_factory=list)
    """Pools of their own that the settings have for some of its models."""
    roles: list[str] = Field(default_factory=list)


class TemplateRow(BaseModel):
    name: str
    kind: Literal["template", "persona", "plan"]
    summary: str
    source: str


class TemplateShow(BaseModel):
    name: str
    kind: Literal["template", "persona", "plan"]
    source: str
    text: str
    variables: list[str] = Field(default_factory=list)


class StoreCopy(BaseModel):
    """Answer of `store.copy`."""

    path: str
    dispatches: int


class BecomeReply(BaseModel):
    """Answer of `daemon.become`, given before it does."""

    version: str
    executable: str


class NoticeSent(BaseModel):
    """How one channel took the notice of `notify test`."""

    channel: Literal["desktop", "command", "webhook"]
    arrived: bool
    problem: str = ""


class DaemonStatus(BaseModel):
    pid: int
    version: str
    python: str = ""
    """The interpreter that it runs in."""
    home: str
    socket: str
    uptime_s: float
    rss_bytes: int
    ephemeral: bool = False
    draining: bool = False
    running: int = 0
    strangers: int = 0
    """Agents that run and that the store does not know."""
    warnings: list[str] = Field(default_factory=list)


class StopReply(BaseModel):
    mode: Literal["leave", "restart", "drain", "now"]
    running: int
    strangers: int = 0
    """Agents that run and that the store does not know: they go on in every mode."""
    note: str = ""


class AttachReply(BaseModel):
    """What `attach` executes in the person's own terminal."""

    workspace: str
    argv: list[str]
    cwd: str
    env: dict[str, str]
