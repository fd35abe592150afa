"""agents.yaml as one frozen `Settings`, and the pure rules that read it: which agent, which pool, which limit, where.

The daemon, doctor and the client's in-process commands come in here. A mistake in the file is named by line, column
and key; nothing is guessed. This room reads one file and does nothing else: no clock, no store, no runner.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from coreagent import paths, poolnames
from coreagent.checked import check
from coreagent.errors import CoreAgentError, told
from coreagent.plainfile import read_plain
from coreagent.sections import Hooks, NotifySettings, PortsSettings, Seconds, Section
from coreagent.yamlmarks import BadYaml, parse

# The agent names a person may type without configuring anything. Which of them can run is for coreagent.runners.
RUNNERS: Final = ("acp", "claude", "codex", "command", "gemini", "opencode", "scripted")
ACP_AGENTS: Final = ("claude", "codex", "copilot", "gemini", "opencode")
"""Agents of the Agent Client Protocol that need no settings."""
ALIASES: Final = {"openai": "codex"}
CLAUDE_MODELS: Final = ("opus", "sonnet", "haiku")

Pause = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
M = TypeVar("M", bound=BaseModel)
Size = Annotated[int, Field(gt=0, le=1 << 40)]


def _in_turn(value: Any) -> Any:
    """A list of agents as `--agent` takes it."""
    return ",".join(str(one).strip() for one in value) if isinstance(value, list) else value


Agents = Annotated[str, BeforeValidator(_in_turn)]


class DispatchSettings(Section):
    default_agent: Agents = "claude"
    """Agent of a dispatch that names none: `runner[:model]` or an identity; of a list, the first that can be used."""
    default_template: str = "coding"
    workspace_root: str = ".core/workspace"
    """Where workspaces are made; relative to the directory that holds the home, `.core` being the home itself."""
    keep_days: Annotated[float, Field(ge=0, le=36500, allow_inf_nan=False)] = 7
    """How long a workspace that nobody accepted or rejected is kept."""
    idle_timeout_s: Seconds = 600
    """An agent that says nothing for so long is stopped."""
    timeout_s: Seconds = 4 * 3600
    """The longest one attempt may take."""
    max_output_bytes: Size = 64 << 20
    """How much of an agent's output is kept: its head and its tail."""
    starting: Count = 0
    """How many agents that take 64 MiB or more may be starting up at once; 0 is one for each processor."""
    memory_reserve_mib: Count = 512
    """Memory that stays free: an agent of any kind that would not fit beside it waits."""
    breaker: Count = 5
    """So many failures in a row make a repository wait for a while; 0 never does."""
    turns_alone: Count = 20
    """So many turns a task may take by itself before it waits for a person; 0 is unlimited."""
    pace_target: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.95
    """Share of a provider's usage window that may be used when it resets; 0 does not pace."""


class PoolLimit(Section):
    """How many agents of a pool may run at once: a number, or `total` and one number per model; 0 is unlimited."""

    total: Count = 0
    models: dict[str, Count] = Field(default_factory=dict)


def _pool_limit(value: Any) -> Any:
    if isinstance(value, dict):
        # A typo would be the cap of a model that nobody has, and the pool without a limit: it stays an unknown key.
        meant = {k: v for k, v in value.items() if difflib.get_close_matches(str(k).lower(), ["total"], cutoff=0.75)}
        models = {k: v for k, v in value.items() if k not in meant}
        return {"total": 0, **meant, "models": models}
    return value if isinstance(value, PoolLimit) else {"total": value}


class RateSettings(Section):
    """Pace of a pool; times in seconds, `burst_window` in hours."""

    daily_limit: Count = 0
    """Starts a day, 0 is unlimited."""
    min_delay: Pause = 0
    """Seconds between two starts."""
    sustained_delay: Pause = 0
    """Seconds between two starts when the pace is to last the whole day."""
    burst_window: Annotated[float, Field(ge=0, le=24, allow_inf_nan=False)] = 0
    """Hours before the daily reset in which `burst_delay` holds instead."""
    burst_delay: Pause = 0
    reset_utc: str = "00:00"
    """When the day of `daily_limit` starts, as HH:MM in UTC."""

    @field_validator("reset_utc")
    @classmethod
    def _is_time(cls, value: str) -> str:
        parse_reset_utc(value)
        return value


