"""`core-agent upgrade`: the next release in an environment of its own, tried before it takes over, and the way back.

The commands come in. The program that a person calls is one file that is replaced in one step; environments are never
changed once they are in use. The daemon is asked to become the new release in place, and its agents do not notice.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coreagent import installation, paths, process, procfs, wire
from coreagent.capability import Caller
from coreagent.cli.session import ask
from coreagent.daemon import house
from coreagent.errors import CoreAgentError, shell_word, told
from coreagent.installation import PROGRAM, RECORD, Installation
from coreagent.models.report import StoreCopy
from coreagent.plainfile import write_plain

INSTALL_S = 1800.0
CHECK_S = 600.0
ANSWER_S = 60.0
Say = Callable[[str], None]


class Release(BaseModel):
    """One environment with a release in it."""

    version: str
    python: str
    program: str
    """What the person's program is made to lead to."""
    directory: str = ""
    """What may be removed with it; "" for the environment that was there first."""


class UpgradeReport(BaseModel):
    """What `upgrade` prints."""

    before: str
    after: str
    changed: bool = False
    program: str = ""
    daemon: str = ""
    """`handed over`, `not running`"""
    scenes: list[str] = []
    """What the new release has shown before it took over."""
    kept: str = ""
    """The version that `upgrade --rollback` goes back to."""


