"""The daemon from its first moment to its last: lock, store, Core, socket, and the way back.

`python -m coreagent.daemon` comes in. It knows the order in which things open and close, not what they do.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from coreagent import paths, umask
from coreagent.daemon import house, launch, watching
from coreagent.daemon.door import Door, renewed
from coreagent.daemon.server import Leaving, RunCommand, ServeMcp, Server
from coreagent.daemon.thrift import Thrift, give_back
from coreagent.errors import CoreAgentError

log = logging.getLogger("coreagent.daemon")


@dataclass(frozen=True)
class Parts:
    """What the daemon is put together from; tests put others in."""

    open_core: Callable[[str, dict[str, str]], Awaitable[Any]]
    run: RunCommand
    mcp: ServeMcp


def real_parts() -> Parts:
    """Import everything that is reachable: after an upgrade of the package a late import would mix two releases."""
    from coreagent.cli import run
    from coreagent.cli.session import load_capabilities
    from coreagent.dispatch.engine import open_core

    load_capabilities()
    run.load()

    async def serve_mcp(*arguments: Any) -> None:
        # The one exception: the protocol's library is large, and most daemons never meet an MCP client.
        await importlib.import_module("coreagent.mcp.server").serve(*arguments)

    return Parts(open_core, run.run, serve_mcp)


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until told to stop, then leave or become the next release."""
    options = _options().parse_args(argv)
    code = run(options.home, ready=options.ready_fd, inherited=options.inherit)
    logging.shutdown()
    # All is closed. In the interpreter's own leave-taking DuckDB fills the log with pages of what it thinks "leaked".
    os._exit(code)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coreagent.daemon", description="Serve one home directory.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--inherit", default="", help="descriptors of the lock and the socket of the daemon before")
    return parser


def run(home: str, *, ready: int = -1, inherited: str = "", parts: Parts | None = None) -> int:
    """Be the daemon of this home. Returns the exit code, unless the process becomes another release."""
    umask.keep_to_ourselves()
    # Whoever misses our socket says so by SIGHUP, maybe before we can hear it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _raise_descriptor_limit()
    if ready >= 0:
        os.set_inheritable(ready, False)
    try:
        house.prepare(home)
        lock, listener = _take_over(inherited) if inherited else (house.lock(home), None)
        house.sign(lock)
        leaving = asyncio.run(_live(home, lock, listener, ready, parts or real_parts()))
    except CoreAgentError as error:
        log.error("%s", " ".join(error.lines()))
        _say(ready, json.dumps(error.as_dict()).encode())
        return error.exit_code
    except Exception as error:
        log.exception("the daemon failed")
        failed = CoreAgentError(
            "daemon_start_failed", "the daemon failed", cause=repr(error), hint=f"the log: {paths.daemon_log(home)}"
        )
        _say(ready, json.dumps(failed.as_dict()).encode())
        return failed.exit_code
    log.info("stopped (%s)", leaving.mode)
    return 0


def _take_over(inherited: str) -> tuple[int, socket.socket]:
    """Go on with the lock and the socket of the daemon that we were a moment ago: nobody finds the door shut."""
    lock, listener = (int(part) for part in inherited.split(","))
    os.set_inheritable(lock, False)
    sock = socket.socket(fileno=listener)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return lock, sock


