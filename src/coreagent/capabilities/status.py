"""Look at work: status, why, watch, history."""

from __future__ import annotations

import asyncio
import time

from coreagent.capabilities.parameter import Workspace
from coreagent.capability import EVERYONE, Caller, capability
from coreagent.core import Core
from coreagent.dispatch import after, attached, bring, fallback, leftover, ports, prep, rows
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Reason
from coreagent.models.dispatch import RESTING, Attempt, Dispatch, Fate, State
from coreagent.models.report import HistoryRow, StatusReport, WatchReply, WhyReport
from coreagent.plural import plural

WATCH_MAX_S = 600.0
HISTORY_SEARCHED = 1000
"""How far back a name of a workspace that is gone is looked for."""


@capability("status", tool="agentic_status", cli="status", roles=EVERYONE, read_only=True)
async def status(core: Core, caller: Caller, workspace: Workspace = "", all: bool = False) -> StatusReport:  # noqa: A002
    """Tell what is running, what waits and why, and what needs a person, oldest first."""
    if not workspace and caller.role != "worker":
        return rows.report(core.engine, all)
    found = await seen_by(core, caller, workspace)
    whole = rows.report(core.engine, only=found)
    if caller.role == "worker":
        whole.warnings = []  # they name other workspaces
    return whole


@capability("why", cli="why", roles=EVERYONE, read_only=True)
async def why(core: Core, caller: Caller, workspace: Workspace) -> WhyReport:
    """Explain why a workspace is in its state, from the evidence, and what can be done."""
    found = await seen_by(core, caller, workspace)
    checkout = layout(core.home, core.settings, found).repo
    lost = bool(found.runs) and found.state in RESTING and not found.workspace_gone and not checkout.is_dir()
    return WhyReport(
        workspace=found.workspace,
        state=found.state,
        headline=_headline(core.engine, found),
        facts=[*await _facts(core, found), *([f"its checkout is gone: {checkout}"] if lost else [])],
        next=[]
        if attached.holder(core.engine, found.id) is not None
        else _next_without_checkout(found)
        if lost and found.fate is Fate.OPEN
        else _next(core.engine, found),
    )


def open_to(core: Core, caller: Caller, workspace: str) -> Dispatch:
    """The open dispatch of that name; an agent's process sees its own alone, which is also the one it need not name.

    Raises: role_forbidden for any other, whether there is one or not; workspace_not_found, ambiguous_workspace.
    """
    if caller.role != "worker":
        return core.engine.find(workspace)
    own = next((d for d in core.engine.board.values() if caller.workspace and d.workspace == caller.workspace), None)
    asked = workspace.strip().strip("/")
    if own is None or asked not in ("", own.id, own.workspace, f"{own.repo}/{own.name}", own.name):
        raise CoreAgentError(
            "role_forbidden",
            f"an agent may look at its own workspace only{f', {own.workspace}' if own else ''}",
            hint="leave this to the person: write what you need into BLOCKED.md and stop",
        )
    return own


async def seen_by(core: Core, caller: Caller, workspace: str) -> Dispatch:
    """As `find_any`, for an agent's process as `open_to`."""
    return open_to(core, caller, workspace) if caller.role == "worker" else await find_any(core, workspace)


async def find_any(core: Core, workspace: Workspace) -> Dispatch:
    """The dispatch of that name on the board, else the newest of the history."""
    try:
        return core.engine.find(workspace)
    except CoreAgentError as error:
        if error.slug != "workspace_not_found":
            raise
        wanted = workspace.strip().strip("/")
        past = await core.store.history(HISTORY_SEARCHED)
        for gone in past:
            if wanted in (gone.id, gone.workspace, f"{gone.repo}/{gone.name}", gone.name):
                return gone
        raise


async def find_open(core: Core, workspace: Workspace) -> Dispatch:
    """The dispatch of that name, for a verb that needs its workspace.

    Raises: workspace_gone, telling what became of it; workspace_not_found.
    """
    found = await find_any(core, workspace)
    if found.id in core.engine.board:
        return found
    fate = f"was {found.fate}" if found.fate is not Fate.OPEN else "was let go"
    raise CoreAgentError(
        "workspace_gone",
        f"{found.workspace} {fate} already",
        hint=f"core-agent why {found.name}; `core-agent rescue list` shows what was kept",
    )


