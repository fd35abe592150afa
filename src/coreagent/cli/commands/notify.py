"""Telling people: try whether they can be reached."""

from __future__ import annotations

import typer

from coreagent.cli.commands.option import Json, answer, group, paint
from coreagent.cli.session import session
from coreagent.cli.views import listing

notify = group("Who is told of what (`notify` in agents.yaml).")


@notify.callback()
def _group() -> None:
    pass


@notify.command("test")
def notify_test(as_json: Json = False) -> None:
    """Send a test notice by every channel of agents.yaml. Exit code 1 when one did not arrive."""
    sent = session().call("notify.test")
    answer(sent, as_json, lambda t: listing.notice_lines(sent, t.width, paint()))
    if not all(one.arrived for one in sent):
        raise typer.Exit(1)
