"""`core-agent doctor`: looks at everything an installation stands on, and says what to do about what is not right.

It runs in the person's own process, works without the daemon, and changes nothing unless `--repair` is given.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, Field

from coreagent import config, paths, process, runners
from coreagent.attempts import read_exit, read_started
from coreagent.cli.commands import suggest
from coreagent.cli.commands.option import Json, paint, say, to_json
from coreagent.cli.door import no_agent
from coreagent.cli.ready import settings_of
from coreagent.cli.session import ask, session
from coreagent.cli.terminal import Terminal, terminal
from coreagent.cli.views.text import one_line, running_words, size, wrap
from coreagent.errors import HINTS, CoreAgentError, shell_word
from coreagent.models.report import DaemonStatus
from coreagent.plainfile import read_plain
from coreagent.plural import plural
from coreagent.runners.base import version_tuple

if TYPE_CHECKING:
    from coreagent.cli.offline import Proof

GIT_MINIMUM = "2.31"
SPACE_WARN = 2_000_000_000
SPACE_FAIL = 200_000_000
WATCHES_WARN = 8192

State = Literal["ok", "warn", "fail"]


class Check(BaseModel):
    """One thing that was looked at."""

    name: str
    state: State
    message: str
    hint: str = ""


class DoctorReport(BaseModel):
    """What `doctor --json` prints."""

    ok: bool = True
    """No check failed; warnings do not count."""
    version: str = paths.VERSION
    home: str = ""
    checks: list[Check] = Field(default_factory=list)
    proofs: list[dict[str, Any]] = Field(default_factory=list)
    """With `--offline`: what became of each agent's proof."""


def doctor(
    offline: Annotated[
        bool, typer.Option("--offline", help="Also prove the whole way, with a model server of our own and no key.")
    ] = False,
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            "-a",
            help="With --offline: whom to prove, as in `codex`, `acp:NAME`, `all`. [default: every runner found]",
            autocompletion=suggest.agents,
        ),
    ] = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Put a damaged store aside and restore its newest good copy.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at everything an installation stands on. Exit code 1 when something failed."""
    session().own_process()
    if repair:
        no_agent("repair the store")
    if agent and not offline:
        raise typer.BadParameter("goes with --offline", param_hint="--agent")
    here, report = terminal(), DoctorReport(home=session().home)
    looks: list[Callable[[], Iterator[Check]]] = [
        _python, _git, _home, _daemon, _settings, _repository, lambda: _runners(here), _space, _watches, _leftovers,
    ]  # fmt: skip
    if repair:
        looks.insert(0, _repair)
    if offline:
        looks.append(lambda: _offline(here, agent, report, quiet=as_json))
    for look in looks:
        for check in _guarded(look):
            report.checks.append(check)
            if not as_json:
                say(_lines(check, here.width))
                here.flush()
    report.ok = all(check.state != "fail" for check in report.checks)
    say([to_json(report)] if as_json else _closing(report))
    raise typer.Exit(0 if report.ok else 1)


def _guarded(look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A look that fails is a finding, not the end of the visit."""
    try:
        yield from look()
    except CoreAgentError as error:
        yield Check(name=error.slug, state="fail", message=_sentence(error), hint=error.hint)
    except OSError as error:
        yield Check(name="look", state="fail", message=str(error))


def _sentence(error: CoreAgentError) -> str:
    return f"{error.message} ({error.cause})" if error.cause else error.message


def _lines(check: Check, width: int) -> list[str]:
    brush = paint()
    sign = {"ok": brush.green("✓"), "warn": brush.yellow("!"), "fail": brush.red("✗")}[check.state]
    first, *rest = wrap(one_line(check.message), max(20, width - 15))
    lines = [f"{sign} {brush.bold(check.name.ljust(11))} {first}", *(f"{'':14}{line}" for line in rest)]
    if check.hint and check.state != "ok":
        lines += [brush.dim(line) for line in wrap(f"hint: {one_line(check.hint)}", width, " " * 14)]
    return lines


def _closing(report: DoctorReport) -> list[str]:
    failed = sum(check.state == "fail" for check in report.checks)
    warned = sum(check.state == "warn" for check in report.checks)
    if failed:
        return ["", paint().red(f"{plural(failed, 'check')} failed")]
    return ["", paint().yellow(plural(warned, "warning")) if warned else paint().green("all is well")]