def _headline(engine: Engine, d: Dispatch) -> str:
    if d.fate is not Fate.OPEN:
        came = d.state if d.state in (State.COMPLETED, State.FAILED) else f"was {d.state}"
        return f"It {came} and was {d.fate}."
    if (hold := attached.holder(engine, d.id)) is not None:
        return f"A person is attached to it ({hold.words()}): it waits until they leave that session."
    match d.state:
        case State.QUEUED:
            return why_queued(engine, d)
        case State.PREPARING:
            return _why_preparing(engine, d)
        case State.RUNNING:
            live = engine.live.get(d.id)
            doing = f"; last tool: {live.outcome.last_tool}" if live and live.outcome.last_tool else ""
            return f"Its agent is running{doing}."
        case State.PAUSED:
            return f"It is paused: {d.detail or 'a person stopped it between turns'}."
        case State.BLOCKED:
            return f"The agent asks: {d.question.strip() or d.detail}"
        case State.COMPLETED if d.reason is Reason.NO_CHANGES and d.options.expect == "none":
            return "The agent ended well and changed nothing, as it was meant to."
        case State.COMPLETED if d.reason is Reason.NO_CHANGES:
            return "The agent says that it is done, but changes were expected and none came."
        case State.COMPLETED if d.harvest.status == "rejected":
            return f"The agent ended well, but its work was not brought over: {d.harvest.reason} ({d.harvest.detail})."
        case State.COMPLETED:
            return f"The agent ended well; {_waiting(d)} on {d.branch} for a person."
        case State.CANCELLED:
            return f"It was cancelled: {d.detail}."
        case _:
            return f"It failed, {d.reason}: {d.detail or 'no message'}."


def _waiting(d: Dispatch) -> str:
    return plural(d.harvest.files, "changed file waits", "changed files wait")


def _why_preparing(engine: Engine, d: Dispatch) -> str:
    if d.attempt_id not in engine.pools.gate.waiting:
        return "Its workspace is being prepared."
    until = engine.pools.gate.waiting[d.attempt_id]
    at = f"at {until:%Y-%m-%d %H:%M:%S} UTC" if until else "after those that were ready before it"
    return f"Its workspace is ready. Pool {d.pool} keeps a pause between two starts; its agent is executed {at}."


def why_queued(engine: Engine, d: Dispatch) -> str:
    """What a queued dispatch waits for, and what ends that."""
    facts = engine.facts()
    held = rows.held_up(engine, d, facts)
    if held is None:
        before = engine.board.queued.position(d) - 1
        ahead = f", after {before} others" if before else ""
        return f"Nothing holds it up; it is about to start{ahead}."
    at = f"{held.until:%Y-%m-%d %H:%M:%S} UTC" if held.until else ""
    match held.word:
        case "slot":
            busy = [*(o.name for o in engine.busy() if o.pool == d.pool), *engine.strangers.names(d.pool)]
            slots = plural(facts.limits[d.pool].total, "slot")
            return f"Pool {d.pool} has {len(busy)} of {slots} in use: {', '.join(busy[:5])}."
        case "model_slot":
            return f"Pool {d.pool} has no slot for this model: {held.detail}."
        case "frozen":
            return "The queue is frozen; `core-agent queue start` lets it go on."
        case "frozen_pool":
            return f"Pool {d.pool} is frozen; `core-agent queue start --pool {d.pool}` lets it go on."
        case "settings":
            return "agents.yaml is wrong and no good one is known; `core-agent doctor` says where."
        case "shutdown":
            return "The daemon is draining; it starts with the next daemon."
        case "rate_limit":
            how = "its session goes on" if d.next_kind == "resume" else "a new session goes on"
            return f"The provider's rate limit lifts at {at}; {how} then."
        case "parked":
            until = f" until {at}" if at else ""
            return (
                f"Pool {d.pool} is parked{until} ({held.detail}); `core-agent queue start --pool {d.pool}` ends that."
            )
        case "daily_limit":
            return f"Pool {d.pool} has no start left today ({held.detail}); the next day begins at {at}."
        case "min_delay":
            return f"Pool {d.pool} keeps a pause between two starts; the next one is at {at}."
        case "pace":
            ends = f"`core-agent queue start {d.name}` starts this one all the same"
            return f"Pool {d.pool} is paced to reach its reset: {held.detail}; the next start is at {at}. {ends}."
        case "memory":
            ends = f"`core-agent queue start {d.name}` starts it all the same"
            return f"It would not fit into memory now: {held.detail}. {ends}."
        case "starting":
            return f"{held.detail.capitalize()}; it starts as soon as one of them is up."
        case "breaker":
            until = f" until {at}" if at else ""
            repo = f"{d.org}/{d.repo}"
            return f"{repo} is left alone{until} ({held.detail}); `core-agent queue start --repo {repo}` ends that."
        case after.WAITS:
            return f"It waits for {', '.join(_predecessors(engine, d)) or 'another task'} to end well."
        case after.FAILED:
            return f"It is held up: {d.detail}. A person must say whether it goes on all the same."
        case word:
            return f"It waits for {word}{f' until {at}' if at else ''}."


