"""Following: `--wait`, `watch`, `logs -f`, `status --watch`, all by the `watch` capability with a short limit.

They work the same in the daemon and outside, because a wait of a second that returns early on every message is cheap
there and the elapsed time has to be drawn again anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, time
from typing import Annotated, Any
from zlib import crc32

import typer
from pydantic import BaseModel, ValidationError

from coreagent.cli.commands.option import JsonLines, MaybeWorkspace, Workspace, now, paint, say, seconds, to_json
from coreagent.cli.session import ClientGone, session
from coreagent.cli.terminal import terminal
from coreagent.cli.views import answer, event
from coreagent.cli.views.live import Live
from coreagent.cli.views.status import mark, state_words, what_now
from coreagent.cli.views.text import diffstat, duration, fit, money, next_lines, one_line, used
from coreagent.errors import EXIT_INTERRUPTED, CoreAgentError
from coreagent.models.agent import EventKind, Reason
from coreagent.models.dispatch import ACTIVE, Fate, State
from coreagent.models.report import LogReply, WorkspaceRow
from coreagent.plural import plural

UNWRAPPED = 1 << 20
"""The width of what is no screen: a line that is piped stays one line."""
TICK_S = 0.5
"""How often a live view is drawn when nothing happens."""


def line_width() -> int:
    here = terminal()
    return here.width if here.out.isatty() else UNWRAPPED


def latest() -> int:
    """The number of the last message of all, to begin from: taken before a first look, nothing falls in between."""
    seq: int = session().call("watch", since=0, timeout_s=0).seq
    return seq


def changes(workspace: str, tick: float, since: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages since the last time, at least every `tick` seconds ([] when it was quiet).

    When the workspace is let go, of all others from then on.
    """
    while True:
        reply = session().call("watch", workspace=workspace, since=since, timeout_s=tick)
        since = max(since, reply.seq)
        if reply.over:
            workspace = ""
        yield reply.events


def looks(workspace: str, tick: float) -> Iterator[None]:
    """Yield at once, and then whenever something happened or `tick` seconds passed."""
    since = latest()
    yield
    for _ in changes(workspace, tick, since):
        yield


def row_of(workspace: str) -> WorkspaceRow:
    """The workspace as `status` shows it. Raises: workspace_not_found."""
    rows: list[WorkspaceRow] = session().call("status", workspace=workspace, all=True).workspaces
    if not rows:
        raise CoreAgentError(
            "workspace_not_found", f"there is no workspace {workspace!r}", hint="core-agent status --all"
        )
    return rows[0]


def at_rest(row: WorkspaceRow) -> bool:
    """Whether nothing more comes of it unless a person does something."""
    return row.state not in ACTIVE and (row.state is not State.QUEUED or row.stuck)


class Position(BaseModel):
    """How far somebody who follows has come: what the next daemon needs to go on without a word said twice."""

    after: str = ""
    attempt: int = 0
    """The attempt whose heading was printed last."""
    runs: int = 0
    height: int = 0
    """Live lines that are on the screen."""
    said: int = 0
    """Checksum of the JSON line that was printed last."""
    phase: str = ""
    ends: float = 0.0
    """When to give up, by the clock on the wall: 0 is never."""


def position(text: str) -> Position:
    """Read what `words_of` wrote. Raises: a usage error."""
    try:
        return Position.model_validate_json(text) if text else Position()
    except ValidationError:
        raise typer.BadParameter("this is not a position", param_hint="--position") from None


def words_of(at: Position) -> list[str]:
    return ["--position", at.model_dump_json(exclude_defaults=True)]


