"""Answers of the verbs: what was dispatched, moved, accepted; why; what a workspace is."""

from __future__ import annotations

from datetime import datetime

from coreagent.cli.terminal import clean
from coreagent.cli.views.status import since_words, state_words, what_now
from coreagent.cli.views.text import (
    Paint,
    ago,
    clock,
    diffstat,
    duration,
    money,
    next_lines,
    one_line,
    running_words,
    safe_lines,
    size,
    tokens,
    used,
    wrap,
)
from coreagent.models.dispatch import State
from coreagent.models.own import DaemonLogLine
from coreagent.models.report import (
    AcceptReply,
    CleanReply,
    DaemonStatus,
    DiffReply,
    DispatchReply,
    MoveReply,
    StopReply,
    WhyReport,
    WorkspaceShow,
)
from coreagent.plural import plural

NOT_BROUGHT_HOME = 1


def dispatch_lines(reply: DispatchReply, width: int, paint: Paint, *, next_steps: bool = True) -> list[str]:
    """What became of a task: its workspace's name first, alone on its line for whoever copies it."""
    if reply.dry_run:
        return _dry_run(reply, width, paint)
    verb = "resumed" if reply.resumed else reply.state
    lines = [f"{paint.bold(one_line(reply.workspace))}  {paint.cyan(str(verb))}"]
    base = f" from {one_line(reply.base_ref) or 'HEAD'} at {reply.base_sha[:10]}" if reply.base_sha else ""
    lines += wrap(f"{one_line(reply.agent)} on {one_line(reply.branch)}{base}", width, "  ")
    for note in reply.notes:
        lines += [paint.yellow(line) for line in wrap(f"note: {one_line(note)}", width, "  ")]
    if next_steps:
        name = one_line(reply.workspace)
        lines += [paint.dim(line) for line in next_lines([f"core-agent logs -f {name}", "core-agent status"], width)]
    return lines


def _dry_run(reply: DispatchReply, width: int, paint: Paint) -> list[str]:
    lines = [paint.bold(f"nothing was started: this is what {one_line(reply.agent)} would be given"), ""]
    lines += [f"workspace  {one_line(reply.workspace)}", f"branch     {one_line(reply.branch)}"]
    if reply.base_sha:
        lines.append(f"base       {one_line(reply.base_ref)} {reply.base_sha[:10]}")
    lines += [f"note       {one_line(note)}" for note in reply.notes]
    if reply.argv:
        lines += ["", paint.bold("command"), *wrap(" ".join(_quoted(word) for word in reply.argv), width, "  ")]
    return [*lines, "", paint.bold("prompt"), *(f"  {line}".rstrip() for line in safe_lines(reply.prompt))]


def _quoted(word: str) -> str:
    plain = one_line(word)
    safe = plain and all(c.isalnum() or c in "-_=./:,@%+" for c in plain)
    return plain if safe else "'" + plain.replace("'", "'\\''") + "'"


def move_lines(reply: MoveReply, width: int, paint: Paint) -> list[str]:
    reason = f" ({reply.reason})" if reply.reason and str(reply.reason) != str(reply.state) else ""
    lines = [f"{paint.bold(one_line(reply.workspace))}  {reply.state}{reason}"]
    return lines + (wrap(one_line(reply.note), width, "  ") if reply.note else [])


def reject_lines(reply: MoveReply, width: int, paint: Paint) -> list[str]:
    """A rejection, which is no state of its own: the state that it had stays in the history."""
    lines = [f"{paint.bold(one_line(reply.workspace))}  rejected (it was {reply.state})"]
    return lines + (wrap(one_line(reply.note), width, "  ") if reply.note else [])


def accept_lines(reply: AcceptReply, width: int, paint: Paint) -> list[str]:
    change = diffstat(reply.files, reply.insertions, reply.deletions)
    lines = [
        f"{paint.green('✓')} {paint.bold(one_line(reply.workspace))} accepted onto {paint.bold(one_line(reply.onto))}"
    ]
    if reply.before != reply.after:
        moved = f"{reply.strategy}: {reply.before[:10]} -> {reply.after[:10]}"
        lines += wrap(moved + (f", {change}" if change else ""), width, "  ")
    for note in reply.notes:
        lines += wrap(one_line(note), width, "  ")
    if reply.undo:
        lines.append(paint.dim(f"  undo: {one_line(reply.undo)}"))
    return lines


def why_lines(report: WhyReport, width: int, paint: Paint) -> list[str]:
    lines = [f"{paint.bold(one_line(report.workspace))}  {report.state}"]
    lines += wrap(one_line(report.headline), width)
    if report.facts:
        lines.append("")
        for fact in report.facts:
            first, *rest = wrap(one_line(fact), width - 2)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    if report.next:
        lines += ["", paint.bold("next"), *(f"  {one_line(command)}" for command in report.next)]
    return lines


def diff_lines(reply: DiffReply, paint: Paint) -> list[str]:
    """The patch for a person's eyes, coloured line by line; only a line feed ends a line of it."""
    lines = []
    for raw in reply.text.removesuffix("\n").split("\n") if reply.text else []:
        line = clean(raw.expandtabs(4))
        if line.startswith(
            ("diff --git ", "index ", "--- ", "+++ ", "new file", "deleted file", "rename ", "similarity")
        ):
            lines.append(paint.bold(line))
        elif line.startswith("@@"):
            lines.append(paint.cyan(line))
        elif line.startswith("+"):
            lines.append(paint.green(line))
        elif line.startswith("-"):
            lines.append(paint.red(line))
        else:
            lines.append(line)
    return lines


