"""The daemon as a service: `daemon install` and `daemon uninstall`, in the person's own process."""

from __future__ import annotations

from typing import Annotated

import typer

from coreagent import paths
from coreagent.cli.commands.option import Json, answer, paint, say, to_json
from coreagent.cli.door import no_agent
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.views.text import one_line, wrap
from coreagent.daemon.service import Service, ServiceReport
from coreagent.errors import CoreAgentError

Print = Annotated[bool, typer.Option("--print", help="Only show the file that would be written.")]


def install(show: Print = False, as_json: Json = False) -> None:
    """Have the system run it: from your login on, again after a crash. Running agents do not notice.

    A systemd user unit on Linux, a launch agent on macOS.
    """
    service = _service()
    if show:
        report = service.shown()
        say([to_json(report)] if as_json else report.text.splitlines())
        return
    no_agent("install the daemon as a service")
    report = service.install()
    answer(report, as_json, lambda t: _lines(report, t.width))


def uninstall(as_json: Json = False) -> None:
    """Take it away from the system again. Running agents go on."""
    service = _service()
    no_agent("uninstall the daemon")
    report = service.uninstall()
    answer(report, as_json, lambda t: _lines(report, t.width))


def _service() -> Service:
    session().own_process()
    if not session().home:
        raise CoreAgentError("no_home", paths.homeless())
    return Service(session().home, terminal().env)


def _lines(report: ServiceReport, width: int) -> list[str]:
    brush = paint()
    if report.installed:
        how = "installed" if report.changed else "was installed already"
        running = f", the daemon runs (pid {report.pid})" if report.pid else ""
        lines = [f"{report.name} {how}{running}", brush.dim(f"  {one_line(report.file)}")]
    else:
        lines = [f"{report.name} {'removed' if report.changed else 'was not installed'}"]
    return lines + [line for hint in report.hints for line in wrap(f"hint: {hint}", width)]
