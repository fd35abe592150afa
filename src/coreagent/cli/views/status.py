"""`status` for people: what needs me (oldest first, on top), what runs, what waits and why, what is settled.

Wide screens get one line per workspace, narrow ones two. Everything an agent wrote is made safe before it is set.
"""

from __future__ import annotations

from datetime import datetime

from coreagent.cli.views.text import (
    Paint,
    ago,
    clock,
    diffstat,
    duration,
    fit,
    fit_middle,
    money,
    next_lines,
    one_line,
    pad,
    tokens,
    width_of,
    wrap,
)
from coreagent.models.agent import Reason
from coreagent.models.dispatch import ACTIVE, Fate, Stage, State
from coreagent.models.report import PoolRow, StatusReport, WorkspaceRow
from coreagent.plural import plural

WIDE = 100
NOW_MIN = 30
"""What a workspace does now, the column that a person reads, gets at least this much room, or lines of its own."""
_WAITING = {
    "slot": "waits for a free slot",
    "model_slot": "waits for a free slot of its model",
    "frozen": "the queue is frozen",
    "frozen_pool": "its pool is frozen",
    "rate_limit": "rate limit",
    "parked": "its pool is parked",
    "daily_limit": "no start left today",
    "min_delay": "pause between two starts",
    "pace": "paced to reach the reset",
    "memory": "would not fit into memory",
    "starting": "others are starting",
    "breaker": "its repository is left alone",
    "settings": "agents.yaml is wrong",
    "shutdown": "the daemon is draining",
    "restart": "waits for the daemon's restart",
    "workspace": "another turn holds the workspace",
    "after": "waits for another task",
    "after_failed": "what it waits for did not end well",
    "start": "waits for `queue start`",
    "asked": "about to start",
}


def mark(row: WorkspaceRow, paint: Paint) -> str:
    """One sign per state, so that a list can be read from the side."""
    if _not_home(row):
        return paint.yellow("!")
    match row.state:
        case State.RUNNING:
            return paint.cyan("●")
        case State.PREPARING:
            return paint.cyan("◌")
        case State.QUEUED:
            return paint.dim("·")
        case State.BLOCKED:
            return paint.yellow("?")
        case State.PAUSED:
            return paint.yellow("=")
        case State.FAILED:
            return paint.red("✗")
        case State.COMPLETED:
            return paint.green("✓")
        case State.CANCELLED:
            return paint.dim("-")


def _not_home(row: WorkspaceRow) -> bool:
    """Whether an agent ended well and its work could not be brought home: no success to anybody who looks."""
    return row.state is State.COMPLETED and row.fate is Fate.OPEN and row.stage is Stage.HARVEST_REJECTED


def _tint(row: WorkspaceRow, text: str, paint: Paint) -> str:
    if _not_home(row):
        return paint.yellow(text)
    match row.state:
        case State.FAILED:
            return paint.red(text)
        case State.BLOCKED | State.PAUSED:
            return paint.yellow(text)
        case State.COMPLETED:
            return paint.green(text)
        case State.RUNNING | State.PREPARING:
            return paint.cyan(text)
        case _:
            return paint.dim(text)


def state_words(row: WorkspaceRow) -> str:
    """State and, in the same breath, the reason: `failed: auth`, `completed`, `accepted`."""
    if row.fate is not Fate.OPEN:
        return str(row.fate)
    if _not_home(row):
        return "not brought home"
    if row.reason is None or str(row.reason) == str(row.state):
        return str(row.state)
    return f"{row.state}: {row.reason}"


def since_words(row: WorkspaceRow, now: datetime) -> str:
    """`for 5m` of what goes on or waits, `5m ago` of what came to an end."""
    lasts = row.state in ACTIVE or row.state in (State.QUEUED, State.BLOCKED, State.PAUSED)
    if row.fate is not Fate.OPEN or not lasts:
        return f"{ago(row.since, now)} ago"
    return f"for {ago(row.since, now)}"


