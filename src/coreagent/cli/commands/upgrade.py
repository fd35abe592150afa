"""`core-agent upgrade`, in the person's own process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coreagent import paths
from coreagent.cli.commands.option import Json, answer, paint, say
from coreagent.cli.door import no_agent
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.upgrade import Upgrade, UpgradeReport
from coreagent.cli.views.text import one_line
from coreagent.errors import CoreAgentError


def upgrade(
    source: Annotated[
        str, typer.Option("--from", metavar="PATH|VERSION", help="A version, wheel or directory. [default: the newest]")
    ] = "",
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the version before.")] = False,
    as_json: Json = False,
) -> None:
    """Install the next version beside this one, have it pass its own test, then swap. Running agents do not notice.

    The version before is kept: --rollback goes back to it. Checkouts, pipx and uv keep their own installations: what to
    type there is said.
    """
    session().own_process()
    no_agent("upgrade core-agent")
    if not session().home:
        raise CoreAgentError("no_home", paths.homeless())
    if rollback and source:
        raise CoreAgentError("conflicting_options", "--from and --rollback exclude each other")

    def tell(line: str) -> None:
        if not as_json:
            say([paint().dim(one_line(line))])
            terminal().out.flush()

    path = terminal().path(source) if source else ""
    chosen = Upgrade(session().home, terminal().env, tell)
    report = chosen.back() if rollback else chosen.forward(path if source and Path(path).exists() else source)
    answer(report, as_json, lambda t: _lines(report))


def _lines(report: UpgradeReport) -> list[str]:
    if not report.changed:
        return [f"core-agent {report.after} is the newest version"]
    lines = [paint().green(f"core-agent {report.before} → {report.after}")]
    if report.scenes:
        lines.append(f"  passed its own test: {', '.join(report.scenes)}")
    lines.append(f"  the daemon {'was handed over' if report.daemon == 'handed over' else 'does not run'}")
    return [*lines, paint().dim(f"  {report.kept} is kept: core-agent upgrade --rollback")]
