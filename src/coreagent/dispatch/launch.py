"""From a claimed attempt to what the shim executes: prompt, environment, limits, and the spec file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coreagent import config, paths, runners, umask
from coreagent.capability import Caller
from coreagent.config import RunnerSettings
from coreagent.dispatch import environment, ports
from coreagent.dispatch.places import model_now
from coreagent.dispatch.vigil import Limits
from coreagent.dispatch.workspace import Layout, layout
from coreagent.errors import CoreAgentError, displaced, told
from coreagent.models.agent import Cost, Usage
from coreagent.models.dispatch import Attempt, Dispatch
from coreagent.plainfile import led_away, read_plain
from coreagent.runners.base import Launch, Plan, Runner, allow, lay_out

if TYPE_CHECKING:
    from coreagent.core import Core
    from coreagent.dispatch.engine import Engine

SPEC_VERSION = 1


def ready(engine: Engine, dispatch: Dispatch, attempt: Attempt, directory: Path) -> Attempt:
    """Write what this attempt executes into its spool, with its directories and credentials in place. Blocking.

    Returns: the attempt, with the version of the program that it executes.
    Raises: runner_missing, runner_too_old, blocked_flag, bad_script, settings_invalid, no_space.
    """
    attempt = attempt.model_copy(update={"version": version(engine.core, dispatch)})
    made = plan(engine, dispatch, attempt)
    engine.core.mark("planned")
    write_spec(engine, dispatch, attempt, made, directory)
    engine.core.crash_point("spec-written")
    return attempt


def plan(engine: Engine, dispatch: Dispatch, attempt: Attempt) -> Plan:
    """Return what this attempt executes, with its directories and credentials in place. Blocking.

    Raises: runner_missing, runner_too_old, blocked_flag, bad_script, settings_invalid, workspace_gone.
    """
    runner = runners.load(dispatch.runner)
    place = layout(engine.core.home, engine.core.settings, dispatch)
    if attempt.kind == "resume" and attempt.prompt:
        prompt = attempt.prompt
    else:
        first = _first_prompt(place, dispatch)
        added = "\n\n".join(part for part in (first, attempt.prompt) if part)
        prompt = fresh_prompt(first, attempt.prompt) if attempt.kind == "fresh" else added
    asked = make_launch(engine.core, dispatch, attempt, runner, place, prompt)
    if dispatch.runner == "acp" and attempt.resume_session:
        # Its client is far from here when it learns that the session is lost.
        lost = fresh_prompt(_first_prompt(place, dispatch), attempt.prompt)
        asked = dataclasses.replace(asked, fresh_prompt=lost)
    made = runner.plan(asked)
    lay_out(made, place.root)
    return made


def _first_prompt(place: Layout, dispatch: Dispatch) -> str:
    try:
        return read_plain(place.prompt).decode("utf-8", "replace")
    except OSError as error:
        raise CoreAgentError(
            "workspace_gone", f"the prompt of {dispatch.workspace} was removed or replaced", cause=told(error)
        ) from error


def version(core: Core, dispatch: Dispatch) -> str:
    """The version of the program that is about to be executed: it may have been updated since the task came. Blocking.

    Raises: runner_missing, runner_too_old.
    """
    if dispatch.runner == "command":
        return ""
    runner, settings = runners.load(dispatch.runner), runner_settings(core, dispatch.runner)
    return runner.find(environment_of(core, dispatch), settings).require().version


def fresh_prompt(first: str, addition: str) -> str:
    """The prompt of a new session in a workspace where an earlier one worked."""
    parts = [first, "An earlier session already worked here; its changes are in the tree. Look at them first."]
    if addition:
        parts.append(addition)
    return "\n\n".join(parts)


def make_launch(
    core: Core,
    dispatch: Dispatch,
    attempt: Attempt,
    runner: Runner,
    place: Layout,
    prompt: str,
    env: dict[str, str] | None = None,
) -> Launch:
    """What a runner is told of one turn; `env` in place of the environment that was saved with the task."""
    settings = runner_settings(core, dispatch.runner)
    applied = core.engine.settings_of(dispatch)
    private = settings.home == "private"
    acp_agent = dispatch.model.partition(":")[0] if dispatch.runner == "acp" else ""
    return Launch(
        prompt=prompt,
        session_id=attempt.session_id,
        resume_session=attempt.resume_session,
        repo_dir=str(place.repo),
        workspace_dir=str(place.root),
        tmp_dir=str(place.tmp),
        model=model_now(dispatch, core.settings),
        permissions=dispatch.options.permissions or settings.permissions,
        env=environment_of(core, dispatch) if env is None else env,
        args=dispatch.options.args,
        config_home=str(place.config_home(dispatch.runner)) if private else "",
        settings=settings,
        command=applied.settings.commands.get(dispatch.model) if dispatch.runner == "command" else None,
        acp=core.settings.acp.get(acp_agent) if acp_agent else None,
        trusted_settings=applied.agent_settings,
        script=dispatch.options.script,
    )


def environment_of(core: Core, dispatch: Dispatch) -> dict[str, str]:
    """The environment its person had; without one (a home restored from a copy) the same part of the daemon's."""
    saved = environment.load(core.home, dispatch.id)
    if saved is not None:
        return _allow(core, saved, dispatch.runner)  # of a list of agents, each sees what is its own
    return allowed_environment(core, Caller(), dispatch.runner)