def what_now(row: WorkspaceRow, now: datetime) -> str:
    """The one thing a person wants to know of this workspace now."""
    said = one_line(row.detail)
    if row.attached_pid:
        return f"attached: a person is in its session (pid {row.attached_pid})"
    if row.fate is not Fate.OPEN and row.state in (State.PAUSED, State.BLOCKED):
        return one_line(row.task)  # what it waited for, nobody needs to do any more
    match row.state:
        case State.BLOCKED:
            return "asks: " + (one_line(row.question) or said or "see BLOCKED.md")
        case State.QUEUED:
            if row.waiting_for.startswith("after") and said:
                return said
            return waits_for(row.waiting_for, row.waiting_until, now)
        case State.PREPARING:
            return said or "making the workspace"
        case State.RUNNING:
            doing, task = one_line(row.last_tool), one_line(row.last_text) or said or one_line(row.task)
            # The bare name of a tool says little: beside it, what was said last or what all this is for.
            return " - ".join(part for part in (doing, task if " " not in doing else "") if part)
        case State.COMPLETED:
            return _completed(row, said)
        case _:
            return said or one_line(row.last_text) or one_line(row.task)


def waits_for(word: str, until: datetime | None, now: datetime) -> str:
    """Why something waits, for people, and until when."""
    said = _WAITING.get(word, one_line(word) or "waits for its turn")
    return said if until is None else f"{said}, until {clock(until, now)}"


def _completed(row: WorkspaceRow, said: str) -> str:
    if row.fate is not Fate.OPEN:
        return said or one_line(row.task)
    if row.stage is Stage.HARVEST_REJECTED:
        kept = "the work is kept" if row.rescue_ref else "`why` tells where it is"
        return f"the work could not be brought home ({one_line(row.harvest_reason) or 'see why'}); {kept}"
    if row.denied_tools:
        return f"done, but was refused: {one_line(', '.join(row.denied_tools))}"
    if row.needs_me and row.reason is Reason.NO_CHANGES:
        return "changes were expected, and none came"
    if row.needs_me:
        return f"ready to accept: {one_line(row.branch)}"
    return said or one_line(row.last_text) or one_line(row.task)


def _facts(row: WorkspaceRow, now: datetime) -> list[str]:
    """Since when, agent, time worked, tokens, cost, diffstat: only those that say something."""
    agent = one_line(row.agent) + (" !bypass" if row.bypass else "")
    facts = [since_words(row, now), agent, _worked(row), tokens(row.tokens), money(row.cost)]
    facts.append(diffstat(row.files, row.insertions, row.deletions))
    return [fact for fact in facts if fact and fact != "-"]


def _worked(row: WorkspaceRow) -> str:
    return f"worked {duration(row.elapsed_s)}" if row.elapsed_s is not None else "-"


def sections(report: StatusReport) -> list[tuple[str, list[WorkspaceRow]]]:
    """Split the rows: needs me (oldest first), running, queued, settled; the order inside is the report's."""
    needs = sorted((row for row in report.workspaces if row.needs_me), key=lambda row: row.since)
    rest = [row for row in report.workspaces if not row.needs_me]
    return [
        ("needs you", needs),
        ("running", [row for row in rest if row.state in ACTIVE]),
        ("queued", [row for row in rest if row.state is State.QUEUED]),
        ("settled", [row for row in rest if row.state not in ACTIVE and row.state is not State.QUEUED]),
    ]


def headline(report: StatusReport, width: int, paint: Paint) -> list[str]:
    """`2 running, 1 queued, 1 blocked`: the counts that are not zero."""
    counts = {name: value for name, value in report.counts.model_dump().items() if value}
    if report.strangers:
        counts["running that the store does not know"] = report.strangers
    if not counts:
        return wrap("nothing is running, queued or waiting for you", width)
    told = ", ".join(f"{paint.bold(str(value))} {name}" for name, value in counts.items())
    if width_of(told) <= width:
        return [told]
    return wrap(", ".join(f"{value} {name}" for name, value in counts.items()), width)