class Identity(Section):
    """A named agent: looked up before runners are."""

    runner: str
    """Runner, or `runner:model`."""
    model: str = ""
    host: Literal["local", "remote"] = "local"
    """`remote` is for fleet mode and cannot be dispatched here."""
    roles: list[str] = Field(default_factory=list)


class CommandSettings(Section):
    """A program of yours as an agent, used as `--agent command:NAME`."""

    argv: Annotated[list[str], Field(min_length=1)]
    env: dict[str, str] = Field(default_factory=dict)


class AcpSettings(Section):
    """An agent that speaks the Agent Client Protocol, used as `--agent acp:NAME` or `acp:NAME:MODEL`."""

    argv: Annotated[list[str], Field(min_length=1)]
    env: dict[str, str] = Field(default_factory=dict)
    variables: list[str] = Field(default_factory=list)
    """Which keys of known agents it may see of your environment, like ANTHROPIC_*; by itself none."""
    mode: str = ""
    """The mode of its own that a session is put into."""
    model: str = ""
    """The model that a session is put to, when the dispatch names none."""
    auth: str = ""
    """The method that it is asked to authenticate with."""


class RunnerSettings(Section):
    path: str = ""
    """The program, when it is not to be searched in PATH."""
    home: Literal["private", "user"] = "private"
    """`private`: each workspace has a configuration directory of its own; `user`: the agent uses yours."""
    permissions: Literal["edits", "bypass"] = "edits"
    """`bypass` lets the agent run everything without asking; it needs your consent once per repository."""
    env: list[str] = Field(default_factory=list)
    """Names of further variables that are passed through to this runner."""
    args: list[str] = Field(default_factory=list)
    """Further arguments for the program."""
    model: str = ""
    """Model when the dispatch names none."""
    idle_timeout_s: Seconds | None = None
    """In place of `dispatch.idle_timeout_s`."""


class EnvSettings(Section):
    allow: list[str] = Field(default_factory=list)
    """Names of further variables that travel from your shell to every agent; a trailing * stands for any ending."""


class HarvestSettings(Section):
    """What may come back from a workspace; more is rejected and stays under a rescue ref."""

    max_files: Size = 2000
    max_file_bytes: Size = 10 << 20
    max_total_bytes: Size = 100 << 20
    max_kept_bytes: Size = 10 << 30
    """What no commit can hold is kept as files when a workspace goes; with more of it, the workspace stays."""
    binaries: Literal["allow", "reject"] = "allow"


class SyncSettings(Section):
    """News from the remotes of your repositories: into `refs/remotes/origin` only, nothing of yours moves."""

    fetch_minutes: Annotated[float, Field(ge=0, le=7 * 1440, allow_inf_nan=False)] = 5
    """Every so many minutes each is fetched, ever more rarely only while its remote fails; 0 never."""
    timeout_s: Seconds = 60
    """The longest that one fetch may take."""
    at_once: Annotated[int, Field(ge=1, le=32)] = 2
    """How many repositories are fetched at the same time."""
    before_dispatch: bool = False
    """Fetch before each dispatch and start from what came, as `dispatch --fetch` does."""


class WarmSettings(Section):
    """Checkouts that lie ready for the next dispatch of a repository, made while nothing else is to be done."""

    per_repo: Annotated[int, Field(ge=0, le=16)] = 1
    """How many; 0 makes none."""
    min_files: Count = 2000
    """Only of repositories with so many files: fewer are checked out as quickly."""
    max_mib: Count = 4096
    """How much disk all of them may take."""
    free_mib: Count = 5120
    """None is made that would leave less than this free on the disk."""