def wait(
    workspace: str, as_json: bool, limit_s: float | None = None, *, quiet: bool = False, at: Position | None = None
) -> int:
    """Follow one dispatch to its end and return the exit code of `--wait`; `quiet` shows nothing meanwhile.

    Raises: wait_timeout. Ctrl-C leaves the job running, says so and returns 130.
    """
    at = at or Position(ends=time() + limit_s if limit_s else 0.0)
    follower = _Quiet(at) if quiet else _JsonFollower(at) if as_json else _Follower(at)
    again = ["wait", workspace, *(["--json"] if as_json else [])]
    session().resume_with([*again, *words_of(at)])
    try:
        since = latest()
        row = row_of(workspace)
        news = changes(row.workspace, TICK_S if follower.moves else 5.0, since)
        while True:
            follower.show(row)
            _told(again, follower)
            if at_rest(row):
                break
            if at.ends and time() > at.ends:
                follower.close()
                raise CoreAgentError(
                    "wait_timeout",
                    f"{row.workspace} is still {row.state}" + (f" after {duration(limit_s)}" if limit_s else ""),
                    hint=f"it goes on; core-agent logs -f {row.workspace} follows it",
                )
            next(news)
            row = row_of(row.workspace)
        follower.end(row)
        return answer.exit_code(row.state, row.harvest_reason)
    except ClientGone:
        raise
    except KeyboardInterrupt:
        follower.close()
        say([f"you stopped watching; {workspace} goes on (stop it: core-agent cancel {workspace})"], err=True)
        return EXIT_INTERRUPTED


def _told(again: list[str], follower: _Follower) -> None:
    session().resume_with([*again, *words_of(follower.position())])
    terminal().out.flush()


class _Follower:
    """The live view of a person: what the agent did scrolls by, three lines below say where it stands."""

    def __init__(self, at: Position) -> None:
        self._terminal = terminal()
        self._live = Live(self._terminal, at.height)
        self.moves = self._terminal.live
        self._after = at.after
        self._attempt = at.attempt
        self._runs = at.runs
        self._phase = at.phase
        self._tool = ""
        self._ends = at.ends

    def position(self) -> Position:
        """Where somebody else could go on from here."""
        return Position(
            after=self._after,
            attempt=self._attempt,
            runs=self._runs,
            height=self._live.height,
            phase=self._phase,
            ends=self._ends,
        )

    def show(self, row: WorkspaceRow) -> None:
        lines = self._news(row)
        if self.moves:
            if lines:
                self._live.above(lines)
            self._live.draw(self._standing(row))
        else:
            say(lines)
            phase = str(row.state) if row.state in ACTIVE else f"{state_words(row)}  {what_now(row, now())}"
            if phase != self._phase and not at_rest(row):
                say([f"{one_line(row.workspace)}  {phase}"])
                self._phase = phase

    def _news(self, row: WorkspaceRow) -> list[str]:
        return self._page(row)[0]

    def _more(self, row: WorkspaceRow) -> bool:
        """Show the next page; False when there was nothing on it."""
        lines, entries = self._page(row)
        say(lines)
        return entries > 0

    def _page(self, row: WorkspaceRow) -> tuple[list[str], int]:
        """The lines of the next page, and how many entries it had: not each of them makes a line."""
        if not row.runs:
            return [], 0
        if row.runs != self._runs:
            # Places in a log are counted per attempt: a new one begins at its own beginning.
            self._runs, self._after = row.runs, ""
        reply: LogReply = session().call("logs", workspace=row.workspace, after=self._after)
        self._after = reply.next or self._after
        lines, self._attempt = event.log_lines(reply, line_width(), paint(), self._attempt)
        tools = [entry.event for entry in reply.entries if entry.event.kind is EventKind.TOOL_USE]
        if tools:
            self._tool = one_line(f"{tools[-1].tool} {tools[-1].text}")
        return lines, len(reply.entries)

    def _standing(self, row: WorkspaceRow) -> list[str]:
        brush, width = paint(), self._terminal.width - 1
        facts = [duration(row.elapsed_s)]
        facts += [used(row.tokens)] if row.tokens else []
        facts += [money(row.cost)] if row.cost.usd is not None else []
        change = diffstat(row.files, row.insertions, row.deletions)
        facts += [change] if change else []
        name = brush.bold(one_line(row.workspace))
        return [
            brush.dim("─" * min(width, 60)),
            f"{mark(row, brush)} {name}  {state_words(row)}  {brush.dim('  '.join(facts))}",
            "  " + fit((row.state is State.RUNNING and self._tool) or what_now(row, now()), width - 2),
        ]

    def end(self, row: WorkspaceRow) -> None:
        self.close()
        # What was said last may be told after the dispatch came to rest: its files move while we look.
        while self._more(row):
            continue
        brush = paint()
        facts = [duration(row.elapsed_s), used(row.tokens), money(row.cost)]
        facts.append(diffstat(row.files, row.insertions, row.deletions))
        told = ", ".join(fact for fact in facts if fact and fact != "-")
        say(
            [f"{mark(row, brush)} {brush.bold(one_line(row.workspace))} {state_words(row)}  {brush.dim(told)}".rstrip()]
        )
        say("  " + fit(line, line_width() - 2) for line in (what_now(row, now()), row.not_carried) if line)
        name = one_line(row.workspace)
        match row.state:
            case _ if row.fate is not Fate.OPEN:
                return
            case State.COMPLETED if row.harvest_reason:
                self._next(f"core-agent why {name}", *([f"core-agent rescue apply {name}"] if row.rescue_ref else []))
            case State.COMPLETED if row.reason is Reason.NO_CHANGES:
                self._next(f"core-agent logs {name}", f'core-agent resume {name} "also do ..."')
            case State.COMPLETED if row.needs_me:
                self._next(f"core-agent diff {name}", f"core-agent accept {name}")
            case State.BLOCKED:
                self._next(f'core-agent resume {name} --answer "..."')
            case State.FAILED | State.PAUSED:
                self._next(f"core-agent why {name}", f"core-agent resume {name}")
            case State.QUEUED:
                self._next(f"core-agent why {name}", f"core-agent queue start {name}")

    def _next(self, *commands: str) -> None:
        say(paint().dim(line) for line in next_lines(commands, self._terminal.width))

    def close(self) -> None:
        self._live.clear()


