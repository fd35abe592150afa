"""Tasks that come together: those of a file, and siblings that do the same task side by side.

All of them are resolved before any is queued, and then all come to the queue or none. Capabilities come in; what is
written in a file was read by `taskfile`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from coreagent.capability import Caller
from coreagent.content import library
from coreagent.dispatch import after as after_others
from coreagent.dispatch import intake, names
from coreagent.dispatch.intake import Request
from coreagent.dispatch.taskfile import Task, Tasks
from coreagent.errors import CoreAgentError
from coreagent.git.inspect import Base
from coreagent.models.batch import TaskEntry
from coreagent.models.dispatch import Dispatch, Fate, Options

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

SIBLINGS_MOST = 64
_planning: WeakKeyDictionary[Engine, asyncio.Lock] = WeakKeyDictionary()


@dataclass(frozen=True)
class Planned:
    """One task, as it would be queued or as it is there already."""

    key: str
    dispatch: Dispatch
    base: Base | None
    """None: it was there already."""
    note: str = ""


def options_of(entry: TaskEntry) -> Options:
    """What a task asks for, as a dispatch keeps it."""
    return Options(
        template=entry.template,
        plan_template=entry.plan,
        persona=entry.persona,
        variables=entry.vars,
        issue=entry.issue,
        pr=entry.pr,
        branch=entry.branch,
        tag=entry.tag,
        timeout_s=entry.timeout,
        idle_timeout_s=entry.idle_timeout,
        expect=entry.expect,
        permissions=entry.permissions,
        with_changes=entry.with_changes,
        ephemeral=entry.ephemeral,
        args=entry.args,
        script=entry.script,
        escalate=entry.escalate,
    )


def request_of(entry: TaskEntry, options: Options, name: str = "") -> Request:
    """What intake is asked for a task."""
    asked = Request(entry.task, options, repo=entry.repo, agent=entry.agent, name=name or entry.name)
    return replace(asked, priority=entry.priority, fetch=entry.fetch)


@contextlib.asynccontextmanager
async def looking(engine: Engine) -> AsyncIterator[list[Planned]]:
    """A list of what is planned: names in it are taken until they are queued, settings forgotten if they never are."""
    planned: list[Planned] = []
    # One at a time: what was found free for one must still be free when it is queued.
    async with _planning.setdefault(engine, asyncio.Lock()):
        reserved = set(engine.reserved)
        try:
            yield planned
        finally:
            engine.reserved.difference_update({_place(one.dispatch) for one in planned} - reserved)
            for one in planned:
                if one.base is not None and one.dispatch.id not in engine.board:
                    engine.forget_settings(one.dispatch)


def _place(dispatch: Dispatch) -> tuple[str, str, str]:
    return (dispatch.org, dispatch.repo, dispatch.name)


async def plan_file(engine: Engine, caller: Caller, tasks: Tasks, repo: str, planned: list[Planned]) -> str:
    """Resolve every task of a file into `planned`; returns the name of the batch.

    Raises: what intake finds wrong with one of them, with its place in the file.
    """
    batch = tasks.batch or engine.core.new_id()
    before = await _queued_before(engine, batch) if tasks.batch else {}
    queued = {key for _, _, key in before}
    by_key: dict[str, Planned] = {}
    for task in tasks.tasks:
        try:
            found = None
            if task.key in queued:
                # Not under its name, which is its own: in another repository it would be another task.
                looked = await _plan(engine, caller, task, repo, batch, by_key, named=False)
                engine.forget_settings(looked.dispatch)
                found = before.get((looked.dispatch.org, looked.dispatch.repo, task.key))
            one = _reused(task, found) if found else await _plan(engine, caller, task, repo, batch, by_key)
        except CoreAgentError as error:
            raise tasks.wrong(task, error) from None
        by_key[task.key] = one
        planned.append(one)
        engine.reserved.add(_place(one.dispatch))
    return batch


async def _plan(
    engine: Engine, caller: Caller, task: Task, repo: str, batch: str, before: dict[str, Planned], named: bool = True
) -> Planned:
    entry = task.entry
    after = [before[key].dispatch for key in dict.fromkeys(entry.after)]
    top = [d for d in after if entry.branch == d.branch] or (after if entry.on_top else [])
    options = options_of(entry).model_copy(
        update={
            "branch": None if top else entry.branch,
            "after": [d.id for d in after],
            "on_top": top[0].id if top else "",
            "batch": batch,
            "batch_key": task.key,
        }
    )
    options = options.model_copy(update={"variables": _known_variables(engine, entry)})
    request = request_of(entry, options)
    name = request.name if named else ""
    made, base = await intake.resolve(engine, caller, replace(request, repo=entry.repo or repo, name=name))
    after_others.check_top(made, top[0] if top else None)
    return Planned(task.key, made, base)


def _known_variables(engine: Engine, entry: TaskEntry) -> dict[str, str]:
    """Those values of a file that the texts around a task have a use for: the others were for the task's own words."""
    core = engine.core
    texts: list[tuple[library.Kind, str]] = [("template", entry.template or core.settings.dispatch.default_template),
                                             ("persona", entry.persona), ("plan", entry.plan)]  # fmt: skip
    used = {name for kind, text in texts if text for name in library.load(kind, text, core.home).variables}
    return {name: value for name, value in entry.vars.items() if name in used}


