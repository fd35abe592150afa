"""Lists: history, queue, rescued work, repositories, agents, templates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from coreagent.cli.views.status import waits_for
from coreagent.cli.views.text import (
    Paint,
    ago,
    clock,
    diffstat,
    duration,
    money,
    one_line,
    safe_lines,
    table,
    tokens,
    wrap,
)
from coreagent.models.dispatch import Fate
from coreagent.models.report import (
    AgentRow,
    HistoryRow,
    NoticeSent,
    PoolRow,
    QueueReport,
    RepoRemoved,
    RepoRow,
    RescueRow,
    TemplateRow,
    TemplateShow,
    TrustReply,
    WorkspaceRow,
)
from coreagent.plural import plural


def history_lines(rows: Sequence[HistoryRow], width: int, paint: Paint, now: datetime) -> list[str]:
    """The last dispatches, newest first, one line each."""
    if not rows:
        return ["nothing was dispatched yet"]
    cells = []
    for row in rows:
        state = str(row.fate) if row.fate is not Fate.OPEN else str(row.state)
        if row.fate is Fate.OPEN and row.reason and str(row.reason) != str(row.state):
            state += f": {row.reason}"
        full = [f"{ago(row.created_at, now)} ago", one_line(row.workspace), state, one_line(row.agent)]
        full += [duration(row.worked_s), tokens(row.tokens), money(row.cost)]
        full.append(diffstat(row.files, row.insertions, row.deletions) or "-")
        cells.append([*full, one_line(row.task)] if width >= 100 else [*full[:3], one_line(row.task)])
    if width >= 100:
        header = ["WHEN", "WORKSPACE", "STATE", "AGENT", "WORK", "TOKENS", "COST", "CHANGES", "TASK"]
    else:
        header = ["WHEN", "WORKSPACE", "STATE", "TASK"]
    notes = [f"{one_line(row.workspace)}: {one_line(row.note)}" for row in rows if row.note]
    lines = table(header, cells, width, paint, flex=-1, right="WHEN WORK TOKENS COST")
    return lines + [paint.yellow(line) for note in notes for line in wrap(note, width)]


def queue_lines(report: QueueReport, width: int, paint: Paint, now: datetime) -> list[str]:
    lines = []
    if report.frozen:
        lines.append(paint.yellow("the queue is frozen: `core-agent queue start` lets it go on"))
    elif report.frozen_pools:
        lines.append(paint.yellow(f"frozen pools: {one_line(', '.join(report.frozen_pools))}"))
    lines += [paint.yellow(line) for line in wrap(one_line(report.note), width)] if report.note else []
    if not report.rows:
        return [*lines, "nothing is queued"]
    cells = [
        [
            str(row.position),
            one_line(row.workspace),
            one_line(row.agent),
            str(row.priority),
            waits_for(row.waiting_for, row.waiting_until, now),
            f"{ago(row.queued_at, now)} ago",
        ]
        for row in report.rows
    ]
    header = ["#", "WORKSPACE", "AGENT", "PRIO", "WAITS FOR", "QUEUED"]
    lines += table(header, cells, width, paint, flex=1, right="# PRIO QUEUED")
    hidden = report.total - len(report.rows)
    return [*lines, paint.dim(f"+{hidden:,} more")] if hidden > 0 else lines


def notice_lines(sent: Sequence[NoticeSent], width: int, paint: Paint) -> list[str]:
    lines = []
    for one in sent:
        sign = paint.green("✓") if one.arrived else paint.red("✗")
        first, *rest = wrap(one_line(one.problem) if one.problem else "arrived", max(20, width - 12))
        lines += [f"{sign} {paint.bold(one.channel.ljust(8))} {first}", *(f"{'':11}{line}" for line in rest)]
    return lines


def rescue_lines(rows: Sequence[RescueRow], width: int, paint: Paint, now: datetime) -> list[str]:
    if not rows:
        return ["nothing had to be rescued"]
    cells = [
        [one_line(r.workspace), str(r.n), one_line(r.reason), str(r.files), r.sha[:10], f"{ago(r.at, now)} ago"]
        for r in rows
    ]
    header = ["WORKSPACE", "N", "WHY", "FILES", "COMMIT", "WHEN"]
    lines = table(header, cells, width, paint, flex=0, right="N FILES WHEN")
    also = [f"{one_line(r.workspace)}: {one_line(said)}" for r in rows for said in r.also]
    lines += ["", *(line for said in also for line in wrap(said, width))] if also else []
    return [*lines, "", paint.dim("bring one back: core-agent rescue apply WORKSPACE [N]")]


def repo_lines(rows: Sequence[RepoRow], width: int, paint: Paint, now: datetime) -> list[str]:
    if not rows:
        return ["no repository is registered; `core-agent repo add` registers the one you are in"]
    cells = []
    for row in rows:
        trust = "changed since" if row.trust_stale else ("yes" if row.trusted else "no")
        name = f"{one_line(row.org)}/{one_line(row.name)}" + (" (managed)" if row.managed else "")
        asked = "failed" if row.fetch_failures else ago(row.fetched_at, now) if row.fetched_at else "-"
        bypass = "yes" if row.bypass_consent else "no"
        cells.append([name, trust, bypass, one_line(row.default_branch), asked, one_line(row.path)])
    lines = table(["REPOSITORY", "TRUSTED", "BYPASS", "BRANCH", "FETCHED", "PATH"], cells, width, paint, flex=-1)
    for row in rows:
        if row.fetch_error:
            again = f"; again in {ago(now, row.next_fetch)}" if row.next_fetch and row.next_fetch > now else ""
            told = f"{row.org}/{row.name}: {row.fetch_error}{again}"
            lines += [paint.yellow(line) for line in wrap(one_line(told), width)]
    return lines


def removed_lines(reply: RepoRemoved, width: int, paint: Paint) -> list[str]:
    """What is forgotten, and what stays and why."""
    lines = [f"{paint.bold(f'{one_line(reply.repo.org)}/{one_line(reply.repo.name)}')} is forgotten"]
    lines += wrap(f"its files stay: {one_line(reply.repo.path)}", width, "  ")
    if reply.cache == "kept":
        held = plural(reply.rescued, "rescued state", "rescued states")
        lines += wrap(f"its cache stays too, with {held}: core-agent rescue list", width, "  ")
    return lines


def trust_lines(reply: TrustReply, width: int, paint: Paint) -> list[str]:
    """What a repository would have the daemon run, in full: consent to what was not shown is none."""
    name = f"{one_line(reply.repo.org)}/{one_line(reply.repo.name)}"
    if not reply.settings:
        lines = [f"{paint.bold(name)} brings no settings of its own: there is nothing to trust"]
    else:
        lines = [f"{paint.bold(name)} would have core-agent run what stands in these files:"]
        for file, text in reply.settings.items():
            lines += ["", paint.bold(one_line(file)), *(f"  {line}" for line in safe_lines(text))]
        lines.append("")
    return lines + agreed_lines(reply, width, paint)


def agreed_lines(reply: TrustReply, width: int, paint: Paint) -> list[str]:
    """What a person agreed to, and nothing where they only looked."""
    lines: list[str] = []
    if reply.applied and reply.repo.trusted and not reply.repo.trust_stale:
        lines.append(paint.green(f"✓ trusted as they are now ({reply.hash[:12]}); a change asks again"))
    if reply.applied and reply.repo.bypass_consent:
        lines += [
            paint.yellow(line) for line in wrap("agents may run here without asking and without a sandbox", width)
        ]
    return lines


def agent_lines(rows: Sequence[AgentRow], width: int, paint: Paint, now: datetime) -> list[str]:
    """Who can be asked: version and login, how much of its pool is used, and where it is or what is wrong with it."""
    counted = any(row.use and (row.use.today or row.use.daily_limit) for row in rows)
    cells = []
    for row in rows:
        state = one_line(row.path) or "ok"
        if not row.found or row.problem:
            state = one_line(row.problem) or "not found"
        unasked = "not asked" if row.found and row.runner == "acp" else ""
        words = {"yes": "yes", "no": "no", "unknown": unasked or "?", "not_needed": "-"}
        login = words[row.login] if row.found else "-"
        version = one_line(row.version).partition(" ")[0] or unasked or "-"
        version += f" (≥{row.minimum})" if row.minimum and row.version else ""
        name = one_line(row.name) + (f" = {one_line(row.runner)}" if row.kind == "identity" else "")
        cell = [
            name,
            version,
            login,
            one_line(row.pool),
            _of(row.running, row.limit),
        ]
        today = [_of(row.use.today, row.use.daily_limit) if row.use else "-"] if counted else []
        cells.append([*cell, *today, state])
    header = ["AGENT", "VERSION", "LOGIN", "POOL", "RUNNING", *(["TODAY"] if counted else []), "WHERE"]
    lines = table(header, cells, width, paint, flex=-1)
    for row in rows:
        if row.found and row.login == "no" and row.login_how:
            lines.append(paint.yellow(f"  {one_line(row.name)}: {one_line(row.login_how)}"))
        if row.others:
            # Not in a table's cell: which of them is used is what a person has to know.
            there = f"{row.path} is used; there is also {', '.join(row.others)}"
            lines += [paint.yellow(line) for line in wrap(one_line(f"  {row.name}: {there}"), width, "    ")]
    own = {row.pool: row.use for row in rows if row.use and row.pool}
    others = {use.pool: use for row in rows for use in row.variants if use.pool not in own}
    for use in [*own.values(), *others.values()]:
        limits = _pool_limits(use, now, whole=use.pool in others)
        held = _pool_words(use, now)
        if held or limits:
            stops = bool(held) or 0 < use.daily_limit <= use.today
            line = f"  pool {one_line(use.pool)}: {', '.join([*held, *limits])}"
            lines += [(paint.yellow if stops else paint.dim)(part) for part in wrap(line, width, "    ")]
    return lines


def _of(count: int, most: int) -> str:
    return f"{count}/{most}" if most else f"{count}/∞"


def _pool_words(use: PoolRow, now: datetime) -> list[str]:
    """What is out of the ordinary in a pool."""
    said = []
    if use.parked_until is not None:
        said.append(f"parked until {clock(use.parked_until, now)} ({one_line(use.parked_for).replace('_', ' ')})")
    if use.frozen:
        said.append("frozen")
    if use.held_by == "pace" and use.next_start is not None:
        said.append(f"paced: the next start is at {clock(use.next_start, now)}")
    if use.queued:
        said.append(f"{use.queued} wait" if use.queued > 1 else "1 waits")
    return said


def _pool_limits(use: PoolRow, now: datetime, whole: bool) -> list[str]:
    """The limits of a pool that its agents' rows do not show; with `whole`, all that it has."""
    said = [f"{_of(use.running, use.limit)} running"] if whole else []
    said += [f"{one_line(cap.model)} {_of(cap.running, cap.limit)}" for cap in use.models]
    if use.daily_limit and use.resets_at is not None:
        if use.today >= use.daily_limit:
            used = f"all {use.daily_limit} starts of the day are used"
        else:
            used = f"{use.today} of {use.daily_limit} starts of the day are used"
        said.append(f"{used}; the next day begins at {clock(use.resets_at, now)}")
    for window in use.windows:
        kind = one_line(window.kind).replace("_", " ")
        said.append(f"{window.used:.0%} of the {kind} window is used until {clock(window.resets_at, now)}")
    return said


