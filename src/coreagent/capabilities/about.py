"""What there is: agents, templates, and the daemon itself."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Literal

from coreagent import config, paths, process, runners
from coreagent.capability import EVERYONE, Caller, capability
from coreagent.core import Core
from coreagent.dispatch import launch, prompt, rows
from coreagent.models.report import AgentRow, DaemonStatus, StopReply, TemplateRow, TemplateShow
from coreagent.plural import plural
from coreagent.poolnames import model_of, pool_of
from coreagent.runners import named
from coreagent.runners.base import which
from coreagent.runners.program import version_of


@capability("agents", cli="agents", read_only=True)
async def agents(core: Core, caller: Caller) -> list[AgentRow]:
    """List runners, commands and named identities: found or not, where, version, login, pool and its use."""
    core.refresh_settings()
    env = caller.env or core.env
    by_name = {name: await asyncio.to_thread(_runner_row, core, env, name) for name in runners.FAMILY}
    for name in named.RUNNERS:
        by_name.pop(name)
    for name in core.settings.commands:
        by_name[f"command:{name}"] = await asyncio.to_thread(_command_row, core, env, name)
    for row in await asyncio.to_thread(_acp_rows, core, env):
        by_name[row.name] = row
    found = list(by_name.values())
    for name, identity in core.settings.agents.items():
        found.append(await asyncio.to_thread(_identity_row, core, env, by_name, name, identity))
    facts = core.engine.facts()
    own = {row.pool for row in found}
    used = {pool: rows.pool_row(core.engine, pool, facts) for pool in own | _configured(core)}
    told = []
    for row in found:
        use = used[row.pool]
        variants = [] if row.kind == "identity" else [used[pool] for pool in _variants(core, row.runner, own)]
        told.append(
            row.model_copy(update={"limit": use.limit, "running": use.running, "use": use, "variants": variants})
        )
    return told


def _configured(core: Core) -> set[str]:
    return {*core.settings.concurrency, *core.settings.rates}


def _variants(core: Core, runner: str, own: set[str]) -> list[str]:
    """Pools of the settings that some of a runner's models are in, and no row by itself."""
    models = config.CLAUDE_MODELS if runner == "claude" else ()
    rest = sorted(_configured(core) - own)
    return [pool for pool in rest if pool.startswith(f"{runner}-") or any(model in pool for model in models)]


def _runner_row(core: Core, env: dict[str, str], name: str) -> AgentRow:
    runner = runners.load(name)
    settings = launch.runner_settings(core, name)
    found = runner.find(env, settings)
    login = runner.login(env, settings)
    return AgentRow(
        name=name,
        kind="runner",
        runner=name,
        found=not found.problem,
        path=found.path,
        others=list(found.others),
        version=found.version,
        minimum=runner.minimum,
        problem=found.message,
        login=login.state,
        login_how=login.how or login.hint,
        pool=_pool(core, name, "", launch.own_model(core, env, name)),
    )


def _command_row(core: Core, env: dict[str, str], name: str) -> AgentRow:
    """A program of the settings; one with a relative path can only be looked for in a checkout."""
    told = core.settings.commands[name]
    path = named.located(told.argv[0], {**env, **told.env})
    return AgentRow(
        name=f"command:{name}",
        kind="command",
        runner="command",
        found=bool(path),
        path=path,
        problem="" if path else named.missing(told.argv[0]),
        login="not_needed",
        pool=_pool(core, "command", name),
    )


def _acp_rows(core: Core, env: dict[str, str]) -> list[AgentRow]:
    """Agents of the Agent Client Protocol: those of the settings, and the known ones that are there."""
    from coreagent.runners.acp import KNOWN

    told = {name: own.argv[0] for name, own in core.settings.acp.items()}
    known = {name: known.argv[0] for name, known in KNOWN.items() if which(known.argv[0], env)}
    rows = []
    for name, program in {**known, **told}.items():
        path = named.located(program, env)
        rows.append(
            AgentRow(
                name=f"acp:{name}",
                kind="runner",
                runner="acp",
                found=bool(path),
                path=path,
                # A program that we know nothing of might take `--version` for something to do.
                version=version_of(path, KNOWN[name].env) if name not in told else "",
                problem="" if path else named.missing(program),
                login="unknown",
                login_how="its own, which is not asked",
                pool=_pool(core, "acp", name),
            )
        )
    return rows


def _pool(core: Core, runner: str, model: str, own: str = "") -> str:
    return pool_of(runner, model_of(runner, model, core.settings, own), core.settings)


def _identity_row(
    core: Core, env: dict[str, str], by_name: dict[str, AgentRow], name: str, identity: config.Identity
) -> AgentRow:
    runner, _, model = identity.runner.partition(":")
    runner = config.ALIASES.get(runner, runner)
    own = launch.own_model(core, env, runner) if runner in runners.FAMILY else ""
    known = by_name.get(identity.runner if runner in named.RUNNERS else runner)
    return AgentRow(
        name=name,
        kind="identity",
        runner=runner,
        found=known.found if known else False,
        path=known.path if known else "",
        version=known.version if known else "",
        problem=known.problem if known else f"there is no {identity.runner}",
        login=known.login if known else "unknown",
        pool=_pool(core, runner, identity.model or model, own),
        roles=list(identity.roles),
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
        python=sys.executable,
        home=core.home,
        socket=paths.daemon_socket(core.home),
        uptime_s=time.monotonic() - core.started_monotonic,
        rss_bytes=process.rss_bytes(),
        ephemeral=core.store.ephemeral,
        draining=core.engine.draining,
        running=len(list(core.engine.busy())),
        strangers=len(core.engine.strangers),
        warnings=rows.warnings(core.engine) if caller.role != "worker" else [],
    )


@capability("daemon.stop", cli="daemon stop", destructive=True)
async def daemon_stop(core: Core, mode: Literal["leave", "restart", "drain", "now"] = "leave") -> StopReply:
    """Stop the daemon. `leave`: agents go on and are found again; `drain`: wait for them; `now`: end their turns.

    `restart`: as `leave`, for who starts the next daemon: clients that follow something are told to go on there.
    """
    running = len(list(core.engine.busy()))
    go_on = "running agents go on; the next daemon finds them"
    leave = plural(running, "running agent goes on; the next daemon finds it", go_on)
    notes = {
        "leave": leave,
        "restart": leave,
        "drain": f"waits for {plural(running, 'running turn')}; nothing new starts",
        "now": plural(running, "running turn ended; its work is kept", "running turns ended; their work is kept"),
    }
    said = [notes[mode]] if running else []
    if strangers := core.engine.strangers.go_on():
        said = [*(said or ["stopped"]), strangers]
    core.request_stop(mode)
    return StopReply(mode=mode, running=running, strangers=len(core.engine.strangers), note="; ".join(said))
