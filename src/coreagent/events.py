"""Every bus message, with the contract's exact names and fields (section 8 and `RateLimitDetected`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, alias_generator=lambda name: _wire_name(name))

    def payload(self) -> dict[str, Any]:
        """The contract's fields under the contract's names, without the discriminator."""
        return self.model_dump(by_alias=True, exclude={"type"})


def _wire_name(name: str) -> str:
    special = {"pr_url": "PRURL", "pr_num": "PRNum", "type": "type"}
    return special.get(name, "".join(part.capitalize() for part in name.split("_")))


class AgentStarted(_Message):
    type: Literal["AgentStarted"] = "AgentStarted"
    agent: str
    repo: str
    workspace: str


class AgentCompleted(_Message):
    type: Literal["AgentCompleted"] = "AgentCompleted"
    agent: str
    repo: str
    workspace: str
    status: str


class QAResult(_Message):
    type: Literal["QAResult"] = "QAResult"
    workspace: str
    repo: str
    passed: bool


class PRCreated(_Message):
    type: Literal["PRCreated"] = "PRCreated"
    repo: str
    branch: str
    pr_url: str
    pr_num: int


class PRMerged(_Message):
    type: Literal["PRMerged"] = "PRMerged"
    repo: str
    pr_url: str
    pr_num: int


class PRNeedsReview(_Message):
    type: Literal["PRNeedsReview"] = "PRNeedsReview"
    repo: str
    pr_url: str
    pr_num: int
    reason: str


class WorkspacePushed(_Message):
    type: Literal["WorkspacePushed"] = "WorkspacePushed"
    repo: str
    branch: str
    org: str


class QueueDrained(_Message):
    type: Literal["QueueDrained"] = "QueueDrained"
    completed: int


class PokeQueue(_Message):
    type: Literal["PokeQueue"] = "PokeQueue"


class HarvestComplete(_Message):
    type: Literal["HarvestComplete"] = "HarvestComplete"
    repo: str
    branch: str
    files: int


class HarvestRejected(_Message):
    type: Literal["HarvestRejected"] = "HarvestRejected"
    repo: str
    branch: str
    reason: str


class InboxMessage(_Message):
    type: Literal["InboxMessage"] = "InboxMessage"
    new: int
    total: int


class RateLimitDetected(_Message):
    type: Literal["RateLimitDetected"] = "RateLimitDetected"
    pool: str
    duration: float


class DispatchChanged(_Message):
    """Ours, beside the contract: a dispatch moved. What `watch` and `status --watch` follow."""

    type: Literal["DispatchChanged"] = "DispatchChanged"
    workspace: str
    state: str
    reason: str = ""
    fate: str = "open"
    """accepted or rejected once a person decided about the result"""
    moved: bool = False
    """It came to this state now; otherwise something else about it changed."""


class PoolParked(_Message):
    """Ours: a pool is left alone from now on. Told once per park, however many tasks meet it."""

    type: Literal["PoolParked"] = "PoolParked"
    pool: str
    until: str
    """ISO 8601, UTC."""
    why: str
    """rate_limit or outage"""


class SettingsReloaded(_Message):
    """Ours: agents.yaml changed. What is wrong with it stands in `problem`; the last good settings hold on then."""

    type: Literal["SettingsReloaded"] = "SettingsReloaded"
    path: str
    ok: bool
    problem: str = ""


Message = Annotated[
    AgentStarted
    | AgentCompleted
    | QAResult
    | PRCreated
    | PRMerged
    | PRNeedsReview
    | WorkspacePushed
    | QueueDrained
    | PokeQueue
    | HarvestComplete
    | HarvestRejected
    | InboxMessage
    | RateLimitDetected
    | DispatchChanged
    | PoolParked
    | SettingsReloaded,
    Field(discriminator="type"),
]
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