def _reused(task: Task, found: Dispatch) -> Planned:
    note = "was queued by an earlier run and is used again"
    if found.task != task.entry.task.strip():
        note += "; its task was another one then, and stays so"
    return Planned(task.key, found, None, note)


async def _queued_before(engine: Engine, batch: str) -> dict[tuple[str, str, str], Dispatch]:
    """What an earlier run of a batch queued, by repository and key: what is still open, and what was accepted."""
    there = [d for d in await members(engine, batch) if d.fate is Fate.ACCEPTED or d.id in engine.board]
    return {(d.org, d.repo, d.options.batch_key): d for d in there if d.fate is not Fate.REJECTED}


async def members(engine: Engine, batch: str) -> list[Dispatch]:
    """The dispatches of a batch, oldest first, those that left the board too."""
    found = {d.id: d for d in await engine.core.store.batch(batch)}
    found |= {d.id: d for d in engine.board.values() if d.options.batch == batch}
    return sorted(found.values(), key=lambda d: (d.created_at, d.id))


async def plan_siblings(
    engine: Engine, caller: Caller, entry: TaskEntry, more: dict[str, Any], suffixes: Sequence[tuple[str, str]],
    planned: list[Planned],
) -> str:  # fmt: skip
    """Resolve one task several times into `planned`: (end of its name, agent) each; returns the batch's name.

    `more` are options on top of those of the entry.
    """
    options = options_of(entry).model_copy(update=more)
    ends = [end for end, _ in suffixes]
    batches = {*await engine.core.store.batches(), *(d.options.batch for d in engine.board.values())}
    stem = entry.name
    if not stem:
        first, _ = await intake.resolve(engine, caller, request_of(entry, options))
        engine.forget_settings(first)
        stem = _stem(engine, first.name, ends, batches)
    options = options.model_copy(update={"batch": names.unique(stem, batches), "batch_key": stem})
    for end, agent in suffixes:
        chosen = entry.model_copy(update={"agent": agent or entry.agent})
        made, base = await intake.resolve(engine, caller, request_of(chosen, options, f"{stem}-{end}"))
        planned.append(Planned(made.name, made, base))
        engine.reserved.add(_place(made))
    return options.batch


def _stem(engine: Engine, name: str, ends: Sequence[str], batches: Collection[str]) -> str:
    """What the names of siblings begin with, made so that none of them is taken."""
    room = names.NAME_MAX - 1 - max(map(len, ends)) - len("-99")
    wanted = name[:room].rstrip("-._")
    taken = {d.name for d in engine.board.values()} | {other for _, _, other in engine.reserved}
    stem, n = wanted, 1
    while stem in batches or any(f"{stem}-{end}" in taken for end in ends):
        n += 1
        stem = f"{wanted}-{n}"
    return stem


def suffixes(count: int, agents: Sequence[str]) -> list[tuple[str, str]]:
    """How the siblings of a command are told apart: by number, or by agent.

    Raises: invalid_argument, conflicting_options.
    """
    if count and agents:
        raise CoreAgentError("conflicting_options", "--count and --agents exclude each other")
    number = count or len(agents)
    if not 2 <= number <= SIBLINGS_MOST:
        raise CoreAgentError(
            "invalid_argument",
            f"{number} is no number of siblings",
            hint=f"from 2 to {SIBLINGS_MOST}; for a single one leave --count and --agents out",
        )
    if count:
        return [(str(n), "") for n in range(1, count + 1)]
    ends: list[tuple[str, str]] = []
    for agent in agents:
        end = re.sub(r"[^a-z0-9]+", "-", agent.removeprefix("command:").lower()).strip("-")[:24].strip("-") or "agent"
        ends.append((names.unique(end, [one for one, _ in ends]), agent))
    return ends


def siblings_of(dispatch: Dispatch, known: Iterable[Dispatch]) -> list[Dispatch]:
    """Those that do the same task as `dispatch`, without it."""
    own = (dispatch.options.batch, dispatch.options.batch_key, dispatch.org, dispatch.repo)
    if not dispatch.options.batch:
        return []
    same = [d for d in known if (d.options.batch, d.options.batch_key, d.org, d.repo) == own]
    return [d for d in same if d.id != dispatch.id]