def diff_summary(reply: DiffReply, paint: Paint) -> list[str]:
    """One closing line, on standard error so that the patch itself can be piped."""
    change = diffstat(reply.files, reply.insertions, reply.deletions) or "no changes"
    live = ", from the working tree of a running agent" if reply.live else ""
    if reply.since:
        live = f", the checkout as it is now: {plural(reply.since, 'file')} changed since the agent ended"
    lines = [paint.dim(f"{one_line(reply.workspace)}: {change}, {reply.base[:10]}..{reply.head[:10]}{live}")]
    if reply.truncated:
        lines.append(paint.yellow("the patch is longer than this; `core-agent open` shows the whole workspace"))
    return lines


def workspace_lines(show: WorkspaceShow, width: int, paint: Paint, now: datetime) -> list[str]:
    """Everything that is known of one workspace."""
    row = show.row
    facts = [
        ("state", f"{state_words(row)} {since_words(row, now)}"),
        ("now", what_now(row, now)),
        ("task", one_line(row.task)),
        ("agent", " ".join(filter(None, [one_line(row.agent), f"(pool {one_line(row.pool)})", one_line(row.model)]))),
        ("of", one_line(", ".join(show.agents))),
        ("before it", one_line(", ".join(f"{one.agent} ({one.reason.replace('_', ' ')})" for one in show.tried))),
        ("branch", one_line(row.branch)),
        ("base", f"{one_line(show.base_ref)} {show.base_sha[:10]}".strip()),
        ("repository", one_line(show.repo_path)),
        ("path", one_line(show.path) + ("" if show.exists else "  (not there any more)")),
        (
            "permissions",
            one_line(show.permissions) + (" (runs without asking and without a sandbox)" if row.bypass else ""),
        ),
        ("ports", show.ports),
        ("runs", str(row.runs)),
        ("session", one_line(show.session_id)),
        ("worked", duration(row.elapsed_s) if row.elapsed_s is not None else ""),
        ("used", _used(show)),
        ("changes", diffstat(row.files, row.insertions, row.deletions)),
        ("dispatch", row.dispatch_id),
        ("created", f"{ago(row.created_at, now)} ago"),
        ("kept until", clock(show.keep_until, now) if show.keep_until else ""),
    ]
    lines = [paint.bold(one_line(row.workspace))]
    for name, value in facts:
        if value:
            first, *rest = wrap(value, max(20, width - 14))
            lines += [f"  {paint.dim(name.ljust(11))} {first}", *(f"  {'':11} {line}" for line in rest)]
    if row.question:
        lines += ["", paint.yellow("question"), *(f"  {line}" for line in safe_lines(row.question))]
    for attempt in show.attempts:
        lines.append(_attempt_line(attempt))
    return lines


def _used(show: WorkspaceShow) -> str:
    usage = show.usage
    if not usage.total:
        return money(show.row.cost) if show.row.cost.usd is not None else ""
    parts = f"{used(usage.total)} ({tokens(usage.input)} in, {tokens(usage.output)} out, "
    return parts + f"{tokens(usage.cache_read)} cached), {money(show.row.cost)}"


def _attempt_line(attempt: dict[str, object]) -> str:
    told = {key: one_line(str(value)) for key, value in attempt.items() if value not in (None, "")}
    program = " ".join(filter(None, [told.get("agent", ""), told.get("version", "")]))
    words = [program, told.get("kind", ""), told.get("reason", ""), told.get("stopped_by", "")]
    code = f"exit {told['exit_code']}" if "exit_code" in told else ""
    return f"  attempt {told.get('n', '?'):<3} " + ", ".join(word for word in [*words, code] if word)


def clean_lines(reply: CleanReply, width: int, paint: Paint) -> list[str]:
    verb = "would be removed" if reply.dry_run else "removed"
    lines = [f"{verb}: {one_line(name)}" for name in reply.removed] or ["nothing to remove"]
    for name, reason in reply.kept.items():
        lines += [paint.dim(line) for line in wrap(f"kept: {one_line(name)} ({one_line(reason)})", width)]
    return lines


def daemon_lines(status: DaemonStatus, paint: Paint) -> list[str]:
    lines = [
        f"{paint.green('running')}  pid {status.pid}, version {one_line(status.version)}, "
        f"up {duration(status.uptime_s)}, {size(status.rss_bytes)}",
        f"  home    {one_line(status.home)}",
        f"  socket  {one_line(status.socket)}",
        f"  agents  {running_words(status.running, status.strangers)}",
    ]
    if status.draining:
        lines.append(paint.yellow("  draining: starts nothing new and stops when the last agent ends"))
    if status.ephemeral:
        lines.append(paint.yellow("  its store is in memory only: nothing of now outlives it"))
    return lines + [paint.yellow(f"! {one_line(warning)}") for warning in status.warnings]


def stop_lines(reply: StopReply, paint: Paint) -> list[str]:
    if reply.note:
        return [one_line(reply.note)]
    if reply.mode == "leave" and reply.running:
        return [
            "stopped; "
            + plural(
                reply.running,
                "agent of yours goes on and is found again by the next daemon",
                "agents of yours go on and are found again by the next daemon",
            )
        ]
    if reply.mode == "drain" and reply.running:
        return [f"draining: {plural(reply.running, 'agent still runs', 'agents still run')}; nothing new starts"]
    return [paint.bold("stopped")]


def exit_code(state: State, harvest_reason: str = "") -> int:
    """What `--wait` leaves the shell with; what is queued and at rest waits for a person.

    `harvest_reason` is why the work of a completed one is not on its branch: a script must not go on as if it were.
    """
    if state is State.COMPLETED and harvest_reason:
        return NOT_BROUGHT_HOME
    return {State.COMPLETED: 0, State.FAILED: 10, State.CANCELLED: 12}.get(state, 11)


def json_line(line: str) -> str:
    """One line of a plain log as a JSON document."""
    return DaemonLogLine(line=line).model_dump_json()
