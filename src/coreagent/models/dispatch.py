"""Dispatch, attempt, and their legal moves. A queue item is a dispatch; one exec of the agent is an attempt."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Outcome, Reason, Usage


class State(StrEnum):
    """What a person sees of a dispatch. Every value is derived from evidence, never from a hope."""

    QUEUED = "queued"
    """Waits for a slot, a time (`waiting_until`) or a start."""
    PREPARING = "preparing"
    """Slot held; the workspace is being made or the shim started."""
    RUNNING = "running"
    """An agent was executed and its shim lives."""
    PAUSED = "paused"
    """A person stopped it between turns; `resume` goes on."""
    BLOCKED = "blocked"
    """The agent asked a question (BLOCKED.md); `resume --answer` goes on."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE: frozenset[State] = frozenset({State.PREPARING, State.RUNNING})
RESTING: frozenset[State] = frozenset({State.PAUSED, State.BLOCKED, State.COMPLETED, State.FAILED, State.CANCELLED})

LEGAL_MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.PREPARING, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.PREPARING: frozenset({State.RUNNING, State.QUEUED, State.FAILED, State.CANCELLED, State.PAUSED}),
    State.RUNNING: frozenset(
        {State.QUEUED, State.PAUSED, State.BLOCKED, State.COMPLETED, State.FAILED, State.CANCELLED}
    ),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.BLOCKED: frozenset({State.QUEUED, State.CANCELLED}),
    State.COMPLETED: frozenset({State.QUEUED}),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}


def check_move(old: State, new: State, what: str) -> None:
    """Raise `illegal_move` unless `old -> new` stands in LEGAL_MOVES."""
    if new not in LEGAL_MOVES[old]:
        raise CoreAgentError("illegal_move", f"{what} is {old}; it cannot become {new}")


class Fate(StrEnum):
    """What a person decided about the result; beside the state."""

    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class Stage(StrEnum):
    """Where the completion pipeline of a dispatch stands."""

    NONE = ""
    HARVESTED = "harvested"
    """`agent/<name>` in the user's repository is ready for review."""
    HARVEST_REJECTED = "harvest_rejected"
    """The work stays in the workspace and under a rescue ref."""
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class Harvest(BaseModel):
    """What came back from a workspace when an attempt ended."""

    model_config = ConfigDict(frozen=True)
    status: Literal["none", "complete", "rejected"] = "none"
    """`none`: there was nothing to bring."""
    branch: str = ""
    sha: str = ""
    """Tip of the work, in the cache always, in the user's repository when complete."""
    reason: str = ""
    """Slug of why it was rejected: binary, too_large, too_many_files, bad_path, symlink_escape, branch_moved, ..."""
    detail: str = ""
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    rescue_ref: str = ""
    left: list[str] = Field(default_factory=list)
    """The first of the checkout's paths that no commit can hold."""
    left_count: int = 0
    """How many there are."""


class Options(BaseModel):
    """What the caller asked for, kept with the dispatch so that a restart runs the very same thing."""

    template: str = ""
    plan_template: str = ""
    persona: str = ""
    variables: dict[str, str] = Field(default_factory=dict)
    issue: int | None = None
    pr: int | None = None
    branch: str | None = None
    """Start from this branch instead of HEAD."""
    tag: str | None = None
    """Start from this tag; the checkout is immutable (nothing is harvested)."""
    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    expect: Literal["changes", "none"] = "changes"
    permissions: Literal["edits", "bypass"] | None = None
    with_changes: bool = False
    ephemeral: bool = False
    args: list[str] = Field(default_factory=list)
    """Extra arguments for the runner's CLI; pinned flags are refused."""
    script: str = ""
    """For the `scripted` runner: the YAML text."""
    agents: list[str] = Field(default_factory=list)
    """All agents that may do it, in the order in which they are tried; empty when there is one."""
    after: list[str] = Field(default_factory=list)
    """Ids of dispatches that must have ended well before this one starts."""
    on_top: str = ""
    """Id of the one of `after` whose result this one starts from, "" for the base as it was asked for."""
    adopted: str = ""
    """Where the work of somebody else lies that this workspace began with; "" when it began with a commit alone."""
    batch: str = ""
    """Id that the dispatches of one command share."""
    batch_key: str = ""
    """Which task of its batch it is; the siblings that do the same task side by side share it."""
    escalate: bool = False
    """The next agent of the list is tried too when the one before it changed nothing."""


class Tried(BaseModel):
    """An agent that a dispatch was taken from, or that was passed over."""

    model_config = ConfigDict(frozen=True)
    agent: str
    reason: str
    """A `Reason`, the slug of the error of its launch, or `parked`."""
    at: datetime
    passing: bool = False
    """It was passed over that once, and may still get the task."""


class Attempt(BaseModel):
    """One exec of an agent, or the claim of one that never came to an exec."""

    id: str
    dispatch_id: str
    n: int
    """1 for the first claim of the dispatch."""
    kind: Literal["dispatch", "resume", "fresh"] = "dispatch"
    prompt: str = ""
    """What this turn says to the agent; empty for the first, whose prompt is `.meta/prompt.md`."""
    resume_session: str = ""
    """The CLI's session that this turn goes on with, "" for a fresh one."""
    session_id: str = ""
    """The id a fresh session is asked to take, where the CLI lets us choose."""
    version: str = ""
    """The version of the program as it was when this attempt was executed; an update may come at any time."""
    agent: str = ""
    pool: str = ""
    """Whose start this was: the agent of a dispatch may change from turn to turn."""
    claimed_at: datetime
    started_at: datetime | None = None
    """When the agent was executed (from the shim's record); None: it never was."""
    ended_at: datetime | None = None
    shim_pid: int = 0
    shim_start: int = 0
    """Kernel start time of the shim (clock ticks since boot), so that a reused pid is not taken for it."""
    exit_code: int | None = None
    exit_signal: int | None = None
    stopped_by: str = ""
    """"", cancel, pause, attach, timeout, idle_timeout, output_limit, shutdown"""
    reason: Reason | None = None
    outcome: Outcome = Field(default_factory=Outcome)
    harvest: Harvest = Harvest()

    @property
    def session(self) -> str:
        """The session that it worked in, as its CLI called it; "" when its agent was never executed."""
        if self.started_at is None:
            return ""
        return self.outcome.session_id or self.resume_session or self.session_id

    def worked_s(self, now: datetime) -> float:
        """How long its agent ran, until `now` when it still does; 0 when it was never executed."""
        if self.started_at is None:
            return 0.0
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds())


