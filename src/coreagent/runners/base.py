"""What every runner is: how to find a CLI, what to execute for one turn, and how to read what it prints.

The engine comes in with a Launch and leaves with a Plan; the shim executes the plan; the engine feeds the lines that
came out to a Parser. A runner starts no process of its own but the `--version` of `find`, writes no file, and knows
nothing of queues, git or the store. `lay_out` is the one function here that touches the disk.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol

from coreagent import spool
from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.plainfile import make_real
from coreagent.plural import plural

TEXT_LIMIT: Final = 16 * 1024
LINE_LIMIT: Final = 32 * 1024 * 1024
"""A longer line is not parsed (10 MiB was seen to be too little for a thread that is resumed)."""
CLOCK_SLACK_S: Final = 3600.0

# fmt: off
COMMON_VARIABLES: Final = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "LANGUAGE", "TZ", "TERM", "COLORTERM", "NO_COLOR",
    "XDG_*", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE",
)
# fmt: on
"""What any agent may see of its client's environment; a runner's own `variables` come on top."""

Permissions = Literal["edits", "bypass"]


class RunnerSettings(Protocol):
    """What a runner reads of `runners.<name>` in agents.yaml (coreagent.config has the full model)."""

    @property
    def path(self) -> str: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def args(self) -> Sequence[str]: ...
    @property
    def model(self) -> str: ...
    @property
    def home(self) -> str: ...


class CommandSettings(Protocol):
    """What the `command` runner reads of `commands.<name>`."""

    @property
    def argv(self) -> Sequence[str]: ...
    @property
    def env(self) -> Mapping[str, str]: ...


class AcpSettings(Protocol):
    """What the `acp` runner reads of `acp.<name>`."""

    @property
    def argv(self) -> Sequence[str]: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def variables(self) -> Sequence[str]: ...
    @property
    def mode(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def auth(self) -> str: ...


@dataclass(frozen=True)
class NoSettings:
    """Settings of a runner that agents.yaml does not mention."""

    path: str = ""
    env: Sequence[str] = ()
    args: Sequence[str] = ()
    model: str = ""
    home: str = "private"


@dataclass(frozen=True)
class Launch:
    """One turn of an agent, as the engine asks for it."""

    prompt: str
    session_id: str
    """A fresh UUID, used when nothing is resumed."""
    repo_dir: str
    workspace_dir: str
    tmp_dir: str
    """The agent's own TMPDIR; short-lived."""
    resume_session: str = ""
    model: str = ""
    """The model that it counts for (coreagent.poolnames); "" leaves it to the CLI."""
    permissions: Permissions = "edits"
    env: Mapping[str, str] = field(default_factory=dict)
    """The client's allow-listed environment."""
    args: Sequence[str] = ()
    """The caller's extra arguments; less trusted than `settings.args`."""
    config_home: str = ""
    """The workspace's private configuration directory, or "" for the user's own."""
    settings: RunnerSettings = field(default_factory=NoSettings)
    command: CommandSettings | None = None
    acp: AcpSettings | None = None
    fresh_prompt: str = ""
    """With `resume_session`: the prompt of the new session that takes its place when it is lost; else ""."""
    script: str = ""
    """The `scripted` runner's YAML text."""
    trusted_settings: str = ""
    """The CLI's own settings (hooks, variables) that the repository carries, as a person trusted them; else ""."""


@dataclass(frozen=True)
class Plan:
    """What the shim executes. `env` is whole but for the CORE_AGENT_* variables that the engine adds."""

    argv: list[str]
    env: dict[str, str]
    session_id: str
    stdin: bytes | None = None
    """Bytes of a file that becomes standard input; None is /dev/null. It is never an open pipe."""
    acp: Mapping[str, Any] | None = None
    """What the shim's own client says to an agent of the Agent Client Protocol; `stdin` is then the prompt."""
    stop_signal: Literal["INT", "TERM", "KILL"] = "TERM"
    stop_grace_s: float = 5.0
    directories: tuple[str, ...] = ()
    """Made with mode 0700 by `lay_out`."""
    copies: tuple[tuple[str, str], ...] = ()
    """(source, target): credentials that `lay_out` copies with mode 0600 when the source is the newer one."""
    files: tuple[tuple[str, bytes], ...] = ()
    """(target, content): files of ours that `lay_out` writes with mode 0600."""
    seeds: tuple[tuple[str, bytes], ...] = ()
    """The same, for files that belong to the CLI once they exist."""


@dataclass(frozen=True)
class Found:
    """Where a runner's program is. `problem` is empty or a CoreAgentError slug with `message` for people."""

    path: str = ""
    version: str = ""
    problem: Literal["", "runner_missing", "runner_too_old"] = ""
    message: str = ""
    hint: str = ""
    others: tuple[str, ...] = ()
    """Further programs of that name, in the order in which they would be found; none of them is used."""

    def require(self) -> Found:
        """Return self, or raise the problem: runner_missing, runner_too_old."""
        if self.problem:
            raise CoreAgentError(self.problem, self.message, hint=self.hint)
        return self