class Settings(Section):
    """The whole of agents.yaml."""

    version: Literal[1] = 1
    dispatch: DispatchSettings = DispatchSettings()
    concurrency: dict[str, Annotated[PoolLimit, BeforeValidator(_pool_limit)]] = Field(default_factory=dict)
    """Pool -> how many run at once."""
    rates: dict[str, RateSettings] = Field(default_factory=dict)
    """Pool -> its pace."""
    agents: dict[str, Identity] = Field(default_factory=dict)
    """Name -> identity."""
    commands: dict[str, CommandSettings] = Field(default_factory=dict)
    """Name -> program, used as `command:NAME`."""
    acp: dict[str, AcpSettings] = Field(default_factory=dict)
    """Name -> agent of the Agent Client Protocol, used as `acp:NAME`."""
    runners: dict[str, RunnerSettings] = Field(default_factory=dict)
    """Runner -> how it is run."""
    env: EnvSettings = EnvSettings()
    hooks: Hooks = Hooks()
    ports: PortsSettings = PortsSettings()
    notify: NotifySettings = NotifySettings()
    harvest: HarvestSettings = HarvestSettings()
    sync: SyncSettings = SyncSettings()
    warm: WarmSettings = WarmSettings()

    @field_validator("version", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # Scalars come as text, and a literal is not converted by itself.
        return int(value) if isinstance(value, str) and value.isdigit() else value


class RepoDispatch(Section):
    default_agent: Agents = ""
    default_template: str = ""


class RepoSettings(Section):
    """A repository's own `.core/agents.yaml`. `hooks` and `commands` run programs: only for a trusted repository."""

    version: Literal[1] = 1
    dispatch: RepoDispatch = RepoDispatch()
    harvest: HarvestSettings | None = None
    hooks: Hooks = Hooks()
    commands: dict[str, CommandSettings] = Field(default_factory=dict)

    _number = field_validator("version", mode="before")(Settings._number.__func__)  # type: ignore[attr-defined]

    @property
    def runs_commands(self) -> bool:
        """Whether there is anything in it that must be trusted first."""
        return bool(self.hooks.setup.run or self.hooks.teardown.run or self.commands)

    def harmless(self) -> RepoSettings:
        """The part that may be applied without trust."""
        return RepoSettings(dispatch=self.dispatch, harvest=self.harvest)


@dataclass(frozen=True)
class Loaded:
    """Settings in force, and what is odd about them without being wrong."""

    settings: Settings
    problems: list[str] = field(default_factory=list)
    path: str = ""
    doubts: list[str] = field(default_factory=list)
    """What is legitimate, and yet is mostly a typo."""


@dataclass(frozen=True)
class Chosen:
    """What an agent string means."""

    runner: str
    model: str = ""
    identity: str = ""


def load(home: str, env: Mapping[str, str] | None = None) -> Loaded:
    """Read `<home>/agents.yaml`; without one everything has its default. `env` gives the HOME that `~` stands for.

    Raises: settings_invalid, settings_unreadable.
    """
    path = paths.settings_file(home)
    try:
        raw = read_plain(path, follow=True)
    except FileNotFoundError:
        return Loaded(Settings(), [], path)
    except OSError as error:
        raise CoreAgentError(
            "settings_unreadable",
            f"{path} cannot be read",
            cause=told(error),
            hint="check that it is a file and that you may read it",
        ) from error
    settings = check(Settings, raw, path)
    user = (env or {}).get("HOME", "")
    root = settings.dispatch.workspace_root
    if user and (root == "~" or root.startswith("~/")):
        dispatch = settings.dispatch.model_copy(update={"workspace_root": user + root[1:]})
        settings = settings.model_copy(update={"dispatch": dispatch})
    doubts = poolnames.strays(settings, (*RUNNERS, *CLAUDE_MODELS), ACP_AGENTS)
    return Loaded(settings, _oddities(settings, path), path, [f"{path}: {said}" for said in doubts])


def stamp(home: str) -> int:
    """A number that changes whenever agents.yaml does; 0 when there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(paths.settings_file(home))
        return hash((found.st_mtime_ns, found.st_size, found.st_ino)) or 1
    return 0


def load_text(text: str, name: str = "agents.yaml") -> Settings:
    """Check the text of an agents.yaml. Raises: settings_invalid."""
    return check(Settings, text.encode("utf-8", "surrogatepass"), name)


def load_repo(text: str, name: str = ".core/agents.yaml") -> RepoSettings:
    """Check the text of a repository's own settings. Raises: settings_invalid."""
    return check(RepoSettings, text.encode("utf-8", "surrogatepass"), name, elsewhere=Settings)


def only_harmless(text: str) -> bool:
    """Whether a repository's settings, valid or not, surely hold nothing that would run commands."""
    try:
        node = parse(text)
    except BadYaml:
        return False
    return isinstance(node.value, dict) and node.value.keys() <= {"version", "dispatch", "harvest"}


def resolve_agent(text: str, settings: Settings) -> Chosen:
    """What `text` asks for: a named identity, a `runner[:model]`, one of claude's model names, or `command:NAME`.

    Raises: unknown_agent, remote_identity.
    """
    name, _, model = text.strip().partition(":")
    identity = settings.agents.get(name)
    if identity is None:
        return _runner(text.strip(), settings)
    if identity.host == "remote":
        raise CoreAgentError(
            "remote_identity",
            f"{name} lives on another machine",
            cause=f"agents.{name}.host is `remote`",
            hint="dispatch to a local agent; remote ones come with fleet mode",
        )
    own = _runner(identity.runner, settings)
    return Chosen(own.runner, model or identity.model or own.model, name)


def _runner(text: str, settings: Settings) -> Chosen:
    name, _, model = text.partition(":")
    if "." in name and model:
        return Chosen(text)  # a dotted path, `package.module:Class`
    name = ALIASES.get(name, name)
    if name in CLAUDE_MODELS and not model:
        return Chosen("claude", name)
    if name == "command":
        if model in settings.commands:
            return Chosen(name, model)
        raise _unknown_named(text, name, model, list(settings.commands))
    if name == "acp":
        known = {*settings.acp, *ACP_AGENTS}
        if model.partition(":")[0] in known:
            return Chosen(name, model)
        raise _unknown_named(text, name, model, sorted(known))
    if name in RUNNERS:
        return Chosen(name, model)
    raise _unknown(text, settings)


def _unknown(text: str, settings: Settings) -> CoreAgentError:
    """Name the nearest agent that would be taken, else all of them."""
    known = [name for name in RUNNERS if name not in ("acp", "command")]
    known += [f"acp:{name}" for name in sorted({*settings.acp, *ACP_AGENTS})]
    known += [f"command:{name}" for name in settings.commands]
    known += [name for name, identity in settings.agents.items() if identity.host != "remote"]
    known += CLAUDE_MODELS
    # A command is found by its bare name too: that is what people forget to write.
    meant = {**{name: f"command:{name}" for name in settings.commands}, **{name: name for name in known}}
    found = _nearest(text, list(meant)) or _nearest(text.partition(":")[0], list(meant))
    near = list(dict.fromkeys(meant[name] for name in found))
    offered = sorted(set(meant.values()))
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(offered)}"
    return _no_agent(text, hint, near)