def allowed_environment(core: Core, caller: Caller, runner: str) -> dict[str, str]:
    """What of the caller's environment may travel to this runner's agent; who has none of its own has the daemon's."""
    return _allow(core, caller.env or core.env, runner)


def kept_environment(core: Core, caller: Caller, dispatch: Dispatch) -> dict[str, str]:
    """What of the caller's environment is kept with a task: what any agent of its list may see."""
    kept = allowed_environment(core, caller, dispatch.runner)
    for text in dispatch.options.agents:
        with contextlib.suppress(CoreAgentError):  # the settings have changed since
            kept |= allowed_environment(core, caller, config.resolve_agent(text, core.settings).runner)
    return kept


def own_model(core: Core, env: Mapping[str, str], runner: str) -> str:
    """The model that the person's own configuration of a CLI names, as this environment leads to it. Blocking."""
    return runners.load(runner).own_model(env, runner_settings(core, runner))


def _allow(core: Core, env: Mapping[str, str], runner: str) -> dict[str, str]:
    return allow(env, runners.load(runner), runner_settings(core, runner), core.settings.env.allow)


def preview(core: Core, caller: Caller, dispatch: Dispatch, prompt: str) -> Plan:
    """What the first attempt of a dispatch would execute, asked for by this caller; touches nothing.

    Raises: runner_missing, blocked_flag, bad_script, settings_invalid.
    """
    runner = runners.load(dispatch.runner)
    attempt = Attempt(id="preview", dispatch_id=dispatch.id, n=1, session_id="preview", claimed_at=core.now())
    place = layout(core.home, core.settings, dispatch)
    env = allowed_environment(core, caller, dispatch.runner)
    return runner.plan(make_launch(core, dispatch, attempt, runner, place, prompt, env))


def runner_settings(core: Core, name: str) -> RunnerSettings:
    return core.settings.runners.get(name) or RunnerSettings()


def agent_environment(dispatch: Dispatch, attempt: Attempt, made: Plan) -> dict[str, str]:
    """The agent's whole environment: the plan's and what every agent is told."""
    return {
        **made.env,
        **ports.environment(dispatch),
        "CORE_AGENT_DISPATCH": dispatch.id,
        "CORE_AGENT_TASK": dispatch.task,
        "CORE_AGENT_WORKSPACE": dispatch.workspace,
        "CORE_AGENT_ATTEMPT": attempt.id,
    }


def limits_of(core: Core, dispatch: Dispatch) -> Limits:
    """The limits of an attempt that is started now."""
    own, settings = runner_settings(core, dispatch.runner), core.settings.dispatch
    return Limits(
        wall_s=dispatch.options.timeout_s or settings.timeout_s,
        idle_s=dispatch.options.idle_timeout_s or own.idle_timeout_s or settings.idle_timeout_s,
    )


def write_spec(engine: Engine, dispatch: Dispatch, attempt: Attempt, made: Plan, directory: Path) -> None:
    """Write the attempt's spool directory: spec.json (mode 0600, it holds the environment) and standard input.

    Raises: no_space, shim_failed, home_unsafe.
    """
    core = engine.core
    settings = core.settings
    if laid := led_away(directory, core.home):
        raise displaced(laid)
    place = layout(core.home, settings, dispatch)
    limits = limits_of(core, dispatch)
    env = agent_environment(dispatch, attempt, made)
    env["PWD"] = str(place.repo)
    stdin: str | None = None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if made.stdin is not None:
            stdin = str(directory / "stdin")
            _write(directory / "stdin", made.stdin)
        spec: dict[str, Any] = {
            "v": SPEC_VERSION,
            "attempt": attempt.id,
            "pool": dispatch.pool,
            "argv": made.argv,
            "cwd": str(place.repo),
            "env": env,
            "stdin": stdin,
            "idle_s": limits.idle_s,
            "wall_s": limits.wall_s,
            "out_max": settings.dispatch.max_output_bytes,
            "stop_signal": made.stop_signal,
            "grace_s": made.stop_grace_s,
            "socket": paths.attempt_socket(core.home, attempt.id),
            "umask": umask.usual(),
        }
        if made.acp is not None:
            spec["acp"] = dict(made.acp)
        _write(directory / "spec.json", json.dumps(spec).encode())
    except OSError as error:
        raise CoreAgentError(
            "no_space" if error.errno == 28 else "shim_failed",
            "the attempt's files could not be written",
            cause=told(error),
            hint="free some space; the task stays and can be resumed",
        ) from error


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def add_cost(before: Cost, spent: Usage, now: Cost, used: Usage) -> Cost:
    """What both cost together: `spent` tokens `before`, `used` ones `now`.

    As soon as tokens of unknown price are among them the sum is `unknown`, and its `usd` the part that is known.
    """
    if not used.total and now.usd is None:
        return before
    if not spent.total and before.usd is None:
        return now
    known = [cost.usd for cost in (before, now) if cost.usd is not None]
    sources = {before.source, now.source}
    source: Literal["reported", "priced", "unknown"] = "reported"
    if "unknown" in sources:
        source = "unknown"
    elif "priced" in sources:
        source = "priced"
    return Cost(usd=sum(known) if known else None, source=source)
