"""The hooks: what runs in a fresh checkout before the agent, and before a workspace is removed; each with a time limit,
a log, and an end on demand.

Preparation and cleaning come in here. What the setup hook left never counts as the agent's work (git.setup); what the
teardown hook does can no longer be anybody's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import attempts, paths, umask
from coreagent.dispatch import launch, ports
from coreagent.dispatch.workspace import AUTHOR, Layout
from coreagent.errors import CoreAgentError, told
from coreagent.git import setup as git_setup
from coreagent.git.inspect import Base
from coreagent.models.dispatch import Attempt, Dispatch
from coreagent.plainfile import append_plain, open_plain, read_plain, write_plain

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

TEARDOWN_LOG = "teardown.log"
TEARDOWN_DONE = "teardown.json"
"""In the archive of a workspace: how its teardown hook ended, so that it is not run again after a crash."""


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
    marker = attempt.id if attempt else dispatch.id
    left = threading.Event()

    def unwanted() -> bool:
        live = engine.live.get(dispatch.id)
        return left.is_set() or bool(live and live.stop_requested)

    try:
        env = _environment(engine, dispatch, marker)
        place.setup_log.unlink(missing_ok=True)
        why = await asyncio.to_thread(_run, _argv(hook.run), place.repo, place.setup_log, env, hook.timeout_s, unwanted)
    except asyncio.CancelledError:
        # The daemon leaves: its thread waits for the hook, and the next daemon starts over anyway.
        left.set()
        attempts.sweep(marker)
        raise
    await asyncio.to_thread(attempts.sweep, marker)
    cache = Path(paths.repo_cache(engine.core.home, dispatch.org, dispatch.repo))
    index = Path(paths.index_copy(engine.core.home, dispatch.id))
    if why:
        failed = await asyncio.to_thread(_failed, f"the setup hook {why}", place)
        with suppress(CoreAgentError):  # what it left is not the work of a person who looks into it now
            await asyncio.to_thread(git_setup.settle, cache, base, place.repo, dispatch.branch, index, AUTHOR)
        raise failed
    try:
        done = await asyncio.to_thread(git_setup.settle, cache, base, place.repo, dispatch.branch, index, AUTHOR)
    except CoreAgentError as error:
        if error.slug != "setup_failed":
            raise
        await asyncio.to_thread(_say, place, f"{error.message}: {error.cause}")
        raise await asyncio.to_thread(_failed, error.message, place, error.cause) from error
    await asyncio.to_thread(_say, place, *done.lines)
    return done.note


async def run_teardown(engine: Engine, dispatch: Dispatch, place: Layout, archive: Path, checkout: bool) -> str:
    """Run the teardown hook of the settings, if there is one, in the checkout or beside where it was.

    Returns what a person should know of it. Never raises for what the hook did: the workspace goes all the same. Once
    it has ended it is not run again, whatever becomes of the daemon before the workspace is gone.
    """
    where = place.repo if checkout else place.root
    if not _is_directory(where):
        where = place.root
    hook = (await engine.apply_settings(dispatch)).settings.hooks.teardown
    if not hook.run or not _is_directory(where):
        return ""
    try:
        return await _tear_down(engine, dispatch, hook.run, hook.timeout_s, where, archive)
    except OSError as error:
        log.warning("the teardown hook of %s could not be run: %s", dispatch.workspace, told(error))
        return f"the teardown hook could not be run: {told(error)}"


async def _tear_down(
    engine: Engine, dispatch: Dispatch, run: str | list[str], timeout_s: float, where: Path, archive: Path
) -> str:
    done = archive / TEARDOWN_DONE
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(await asyncio.to_thread(read_plain, done))["note"])
    archive.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = archive / TEARDOWN_LOG
    left = threading.Event()
    try:
        env = _environment(engine, dispatch, dispatch.id)
        await asyncio.to_thread(attempts.sweep, dispatch.id)  # one that a daemon began and did not see the end of
        why = await asyncio.to_thread(_run, _argv(run), where, said, env, timeout_s, left.is_set)
    except asyncio.CancelledError:
        left.set()
        attempts.sweep(dispatch.id)
        raise
    await asyncio.to_thread(attempts.sweep, dispatch.id)
    note = f"the teardown hook {why}; its log is {said}" if why else ""
    if note:
        log.warning("%s: %s", dispatch.workspace, note)
    await asyncio.to_thread(write_plain, done, json.dumps({"note": note}).encode())
    return note


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _argv(run: str | list[str]) -> list[str]:
    return ["/bin/sh", "-c", run] if isinstance(run, str) else list(run)


def _environment(engine: Engine, dispatch: Dispatch, marker: str) -> dict[str, str]:
    """What a hook is told: the environment of its task as far as it is known, its names, and its ports."""
    return {
        **launch.environment_of(engine.core, dispatch),
        **ports.environment(dispatch),
        "CORE_AGENT_DISPATCH": dispatch.id,
        "CORE_AGENT_WORKSPACE": dispatch.workspace,
        "CORE_AGENT_ATTEMPT": marker,
    }


def _run(
    argv: list[str], where: Path, said: Path, env: dict[str, str], timeout_s: float, unwanted: Callable[[], bool]
) -> str:
    """Run a hook to its end; return what went wrong with it."""
    with append_plain(said) as file:
        try:
            child = subprocess.Popen(
                argv,
                cwd=where,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=umask.usual(),
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