class Upgrade:
    """One upgrade, or the way back from one, of the installation that this process runs from."""

    def __init__(self, home: str, env: Mapping[str, str], say: Say) -> None:
        self.home, self.env, self.say = home, dict(env), say
        self.place = installation.here()
        self.versions = self.place.versions

    # -- forward ---------------------------------------------------------------------------------------------------

    def forward(self, source: str) -> UpgradeReport:
        """Install, try, swap, hand over.

        Raises: not_ours_to_upgrade, invalid_argument, upgrade_failed; then all is as before.
        """
        require_ours(self.place, source)
        wanted = requirement(source)
        with self._alone():
            fresh = self._install(wanted)
            try:
                if fresh.version == paths.VERSION and not source:
                    self._remove(fresh)
                    return UpgradeReport(before=paths.VERSION, after=paths.VERSION, program=str(self.place.program))
                scenes = self._try(fresh)
                now = self._current()
                daemon = self._take_over(now, fresh)
            except BaseException:
                self._remove(fresh)
                raise
            self._forget_others(now, fresh)
        return self._report(now, fresh, daemon, scenes)

    def back(self) -> UpgradeReport:
        """Swap to the release before, which was kept.

        Raises: not_ours_to_upgrade, nothing_to_roll_back, upgrade_failed.
        """
        require_ours(self.place, "")
        with self._alone():
            record = installation.read_record(self.versions)
            if "previous" not in record:
                raise CoreAgentError("nothing_to_roll_back", "there is no release before this one")
            old, now = Release.model_validate(record["previous"]), self._current()
            if not os.access(old.python, os.X_OK):
                raise CoreAgentError("nothing_to_roll_back", f"{old.version} is gone", cause=old.python)
            self._try(old, scenes=False)
            daemon = self._take_over(now, old)
        return self._report(now, old, daemon, [])

    def _report(self, now: Release, then: Release, daemon: str, scenes: list[str]) -> UpgradeReport:
        return UpgradeReport(
            before=now.version,
            after=then.version,
            changed=True,
            program=str(self.place.program),
            daemon=daemon,
            scenes=scenes,
            kept=now.version,
        )

    # -- the new environment ---------------------------------------------------------------------------------------

    def _install(self, wanted: str) -> Release:
        taken = [int(entry.name) for entry in self.versions.iterdir() if entry.name.isdigit()]
        directory = self.versions / f"{max(taken, default=0) + 1:04d}"
        self.say(f"installing {wanted} into {directory}")
        try:
            self._make(directory)
            python = directory / "bin" / "python"
            self._run(python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q", wanted)
            said = self._run(python, "-P", "-c", "from coreagent import paths; print(paths.VERSION, paths.__file__)")
            version, _, file = said.strip().partition(" ")
            if not Path(file).is_relative_to(directory):
                raise CoreAgentError("upgrade_failed", f"{wanted} brings no core-agent", cause=f"it is found at {file}")
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        program = directory / "bin" / PROGRAM
        return Release(version=version, python=str(python), program=str(program), directory=str(directory))

    def _make(self, directory: Path) -> None:
        base = getattr(sys, "_base_executable", "") or sys.executable
        try:
            self._run(base, "-m", "venv", str(directory))
        except CoreAgentError:
            # Debian without python3-venv: no pip of its own, so it comes by way of ours.
            shutil.rmtree(directory, ignore_errors=True)
            self._run(base, "-m", "venv", "--without-pip", str(directory))
            self._run(sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "-q", "pip")

    def _run(self, *argv: str | Path, limit_s: float = INSTALL_S) -> str:
        words = [str(word) for word in argv]
        try:
            done = self._execute(words, limit_s)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CoreAgentError("upgrade_failed", f"{words[0]} could not do its part", cause=told(error)) from None
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
            shown = next((line for line in lines if "ERROR" in line), lines[-1])
            raise CoreAgentError("upgrade_failed", f"{' '.join(words[1:4])} failed", cause=shown[:400])
        return done.stdout

    def _execute(self, words: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        """Raises: OSError, TimeoutExpired."""
        # Killed, we leave nothing behind that goes on: interrupted, each of them still clears away what it made.
        return subprocess.run(
            words,
            cwd=self.versions,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
            preexec_fn=process.tied(signal.SIGINT),
        )

    # -- the trial -------------------------------------------------------------------------------------------------

    def _try(self, release: Release, *, scenes: bool = True) -> list[str]:
        """Have a release show that it works, on a copy of the store and in a home of its own."""
        try:
            return self._shown(release, self._copy_store(), scenes)
        finally:
            self._drop_copy()

    def _shown(self, release: Release, copy: StoreCopy | None, scenes: bool) -> list[str]:
        words = ["--store", copy.path, "--dispatches", str(copy.dispatches)] if copy else []
        self.say(f"trying {release.version}")
        code = "import sys; from coreagent.cli import selfcheck as s; s.open_store(sys.argv[2], int(sys.argv[4]))"
        argv = [release.python, "-P", *(["-m", "coreagent.cli.selfcheck"] if scenes else ["-c", code]), *words]
        if not scenes and not words:
            return []
        done = self._execute(argv, CHECK_S)
        shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for scene in shown:
            if not scene["ok"]:
                raise CoreAgentError(
                    "upgrade_failed",
                    f"{release.version} does not pass its own test {scene['scene']!r}",
                    cause=str(scene["problem"])[:400],
                )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise CoreAgentError("upgrade_failed", f"{release.version} cannot be used here", cause=last[:400])
        return [str(scene["scene"]) for scene in shown]

    def _copy_store(self) -> StoreCopy | None:
        """A copy of the store as it is now, which the trial may change; None when nothing is stored yet."""
        source, target = Path(paths.database(self.home)), self.versions / "store.duckdb"
        if house.holder(self.home):
            return StoreCopy.model_validate(self._ask("store.copy", target=str(target)))
        if not source.exists():
            return None
        for part in (source, Path(f"{source}.wal")):
            if part.exists():
                shutil.copyfile(part, self.versions / part.name.replace(source.name, target.name))
        return StoreCopy(path=str(target), dispatches=-1)

    def _drop_copy(self) -> None:
        for part in self.versions.glob("store.duckdb*"):
            part.unlink()

    # -- the swap --------------------------------------------------------------------------------------------------

    def _current(self) -> Release:
        """The release that the person's program leads to; the first one is put where it can be led back to."""
        program = self.place.program
        record = installation.read_record(self.versions)
        if program.is_symlink():
            target = os.readlink(program)
            for known in (record.get("current"), record.get("previous")):
                if known and known["program"] == target:
                    return Release.model_validate(known)
        first = self.versions / "first" / PROGRAM
        first.parent.mkdir(exist_ok=True)
        shutil.copy2(program, first)
        return Release(version=paths.VERSION, python=sys.executable, program=str(first))

    def _take_over(self, now: Release, then: Release) -> str:
        """Swap the program and hand the daemon over; when it does not come up, all is put back."""
        record = installation.read_record(self.versions)
        self._point(then, previous=now.model_dump())
        try:
            return self._hand_over(then)
        except CoreAgentError as error:
            self._point(now, previous=record.get("previous"))
            with suppress(CoreAgentError):
                self._hand_over(now)
            if not house.holder(self.home):
                with suppress(CoreAgentError):
                    self._run(now.python, "-P", "-m", "coreagent", "daemon", "start", limit_s=ANSWER_S)
            raise CoreAgentError(
                "upgrade_failed", f"the daemon did not become {then.version}", cause=f"{error.message} {error.cause}"
            ) from error

    def _point(self, then: Release, previous: dict[str, Any] | None) -> None:
        """Lead the person's program to another release, in one step."""
        body: dict[str, Any] = {"program": str(self.place.program), "current": then.model_dump()}
        if previous:
            body["previous"] = previous
        write_plain(self.versions / RECORD, json.dumps(body, indent=2).encode())
        fresh = self.place.program.with_name(f".{PROGRAM}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(then.program)
        os.replace(fresh, self.place.program)

    def _hand_over(self, then: Release) -> str:
        self._hold_back(then)
        pid = house.holder(self.home)
        if not pid:
            return "not running"
        self.say(f"handing the daemon over (pid {pid}); running agents go on")
        self._ask("daemon.become", executable=then.python)
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                found = self._ask("daemon.status")
                where = os.path.dirname(found.get("python", "")) or os.path.dirname(then.python)
                if found["version"] == then.version and where == os.path.dirname(then.python):
                    return "handed over"
            except CoreAgentError as error:
                if error.slug not in ("daemon_unreachable", "daemon_stopping", "daemon_silent"):
                    raise
                if not house.holder(self.home):
                    raise
            if time.monotonic() > deadline:
                raise CoreAgentError("daemon_silent", f"the daemon still is not {then.version}")
            time.sleep(0.1)

    def _hold_back(self, then: Release) -> None:
        """Note which releases the daemon must not become because a client of them still runs."""
        record = installation.read_record(self.versions)
        known = {str(one["version"]) for one in (record.get("current"), record.get("previous")) if one}
        newer = sorted(version for version in known if wire.newer(version, then.version))
        house.prepare(self.home)
        Path(paths.held_back(self.home)).write_text("".join(f"{version}\n" for version in newer))

    def _ask(self, name: str, **arguments: Any) -> Any:
        return ask(self.home, name, arguments, Caller(), start=False)

    # -- housekeeping ----------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One upgrade at a time."""
        self.versions.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self.versions / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CoreAgentError("upgrade_failed", "another upgrade is under way") from None
            self._clear_away()
            yield
        finally:
            os.close(descriptor)

    def _clear_away(self) -> None:
        """Remove what an upgrade that was killed left behind."""
        self._drop_copy()
        record = installation.read_record(self.versions)
        known = [Release.model_validate(record[key]) for key in ("current", "previous") if key in record]
        self._forget_others(*known)

    def _remove(self, release: Release) -> None:
        if release.directory:
            shutil.rmtree(release.directory, ignore_errors=True)

    def _forget_others(self, *kept: Release) -> None:
        """Remove releases from before the last one, unless something still runs from them: agents may be old."""
        wanted = {release.directory for release in kept}
        for entry in self.versions.iterdir():
            if entry.name.isdigit() and str(entry) not in wanted and not _in_use(entry):
                shutil.rmtree(entry, ignore_errors=True)


def _in_use(directory: Path) -> bool:
    mark = f"{directory}/".encode()
    if not Path("/proc/self").exists():
        return True  # nobody can tell: it stays
    return any(mark in procfs.slurp(f"/proc/{e.name}/cmdline") for e in Path("/proc").iterdir() if e.name.isdigit())


def requirement(source: str) -> str:
    """What pip is asked for: a path, a version, or the newest."""
    if not source:
        return PROGRAM
    if os.path.isabs(source) and os.path.exists(source):
        return source
    if re.fullmatch(r"\d+(\.\d+)*((a|b|rc|\.dev|\.post)\d+)?", source):
        return f"{PROGRAM}=={source}"
    raise CoreAgentError("invalid_argument", f"{source} is neither a file, a directory nor a version")


def require_ours(place: Installation, source: str) -> None:
    """Refuse an installation that somebody else keeps, with the command that upgrades it.

    Raises: not_ours_to_upgrade.
    """
    again, named = "core-agent daemon restart", shell_word(source) if source else ""
    hints = {
        "checkout": f"git -C {shell_word(_checkout())} pull && python3 {shell_word(_checkout() / 'scripts/setup')} dev"
        f" && {again}",
        "pipx": f"pipx {f'install --force {named}' if source else f'upgrade {PROGRAM}'} && {again}",
        "uv": f"uv tool {f'install --force {named}' if source else f'upgrade {PROGRAM}'} && {again}",
        "conda": f"{shell_word(sys.executable)} -m pip install --upgrade {named or PROGRAM} && {again}",
        "system": f"{shell_word(sys.executable)} -m pip install --upgrade {named or PROGRAM} && {again}",
    }
    whose = {
        "checkout": "this is a checkout, which git keeps",
        "pipx": "pipx keeps this installation",
        "uv": "uv keeps this installation",
        "conda": "this is a conda environment",
        "system": "this lies in the system's Python",
    }
    if place.kind != "venv":
        raise CoreAgentError(
            "not_ours_to_upgrade", f"{whose[place.kind]}; upgrade leaves it alone", hint=hints[place.kind]
        )
    if not place.program.exists():
        raise CoreAgentError(
            "not_ours_to_upgrade", f"there is no program at {place.program} that could be swapped", hint=hints["system"]
        )
    if not os.access(place.program.parent, os.W_OK) or not os.access(place.versions.parent, os.W_OK):
        raise CoreAgentError(
            "not_ours_to_upgrade", f"you may not write to {place.prefix}", hint="upgrade it as its owner"
        )


def _checkout() -> Path:
    package = Path(paths.__file__).resolve()
    return next((parent for parent in package.parents if (parent / "pyproject.toml").exists()), package.parent)