def _unknown_named(text: str, runner: str, asked: str, known: list[str]) -> CoreAgentError:
    """One of the runners that are nothing without a name."""
    near = [f"{runner}:{name}" for name in _nearest(asked, known)]
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif known:
        hint = f"there is {', '.join(f'{runner}:{name}' for name in sorted(known))}"
    else:
        hint = "name it under `commands` in agents.yaml"
    return _no_agent(text, hint, near)


def _nearest(text: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(text, known, n=2, cutoff=0.6)


def _no_agent(text: str, hint: str, near: list[str]) -> CoreAgentError:
    return CoreAgentError("unknown_agent", f"there is no agent {text!r}", hint=hint, data={"nearest": near})


def workspace_root(settings: Settings, home: str) -> str:
    """The absolute directory of all workspaces."""
    root = os.path.normpath(settings.dispatch.workspace_root)
    first, _, rest = root.partition("/")
    if first == ".core":
        # `.core` is the contract's name for the home, wherever CORE_HOME has put it.
        return os.path.normpath(f"{home}/{rest}")
    return os.path.normpath(Path(home).parent / root)


def parse_reset_utc(text: str) -> time:
    """`06:00` as a time of day. Raises: ValueError."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if not match:
        raise ValueError("must be a time of day in UTC, like 06:00")
    return time(int(match[1]), int(match[2]))


def _oddities(settings: Settings, path: str) -> list[str]:
    found = []
    for where, text in [
        *(("dispatch.default_agent", one.strip()) for one in settings.dispatch.default_agent.split(",")),
        *((f"agents.{name}.runner", identity.runner) for name, identity in settings.agents.items()),
    ]:
        try:
            if where == "dispatch.default_agent":
                resolve_agent(text, settings)
            else:
                _runner(text, settings)
        except CoreAgentError as error:
            found.append(f"{path}: {where}: {error.message}; {error.hint}")
    return found