def _predecessors(engine: Engine, d: Dispatch) -> list[str]:
    """Names and states of the tasks that must end well before this one."""
    known = [other for i in d.options.after if (other := engine.after.known(i)) is not None]
    return [f"{other.name} ({other.state})" for other in known if after.ending(other) is None]


async def _names(core: Core, ids: list[str]) -> list[str]:
    """What tasks are called that may have left the board."""
    found = {one: other.name for one in ids if (other := core.engine.after.known(one)) is not None}
    if len(found) < len(ids):
        found |= {d.id: d.name for d in await core.store.history(HISTORY_SEARCHED) if d.id in ids}
    return [found.get(one, one) for one in ids]


async def _facts(core: Core, d: Dispatch) -> list[str]:
    base = f"from {d.base_ref or 'a commit'} at {d.base_sha[:12]}"
    asked = ", else ".join(d.options.agents) or d.agent
    said = [f"{d.created_at:%Y-%m-%d %H:%M:%S} queued for {asked} in {d.repo_path}, {base}"]
    if d.left_out:
        said.append(
            plural(
                d.left_out,
                "changed file of the work tree was left out",
                "changed files of the work tree were left out",
            )
        )
    if d.options.after:
        top = ", and starts from the result of that" if d.options.on_top else ""
        said.append(f"comes after {', '.join(await _names(core, d.options.after))}{top}")
    if d.settings_note:
        said.append(d.settings_note)
    if d.setup_note:
        said.append(d.setup_note)
    if left := prep.not_carried(d):
        said.append(left)
    happened = fallback.story(d)
    for a in await core.store.attempts_of(d.id):
        while happened and happened[0][0] < a.claimed_at:
            said.append("{:%Y-%m-%d %H:%M:%S} {}".format(*happened.pop(0)))
        said += _attempt_facts(a, d)
    said += ["{:%Y-%m-%d %H:%M:%S} {}".format(*one) for one in happened]
    if d.denied_tools:
        said.append("denied tools: " + ", ".join(d.denied_tools))
    if d.harvest.rescue_ref:
        said.append(f"its tip is kept under {d.harvest.rescue_ref}")
    for row in await core.store.rescues(d.workspace):
        if row.reason == bring.OTHER:
            size = plural(row.files, "file")
            said.append(
                f"what it stashed or left on another branch ({size}) is kept: core-agent rescue apply {d.name} {row.n}"
            )
    if d.port:
        said.append(f"its ports {'were' if d.workspace_gone else 'are'} {ports.shown(d)}")
    if d.teardown_note:
        said.append(d.teardown_note)
    if d.workspace_gone:
        said.append("its workspace was archived and deleted")
    said += await asyncio.to_thread(leftover.facts, core.home, layout(core.home, core.settings, d), d)
    return said


def _attempt_facts(a: Attempt, d: Dispatch) -> list[str]:
    """What is known of one attempt. The agent of a task may change from turn to turn: each is told with its own."""
    if a.started_at is None:
        return [f"{a.claimed_at:%Y-%m-%d %H:%M:%S} attempt {a.n} claimed; its agent was not executed"]
    program = " ".join(filter(None, [a.agent or d.agent, a.version]))
    said = [f"{a.started_at:%Y-%m-%d %H:%M:%S} attempt {a.n} executed ({a.kind}), {program}, shim {a.shim_pid}"]
    if a.ended_at is None:
        return said
    how = f"signal {a.exit_signal}" if a.exit_signal else f"exit code {a.exit_code}"
    stopped = f", stopped by {a.stopped_by}" if a.stopped_by else ""
    said.append(
        f"{a.ended_at:%Y-%m-%d %H:%M:%S} attempt {a.n} ended: terminal event {a.outcome.terminal}, {how}{stopped}; "
        f"{plural(a.harvest.files, 'file')} changed, harvest {a.harvest.status}"
    )
    if a.outcome.message:
        said.append(f"  it said: {a.outcome.message[:400]}")
    return said


def _next_without_checkout(d: Dispatch) -> list[str]:
    """What can be done with what was brought home or kept before the checkout went: no agent can go on there."""
    name = d.name
    if d.harvest.status == "rejected":
        return [f"core-agent rescue apply {name}"] * bool(d.harvest.rescue_ref) + [f"core-agent reject {name}"]
    landable = d.harvest.status != "none" and bool(d.harvest.sha)
    return [f"core-agent diff {name}", f"core-agent accept {name}"] * landable + [f"core-agent reject {name}"]