class _Quiet(_Follower):
    """Waits and shows nothing."""

    def __init__(self, at: Position) -> None:
        super().__init__(at)
        self.moves = False

    def show(self, row: WorkspaceRow) -> None:
        return

    def end(self, row: WorkspaceRow) -> None:
        return

    def close(self) -> None:
        return


class _JsonFollower(_Quiet):
    """JSON Lines: one workspace row whenever it changed."""

    def __init__(self, at: Position) -> None:
        super().__init__(at)
        self._last = at.said

    def position(self) -> Position:
        return super().position().model_copy(update={"said": self._last})

    def show(self, row: WorkspaceRow) -> None:
        line = crc32(to_json(row.model_copy(update={"elapsed_s": None}), line=True).encode())
        if line != self._last:
            self._last = line
            say([to_json(row, line=True)])


def wait_for(
    workspace: Workspace,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Give up watching after this long (exit 75).")
    ] = "",
    at: Annotated[str, typer.Option("--position", hidden=True)] = "",
    as_json: JsonLines = False,
) -> None:
    """Follow a dispatch, or a whole batch, to its end, as `dispatch --wait` does, with the same exit codes.

    Ctrl-C leaves it running. With --json: JSON Lines, one workspace row per change.
    """
    limit = seconds(timeout) if timeout else None
    try:
        code = wait(workspace, as_json, limit, at=position(at) if at else None)
    except CoreAgentError as error:
        if error.slug != "workspace_not_found":
            raise
        from coreagent.cli.commands.batch import wait_batch

        try:
            code = wait_batch(workspace, as_json, limit, at=position(at) if at else None)
        except CoreAgentError as other:
            raise (error if other.slug == "batch_not_found" else other) from None
    raise typer.Exit(code)


