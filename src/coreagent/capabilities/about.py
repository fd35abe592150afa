"""What there is: agents, templates, and the daemon itself."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Literal

from coreagent import config, paths, process, runners
from coreagent.capability import EVERYONE, Caller, capability
from coreagent.core import Core
from coreagent.dispatch import launch, prompt, rows
from coreagent.models.report import AgentRow, DaemonStatus, StopReply, TemplateRow, TemplateShow


@capability("agents", cli="agents", read_only=True)
async def agents(core: Core) -> list[AgentRow]:
    """List runners and named identities: found or not, version, login, pool and its use."""
    core.refresh_settings()
    found = [await asyncio.to_thread(_runner_row, core, name) for name in runners.FAMILY]
    by_name = {row.name: row for row in found}
    for name, identity in core.settings.agents.items():
        runner = {"openai": "codex"}.get(identity.runner, identity.runner)
        known = by_name.get(runner)
        found.append(
            AgentRow(
                name=name,
                kind="identity",
                runner=runner,
                found=known.found if known else False,
                problem="" if known else f"runner {runner} is not built in",
                login=known.login if known else "unknown",
                pool=config.pool_of(runner, identity.model, core.settings),
                roles=list(identity.roles),
            )
        )
    running = core.engine.running()
    return [
        row.model_copy(update={"limit": config.limit_of(row.pool, core.settings), "running": running.get(row.pool, 0)})
        for row in found
    ]


def _runner_row(core: Core, name: str) -> AgentRow:
    runner = runners.load(name)
    settings = launch.runner_settings(core, name)
    found = runner.find(core.env, settings)
    login = runner.login(core.env, settings)
    return AgentRow(
        name=name,
        kind="runner",
        runner=name,
        found=not found.problem,
        path=found.path,
        version=found.version,
        minimum=runner.minimum,
        problem=found.message,
        login=login.state,
        login_how=login.how or login.hint,
        pool=config.pool_of(name, "", core.settings),
    )


@capability("template.list", cli="template list", roles=EVERYONE, read_only=True)
async def template_list(core: Core) -> list[TemplateRow]:
    """List the prompt templates and personas, shipped and the user's own."""
    return await asyncio.to_thread(prompt.list_templates, core.home)


@capability("template.show", cli="template show", roles=EVERYONE, read_only=True)
async def template_show(core: Core, name: str) -> TemplateShow:
    """Show the text and the variables of a template or persona."""
    return await asyncio.to_thread(prompt.load_template, name, core.home)


@capability("daemon.status", cli="daemon status", roles=EVERYONE, read_only=True)
async def daemon_status(core: Core, caller: Caller) -> DaemonStatus:
    """Tell about the daemon: pid, version, home, socket, uptime, memory, and what is wrong with it."""
    return DaemonStatus(
        pid=os.getpid(),
        version=paths.VERSION,
        home=core.home,
        socket=paths.daemon_socket(core.home),
        uptime_s=time.monotonic() - core.started_monotonic,
        rss_bytes=process.rss_bytes(),
        ephemeral=core.store.ephemeral,
        draining=core.engine.draining,
        running=len(list(core.engine.busy())),
        warnings=rows.warnings(core.engine) if caller.role != "worker" else [],
    )


@capability("daemon.stop", cli="daemon stop", destructive=True)
async def daemon_stop(core: Core, mode: Literal["leave", "drain", "now"] = "leave") -> StopReply:
    """Stop the daemon. `leave`: agents go on and are found again; `drain`: wait for them; `now`: end their turns."""
    running = len(list(core.engine.busy()))
    one = running == 1
    turns = f"{running} running turn{'' if one else 's'}"
    notes = {
        "leave": "1 running agent goes on; the next daemon finds it"
        if one
        else f"{running} running agents go on; the next daemon finds them",
        "drain": f"waits for {turns}; nothing new starts",
        "now": f"{turns} ended; {'its' if one else 'their'} work is kept",
    }
    core.request_stop(mode)
    return StopReply(mode=mode, running=running, note=notes[mode] if running else "")
