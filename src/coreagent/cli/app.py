"""The command line: every verb under its name. The daemon and the person's own process load the same tree.

`cli/run.py` comes in. Nothing is decided here but names and order; each verb is a function in `commands/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from coreagent.cli import demo, doctor
from coreagent.cli.commands import batch, follow, install, job, look, notify, noun, place, remote, service, upgrade


class Slashed(TyperGroup):
    """`repo/list` is `repo list`: the names of the capabilities work as they are written; `--version` is `version`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--version` is asked of every program, so that it is the same as `version`."""
        return super().parse_args(ctx, ["version", *args[1:]] if args[:1] == ["--version"] else args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        first, *rest = args
        head, slash, tail = first.partition("/")
        if slash and head in self.commands and isinstance(self.commands[head], TyperGroup):
            args = [head, *tail.split("/"), *rest]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="core-agent",
    cls=Slashed,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Give tasks to coding agents, each in a workspace of its own, and land what you like.

    One daemon runs the queue, survives being killed, and never loses a line of an agent's work.""",
)

_DAY: tuple[Callable[..., None], ...] = (
    job.dispatch,
    look.status,
    look.why,
    follow.wait_for,
    follow.watch,
    follow.logs,
    look.diff,
    job.resume,
    job.pause,
    job.cancel,
    place.attach,
    place.open_workspace,
    job.accept,
    job.reject,
    batch.compare,
    batch.pick,
    batch.adopt,
    look.history,
    noun.agents,
)
_HOUSE: tuple[Callable[..., None], ...] = (
    place.init,
    demo.demo,
    doctor.doctor,
    place.mcp,
    place.completion,
    upgrade.upgrade,
    place.version,
)
_NAMED: dict[Callable[..., None], str] = {place.open_workspace: "open", follow.wait_for: "wait"}
for verb in _DAY:
    app.command(_NAMED.get(verb))(verb)
noun.repo.command("fetch")(remote.fetch)
noun.repo.command("sync")(remote.sync)
noun.repo.command("pushed")(remote.pushed)
service.daemon.command("install")(install.install)
service.daemon.command("uninstall")(install.uninstall)
for name, group in (
    ("rescue", noun.rescue),
    ("queue", noun.queue),
    ("workspace", noun.workspace),
    ("repo", noun.repo),
    ("template", noun.template),
    ("notify", notify.notify),
    ("daemon", service.daemon),
):
    app.add_typer(group, name=name)
for verb in _HOUSE:
    app.command()(verb)