class Dispatch(BaseModel):
    """One task given to one agent in one workspace; the row that never leaves the history."""

    id: str
    org: str
    repo: str
    name: str
    """Workspace name; branch is `agent/<name>`."""
    repo_path: str
    """The user's repository (absolute, real path of its top level)."""
    root: str = ""
    """Below which its workspace is, as the settings said when it was asked for; relative: below the home."""
    base_ref: str = ""
    """Branch or tag the workspace started from; what `accept` lands on when it is a branch."""
    base_sha: str = ""
    start_sha: str = ""
    """Where the agent began when that was not the base: the user's own changes on top of it (`--with-changes`)."""
    task: str
    agent: str
    """As it was asked for."""
    runner: str
    model: str = ""
    pool: str
    """What it counts for: while it waits or runs, by the settings in force."""
    runs_with: str = ""
    """The model that it counts for and runs with: `model`, or what the settings, or `own_model`, say instead."""
    own_model: str = ""
    """The model that its person's own configuration of the CLI named when it was asked for."""
    identity: str = ""
    options: Options = Field(default_factory=Options)
    priority: int = 0
    state: State = State.QUEUED
    reason: Reason | None = None
    detail: str = ""
    """One line for people: the error's message, the question's first line."""
    question: str = ""
    stage: Stage = Stage.NONE
    fate: Fate = Fate.OPEN
    waiting_until: datetime | None = None
    waiting_for: str = ""
    """Why a queued dispatch waits, as far as it is its own reason: rate_limit, after, after_failed, restart."""
    session_id: str = ""
    next_prompt: str = ""
    """Set while queued by `resume`: what the next turn says."""
    next_kind: Literal["dispatch", "resume", "fresh"] = "dispatch"
    rate_limited: int = 0
    """Rate limits in a row."""
    tried: list[Tried] = Field(default_factory=list)
    """Agents that had it, or were passed over, before the one that has it now."""
    alone: int = 0
    """Turns it was given by itself since a person last said something."""
    runs: int = 0
    """Attempts that came to an exec."""
    attempts: int = 0
    attempt_id: str = ""
    """The live or last attempt."""
    usage: Usage = Usage()
    cost: Cost = Cost()
    session_usage: Usage = Usage()
    session_cost: Cost = Cost()
    """What the session of `session_id` used: CLIs report the totals of a session, and a dispatch may have several."""
    harvest: Harvest = Harvest()
    branch_sha: str = ""
    """Where we last put `agent/<name>` in the user's repository, whatever became of later harvests; "" = nowhere."""
    accepted_sha: str = ""
    previous_sha: str = ""
    """Where the landing branch stood before `accept`, for undo."""
    left_out: int = 0
    """Dirty files of the user's tree that the workspace started without."""
    settings_note: str = ""
    """What of the repository's own settings was not applied, and why: one line."""
    base_note: str = ""
    """What a person should know of where it starts: one line."""
    skipped: list[str] = Field(default_factory=list)
    """What of the user's files was asked for and not carried into the workspace, and why: the first lines."""
    skipped_count: int = 0
    setup_note: str = ""
    """What a person should know of the setup hook's traces: one line, whatever becomes of the dispatch."""
    teardown_note: str = ""
    """How the teardown hook failed: one line; the workspace went all the same."""
    port: int = 0
    """The first port of its block; 0 when it has none."""
    ports: int = 0
    """How many ports its block has."""
    denied_tools: list[str] = Field(default_factory=list)
    workspace_gone: bool = False
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    changed_at: datetime
    state_since: datetime | None = None
    """Since when it is in its state; None in a row that an older release wrote last."""
    worked_s: float = 0.0
    """How long its agents ran, in all attempts that have ended; what it waited in between is not in it."""

    @property
    def workspace(self) -> str:
        """The key people type: `org/repo/name`."""
        return f"{self.org}/{self.repo}/{self.name}"

    @property
    def counted_model(self) -> str:
        """The model that limits see."""
        return self.runs_with or self.model

    @property
    def branch(self) -> str:
        return f"agent/{self.name}"


class Repo(BaseModel):
    """A registered repository."""

    org: str
    name: str
    path: str
    default_branch: str = ""
    trusted_hash: str = ""
    """SHA-256 of the repository's `.core/` settings as they were when a person trusted them; "" = not trusted."""
    bypass_consent: bool = False
    """A person agreed once that agents may run here without asking and without a sandbox."""
    managed: bool = False
    """Its checkout follows its remote: core-agent may fast-forward it. Anybody else's is fetched and never moved."""
    added_at: datetime


class Event(BaseModel):
    """A stored bus message: written in the transaction of the change it tells of, published after it."""

    seq: int = 0
    at: datetime
    name: str
    dispatch_id: str = ""
    workspace: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
