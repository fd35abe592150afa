"""Tasks that come together: a file of them, siblings side by side, and what became of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from coreagent.capabilities import predecessors
from coreagent.capabilities.parameter import After, DryRun, OnTop, Repository, Variables
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import arrival, rows, taskfile
from coreagent.dispatch import batch as batches
from coreagent.dispatch.batch import Planned
from coreagent.errors import CoreAgentError
from coreagent.models.batch import BatchReply, BatchRow, TaskEntry
from coreagent.models.dispatch import Dispatch
from coreagent.models.report import WorkspaceRow
from coreagent.plural import plural

Batch = Annotated[str, Field(description="Name of a batch, or its id (the first six characters at least)")]


@capability("batch.dispatch", cli="dispatch")
async def dispatch_file(
    core: Core,
    caller: Caller,
    file: Annotated[str, Field(description="YAML text of the tasks; docs/batches.md shows it")],
    path: Annotated[str, Field(description="What the file is called in messages")] = "tasks.yaml",
    variables: Variables = {},  # noqa: B006  (pydantic copies defaults)
    repo: Repository = "",
    dry_run: DryRun = False,
) -> BatchReply:
    """Queue the tasks of a file, all of them or, when anything is wrong with one, none.

    Each starts when those it comes after have ended well. A file with a batch name that was used before queues only
    what is missing.
    """
    core.require_settings()
    tasks = taskfile.read(file, path, variables)
    async with batches.looking(core.engine) as planned:
        name = await batches.plan_file(core.engine, caller, tasks, repo, planned)
        return await _answer(core, caller, name, planned, dry_run)


@capability("batch.siblings", cli="dispatch")
async def dispatch_siblings(
    core: Core,
    caller: Caller,
    task: Annotated[TaskEntry, Field(description="The task, as one of a file of tasks")],
    count: Annotated[int, Field(description="How many siblings do it", ge=0)] = 0,
    agents: Annotated[list[str], Field(description="One sibling for each of these agents")] = [],  # noqa: B006
    after: After = [],  # noqa: B006
    on_top: OnTop = False,
    dry_run: DryRun = False,
) -> BatchReply:
    """Give one task to several agents side by side, each in a workspace of its own; `compare` and `pick` follow."""
    core.require_settings()
    ends = batches.suffixes(count, agents)
    before = await predecessors.find(core, after, task.branch, on_top)
    entry = task.model_copy(update={"branch": before.branch})
    async with batches.looking(core.engine) as planned:
        more = {"after": before.ids, "on_top": before.on_top}
        name = await batches.plan_siblings(core.engine, caller, entry, more, ends, planned)
        for one in planned:
            before.check(one.dispatch)
        return await _answer(core, caller, name, planned, dry_run)


async def _answer(core: Core, caller: Caller, name: str, planned: Sequence[Planned], dry_run: bool) -> BatchReply:
    new = [(one.dispatch, one.base) for one in planned if one.base is not None]
    queued = {d.id: d for d in (await arrival.queue_all(core.engine, caller, new) if new and not dry_run else [])}
    called = {one.dispatch.id: one.key for one in planned}
    told = [_row(core, one, queued.get(one.dispatch.id, one.dispatch), called) for one in planned]
    notes = rows.warnings(core.engine, notices=False)
    if left_out := max((one.dispatch.left_out for one in planned if one.base is not None), default=0):
        said = "changed or untracked file of your work tree is left out"
        notes.append(plural(left_out, said, said.replace("file of", "files of").replace(" is ", " are ")))
    notes += list(dict.fromkeys(one.dispatch.settings_note for one in planned if one.dispatch.settings_note))
    if any(rows.bypasses(one.dispatch) for one in planned):
        notes.append("runs without asking and without a sandbox, as you agreed for this repository")
    return BatchReply(batch=name, tasks=told, dry_run=dry_run, notes=notes)


def _row(core: Core, one: Planned, now: Dispatch, called: dict[str, str]) -> BatchRow:
    def name_of(dispatch_id: str) -> str:
        known = core.engine.after.known(dispatch_id)
        return called.get(dispatch_id) or (known.name if known is not None else dispatch_id)

    return BatchRow(
        key=one.key,
        workspace=now.workspace,
        dispatch_id=now.id if now.id in core.engine.board or one.base is None else "",
        state=now.state,
        waiting_for=now.waiting_for,
        agent=",".join(now.options.agents) or now.agent,
        pool=now.pool,
        branch=now.branch,
        base_ref=now.base_ref,
        base_sha=now.base_sha,
        after=[name_of(other) for other in now.options.after],
        on_top=name_of(now.options.on_top) if now.options.on_top else "",
        reused=one.base is None,
        note=one.note,
        task=(now.task.splitlines() or [""])[0][: rows.TASK_SHOWN],
    )


@capability("batch.show", read_only=True)
async def batch_show(core: Core, batch: Batch) -> list[WorkspaceRow]:
    """List the workspaces of a batch as they are now, oldest first, those that are gone too."""
    found = await members(core, batch)
    if not found:
        raise CoreAgentError("batch_not_found", f"there is no batch {batch!r}")
    facts = core.engine.facts()
    return [rows.row(core.engine, d, rows.held_up(core.engine, d, facts)) for d in found]


async def members(core: Core, named: str) -> list[Dispatch]:
    """The dispatches of the batch of that name, or whose id begins so; none when there is no such batch."""
    found = await batches.members(core.engine, named)
    if found or len(named) < 6:
        return found
    fitting = await core.store.batches(named.upper())
    return await batches.members(core.engine, fitting[0]) if len(fitting) == 1 else []
