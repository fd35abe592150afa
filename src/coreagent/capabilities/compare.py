"""Results of the same task side by side: compare them, pick one."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from coreagent import paths
from coreagent.capabilities import batch as batches
from coreagent.capabilities import control, decide
from coreagent.capabilities.parameter import Workspace
from coreagent.capabilities.status import HISTORY_SEARCHED, find_any
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import attached, batch, bring, rows, trial
from coreagent.errors import CoreAgentError
from coreagent.git import diff as git_diff
from coreagent.git import landing as git_landing
from coreagent.git.run import environment, git
from coreagent.models.batch import CompareReport, CompareRow, PickReply, TrialResult
from coreagent.models.dispatch import ACTIVE, Dispatch, Fate, State
from coreagent.models.report import MoveReply
from coreagent.plural import plural

DIFF_MAX = 1 << 20


@capability("compare", cli="compare")
async def compare(
    core: Core,
    caller: Caller,
    siblings: Annotated[list[str], Field(description="One batch, or workspaces", min_length=1)],
    test: Annotated[str, Field(description="A command to run in a clean checkout of each result")] = "",
    timeout_s: Annotated[float, Field(description="How long the command may take for each", gt=0, le=86400)] = 600.0,
    diff: Annotated[list[str], Field(description="Two of them, to show what lies between", max_length=2)] = [],  # noqa: B006
) -> CompareReport:
    """Set results of the same task side by side: state, changes, tests, cost, time, and which of them are the same.

    Tests are `unknown` unless `test` is given. That runs code which agents wrote, with the person's rights and without
    a sandbox, in a clean checkout of each result, with a home of its own and next to nothing of the environment.
    """
    name, found = await _named(core, siblings)
    trees = await asyncio.to_thread(_trees, core, found)
    shown: list[CompareRow] = []
    for one in found:
        tree = trees.get(one.id, "")
        twin = next((o.workspace for o in found if o.id != one.id and tree and trees.get(o.id) == tree), "")
        same = twin if any(row.workspace == twin for row in shown) else ""
        shown.append(_row(core, one, same))
    notes = []
    if test:
        notes.append("the command ran what agents wrote, with your rights and without a sandbox")
        shown = await _tested(core, caller, found, shown, test, timeout_s)
    report = CompareReport(batch=name, rows=shown, test=test, notes=notes)
    if not diff:
        return report
    if len(diff) != 2:
        raise CoreAgentError("invalid_argument", "--diff takes two results", hint="--diff A B")
    text, cut = await _between(core, await find_any(core, diff[0]), await find_any(core, diff[1]))
    return report.model_copy(update={"diff": text, "truncated": cut})


async def _named(core: Core, named: list[str]) -> tuple[str, list[Dispatch]]:
    """The batch's name, "" when it is none, and its dispatches, oldest first; a lone sibling stands for all of them."""
    if len(named) > 1:
        found = {d.id: d for d in [await find_any(core, one) for one in named]}
        return "", list(found.values())
    if members := await batches.members(core, named[0]):
        return members[0].options.batch, members
    try:
        one = await find_any(core, named[0])
    except CoreAgentError as error:
        if error.slug != "workspace_not_found":
            raise
        message = f"there is no batch and no workspace {named[0]!r}"
        raise CoreAgentError("batch_not_found", message, hint=error.hint) from None
    all_of_it = await batch.members(core.engine, one.options.batch) if one.options.batch else []
    family = [one, *batch.siblings_of(one, all_of_it)]
    return one.options.batch, sorted(family, key=lambda d: (d.created_at, d.id))


def _cache(core: Core, one: Dispatch) -> Path:
    return Path(paths.repo_cache(core.home, one.org, one.repo))


def _start(one: Dispatch) -> str:
    return one.start_sha or one.base_sha


def _trees(core: Core, found: list[Dispatch]) -> dict[str, str]:
    """Dispatch -> what stands for its changes: two of the same base and the same tree are equal. Blocking."""
    told = {}
    for one in found:
        sha = one.harvest.sha
        if not sha or sha == _start(one):
            continue
        cache = _cache(core, one)
        done = git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{sha}^{{tree}}",
            cwd=cache, env=environment(git_dir=cache), ok=None,
        ) if cache.is_dir() else None  # fmt: skip
        if done is not None and done.code == 0:
            told[one.id] = f"{one.org}/{one.repo} {_start(one)} {done.text}"
    return told


