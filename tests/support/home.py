"""A hermetic home: a short directory, an environment built from nothing, the installed command, and a leak check."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreagent import paths, process
from coreagent.capability import Caller
from coreagent.cli.session import exchange
from coreagent.daemon import house, launch

COMMAND = Path(sys.executable).with_name("core-agent")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Home:
    """One person's home directory on a machine where nothing else is configured."""

    def __init__(self) -> None:
        # Short: a socket's path is limited to about a hundred bytes, and pytest's own directories are long.
        self.dir = Path(tempfile.mkdtemp(prefix="ca-", dir="/tmp"))
        self.user = self.dir / "u"
        self.user.mkdir()
        self.core = self.user / ".core"
        self.tmp = self.dir / "t"
        self.tmp.mkdir()
        self.allowed_leaks: set[int] = set()
        self.env = {
            "HOME": str(self.user),
            "PATH": os.pathsep.join([str(COMMAND.parent), "/usr/local/bin", "/usr/bin", "/bin"]),
            "TMPDIR": str(self.tmp),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }

    # -- commands --------------------------------------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        code: int | None = 0,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
        timeout: float = 60,
    ) -> Done:
        """Run the installed command to its end; `code` is what it must leave with, None for any."""
        done = subprocess.run(
            [str(COMMAND), *argv],
            env={**self.env, **(env or {})},
            cwd=cwd or self.user,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
        )
        result = Done(argv, done.returncode, done.stdout, done.stderr)
        if code is not None and result.code != code:
            raise AssertionError(
                f"core-agent {' '.join(argv)} left with {result.code}, not {code}\n"
                f"--- stdout\n{result.out}\n--- stderr\n{result.err}\n--- daemon.log\n{self.log()[-4000:]}"
            )
        return result

    def json(self, *argv: str, **options: Any) -> Any:
        """Run a command with `--json` and return what it says."""
        return self.run(*argv, "--json", **options).json()

    def start(self, *argv: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start the installed command and leave it running; the caller waits for it."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("cwd", self.user)
        return subprocess.Popen([str(COMMAND), *argv], env={**self.env, **(env or {})}, **options)

    # -- the daemon ------------------------------------------------------------------------------------------------

    @property
    def daemon_pid(self) -> int:
        return house.holder(str(self.core))

    def log(self) -> str:
        try:
            return Path(paths.daemon_log(str(self.core))).read_text(errors="replace")
        except OSError:
            return ""

    def stop(self, mode: str = "leave") -> None:
        """Stop the daemon, and return when it is gone."""
        pid = self.daemon_pid
        if not pid:
            return
        try:
            with launch.reach(str(self.core), start=False) as sock:
                exchange(sock, {"call": "daemon.stop", "arguments": {"mode": mode}}, Caller())
        except Exception:
            with contextlib.suppress(ProcessLookupError):  # it has gone meanwhile
                os.kill(pid, signal.SIGTERM)
        if not launch.ended(pid, 30):
            raise AssertionError(f"the daemon {pid} does not stop\n{self.log()[-4000:]}")

    def kill_daemon(self) -> None:
        """kill -9, and wait until the kernel has let go of everything it held."""
        pid = self.daemon_pid
        if pid:
            os.kill(pid, signal.SIGKILL)
            launch.ended(pid, 30)

    # -- repositories ----------------------------------------------------------------------------------------------

    def git(self, *argv: str, cwd: Path | str) -> str:
        who = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER") for part, value in _PERSON.items()}
        return subprocess.run(
            ["git", *argv], cwd=cwd, env={**self.env, **who}, capture_output=True, text=True, check=True
        ).stdout

    def repo(self, name: str = "repo", files: dict[str, str] | None = None) -> Path:
        """A real repository of the person's, on branch `main`, with one commit."""
        path = self.user / name
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main", cwd=path)
        for file, text in (files or {"README.md": "hello\n"}).items():
            target = path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        self.git("add", "-A", cwd=path)
        self.git("commit", "-q", "-m", "first", cwd=path)
        return path

    # -- the end ---------------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Living processes that belong to this home: by environment, command line or directory."""
        mark = str(self.dir)
        found = {}
        for entry in Path("/proc").iterdir() if Path("/proc/self").exists() else ():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                told = _read(entry / "cmdline") + _read(entry / "environ") + _link(entry / "cwd")
                if mark.encode() in told and _state(entry) not in ("Z", "X"):
                    found[int(entry.name)] = _read(entry / "cmdline").replace(b"\0", b" ").decode(errors="replace")
        return found

    def strangers(self) -> dict[int, str]:
        """`processes`, less the daemon and the one that it has its shims forked from."""
        daemon = self.daemon_pid
        held = {daemon} | {pid for pid, what in self.processes().items() if daemon and " --nursery " in what
                           and process.ancestors(pid)[:1] == [(daemon, process.start_time(daemon))]}  # fmt: skip
        return {pid: what for pid, what in self.processes().items() if pid not in held}

    def close(self) -> None:
        """Stop the daemon and its agents, remove everything, and fail when something is left."""
        problems = []
        try:
            self.stop("now")
        except AssertionError as error:
            problems.append(str(error))
        # What was told to end may still be on its way out; what is left after this was not.
        for pid in self.processes():
            if pid not in self.allowed_leaks:
                launch.ended(pid, 2)
        for pid, what in self.processes().items():
            if pid not in self.allowed_leaks:
                problems.append(f"process {pid} is left: {what}")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        problems += [f"socket is left: {path}" for path in self.core.glob("run/*.sock")]
        problems += [f"worktree is left: {path}" for path in self.user.glob("*/.git/worktrees/*")]
        shutil.rmtree(self.dir, ignore_errors=True)
        if problems:
            raise AssertionError("\n".join(problems))


_PERSON = {"NAME": "Person", "EMAIL": "person@example.org", "DATE": "2026-01-02T03:04:05Z"}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _link(path: Path) -> bytes:
    try:
        return os.fsencode(os.readlink(path))
    except OSError:
        return b""


def _state(entry: Path) -> str:
    text = _read(entry / "stat").decode(errors="replace")
    return text.rpartition(")")[2].split()[0] if ")" in text else "X"