@dataclass(frozen=True)
class Login:
    """What can be told of a login without asking the network."""

    state: Literal["yes", "no", "unknown", "not_needed"]
    how: str = ""
    hint: str = ""


class Runner(ABC):
    """One agent CLI. Stateless: one instance may serve every dispatch."""

    name: ClassVar[str]
    context_file: ClassVar[str]
    """The file name under which this CLI reads project instructions."""
    minimum: ClassVar[str] = ""
    variables: ClassVar[tuple[str, ...]] = ()
    """Patterns of the client's variables this runner needs (keys, endpoints); for the allow-list."""
    resumable: ClassVar[bool] = True

    @abstractmethod
    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        """Find the program and its version. Blocks for a `--version`: call it from a thread."""

    @abstractmethod
    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login: ...

    @abstractmethod
    def plan(self, launch: Launch) -> Plan:
        """Say what to execute. Touches nothing, so a dry run may print it.

        Raises: blocked_flag, bad_script, settings_invalid, runner_missing.
        """

    @abstractmethod
    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> Parser:
        """Return a parser for one attempt; `previous_*` are the session's totals so far, for cumulative fields."""

    def own_model(self, env: Mapping[str, str], settings: RunnerSettings) -> str:
        """The model that the person's own configuration of the CLI names; "" none. May read a file."""
        return ""

    def interactive(self, launch: Launch) -> Plan:
        """Say what `attach` executes in the person's terminal. Raises: cannot_attach."""
        raise CoreAgentError(
            "cannot_attach",
            f"the {self.name} runner has no interactive session",
            hint="use `logs` to read what it did, `resume` to start another turn",
        )