async def _live(home: str, lock: int, inherited: socket.socket | None, ready: int, parts: Parts) -> Leaving:
    core = await parts.open_core(home, dict(os.environ))
    try:
        await core.engine.start()
        names = PassedNames(home, core)
        names.changed()
        door = Door(home, lock, inherited or house.listen(home))
        thrift = Thrift()
        server = Server(core, home, door.listener, parts.run, parts.mcp, names.changed, thrift.stirred)
        _on_signals(server, door)
        server.start()
        wished = asyncio.create_task(_heed(core, server), name="heed stop")
        following = asyncio.create_task(_follow_settings(core, names), name="follow settings")
        sparing = asyncio.create_task(thrift.follow(core.bus.subscribe()), name="give back memory")
        give_back()
        thrift.stirred()
        log.info("core-agent %s serves %s (pid %d)", paths.VERSION, home, os.getpid())
        _say(ready, b"ready")
        leaving = await server.leaving
        if leaving.mode == "drain":
            leaving = await _drain(core, server)
        wished.cancel()
        following.cancel()
        sparing.cancel()
        thrift.close()
        await asyncio.gather(following, sparing, return_exceptions=True)
        await server.stop(leaving)
        await core.engine.stop("now" if leaving.mode == "now" else "leave")
    finally:
        core.bus.close()
        await asyncio.to_thread(core.store.close)
    if leaving.executable:
        _become(leaving.executable, home, door)
    # The path goes first: whoever comes from now on starts the next daemon, which waits for our lock.
    Path(paths.daemon_socket(home)).unlink(missing_ok=True)
    await server.send_away()
    return leaving


async def _heed(core: Any, server: Server) -> None:
    """A capability may ask for the end too, wherever its call came from."""
    await core.stop_requested.wait()
    server.leave(Leaving(mode=core.stop_mode))


async def _follow_settings(core: Any, names: PassedNames) -> None:
    if hasattr(core, "reloads"):  # tests bring a Core without settings
        await watching.follow_settings(core, names.changed)


async def _drain(core: Any, server: Server) -> Leaving:
    """Let running agents finish while everyone can still look; a second stop is not made to wait."""
    server.draining = True
    server.leaving = asyncio.get_running_loop().create_future()
    draining = asyncio.create_task(core.engine.stop("drain"))
    await asyncio.wait([draining, server.leaving], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        return server.leaving.result()
    await draining
    return Leaving(mode="drain")


def _become(executable: str, home: str, door: Door) -> None:
    """Execute the next release in our place. Agents have their shims; they do not notice."""
    os.set_inheritable(door.lock, True)
    door.listener.set_inheritable(True)
    argv = [*launch.command(home, executable), "--inherit", f"{door.lock},{door.listener.fileno()}"]
    log.info("becoming %s", executable)
    sys.stderr.flush()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a handler would not survive the exec, and the default ends us
    os.umask(umask.usual())  # the next one would take ours for the person's
    os.execv(executable, argv)  # noqa: S606 - no shell wanted


def _on_signals(server: Server, door: Door) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: server.leave(Leaving()))
    loop.add_signal_handler(signal.SIGHUP, lambda: server.listen_anew(lambda: renewed(door)))


def _say(ready: int, what: bytes) -> None:
    if ready >= 0:
        with suppress(OSError):  # whoever started us did not wait
            os.write(ready, what)
            os.close(ready)


class PassedNames:
    """Names that the settings add to what clients send, and to what the daemon keeps of the environment that it is
    started in: written where a client can read them without YAML.
    """

    def __init__(self, home: str, core: Any) -> None:
        self._home = home
        self._core = core
        self._written: dict[str, set[str]] = {}

    def changed(self) -> bool:
        """Read the settings again when their file changed; whether clients must look again at the names."""
        if not hasattr(self._core, "refresh_settings"):
            return False
        self._core.refresh_settings()
        settings = self._core.settings
        self._write(paths.kept_names(self._home), set(settings.notify.webhook.headers.values()))
        names = set(settings.env.allow).union(*(runner.env for runner in settings.runners.values()))
        return self._write(paths.passed_names(self._home), names)

    def _write(self, path: str, names: set[str]) -> bool:
        """Whether there was anything new to be written, and it could be."""
        if names == self._written.get(path):
            return False
        target = Path(path)
        fresh = target.with_suffix(".new")
        try:
            fresh.write_text("".join(f"{name}\n" for name in sorted(names)))
            fresh.replace(target)
        except OSError as error:
            log.warning("cannot write %s: %s", target, error)  # a full disk keeps nobody from looking
            return False
        self._written[path] = names
        return True


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Not the hard limit: agents inherit this, and programs that close every possible descriptor would crawl.
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
