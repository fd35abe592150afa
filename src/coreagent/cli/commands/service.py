"""The daemon itself: start, stop, restart, status, logs, run. All in the person's own process.

These must work when the daemon is ill, so each says what it found instead of starting one behind the person's back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coreagent import paths
from coreagent.cli.commands.option import Json, answer, group, paint, say
from coreagent.cli.session import ask, session
from coreagent.cli.terminal import clean, terminal
from coreagent.cli.views import answer as views
from coreagent.errors import CoreAgentError
from coreagent.models.report import DaemonStatus, StopReply
from coreagent.plural import plural

daemon = group("The process that runs the queue. Other commands start it when it is not running.")

Mode = Literal["leave", "restart", "drain", "now"]

STOP_S = 30.0
_FOLLOW_S = 0.25


def _call(name: str, *, start: bool, **arguments: Any) -> Any:
    session().own_process()
    return ask(session().home, name, arguments, session().caller, start=start)


def _status(*, start: bool) -> DaemonStatus | None:
    """The living daemon's word about itself; None when there is none (and none is to be started)."""
    try:
        return DaemonStatus.model_validate(_call("daemon.status", start=start))
    except CoreAgentError as error:
        if error.slug == "daemon_unreachable" and not start:
            return None
        raise


@daemon.command("start")
def start(as_json: Json = False) -> None:
    """Start it when it is not running."""
    status = _status(start=True)
    answer(status, as_json, lambda t: views.daemon_lines(status, paint()) if status else [])


@daemon.command("status")
def status(as_json: Json = False) -> None:
    """Whether it runs, since when, and how it is. Exit code 69 when it does not run."""
    found = _status(start=False)
    if found is None:
        raise _not_running()
    answer(found, as_json, lambda t: views.daemon_lines(found, paint()))


def _not_running() -> CoreAgentError:
    return CoreAgentError(
        "daemon_unreachable",
        f"no daemon runs for {session().home or 'this user'}",
        hint="core-agent daemon start; commands that need it start it by themselves",
    )


@daemon.command("stop")
def stop(
    drain: Annotated[bool, typer.Option("--drain", help="Start nothing new, stop when the last agent ends.")] = False,
    at_once: Annotated[bool, typer.Option("--now", help="End the agents' turns; their work is kept.")] = False,
    as_json: Json = False,
) -> None:
    """Stop it. Agents go on without it, unless --drain or --now is given."""
    if drain and at_once:
        raise CoreAgentError("conflicting_options", "--drain and --now exclude each other")
    reply = _stop("drain" if drain else "now" if at_once else "leave")
    answer(reply, as_json, lambda t: views.stop_lines(reply, paint()) if reply else ["it was not running"])


def _stop(mode: Mode) -> StopReply:
    before = _status(start=False)
    if before is None:
        return _was_not_running(mode)
    reply = StopReply.model_validate(_call("daemon.stop", start=False, mode=mode))
    if mode != "drain" and not _gone(before.pid, STOP_S):
        raise CoreAgentError(
            "daemon_stopping",
            f"the daemon (pid {before.pid}) still has not ended after {STOP_S:.0f} s",
            hint="core-agent daemon logs tells what it is doing",
        )
    return reply


def _was_not_running(mode: Mode) -> StopReply:
    """No daemon, which is not to say that no agent runs: those of an earlier one go on without it."""
    count = _agents()
    note = "it was not running"
    if count:
        note += f"; {plural(count, 'agent goes', 'agents go')} on without it"
        if mode == "now":
            note += " (core-agent daemon start takes them up again; then daemon stop --now ends their turns)"
    return StopReply(mode=mode, running=count, note=note)


def _agents() -> int:
    from coreagent.dispatch.strangers import living

    with suppress(OSError):
        return len(list(living(session().home)))
    return 0


def _gone(pid: int, limit_s: float) -> bool:
    from coreagent.daemon.launch import ended

    return ended(pid, limit_s)


@daemon.command("restart")
def restart(as_json: Json = False) -> None:
    """Stop it and start it again; running agents do not notice."""
    _stop("restart")
    status = _status(start=True)
    assert status is not None
    answer(
        status,
        as_json,
        lambda t: [*views.daemon_lines(status, paint()), f"  {plural(status.running, 'agent')} found again"],
    )


@daemon.command("logs")
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help='JSON Lines: {"line": ...} per line.')] = False,
) -> None:
    """What the daemon wrote down. Works without it."""
    session().own_process()
    path = Path(paths.daemon_log(session().home))
    if not path.is_file() and not follow:
        raise CoreAgentError("not_running", "there is no log: the daemon never ran here", cause=str(path))
    for line in _tail(path, lines, follow):
        say([views.json_line(line) if as_json else clean(line)])
        if follow:
            terminal().out.flush()


def _tail(path: Path, lines: int, follow: bool) -> Iterator[str]:
    """The last lines, then (to follow) what is appended; a log that was turned over is read from its beginning."""
    position = 0
    if path.is_file():
        raw = path.read_bytes()
        position = len(raw)
        yield from (raw.decode("utf-8", "replace").splitlines()[-lines:] if lines else [])
    held = b""
    while follow:
        time.sleep(_FOLLOW_S)
        size = path.stat().st_size if path.is_file() else 0
        if size < position:
            position, held = 0, b""
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                held += file.read(size - position)
            position = size
            *whole, held = held.split(b"\n")
            yield from (piece.decode("utf-8", "replace") for piece in whole)


@daemon.command("run")
def run() -> None:
    """Be the daemon, in the foreground, until Ctrl-C (for service managers and containers)."""
    session().own_process()
    from coreagent.daemon import launch

    if not session().home:
        raise CoreAgentError("no_home", paths.homeless())
    argv = launch.command(session().home)
    terminal().flush()
    os.execve(argv[0], argv, launch.environment(session().home))  # noqa: S606 - no shell wanted