# ---- the looks ----


def _python() -> Iterator[Check]:
    found = platform.python_version()
    fine = sys.version_info >= (3, 11)
    yield Check(
        name="python",
        state="ok" if fine else "fail",
        message=f"{found} at {sys.executable}, core-agent {paths.VERSION}",
        hint="" if fine else "core-agent needs Python 3.11 or newer",
    )


def _git() -> Iterator[Check]:
    path = shutil.which("git", path=terminal().env.get("PATH", ""))
    if not path:
        yield Check(name="git", state="fail", message="git is not in PATH", hint="install git")
        return
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    version = said.removeprefix("git version ").split(" ")[0]
    old = version_tuple(version) < version_tuple(GIT_MINIMUM)
    yield Check(
        name="git",
        state="warn" if old else "ok",
        message=f"{version or said} at {path}",
        hint=f"older than {GIT_MINIMUM}, the oldest that core-agent is tested with" if old else "",
    )


def _home() -> Iterator[Check]:
    from coreagent.daemon import house

    home = session().home
    if not home:
        yield Check(name="home", state="fail", message=paths.homeless(), hint=HINTS["no_home"])
        return
    try:
        house.check_length(home)
        length = len(os.fsencode(paths.daemon_socket(home)))
        yield Check(name="socket", state="ok", message=f"its path has {length} of {paths.SOCKET_PATH_MAX} bytes")
    except CoreAgentError as error:
        yield Check(name="socket", state="fail", message=error.message, hint=error.hint)
    if not Path(home).exists():
        hint = "core-agent init makes it; any other command does too"
        yield Check(name="home", state="warn", message=f"{home} is not there yet", hint=hint)
        return
    yield _owned(home)


def _owned(home: str) -> Check:
    """Whoever can write into the home can put settings and sockets under the daemon's hands."""
    for name in (home, f"{home}/run", f"{home}/attempts"):
        path = Path(name)
        if not path.exists():
            continue
        status = path.stat()
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
        if status.st_uid != os.getuid():
            return Check(name="home", state="fail", message=f"{name} belongs to user {status.st_uid}, not to you")
        if status.st_mode & 0o022:
            return Check(
                name="home",
                state="fail",
                message=f"others can write to {name} ({mode})",
                hint=f"chmod go-w {shell_word(name)}",
            )
        if status.st_mode & 0o055:
            return Check(
                name="home",
                state="warn",
                message=f"others can read {name} ({mode})",
                hint=f"chmod 700 {shell_word(name)}",
            )
    return Check(name="home", state="ok", message=f"{home}, yours alone")


def _daemon() -> Iterator[Check]:
    home = session().home
    if not home or not Path(home).exists():
        return
    try:
        status = DaemonStatus.model_validate(ask(home, "daemon.status", {}, session().caller, start=False))
    except CoreAgentError as error:
        if error.slug != "daemon_unreachable":
            raise
        yield Check(name="daemon", state="ok", message="not running; commands that need it start it")
        yield _store_on_disk(home)
        return
    told = f"pid {status.pid}, version {status.version}, {size(status.rss_bytes)}"
    told += f", {running_words(status.running, status.strangers)}"
    other = status.version != paths.VERSION
    yield Check(
        name="daemon",
        state="warn" if other or status.draining else "ok",
        message=told + (", draining" if status.draining else ""),
        hint=f"this program is {paths.VERSION}; core-agent daemon restart" if other else "",
    )
    if status.ephemeral:
        hint = "nothing of now outlives the daemon; make the file usable, then core-agent daemon restart"
        yield Check(name="store", state="fail", message=f"in memory only: {'; '.join(status.warnings)}", hint=hint)
    else:
        yield Check(name="store", state="ok", message=f"{paths.database(home)}, held by the daemon")


def _store_on_disk(home: str) -> Check:
    """Read the whole store once, as the next daemon would, without changing a byte of it."""
    from coreagent.store.opening import check_place, connect, read_mark, verify
    from coreagent.store.schema import migrations

    path = paths.database(home)
    try:
        check_place(path)
        if not Path(path).exists():
            return Check(name="store", state="ok", message="nothing is stored yet")
        connection = connect(path, read_only=True)
        try:
            found = verify(connection, path, migrations(), read_mark(path))
        finally:
            connection.close()
    except CoreAgentError as error:
        return Check(name="store", state="fail", message=_sentence(error), hint=error.hint)
    return Check(name="store", state="ok", message=f"{path} is whole, {plural(found.last_seq, 'event')} in it")