def status_lines(
    report: StatusReport, width: int, paint: Paint, now: datetime, room: int = 0, all_of_it: str = ""
) -> list[str]:
    """The whole screen of `status`, line by line, none wider than `width`.

    With `room`, at most so many lines where that can be: the counts and the first of each section stay, then warnings
    and more rows, what does not fit is counted, and `all_of_it` is the command that shows it.
    """
    warnings = [line for said in report.warnings for line in _warning(one_line(said), width)]
    counts = headline(report, width, paint)
    top = [*(paint.yellow(line) for line in warnings), *counts]
    told = [(title, rows) for title, rows in sections(report) if rows]
    shown = [row for _, rows in told for row in rows]
    # One set of columns for all sections: the eye runs down them.
    body = _wide(shown, width, paint, now) if width >= WIDE else _narrow(shown, width, paint, now)
    pools = [paint.dim(fit(line, width)) for pool in report.pools if (line := pool_line(pool, now))]
    if report.queued_hidden:
        pools.insert(0, paint.dim(fit(f"+{report.queued_hidden:,} more wait: core-agent queue list", width)))
    pools = ["", *pools] if pools else []
    blocks = [[["", paint.bold(title.upper())], *(body.pop(0) for _ in rows)] for title, rows in told]
    whole = [line for block in blocks for lines in block for line in lines]
    if not room or len(top) + len(whole) + len(pools) <= room:
        return top + whole + pools
    where = f": {all_of_it}" if all_of_it else ""
    firsts = sum(len(line) for block in blocks for line in block[:2])
    warnings = _warnings_that_fit(report.warnings, width, room - len(counts) - 1 - firsts, where)
    top = [*(paint.yellow(line) for line in warnings), *counts]
    kept, hidden = _that_fit(blocks, room - len(top) - 1)
    more = f"+{hidden:,} more{where}"
    lines = [*top, *kept, *([paint.dim(fit(more, width))] if hidden else [])]
    return lines + (pools if len(lines) + len(pools) <= room else [])


def _warning(text: str, width: int) -> list[str]:
    """A warning in full: its end says where the mistake is and what to do."""
    first, *rest = wrap(text, width - 2)
    return [f"! {first}", *(f"  {line}" for line in rest)]


def _warnings_that_fit(warnings: list[str], width: int, room: int, where: str) -> list[str]:
    """The warnings in full where they fit, else a line of each; at least one line that counts them."""
    whole = [line for said in warnings for line in _warning(one_line(said), width)]
    if len(whole) <= room:
        return whole
    short = [fit(f"! {one_line(said)}", width) for said in warnings]
    if len(short) <= max(1, room):
        return short
    kept = short[: max(0, room - 1)]
    return [*kept, fit(f"! {plural(len(short) - len(kept), 'warning')}{where}", width)]


def _that_fit(blocks: list[list[list[str]]], room: int) -> tuple[list[str], int]:
    """The lines of the sections that fit, and how many rows do not.

    The sections take turns, a row each, so that a long one does not push what runs off the screen.
    """
    taken, open_ones = [0 for _ in blocks], list(range(len(blocks)))
    while open_ones:
        for at in list(open_ones):
            head, *rows = blocks[at]
            needed = 0 if taken[at] == len(rows) else len(rows[taken[at]]) + (0 if taken[at] else len(head))
            if not needed or needed > room:
                open_ones.remove(at)
                continue
            room -= needed
            taken[at] += 1
    lines = [
        line
        for block, count in zip(blocks, taken, strict=True)
        if count
        for part in block[: count + 1]
        for line in part
    ]
    return lines, sum(len(block) - 1 - count for block, count in zip(blocks, taken, strict=True))