class Parser:
    """Reads one attempt's output line by line. Never raises for what an agent printed."""

    def __init__(self) -> None:
        self.outcome = Outcome()

    def feed(self, line: bytes) -> list[AgentEvent]:
        """Return the events of one line of standard output (with or without its newline)."""
        lost = lost_of(line)
        if lost is not None:
            self._note([lost])
            return [lost]
        record = self._decode(line)
        return [] if record is None else self._events_of(record, self.read)

    def _events_of(
        self, record: dict[str, Any], read: Callable[[dict[str, Any]], list[AgentEvent]]
    ) -> list[AgentEvent]:
        try:
            events = read(record)
        # A shape that no version of the protocol has shown: counted, never fatal for the attempt.
        except (ValueError, TypeError, AttributeError, KeyError, LookupError, OverflowError, RecursionError):
            self.outcome.unparsed += 1
            return []
        events = [one for event in events for one in _with_plain_session(event)]
        self._note(events)
        return events

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        """Turn one JSON object into events."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """Whether something was said that becomes an event only with a later line, or with `flush`."""
        return False

    def flush(self) -> list[AgentEvent]:
        """Return as events what is pending."""
        return []

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        """Close the attempt with what the shim saw; returns `outcome`. May be called once."""
        raise NotImplementedError

    def _decode(self, line: bytes) -> dict[str, Any] | None:
        stripped = line.strip()
        if not stripped:
            return None
        if len(stripped) <= LINE_LIMIT:
            try:
                record = json.loads(stripped)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                return record
        self.outcome.unparsed += 1
        return None

    def _note(self, events: Iterable[AgentEvent]) -> None:
        out = self.outcome
        for event in events:
            out.events += 1
            if event.session_id:
                out.session_id = event.session_id
            if event.model:
                out.model = event.model
            if event.kind is EventKind.TEXT and event.text and not event.data:
                out.last_text = event.text
            elif event.kind is EventKind.TOOL_USE:
                out.last_tool = event.tool
            if event.denied and event.tool and event.tool not in out.denied_tools:
                out.denied_tools.append(event.tool)

    def died(self, exit_code: int | None, signal: int | None, stderr_tail: bytes) -> Outcome:
        """No terminal event came: whatever the exit code says, that is a death."""
        out = self.outcome
        out.terminal, out.reason = "none", Reason.DIED
        how = f"signal {signal}" if signal else "an unknown ending" if exit_code is None else f"exit code {exit_code}"
        out.message = join_lines(f"ended without a result ({how})", last_lines(stderr_tail))
        return out

    def by_exit_status(self, exit_code: int | None, signal: int | None, stderr_tail: bytes) -> Outcome:
        """The ending of an agent without a protocol of its own: the exit status stands for the terminal event."""
        out = self.outcome
        if signal or exit_code is None:
            return self.died(exit_code, signal, stderr_tail)
        out.turns = max(out.turns, 1)
        if exit_code == 0:
            out.terminal = "success"
        else:
            out.terminal, out.reason = "error", Reason.ERROR
            out.message = join_lines(f"exit code {exit_code}", last_lines(stderr_tail))
        return out


def _with_plain_session(event: AgentEvent) -> list[AgentEvent]:
    """The event; without its session, and with a word about that, when no command line could name it."""
    if is_word(event.session_id):
        return [event]
    said = f"[{event.session_id!r:.100} is no name of a session that can be resumed; the next turn begins a new one]"
    told = AgentEvent(kind=EventKind.TEXT, text=said, data={"session": "refused"})
    return [event.model_copy(update={"session_id": ""}), told]


def lost_of(line: bytes) -> AgentEvent | None:
    """The event of a line in which the spool says what it did not keep; None for every other line.

    Told by its first bytes, not by its JSON: the spool writes no line of the agent's that begins so (spool.quoted).
    """
    if not line.startswith(spool.MARKS):
        return None
    match = re.fullmatch(rb'\{"core_agent": "(cut|dropped)", "bytes": (\d{1,18})\}\s*', line)
    if match is None:
        return None
    what, size = match[1].decode(), int(match[2])
    if what == "cut":
        text = plural(size, "byte of this line was cut", "bytes of this line were cut")
        if size >= 2**20:
            text = f"{size / 2**20:,.1f} MiB of this line were cut"
    else:
        text = plural(size, "byte of output was not kept", "bytes of output were not kept")
    text = f"[{text}]"
    return AgentEvent(kind=EventKind.TEXT, text=text, data={what: size})


def allow(
    env: Mapping[str, str], runner: Runner, settings: RunnerSettings, extra: Iterable[str] = ()
) -> dict[str, str]:
    """Return what of a client's environment may travel to this runner's agent."""
    patterns = [*COMMON_VARIABLES, *runner.variables, *settings.env, *extra]
    exact = {name for name in patterns if not _is_glob(name)}
    globs = [name for name in patterns if _is_glob(name)]
    return {
        name: value
        for name, value in env.items()
        if (name in exact or any(fnmatch.fnmatchcase(name, glob) for glob in globs))
        and not name.startswith("CORE_AGENT_")
    }


def _is_glob(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def lay_out(plan: Plan, workspace: str | Path) -> None:
    """Make the directories and copy the credentials a plan needs. Idempotent; blocks on the disk.

    What is ours, which is all below the workspace's directory, is put right again, whatever an agent laid in its place
    or on the way to it. Raises: OSError.
    """
    for directory in plan.directories:
        make_real(directory, workspace)
        os.chmod(directory, 0o700)
    for source, target in plan.copies:
        make_real(Path(target).parent, workspace)
        _copy_newer(Path(source), Path(target))
    for target, content in plan.files:
        make_real(Path(target).parent, workspace)
        _write_private(Path(target), content)
    for target, content in plan.seeds:
        make_real(Path(target).parent, workspace)
        if not os.path.lexists(target):
            _write_private(Path(target), content)


def _copy_newer(source: Path, target: Path) -> None:
    # The private copy may hold a token that the CLI refreshed since: only a newer login replaces it.
    try:
        if _is_newer(target, source.stat().st_mtime):
            return
        content = source.read_bytes()
    except OSError:
        return
    _write_private(target, content)


def _is_newer(target: Path, than: float) -> bool:
    try:
        found = target.lstat()
    except FileNotFoundError:
        return False
    # A date to come would keep every later login away; nothing but a date by hand has one.
    return stat.S_ISREG(found.st_mode) and than <= found.st_mtime <= time.time() + CLOCK_SLACK_S


def _write_private(target: Path, content: bytes) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    fresh.replace(target)


def which(program: str, env: Mapping[str, str]) -> str:
    """Return the absolute path of a program on the PATH of `env`, or ""."""
    if not program or "\0" in program:
        return ""
    found = shutil.which(str(Path(program).expanduser()), path=env.get("PATH", os.defpath))
    # Made absolute but not resolved: a version manager's link must stay the link it is.
    return str(Path(found).absolute()) if found else ""


def word(value: str, what: str) -> str:
    """Return a model or session name that can be neither an option nor a path. Raises: blocked_flag."""
    if not is_word(value):
        raise CoreAgentError("blocked_flag", f"{value!r:.100} is no {what}", hint=f"give the {what}'s plain name")
    return value


def is_word(value: str) -> bool:
    """Whether a name, if there is any, can be neither an option nor a path that leads up."""
    return not value or (bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:@/\[\]-]{0,199}", value)) and ".." not in value)


def version_tuple(version: str) -> tuple[int, ...]:
    """`2.1.328 (Claude Code)` -> (2, 1, 328); () when no number is in it."""
    match = re.search(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def bounded(value: object, limit: int = TEXT_LIMIT) -> str:
    """Return text that every later step can carry: no lone surrogates, at most `limit` bytes of UTF-8."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    raw = text[:limit].encode("utf-8", "replace")
    if len(raw) > limit or len(text) > limit:
        return raw[: limit - 3].decode("utf-8", "ignore") + "…"
    return raw.decode("utf-8")


def text_of(value: object) -> str:
    """Return a text that is one, else ""; lone surrogates are replaced."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def whole(value: object) -> int:
    """Return a non-negative integer of a JSON number, 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return 0
    return int(value)


def last_lines(raw: bytes, limit: int = 2000) -> str:
    """Return the end of a stderr tail as text."""
    return raw.decode("utf-8", "replace").strip()[-limit:]


def join_lines(*parts: str) -> str:
    return bounded(": ".join(part for part in parts if part))
