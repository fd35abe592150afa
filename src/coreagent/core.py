"""Core: settings, store, bus, clock and ids; the one object everything hangs from.

The daemon makes one (`dispatch.engine.open_core`) and hands it to every capability. It knows no face and no verb.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ulid import ULID

from coreagent import config, paths, process
from coreagent.bus import Bus
from coreagent.capability import Caller
from coreagent.config import Settings
from coreagent.errors import CoreAgentError
from coreagent.plainfile import read_plain, write_plain
from coreagent.store.store import Store

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


log = logging.getLogger(__name__)


class Core:
    """Shared state of a running daemon. Everything here is used on the daemon's event loop only."""

    engine: Engine

    def __init__(self, home: str, env: dict[str, str], store: Store) -> None:
        self.home = home
        self.env = env
        self.store = store
        self.settings = Settings()
        self.problems: list[str] = []
        """What is wrong with the settings file, for `status`; the last good settings are in force."""
        self.settings_error: CoreAgentError | None = None
        """The settings file is bad and no good one is known: nothing new is started then."""
        self.settings_bad = False
        """The settings file is bad, whatever is in force."""
        self.reloads = 0
        """How often it was read because it had changed."""
        self.bus = Bus()
        self.started_monotonic = time.monotonic()
        self.stop_mode = ""
        self.stop_requested = asyncio.Event()
        self._stamp = -1
        self._crash_at = env.get("CORE_AGENT_CRASH_AT", "")
        self._trace = _open_trace(env.get("CORE_AGENT_TRACE", ""))
        self.refresh_settings()

    def now(self) -> datetime:
        """The time, aware UTC. All of the daemon's clock reads come from here."""
        return datetime.now(UTC)

    def new_id(self) -> str:
        """A new ULID: sorts by time, 26 characters."""
        return str(ULID())

    def role_of(self, pid: int, uid: int) -> Caller:
        """Tell who is at the other end of a connection by what the kernel says (architecture, idea 5).

        A process below a live shim, or one that carries an attempt's marker after its shim died, is that attempt's
        worker, whatever it claims. Everyone else with the daemon's uid is the person.
        """
        shims = self.engine.live_shims()
        chain = [(pid, process.start_time(pid) or 0), *process.ancestors(pid)]
        for ancestor in chain:
            attempt = shims.get(ancestor)
            if attempt is not None:
                return self._worker(attempt.id, attempt.dispatch_id, pid, uid)
        marker = next((m for m in (process.environ_of(p).get("CORE_AGENT_ATTEMPT") for p, _ in chain) if m), "")
        if marker:
            return self._worker(marker, self.engine.dispatch_of_attempt(marker), pid, uid)
        return Caller(role="person", pid=pid, uid=uid)

    def _worker(self, attempt: str, dispatch_id: str, pid: int, uid: int) -> Caller:
        dispatch = self.engine.board.get(dispatch_id)
        workspace = dispatch.workspace if dispatch else ""
        return Caller(role="worker", pid=pid, uid=uid, attempt=attempt, workspace=workspace)

    def mark(self, name: str) -> None:
        """Write down that a step was reached, and when, in the file that `CORE_AGENT_TRACE` names (bench)."""
        if self._trace >= 0:
            os.write(self._trace, f"{time.time():.6f} {name}\n".encode())

    def crash_point(self, name: str) -> None:
        """Die here, as if killed, when `CORE_AGENT_CRASH_AT` names this point (tests/crash). A `mark` too."""
        self.mark(name)
        if self._crash_at == name:
            os._exit(137)

    def request_stop(self, mode: str) -> None:
        """Ask the daemon to stop after the answer is out; whoever owns the daemon waits for `stop_requested`."""
        self.stop_mode = self.stop_mode or mode
        self.stop_requested.set()

    def refresh_settings(self) -> None:
        """Read agents.yaml again when it changed; a bad file keeps the last good settings and says so.

        The last good text is kept beside the socket, so that a restart over a bad file keeps the running agents' rules.
        """
        stamp = config.stamp(self.home)
        if stamp == self._stamp:
            return
        first, self._stamp = self._stamp == -1, stamp
        self.reloads += not first
        good = Path(paths.last_good_settings(self.home))
        try:
            loaded = config.load(self.home, self.env)
        except CoreAgentError as error:
            self.problems, self.settings_bad = [error.sentence()], True
            # What is in force may be no person's settings but the defaults of a home that had none.
            if not (self._use(good) if first else good.exists()):
                self.settings_error = error
            if self.settings_error is None:
                self.problems.append("the last good settings are in force")
            return
        self.settings, self.problems = loaded.settings, [*loaded.problems, *loaded.doubts]
        self.settings_error = None
        self.settings_bad = False
        self._keep(good)

    def _use(self, good: Path) -> bool:
        try:
            self.settings = config.load_text(read_plain(good).decode())
        except (OSError, ValueError, CoreAgentError):
            return False
        return True

    def _keep(self, good: Path) -> None:
        try:
            write_plain(good, read_plain(paths.settings_file(self.home), follow=True))
        except FileNotFoundError:
            good.unlink(missing_ok=True)  # no settings file: the defaults are what is good
        except OSError as error:
            log.warning("the last good settings could not be kept: %s", error)

    def require_settings(self) -> None:
        """Raise what is wrong with the settings when none are known to be good: a guess could cost money."""
        self.refresh_settings()
        if self.settings_error is not None:
            raise self.settings_error


def _open_trace(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if path else -1
