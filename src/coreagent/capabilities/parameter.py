"""What the parameters mean that several capabilities share: said once, shown in every schema and reference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Workspace = Annotated[
    str, Field(description="org/repo/name, repo/name, a unique name, or the dispatch's id (its first six at least)")
]
Task = Annotated[str, Field(description="What to do, in the words the agent gets")]
Repository = Annotated[
    str, Field(description="A path, or org/name or name of a registered repository; where the caller stands by default")
]
Org = Annotated[str, Field(description="Organisation the repository is registered under")]
Agent = Annotated[
    str, Field(description="runner[:model], command:NAME or a named identity; the settings' default by default")
]
Template = Annotated[str, Field(description="Prompt template; `template list` names them")]
PlanTemplate = Annotated[str, Field(description="Plan template whose phases the prompt lists")]
Persona = Annotated[str, Field(description="Persona the agent takes on")]
Variables = Annotated[dict[str, str], Field(description="Values for the variables of template, persona and plan")]
Issue = Annotated[int | None, Field(description="Issue number: names the workspace task-N, and resumes it when it can")]
PullRequest = Annotated[int | None, Field(description="Start from this pull request; names the workspace pr-N")]
Branch = Annotated[str | None, Field(description="Start from this branch instead of HEAD")]
Tag = Annotated[str | None, Field(description="Start from this tag; nothing is brought home from such a workspace")]
Priority = Annotated[int, Field(description="Higher starts first", ge=-1_000_000, le=1_000_000)]
Timeout = Annotated[float | None, Field(description="Longest time of one attempt, in seconds", gt=0, le=30 * 86400)]
IdleTimeout = Annotated[
    float | None, Field(description="Stop an agent that says nothing for so many seconds", gt=0, le=30 * 86400)
]
Expect = Annotated[
    Literal["changes", "none"],
    Field(description="`none`: the task is not meant to change files, a report, say; else none at all needs a look"),
]
Permissions = Annotated[
    Literal["edits", "bypass"] | None,
    Field(description="`bypass` lets the agent run anything without asking; needs consent once per repository"),
]
WithChanges = Annotated[bool, Field(description="Carry the uncommitted changes of the work tree into the workspace")]
Ephemeral = Annotated[bool, Field(description="Agree that the task is lost when a daemon without a store ends")]
Arguments = Annotated[list[str], Field(description="More arguments for the runner's CLI; protocol flags are refused")]
Name = Annotated[str, Field(description="Name of the workspace; made of the task's words by default")]
Script = Annotated[str, Field(description="YAML text for the `scripted` runner")]
Fetch = Annotated[bool, Field(description="Fetch first, and start from where `origin` has the branch")]
DryRun = Annotated[bool, Field(description="Start nothing; show what would be")]
Pool = Annotated[str, Field(description="One pool of agents; all by default")]
After = Annotated[
    list[str], Field(description="Workspaces that must have ended well before this one starts, as WORKSPACE is given")
]
OnTop = Annotated[
    bool, Field(description="Start from the result of the task it comes after, not from what stands there now")
]
Escalate = Annotated[
    bool, Field(description="The next agent of the list is tried too when the one before it changed nothing")
]