def _wide(rows: list[WorkspaceRow], width: int, paint: Paint, now: datetime) -> list[list[str]]:
    cells = [
        (
            fit_middle(one_line(row.workspace), 34),
            state_words(row),
            since_words(row, now),
            what_now(row, now),
            fit(one_line(row.agent), 18) + (" !bypass" if row.bypass else ""),
            _worked(row),
            tokens(row.tokens),
            money(row.cost),
            diffstat(row.files, row.insertions, row.deletions) or "-",
        )
        for row in rows
    ]
    widths = [max((width_of(cell[i]) for cell in cells), default=0) for i in range(9)]
    room = width - 2 - 2 * 8 - (sum(widths) - widths[3])
    if room < min(widths[3], NOW_MIN):
        return _narrow(rows, width, paint, now)
    widths[3] = min(widths[3], room)
    lines = []
    for row, cell in zip(rows, cells, strict=True):
        parts = [pad(fit(text, widths[i]), widths[i], right=5 <= i <= 7) for i, text in enumerate(cell)]
        parts[1] = _tint(row, parts[1], paint)
        parts[2] = paint.dim(parts[2])
        parts[4:] = [paint.dim(part) for part in parts[4:-1]] + [paint.dim(parts[-1].rstrip())]
        lines.append([f"{mark(row, paint)} " + "  ".join(parts).rstrip()])
    return lines


def _narrow(rows: list[WorkspaceRow], width: int, paint: Paint, now: datetime) -> list[list[str]]:
    lines = []
    for row in rows:
        words = fit(state_words(row), max(10, width // 2))
        name = fit_middle(one_line(row.workspace), max(8, width - 4 - width_of(words)))
        facts = ""
        room = width - 4 - width_of(words) - width_of(name) - 2
        for fact in _facts(row, now):
            if width_of(facts) + width_of(fact) + 2 > room:
                break
            facts += ("  " if facts else "") + fact
        head = f"{mark(row, paint)} {paint.bold(name)}  {_tint(row, words, paint)}"
        first = f"{head}  {paint.dim(facts)}" if facts else head
        lines.append([first, "    " + fit(what_now(row, now), width - 4)])
    return lines


def pool_line(pool: PoolRow, now: datetime) -> str:
    """One line of a pool that holds something back; "" of one that flows."""
    if not (pool.frozen or pool.parked_until or pool.queued):
        return ""
    limit = f"{pool.running}/{pool.limit}" if pool.limit else str(pool.running)
    line = f"pool {one_line(pool.pool)}: {limit} running, {pool.queued:,} queued"
    if pool.daily_limit:
        line += f", today {pool.today}/{pool.daily_limit}"
    if pool.frozen:
        line += ", frozen (`core-agent queue start` lets it go on)"
    if pool.parked_until is not None:
        why = "an outage" if pool.parked_for == "outage" else "a rate limit"
        return line + f", parked by {why} until {clock(pool.parked_until, now)}"
    if pool.held_by in ("daily_limit", "min_delay", "pace"):
        line += f", {waits_for(pool.held_by, pool.next_start, now)}"
    return line


def hint_lines(report: StatusReport, width: int, paint: Paint) -> list[str]:
    """What to type next, for the oldest thing that needs a person."""
    needs = sections(report)[0][1]
    if not needs:
        return []
    first = needs[0]
    name = one_line(first.workspace)
    match first.state:
        case State.BLOCKED:
            hints = [f'core-agent resume {name} --answer "..."']
        case State.COMPLETED if first.harvest_reason:
            hints = [f"core-agent why {name}", *([f"core-agent rescue apply {name}"] if first.rescue_ref else [])]
        case State.COMPLETED if first.reason is Reason.NO_CHANGES:
            hints = [f"core-agent logs {name}", f'core-agent resume {name} "also do ..."']
        case State.COMPLETED:
            hints = [f"core-agent diff {name}", f"core-agent accept {name}"]
        case State.PAUSED:
            hints = [f"core-agent resume {name}"]
        case _:
            hints = [f"core-agent why {name}"]
    return ["", *(paint.dim(line[2:]) for line in next_lines(hints, width))]
