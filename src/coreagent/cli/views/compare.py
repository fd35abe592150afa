"""What is told of tasks that belong together: a batch, siblings side by side, what was picked, what can be adopted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from coreagent.cli.views.answer import accept_lines, reject_lines
from coreagent.cli.views.text import (
    Paint,
    diffstat,
    duration,
    money,
    next_lines,
    one_line,
    safe_lines,
    table,
    tokens,
    wrap,
)
from coreagent.errors import shell_word
from coreagent.models.batch import AdoptCandidate, AdoptReply, BatchReply, CompareReport, CompareRow, PickReply
from coreagent.models.dispatch import Fate
from coreagent.models.report import WorkspaceRow
from coreagent.plural import plural

WIDE = 100


def batch_lines(reply: BatchReply, width: int, paint: Paint, *, next_steps: bool = True) -> list[str]:
    """The tasks of a batch in the order in which they can start."""
    count = plural(len(reply.tasks), "task")
    if reply.dry_run:
        lines = [paint.bold(f"nothing was started: these {count} would be queued, in this order"), ""]
    else:
        lines = [f"{paint.bold(one_line(reply.batch))}  {count}"]
    cells = []
    for number, row in enumerate(reply.tasks, 1):
        state = "there already" if row.reused else "new" if reply.dry_run else one_line(row.waiting_for) or row.state
        after = ", ".join(map(one_line, row.after)) + (" (on top)" if row.on_top else "")
        cells.append(
            [str(number), one_line(row.workspace), str(state), one_line(row.agent), after or "-", one_line(row.task)]
        )
    lines += table(["#", "WORKSPACE", "STATE", "AGENT", "AFTER", "TASK"], cells, width, paint, flex=-1, right="#")
    notes = [*reply.notes, *(f"{row.key}: {row.note}" for row in reply.tasks if row.note)]
    for note in notes:
        lines += [paint.yellow(line) for line in wrap(f"note: {one_line(note)}", width, "  ")]
    if next_steps and not reply.dry_run:
        batch = one_line(reply.batch)
        commands = [f"core-agent wait {batch}", f"core-agent compare {batch}"]
        lines += [paint.dim(line) for line in next_lines(commands, width)]
    return lines


def end_lines(batch: str, rows: Sequence[WorkspaceRow], width: int, paint: Paint) -> list[str]:
    """How a batch ended, counted."""
    counted = Counter("held up" if str(row.state) == "queued" else str(row.state) for row in rows)
    told = ", ".join(f"{count} {state}" for state, count in counted.items())
    lines = [f"{paint.bold(one_line(batch))}  {told}"]
    return lines + [paint.dim(line) for line in next_lines([f"core-agent compare {one_line(batch)}"], width)]


def compare_lines(report: CompareReport, width: int, paint: Paint) -> list[str]:
    """One line for each result."""
    cells = [
        [
            one_line(row.workspace).rsplit("/", 1)[-1],
            one_line(row.agent),
            _state(row),
            diffstat(row.files, row.insertions, row.deletions) or "-",
            _tests(row),
            money(row.cost),
            tokens(row.tokens),
            duration(row.worked_s),
            one_line(row.same_as).rsplit("/", 1)[-1] or "-",
        ]
        for row in report.rows
    ]
    header = ["RESULT", "AGENT", "STATE", "CHANGES", "TESTS", "COST", "TOKENS", "WORK", "SAME AS"]
    if width < WIDE:  # what it cost is in --json, and in `status`
        header, *cells = ([*line[:5], line[8]] for line in (header, *cells))
    lines = table(header, cells, width, paint, flex=2, right="COST TOKENS WORK")
    for row in report.rows:
        if row.tests.tail and row.tests.verdict != "passed":
            lines += ["", paint.bold(f"{one_line(row.workspace)}: tests {row.tests.verdict}")]
            lines += [f"  {line}" for text in row.tests.tail for line in safe_lines(text)]
    for note in report.notes:
        lines += [paint.yellow(line) for line in wrap(f"note: {one_line(note)}", width)]
    if report.diff:
        lines += ["", *safe_lines(report.diff)]
    if report.truncated:
        lines.append(paint.yellow("the patch is longer than this"))
    landable = [row for row in report.rows if row.sha and row.fate is Fate.OPEN]
    if landable and not report.diff:
        first = one_line(landable[0].workspace).rsplit("/", 1)[-1]
        commands = [f"core-agent diff {first}", f"core-agent pick {first}"]
        lines += [paint.dim(line) for line in next_lines(commands, width)]
    return lines


def _state(row: CompareRow) -> str:
    if row.fate is not Fate.OPEN:
        return str(row.fate)
    return str(row.state) if row.reason is None or str(row.reason) == str(row.state) else f"{row.state}: {row.reason}"


def _tests(row: CompareRow) -> str:
    found = row.tests
    took = f" {duration(found.seconds)}" if found.seconds is not None and found.seconds >= 1 else ""
    code = f" ({found.exit_code})" if found.verdict == "failed" else ""
    return f"{found.verdict}{code}{took}"


def pick_lines(reply: PickReply, width: int, paint: Paint) -> list[str]:
    """What landed, and what became of the others."""
    if reply.accepted is not None:
        lines = accept_lines(reply.accepted, width, paint)
    else:
        lines = [f"{paint.bold(one_line(reply.workspace))} was accepted before"]
        if reply.undo:
            lines.append(paint.dim(f"  undo: {one_line(reply.undo)}"))
    for one in reply.rejected:
        lines += reject_lines(one, width, paint)
    return lines


def adopt_lines(reply: AdoptReply, width: int, paint: Paint) -> list[str]:
    """What was taken over."""
    verb = "was adopted before" if reply.again else "adopted"
    lines = [f"{paint.bold(one_line(reply.workspace))}  {verb}, {reply.state}"]
    lines += wrap(f"from {one_line(reply.source)}, which stays as it is", width, "  ")
    what = [plural(reply.commits, "commit"), diffstat(reply.files, reply.insertions, reply.deletions)]
    home = f" on {one_line(reply.branch)}" if reply.branch else ""
    lines += wrap(", ".join(part for part in what if part) + home, width, "  ")
    for note in reply.notes:
        lines += [paint.yellow(line) for line in wrap(f"note: {one_line(note)}", width, "  ")]
    name = one_line(reply.workspace)
    return lines + [
        paint.dim(line) for line in next_lines([f"core-agent resume {name}", f"core-agent diff {name}"], width)
    ]


def candidate_lines(rows: Sequence[AdoptCandidate], width: int, paint: Paint) -> list[str]:
    """Worktrees that could be adopted."""
    if not rows:
        return ["there is no other worktree of this repository"]
    cells = []
    for row in rows:
        change = ", ".join(
            part
            for part in (
                plural(row.commits, "commit") if row.commits else "",
                f"{row.dirty} uncommitted" if row.dirty else "",
            )
            if part
        )
        taken = f"adopted as {one_line(row.adopted_as)}" if row.adopted_as else change or "nothing new"
        session = one_line(row.session_id)[:8] or "-"
        cells.append([one_line(row.title or row.branch) or "-", row.source, taken, session, one_line(row.path)])
    lines = table(["WHAT", "OF", "CHANGES", "SESSION", "PATH"], cells, width, paint, flex=-1)
    first = next((row for row in rows if not row.adopted_as), None)
    if first is None:
        return lines
    return lines + [paint.dim(line) for line in next_lines([f"core-agent adopt {shell_word(first.path)}"], width)]
