"""The daemon as a service of the person's own: a systemd user unit on Linux, a launch agent on macOS.

`daemon install` and `daemon uninstall` come in. It writes one file, asks the service manager to use it, and knows no
verb and no terminal. Both kinds leave the agents alone when they stop or restart the daemon: only its own process ends.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from coreagent import installation, paths
from coreagent.daemon import control, house, launch
from coreagent.errors import CoreAgentError
from coreagent.plainfile import write_plain

ANSWER_S = 20.0
COMMAND_S = 90.0


class ServiceReport(BaseModel):
    """What `daemon install` and `daemon uninstall` print."""

    manager: Literal["systemd", "launchd"]
    name: str
    file: str
    changed: bool = False
    """The file was written, or removed."""
    installed: bool = False
    pid: int = 0
    """The daemon that answers now, 0 when none does."""
    text: str = ""
    """The file, where it was only to be shown."""
    hints: list[str] = []


class Service:
    """The service of one home, and the manager that runs it."""

    def __init__(self, home: str, env: Mapping[str, str], platform: str = sys.platform) -> None:
        self.home = home
        self.env = dict(env)
        self.manager: Literal["systemd", "launchd"] = "launchd" if platform == "darwin" else "systemd"
        user = env.get("HOME", "")
        own = "" if home == f"{user.rstrip('/')}/.core" else "-" + hashlib.sha256(home.encode()).hexdigest()[:8]
        if self.manager == "launchd":
            self.name = f"org.core-agent.daemon{own}"
            self.file = Path(user, "Library", "LaunchAgents", f"{self.name}.plist")
        else:
            self.name = f"core-agent{own}.service"
            base = env.get("XDG_CONFIG_HOME", "")
            self.file = Path(base if os.path.isabs(base) else f"{user}/.config", "systemd", "user", self.name)

    # -- the file --------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """What the service manager reads."""
        argv = [*installation.program_argv(), "daemon", "run"]
        told = {"PATH": self.env.get("PATH", os.defpath), "CORE_HOME": self.home}
        for value in (*argv, *told.values()):
            if any(ord(c) < 32 for c in value):
                raise CoreAgentError("service_failed", f"a service file cannot hold this: {value!r}")
        return self._plist(argv, told) if self.manager == "launchd" else self._unit(argv, told)

    def _unit(self, argv: Sequence[str], told: Mapping[str, str]) -> str:
        log = paths.daemon_log(self.home).replace("%", "%%")
        lines = [
            "# Written by `core-agent daemon install`, which writes it again.",
            "[Unit]",
            f"Description=core-agent daemon of {self.home.replace('%', '%%')}",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(_quoted(word, '$') for word in argv)}",
            *(f"Environment={_quoted(f'{name}={value}')}" for name, value in told.items()),
            "# Agents outlive the daemon: only its own process is stopped, and none of theirs counts as its failure.",
            "KillMode=process",
            "OOMPolicy=continue",
            "Restart=on-failure",
            "RestartSec=5",
            f"StandardOutput=append:{log}",
            f"StandardError=append:{log}",
            "",
            "[Install]",
            "WantedBy=default.target",
        ]
        return "\n".join(lines) + "\n"

    def _plist(self, argv: Sequence[str], told: Mapping[str, str]) -> str:
        body = {
            "Label": self.name,
            "ProgramArguments": list(argv),
            "EnvironmentVariables": dict(told),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "AbandonProcessGroup": True,
            "StandardOutPath": paths.daemon_log(self.home),
            "StandardErrorPath": paths.daemon_log(self.home),
        }
        return plistlib.dumps(body, sort_keys=False).decode()

    # -- what is done with it --------------------------------------------------------------------------------------

    def install(self) -> ServiceReport:
        """Write the file when it is another one, and have the daemon run as the service now. Safe to repeat.

        Raises: no_service_manager, service_failed; then nothing was written.
        """
        self._require_manager()
        text = self.text()
        self._verify(text)
        house.prepare(self.home)
        changed = self._read() != text
        if changed:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_plain(self.file, text.encode())
        if self.manager == "launchd":
            self._load(changed)
        else:
            self._enable(changed)
        return self._report(changed, installed=True)

    def _enable(self, changed: bool) -> None:
        if changed:
            self._must("systemctl", "--user", "daemon-reload")
        active = self._run("systemctl", "--user", "is-active", "--quiet", self.name)[0] == 0
        if not active:
            control.stop(self.home, "restart")  # one that a command started; its agents go on
        self._must("systemctl", "--user", "enable", "--now", self.name)
        if active and changed:
            self._must("systemctl", "--user", "restart", self.name)

    def _load(self, changed: bool) -> None:
        domain = f"gui/{os.getuid()}"
        loaded = self._run("launchctl", "print", f"{domain}/{self.name}")[0] == 0
        if loaded and changed:
            self._must("launchctl", "bootout", f"{domain}/{self.name}")
        if not loaded or changed:
            control.stop(self.home, "restart")
            self._must("launchctl", "bootstrap", domain, str(self.file))

    def uninstall(self) -> ServiceReport:
        """Stop the service and remove its file; running agents go on. Safe to repeat.

        Raises: no_service_manager, service_failed.
        """
        if self._read() is None:
            return self._report(False, installed=False)
        self._require_manager()
        if self.manager == "launchd":
            domain = f"gui/{os.getuid()}"
            if self._run("launchctl", "print", f"{domain}/{self.name}")[0] == 0:
                self._must("launchctl", "bootout", f"{domain}/{self.name}")
        else:
            self._must("systemctl", "--user", "disable", "--now", self.name)
        self.file.unlink(missing_ok=True)
        if self.manager == "systemd":
            self._must("systemctl", "--user", "daemon-reload")
        return self._report(True, installed=False)

    def shown(self) -> ServiceReport:
        """The file as it would be written; nothing is."""
        return ServiceReport(manager=self.manager, name=self.name, file=str(self.file), text=self.text())

    def _report(self, changed: bool, *, installed: bool) -> ServiceReport:
        deadline = time.monotonic() + (ANSWER_S if installed else 0)
        while installed and not launch.answers(self.home) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid, hints = house.holder(self.home), []
        if installed and not pid:
            look = "launchctl list" if self.manager == "launchd" else "systemctl --user status"
            hints.append(f"the service does not answer yet: {look} {self.name}; core-agent daemon logs")
        if installed and self._lingers() is False:
            hints.append("it ends with your last session, and agents with it, unless you say: loginctl enable-linger")
        if not installed and changed:
            hints.append("running agents go on; the next command starts a daemon by itself")
        return ServiceReport(
            manager=self.manager,
            name=self.name,
            file=str(self.file),
            changed=changed,
            installed=installed,
            pid=pid,
            hints=hints,
        )

    def _lingers(self) -> bool | None:
        """Whether the person's services outlive their sessions; None when that cannot be told."""
        if self.manager == "launchd":
            return None
        code, said = self._run("loginctl", "show-user", str(os.getuid()), "--property=Linger")
        return None if code or "=" not in said else "=yes" in said

    def _verify(self, text: str) -> None:
        """Ask systemd whether it would take the file; where it cannot be asked, it is taken for good."""
        if self.manager == "launchd" or not shutil.which("systemd-analyze", path=self.env.get("PATH", "")):
            return
        with tempfile.TemporaryDirectory(prefix="core-agent-") as place:
            file = Path(place, self.name)
            file.write_text(text)
            runtime = {"XDG_RUNTIME_DIR": self.env.get("XDG_RUNTIME_DIR") or place}
            code, said = self._run("systemd-analyze", "--user", "verify", str(file), env=runtime)
        if code and self.name in said:
            raise CoreAgentError("service_failed", "systemd would not take the unit", cause=said.strip()[:400])

    def _require_manager(self) -> None:
        program = "launchctl" if self.manager == "launchd" else "systemctl"
        ask = ("version",) if self.manager == "launchd" else ("--user", "show-environment")
        if not shutil.which(program, path=self.env.get("PATH", "")):
            raise CoreAgentError("no_service_manager", f"there is no {program} here to install a service with")
        code, said = self._run(program, *ask)
        if code:
            last = (said.strip().splitlines() or [""])[-1]
            raise CoreAgentError("no_service_manager", "no service manager of yours answers", cause=last)

    def _must(self, *argv: str) -> None:
        code, said = self._run(*argv)
        if code:
            last = (said.strip().splitlines() or [f"exit code {code}"])[-1]
            raise CoreAgentError("service_failed", f"{' '.join(argv)} failed", cause=last)

    def _run(self, *argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        program = shutil.which(argv[0], path=self.env.get("PATH", ""))
        if program is None:
            return 127, ""
        try:
            done = subprocess.run(
                [program, *argv[1:]],
                env={**self.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return 126, str(error)
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def _read(self) -> str | None:
        try:
            return self.file.read_text()
        except (OSError, UnicodeDecodeError):
            return None


def _quoted(word: str, doubled: str = "") -> str:
    """A word as systemd reads it back: quotes and backslashes escaped, specifiers and variables doubled."""
    for character in "%" + doubled:
        word = word.replace(character, character * 2)
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