def template_lines(rows: Sequence[TemplateRow], width: int, paint: Paint) -> list[str]:
    cells = [[one_line(r.name), r.kind, one_line(r.summary), one_line(r.source)] for r in rows]
    return table(["NAME", "KIND", "WHAT FOR", "FROM"], cells, width, paint, flex=2)


def template_text(show: TemplateShow, paint: Paint) -> list[str]:
    lines = [f"{paint.bold(one_line(show.name))}  {show.kind} from {one_line(show.source)}"]
    if show.variables:
        lines.append(paint.dim("variables (--var NAME=VALUE): " + one_line(", ".join(show.variables))))
    return [*lines, "", *safe_lines(show.text)]


def workspace_rows(rows: Sequence[WorkspaceRow], width: int, paint: Paint, now: datetime) -> list[str]:
    if not rows:
        return ["there is no workspace"]
    cells = []
    for row in rows:
        state = str(row.fate) if row.fate is not Fate.OPEN else str(row.state)
        change = diffstat(row.files, row.insertions, row.deletions) or "-"
        cells.append([one_line(row.workspace), state, one_line(row.agent), change, f"{ago(row.changed_at, now)} ago"])
    return table(["WORKSPACE", "STATE", "AGENT", "CHANGES", "CHANGED"], cells, width, paint, flex=0, right="CHANGED")