def _settings() -> Iterator[Check]:
    try:
        loaded = config.load(session().home, dict(terminal().env))
    except CoreAgentError as error:
        good = Path(paths.last_good_settings(session().home)).is_file()
        held = "; the last good settings are in force" if good else ""
        yield Check(name="settings", state="fail", message=_sentence(error) + held, hint=error.hint)
        return
    for problem in loaded.problems:
        yield Check(name="settings", state="fail", message=problem, hint=f"the file is {loaded.path}")
    for doubt in loaded.doubts:
        yield Check(name="settings", state="warn", message=doubt, hint=f"the file is {loaded.path}")
    if not loaded.problems and not loaded.doubts:
        there = Path(loaded.path).is_file() if loaded.path else False
        yield Check(name="settings", state="ok", message=loaded.path if there else "none; everything has its default")


def _repository() -> Iterator[Check]:
    """The settings of the repository that the person stands in: as committed, which is what counts, and as they are."""
    from coreagent.dispatch import trust
    from coreagent.git.inspect import inspect
    from coreagent.models.dispatch import Repo

    try:
        base = inspect(Path(terminal().cwd or "/"))
    except CoreAgentError:
        return  # no repository, or none that could be worked in: dispatch says so
    repo = Repo(org="local", name=base.top.name, path=str(base.top), added_at=datetime.now(UTC))
    offer = trust.offered(repo, base.sha)
    if offer.files:
        try:
            trust.check(offer, repo, base.sha)
        except CoreAgentError as error:
            yield Check(name="repository", state="fail", message=_sentence(error), hint=error.hint)
        else:
            yield Check(name="repository", state="ok", message=f"the settings that {base.top} brings are valid")
    file = base.top / trust.FILE
    with suppress(OSError):
        text = read_plain(file).decode("utf-8", "replace")
        if text != offer.text:
            try:
                config.load_repo(text, str(file))
            except CoreAgentError as error:
                told = f"{_sentence(error)}; it is not committed yet"
                yield Check(name="repository", state="warn", message=told, hint=error.hint)


def _runners(here: Terminal) -> Iterator[Check]:
    settings = settings_of(session().home, here.env)
    for name in sorted(runners.REAL):
        runner = runners.load(name)
        own = settings.runners.get(name) or config.RunnerSettings()
        found = runner.find(here.env, own)
        if found.problem:
            yield Check(name=name, state="warn", message=found.message, hint=found.hint)
            continue
        login = runner.login(here.env, own)
        words = {"yes": "logged in", "no": "not logged in", "unknown": "login unknown", "not_needed": "needs no login"}
        how = f" ({login.how})" if login.how else ""
        yield Check(
            name=name,
            state="warn" if login.state == "no" else "ok",
            message=f"{found.version} at {found.path}, {words[login.state]}{how}",
            hint=login.hint,
        )
        if found.others:
            hint = f"runners.{name}.path in agents.yaml chooses another"
            yield Check(name=name, state="warn", message=f"there is also {', '.join(found.others)}", hint=hint)


def _space() -> Iterator[Check]:
    place = Path(session().home or "/")
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    state: State = "fail" if free < SPACE_FAIL else "warn" if free < SPACE_WARN else "ok"
    hint = "core-agent workspace clean --dry-run says what may go" if state != "ok" else ""
    yield Check(name="disk", state=state, message=f"{size(free)} free at {place}", hint=hint)


def _watches() -> Iterator[Check]:
    """Agents' own tools watch files; a system that has too few watches makes them fail in ways that look like ours."""
    limit = Path("/proc/sys/fs/inotify/max_user_watches")
    if not limit.is_file():
        return
    count = int(limit.read_text())
    few = count < WATCHES_WARN
    hint = f"sysctl fs.inotify.max_user_watches={WATCHES_WARN * 8}" if few else ""
    told = f"{plural(count, 'watch', 'watches')} per user"
    yield Check(name="inotify", state="warn" if few else "ok", message=told, hint=hint)


