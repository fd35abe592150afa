"""The setup hook: what runs in a fresh checkout before the agent, with a time limit, a log, and an end on demand.

Preparation comes in here. Afterwards nothing that the hook left counts as the agent's work (git.setup).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import attempts, paths
from coreagent.dispatch import launch
from coreagent.dispatch.workspace import AUTHOR, Layout
from coreagent.errors import CoreAgentError, told
from coreagent.git import setup as git_setup
from coreagent.git.inspect import Base
from coreagent.models.dispatch import Attempt, Dispatch
from coreagent.plainfile import append_plain, open_plain

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


def wanted(engine: Engine, dispatch: Dispatch) -> bool:
    """Whether the settings in force have a setup hook."""
    return bool(engine.settings_of(dispatch).settings.hooks.setup.run)


async def run_setup(engine: Engine, dispatch: Dispatch, attempt: Attempt | None, place: Layout, base: Base) -> str:
    """Run the hook of the settings, if there is one, and make what it left the start; return a note for people.

    Raises: setup_failed with the log's last lines and its path, git errors.
    """
    hook = engine.settings_of(dispatch).settings.hooks.setup
    if not hook.run:
        return ""
    env = launch.environment_of(engine.core, dispatch)
    marker = attempt.id if attempt else dispatch.id
    env |= {
        "CORE_AGENT_DISPATCH": dispatch.id,
        "CORE_AGENT_WORKSPACE": dispatch.workspace,
        "CORE_AGENT_ATTEMPT": marker,
    }
    argv = ["/bin/sh", "-c", hook.run] if isinstance(hook.run, str) else list(hook.run)
    left = threading.Event()

    def unwanted() -> bool:
        live = engine.live.get(dispatch.id)
        return left.is_set() or bool(live and live.stop_requested)

    try:
        why = await asyncio.to_thread(_run, argv, place, env, hook.timeout_s, unwanted)
    except asyncio.CancelledError:
        # The daemon leaves: its thread waits for the hook, and the next daemon starts over anyway.
        left.set()
        attempts.sweep(marker)
        raise
    await asyncio.to_thread(attempts.sweep, marker)
    if why:
        raise await asyncio.to_thread(_failed, f"the setup hook {why}", place)
    cache = Path(paths.repo_cache(engine.core.home, dispatch.org, dispatch.repo))
    index = Path(paths.index_copy(engine.core.home, dispatch.id))
    try:
        done = await asyncio.to_thread(git_setup.settle, cache, base, place.repo, dispatch.branch, index, AUTHOR)
    except CoreAgentError as error:
        if error.slug != "setup_failed":
            raise
        await asyncio.to_thread(_say, place, f"{error.message}: {error.cause}")
        raise await asyncio.to_thread(_failed, error.message, place, error.cause) from error
    await asyncio.to_thread(_say, place, *done.lines)
    return done.note


def _run(argv: list[str], place: Layout, env: dict[str, str], timeout_s: float, unwanted: Callable[[], bool]) -> str:
    """Run the hook to its end; return what went wrong with it."""
    place.setup_log.unlink(missing_ok=True)
    with append_plain(place.setup_log) as log:
        try:
            child = subprocess.Popen(
                argv,
                cwd=place.repo,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return f"could not be started: {told(error)}"
        try:
            # Asked once, after the start: who wants it to stop later finds the process by its marker.
            code = child.wait(0 if unwanted() else timeout_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return f"was stopped after {timeout_s:g} s"
    return "" if code == 0 else f"ended with {f'exit code {code}' if code > 0 else f'signal {-code}'}"


def _failed(message: str, place: Layout, cause: str = "") -> CoreAgentError:
    message = f"{message}; its log is {place.setup_log}"
    return CoreAgentError("setup_failed", message, cause=cause or _tail(place.setup_log), hint="mend hooks.setup.run")


def _say(place: Layout, *lines: str) -> None:
    # The hook could have put anything there, and nothing that it did may keep us here.
    with suppress(OSError), append_plain(place.setup_log) as log:
        log.writelines(f"core-agent: {line}\n".encode(errors="backslashreplace") for line in lines)


def _tail(path: Path) -> str:
    try:
        with open_plain(path) as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 2000))
            text = log.read(2000).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return " | ".join(text.splitlines()[-3:])
