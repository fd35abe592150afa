"""The one event vocabulary every runner's stream is turned into, and what an attempt used."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class EventKind(StrEnum):
    """What an agent can say. Everything a CLI prints becomes one of these or is dropped as noise."""

    STARTED = "started"
    """The CLI's session began; carries session_id and model when known."""
    TEXT = "text"
    TOOL_USE = "tool_use"
    TOOL_RESULT = "tool_result"
    USAGE = "usage"
    """Tokens so far in this attempt (a delta has been taken of cumulative fields)."""
    RATE_LIMIT = "rate_limit"
    RETRY = "retry"
    """The CLI tries a model call again by itself."""
    RESULT = "result"
    """Terminal: the protocol says that the turn ended well."""
    ERROR = "error"
    """Terminal when `terminal` is set: the protocol says that the turn ended badly."""


class Reason(StrEnum):
    """Why an attempt, and so its dispatch, ended or waits as it does."""

    NO_CHANGES = "no_changes"
    AUTH = "auth"
    RATE_LIMIT = "rate_limit"
    CONTEXT_OVERFLOW = "context_overflow"
    BUDGET = "budget"
    MODEL_ERROR = "model_error"
    MODEL_REFUSED = "model_refused"
    MAX_TURNS = "max_turns"
    NETWORK = "network"
    BAD_REQUEST = "bad_request"
    SESSION_LOST = "session_lost"
    """The CLI does not know the session that was to be resumed."""
    PERMISSION = "permission"
    CONFIGURATION = "configuration"
    ERROR = "error"
    """An error that we cannot name."""
    DIED = "died"
    TIMEOUT = "timeout"
    IDLE_TIMEOUT = "idle_timeout"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    BLOCKED = "blocked"
    SPAWN_FAILED = "spawn_failed"
    """The program could not be executed at all."""
    PREP_FAILED = "prep_failed"
    SETUP_FAILED = "setup_failed"
    EVIDENCE = "evidence"
    TURNS_ALONE = "turns_alone"
    """It went on by itself too often without a person; `resume` lets it go on."""


# A session that ended so must not be resumed: the next turn starts fresh in the same workspace.
POISONED: frozenset[Reason] = frozenset(
    {Reason.CONTEXT_OVERFLOW, Reason.BAD_REQUEST, Reason.SESSION_LOST, Reason.MAX_TURNS}
)


class Usage(BaseModel):
    """Tokens of one attempt. `input` excludes what came from the cache."""

    model_config = ConfigDict(frozen=True)
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(
            input=self.input + other.input,
            output=self.output + other.output,
            cache_read=self.cache_read + other.cache_read,
            cache_write=self.cache_write + other.cache_write,
        )

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write


class Cost(BaseModel):
    """Money, and how far it can be believed."""

    model_config = ConfigDict(frozen=True)
    usd: float | None = None
    source: Literal["reported", "priced", "unknown"] = "unknown"
    """`unknown` with an amount: it cost at least that much, and some of it nobody told."""


class AgentEvent(BaseModel):
    """One event of an agent's stream, already safe to show after `cli.terminal.clean`."""

    model_config = ConfigDict(frozen=True)
    kind: EventKind
    text: str = ""
    """Text said, tool's short description, result text, or error message; at most 16 KiB."""
    tool: str = ""
    tool_id: str = ""
    is_error: bool = False
    denied: bool = False
    """A tool result that was a refusal by the permission mode."""
    session_id: str = ""
    model: str = ""
    usage: Usage | None = None
    cost: Cost | None = None
    reason: Reason | None = None
    """Set on error and rate_limit events."""
    terminal: bool = False
    resets_at: float | None = None
    """Epoch seconds at which a rate limit lifts, when the provider named it."""
    data: dict[str, Any] = Field(default_factory=dict)


class Outcome(BaseModel):
    """What the whole stream of one attempt amounts to; the runner's parser keeps it up to date."""

    terminal: Literal["success", "error", "none"] = "none"
    reason: Reason | None = None
    message: str = ""
    session_id: str = ""
    model: str = ""
    usage: Usage = Usage()
    cost: Cost = Cost()
    turns: int = 0
    last_tool: str = ""
    last_text: str = ""
    denied_tools: list[str] = Field(default_factory=list)
    resets_at: float | None = None
    windows: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """The provider's usage windows as last told: kind -> (share used, 0 to 1; reset in epoch seconds)."""
    events: int = 0
    unparsed: int = 0
    """Lines that were not of the protocol."""