def _leftovers() -> Iterator[Check]:
    """Attempts that ended, but whose processes did not; attempts that nobody settled."""
    root = Path(paths.attempt_dir(session().home, "x")).parent if session().home else Path("/nonexistent")
    names = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
    unsettled = []
    for name in names:
        if read_exit(root / name) is not None:
            continue
        started = read_started(root / name)
        if started is not None and not started.void and not process.alive(started.shim_pid, started.shim_start):
            unsettled.append(name)
    ended = {name for name in names if read_exit(root / name) is not None}
    orphans = sorted(pid for pid, attempt in _marked() if attempt in ended)
    if orphans:
        found = ", ".join(map(str, orphans))
        hint = "the daemon ends them when it starts: core-agent daemon restart"
        yield Check(
            name="leftovers", state="warn", message=f"processes of ended attempts still run: {found}", hint=hint
        )
    if unsettled:
        hint = "the daemon settles them when it starts: core-agent daemon start"
        yield Check(name="leftovers", state="warn", message=f"{plural(len(unsettled), 'attempt')} to settle", hint=hint)
    if not (orphans or unsettled):
        yield Check(name="leftovers", state="ok", message="none")


def _marked() -> Iterator[tuple[int, str]]:
    """Every process of ours that carries an attempt's mark. Where there is no /proc, none can be told."""
    for entry in Path("/proc").iterdir() if Path("/proc/self").exists() else ():
        if entry.name.isdigit():
            attempt = process.environ_of(int(entry.name)).get("CORE_AGENT_ATTEMPT")
            if attempt:
                yield int(entry.name), attempt


def _repair() -> Iterator[Check]:
    from coreagent.store.repair import repair

    home = session().home
    try:
        ask(home, "daemon.status", {}, session().caller, start=False)
    except CoreAgentError as error:
        if error.slug != "daemon_unreachable":
            raise
    else:
        raise CoreAgentError("store_locked", "a daemon is running and has the store", hint="core-agent daemon stop")
    path = Path(paths.database(home))
    if not list(path.parent.glob(path.name + "*")):
        yield Check(name="repair", state="ok", message="nothing is stored yet, so nothing is damaged")
        return
    done = repair(str(path))
    if done.healthy:
        yield Check(name="repair", state="ok", message="the store is whole; nothing was touched")
        return
    origin = f"restored from {done.restored_from}" if done.restored_from else "there was no copy: the store began empty"
    salvaged = sum(done.salvaged.values())
    told = f"{origin}, {plural(salvaged, 'newer row')} saved from the damaged file"
    yield Check(
        name="repair",
        state="warn" if done.lost or done.unreadable else "ok",
        message=f"{told}, {plural(done.lost, 'transaction')} lost" if done.lost else told,
        hint=f"unreadable: {', '.join(done.unreadable)}" if done.unreadable else "",
    )
    if done.moved:
        yield Check(name="repair", state="ok", message=f"the damaged files are kept: {', '.join(done.moved)}")


def _offline(here: Terminal, asked: str, report: DoctorReport, *, quiet: bool) -> Iterator[Check]:
    from coreagent.cli.offline import prove  # with it comes an HTTP server

    if not quiet:
        say([paint().dim("offline proof: a daemon, repositories and a model server of our own ...")])
        here.flush()
    proofs: list[Proof] = []
    for proof in prove(here.env, settings_of(session().home, here.env), asked):
        proofs.append(proof)
        report.proofs.append(proof.model_dump(mode="json"))
        if proof.state != "not_installed" or asked == proof.agent:
            yield _proof_check(proof, asked)
    absent = [proof.agent for proof in proofs if proof.state == "not_installed" and asked != proof.agent]
    if absent:
        alone = any(proof.agent == "scripted" for proof in proofs)
        hint = "`core-agent agents` says how to install one" if alone else ""
        told = f"not installed, so not proved: {', '.join(absent)}"
        yield Check(name="offline", state="warn" if alone else "ok", message=told, hint=hint)


def _proof_check(proof: Proof, asked: str) -> Check:
    """What a proof means: an agent that was asked for by name has to be proved."""
    wanted: State = "fail" if asked == proof.agent else "warn"
    state: State = "ok" if proof.state == "proved" else "fail" if proof.state == "failed" else wanted
    told = f"{proof.message}, {plural(proof.requests, 'request')} answered here" if proof.requests else proof.message
    return Check(name="offline", state=state, message=told, hint=proof.hint)