def _row(core: Core, one: Dispatch, same_as: str) -> CompareRow:
    now = rows.row(core.engine, one)
    return CompareRow(
        workspace=one.workspace,
        dispatch_id=one.id,
        agent=one.agent,
        model=now.model,
        state=one.state,
        reason=one.reason,
        fate=one.fate,
        sha=one.harvest.sha,
        files=one.harvest.files,
        insertions=one.harvest.insertions,
        deletions=one.harvest.deletions,
        cost=now.cost,
        tokens=now.tokens,
        worked_s=now.elapsed_s,
        same_as=same_as,
        created_at=one.created_at,
    )


async def _tested(
    core: Core, caller: Caller, found: list[Dispatch], shown: list[CompareRow], test: str, timeout_s: float
) -> list[CompareRow]:
    """Run the command for each result, one after the other; the same changes are tried once."""
    left = threading.Event()
    tested: dict[str, TrialResult] = {}
    answers = []
    try:
        for one, row in zip(found, shown, strict=True):
            tests = tested.get(row.same_as) or TrialResult()
            if row.sha and not row.same_as:
                tests = await asyncio.to_thread(
                    trial.run,
                    _cache(core, one),
                    row.sha,
                    test,
                    caller.env or core.env,
                    core.new_id(),
                    timeout_s,
                    left.is_set,
                    Path(core.home, "trials"),
                )
            tested[row.workspace] = tests
            answers.append(row.model_copy(update={"tests": tests}))
    except asyncio.CancelledError:
        left.set()  # its thread ends the command and cleans up
        raise
    return answers


async def _between(core: Core, one: Dispatch, other: Dispatch) -> tuple[str, bool]:
    if (one.org, one.repo) != (other.org, other.repo):
        raise CoreAgentError("invalid_argument", f"{one.workspace} and {other.workspace} are of two repositories")
    one, other = [await bring.to_compare(core.home, either) for either in (one, other)]
    ends = (one.harvest.sha or _start(one), other.harvest.sha or _start(other))
    return await asyncio.to_thread(git_diff.diff, _cache(core, one), ends[0], ends[1], limit=DIFF_MAX)


@capability("pick", cli="pick", destructive=True)
async def pick(
    core: Core,
    caller: Caller,
    workspace: Workspace,
    strategy: Literal["auto", "fast-forward", "merge", "squash", "rebase"] = "auto",
    onto: str = "",
    cancel_others: Annotated[bool, Field(description="Stop siblings that still run or wait")] = False,
) -> PickReply:
    """Accept one of several siblings as `accept` does, and reject the others; their work stays under rescue refs.

    Safe to be asked for again: what was cut off is finished.
    """
    found = await find_any(core, workspace)
    others = batch.siblings_of(found, await batch.members(core.engine, found.options.batch))
    if not others:
        raise CoreAgentError(
            "no_siblings",
            f"{found.workspace} has no siblings to choose from",
            hint=f"`core-agent accept {found.name}` lands it",
        )
    if taken := next((d for d in others if d.fate is Fate.ACCEPTED), None):
        raise CoreAgentError(
            "nothing_to_accept",
            f"{taken.workspace} was picked already",
            hint=f"core-agent accept {found.name} lands this one too, if it is still there",
        )
    open_ones = [d for d in others if d.id in core.engine.board and d.fate is Fate.OPEN]
    for one in (found, *open_ones):
        attached.check(core.engine, one)
    busy = [d for d in open_ones if d.state in ACTIVE or d.state is State.QUEUED]
    if busy and not cancel_others:
        raise CoreAgentError(
            "workspace_busy",
            f"{plural(len(busy), 'sibling is', 'siblings are')} not done: {', '.join(d.name for d in busy)}",
            hint=f"wait for them: core-agent wait {found.options.batch}; or give --cancel-others",
            data={"workspaces": [d.workspace for d in busy]},
        )
    landed = None
    if found.fate is not Fate.ACCEPTED:
        landed = await decide.accept(core, caller, found.id, strategy, onto)
    core.crash_point("picked")
    for one in busy:
        try:
            await control.cancel(core, one.id)
        except CoreAgentError as error:
            if error.slug != "not_running":  # it came to its end meanwhile
                raise
    rejected: list[MoveReply] = [await decide.reject(core, one.id) for one in open_ones]
    undo = landed.undo if landed is not None else await _undo(core, found.id)
    return PickReply(workspace=found.workspace, accepted=landed, rejected=rejected, undo=undo)


async def _undo(core: Core, dispatch_id: str) -> str:
    """The command that takes back what landed before, as far as the row tells."""
    gone = next((d for d in await core.store.history(HISTORY_SEARCHED) if d.id == dispatch_id), None)
    if gone is None or not gone.previous_sha or not gone.base_ref:
        return ""
    top = Path(gone.repo_path)
    return await asyncio.to_thread(git_landing.undo, top, gone.base_ref, gone.previous_sha, gone.accepted_sha)