def _ways_on(engine: Engine, d: Dispatch) -> list[str]:
    """How a person has a queued task start that waits for a pool or for a time."""
    held = rows.held_up(engine, d, engine.facts())
    word, of_pool = held.word if held else "", f"core-agent queue start --pool {d.pool}"
    match word:
        case "frozen_pool":
            return [of_pool]
        case "parked":
            return [of_pool, f"core-agent resume {d.name}"]
        case "rate_limit":
            return [f"core-agent resume {d.name}", of_pool]
        case "pace" | "memory":
            return [f"core-agent queue start {d.name}"]
    return []


def _next(engine: Engine, d: Dispatch) -> list[str]:
    name = d.name
    if d.workspace_gone:
        return []
    if d.fate is not Fate.OPEN:
        return [f"core-agent workspace clean {name}"]
    if d.state in RESTING and d.harvest.status == "rejected":
        first = f'core-agent resume {name} --answer "..."' if d.state is State.BLOCKED else f"core-agent resume {name}"
        kept = [f"core-agent rescue apply {name}"] if d.harvest.rescue_ref else []
        return [f"core-agent diff {name}", first, *kept, f"core-agent reject {name}"]
    match d.state:
        case State.BLOCKED:
            return [
                f'core-agent resume {name} --answer "..."',
                f"core-agent attach {name}",
                f"core-agent cancel {name}",
            ]
        case State.PAUSED | State.CANCELLED:
            return [f"core-agent resume {name}", f"core-agent diff {name}", f"core-agent reject {name}"]
        case State.FAILED:
            return [f"core-agent logs {name}", f"core-agent resume {name}", f"core-agent reject {name}"]
        case State.COMPLETED if d.reason is not Reason.NO_CHANGES and d.fate is Fate.OPEN:
            return [f"core-agent diff {name}", f"core-agent accept {name}", f'core-agent resume {name} "also do ..."']
        case State.COMPLETED:
            return [f"core-agent logs {name}", f'core-agent resume {name} "also do ..."', f"core-agent reject {name}"]
        case State.QUEUED if after.is_held(d):
            return [f"core-agent queue start {name}", f"core-agent queue drop {name}"]
        case State.QUEUED:
            return [*_ways_on(engine, d), f"core-agent queue drop {name}", "core-agent queue list"]
        case State.RUNNING | State.PREPARING:
            return [f"core-agent watch {name}", f"core-agent pause {name}", f"core-agent cancel {name}"]
        case _:
            return []


@capability("watch", tool="agentic_watch", cli="watch", roles=EVERYONE, read_only=True)
async def watch(
    core: Core, caller: Caller, workspace: Workspace = "", since: int = 0, timeout_s: float = 30.0
) -> WatchReply:
    """Wait until something happens after event `since` (0: from now, -1: from the first) or the time is out.

    Of a workspace that was let go, what is left is told, then that it is `over`.
    """
    engine = core.engine
    wanted = (await seen_by(core, caller, workspace)).id if workspace or caller.role == "worker" else ""
    # 0, or one of another store: from now; a negative one: from the first.
    after = max(since, 0) if since and since <= engine.seq else engine.seq
    deadline = time.monotonic() + min(max(timeout_s, 0.0), WATCH_MAX_S)
    while True:
        turns = engine.turns
        gone = bool(wanted) and wanted not in engine.board
        found = await core.store.events(after, dispatch_id=wanted)
        left = deadline - time.monotonic()
        if found or gone or left <= 0:
            named = {e.dispatch_id for e in found} or {wanted}
            return WatchReply(
                seq=max((e.seq for e in found), default=after),
                events=[e.model_dump(mode="json") for e in found],
                workspaces=[rows.row(engine, d) for i in sorted(named) if (d := engine.board.get(i)) is not None],
                timed_out=not found and not gone,
                over=gone and not found,
            )
        await engine.changed(left, turns)


@capability("history", cli="history", read_only=True)
async def history(core: Core, limit: int = 50) -> list[HistoryRow]:
    """Tell what happened in the last dispatches, newest first, those whose workspace is gone included."""
    found = await core.store.history(min(max(limit, 1), 10_000))
    return [
        HistoryRow(
            dispatch_id=d.id,
            workspace=d.workspace,
            agent=d.agent,
            tried=d.tried,
            model=d.model,
            template=d.options.template,
            state=d.state,
            reason=d.reason,
            fate=d.fate,
            runs=d.runs,
            worked_s=rows.worked(core.engine, d),
            tokens=d.usage.total,
            cost=d.cost,
            files=d.harvest.files,
            insertions=d.harvest.insertions,
            deletions=d.harvest.deletions,
            created_at=d.created_at,
            started_at=d.started_at,
            ended_at=d.ended_at,
            task=(d.task.splitlines() or [""])[0][: rows.TASK_SHOWN],
            note=d.teardown_note,
        )
        for d in found
    ]