def watch(
    workspace: MaybeWorkspace = "",
    since: Annotated[
        int | None, typer.Option(help="Begin after this sequence number, 0: from the first. [default: from now]")
    ] = None,
    timeout: Annotated[str, typer.Option(help="Stop after this long: 90s, 10m, 2h.")] = "",
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the first message; exit code 75 when none came.")
    ] = False,
    as_json: JsonLines = False,
) -> None:
    """Follow what happens, one line per message, until Ctrl-C; of one workspace, until it is accepted or rejected.

    With --json: JSON Lines, one message per line, each with its `seq`.
    """
    ends = monotonic() + seconds(timeout) if timeout else None
    if since is None:
        seq = latest()
    else:
        seq = since or -1  # to the capability 0 means from now
    again = ["watch", *([workspace] if workspace else []), *(["--once"] if once else [])]
    again += ["--json"] if as_json else []

    def here() -> list[str]:
        limit = [] if ends is None else ["--timeout", f"{max(0.001, ends - monotonic()):.3f}s"]
        return [*again, "--since", str(max(seq, 0)), *limit]

    while True:
        session().resume_with(here())
        terminal().out.flush()
        left = 30.0 if ends is None else max(0.0, min(30.0, ends - monotonic()))
        reply = session().call("watch", workspace=workspace, since=seq, timeout_s=left)
        seq = max(seq, reply.seq)
        for message in reply.events:
            say([to_json(message, line=True) if as_json else event.message_line(message, terminal().width, paint())])
        if once and reply.events:
            return
        if reply.over:
            if not as_json:
                row = row_of(workspace)
                say([f"{one_line(row.workspace)} {'was ' if row.fate is not Fate.OPEN else ''}{state_words(row)}"])
            raise typer.Exit(75 if once else 0)
        if ends is not None and monotonic() >= ends:
            raise typer.Exit(75 if once else 0)


def logs(
    workspace: Workspace,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the agent stops.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt (1 is the first). [default: the last]")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The whole text of every event, not one line of it.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Start with the last N lines; 0 is all of them.")] = 1000,
    at: Annotated[str, typer.Option("--position", hidden=True)] = "",
    as_json: JsonLines = False,
) -> None:
    """Show what the agent said and did, its last thousand lines unless --tail says otherwise.

    With --json one document; with --json and -f JSON Lines, one entry per line.
    """
    start = position(at)
    after, last, runs = start.after, start.attempt, start.runs
    again = ["logs", workspace, "--follow", "--tail", str(tail), *(["--raw"] if raw else [])]
    again += [*(["--attempt", str(attempt)] if attempt is not None else []), *(["--json"] if as_json else [])]
    ticks = None
    document: LogReply | None = None
    while True:
        reply: LogReply = session().call("logs", workspace=workspace, attempt=attempt, after=after, tail=tail)
        if reply.skipped_bytes and not as_json:
            say([f"... {plural(reply.skipped_bytes, 'byte')} before this; --tail 0 shows all"])
        after = reply.next or after
        if as_json and not follow:
            document = _joined(document, reply)
        elif as_json:
            say(to_json(entry, line=True) for entry in reply.entries)
        else:
            last = _print_page(reply, raw, last)
        if follow:
            session().resume_with([*again, *words_of(Position(after=after, attempt=last, runs=runs))])
        terminal().out.flush()
        if reply.entries:
            continue
        if not follow:
            break
        row = row_of(workspace)
        if runs and row.runs != runs and attempt is None:
            after = ""
        elif at_rest(row):
            break
        runs = row.runs
        ticks = ticks or changes(workspace, TICK_S, latest())
        next(ticks)
    if document is not None:
        say([to_json(document)])
    elif not as_json:
        say(event.stderr_lines(reply, line_width(), paint()))


def _joined(document: LogReply | None, page: LogReply) -> LogReply:
    if document is None:
        return page
    return page.model_copy(update={"entries": [*document.entries, *page.entries]})


def _print_page(reply: LogReply, raw: bool, last: int) -> int:
    if not raw:
        lines, last = event.log_lines(reply, line_width(), paint(), last)
        say(lines)
        return last
    for entry in reply.entries:
        say(event.raw_lines(entry))
    return last
