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
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from coreagent import paths
from coreagent.errors import CoreAgentError, told
from coreagent.plainfile import read_plain
from coreagent.yamlmarks import BadYaml, Mark, Node, decode, parse

# The agent names a person may type without configuring anything. Which of them can run is for coreagent.runners.
RUNNERS: Final = ("acp", "claude", "codex", "command", "gemini", "opencode", "scripted")
ACP_AGENTS: Final = ("claude", "codex", "copilot", "gemini", "opencode")
"""Agents of the Agent Client Protocol that need no settings."""
ALIASES: Final = {"openai": "codex"}
CLAUDE_MODELS: Final = ("opus", "sonnet", "haiku")

Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]
Pause = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
M = TypeVar("M", bound=BaseModel)
Size = Annotated[int, Field(gt=0, le=1 << 40)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DispatchSettings(_Section):
    default_agent: str = "claude"
    """Agent of a dispatch that names none: `runner[:model]` or a named identity."""
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


class PoolLimit(_Section):
    """How many agents of a pool may run at once: a number, or `total` and one number per model; 0 is unlimited."""

    total: Count = 0
    models: dict[str, Count] = Field(default_factory=dict)


def _pool_limit(value: Any) -> Any:
    if isinstance(value, dict):
        return {"total": value.get("total", 0), "models": {k: v for k, v in value.items() if k != "total"}}
    return value if isinstance(value, PoolLimit) else {"total": value}


class RateSettings(_Section):
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


class Identity(_Section):
    """A named agent: looked up before runners are."""

    runner: str
    """Runner, or `runner:model`."""
    model: str = ""
    host: Literal["local", "remote"] = "local"
    """`remote` is for fleet mode and cannot be dispatched here."""
    roles: list[str] = Field(default_factory=list)


class CommandSettings(_Section):
    """A program of yours as an agent, used as `--agent command:NAME`."""

    argv: Annotated[list[str], Field(min_length=1)]
    env: dict[str, str] = Field(default_factory=dict)


class AcpSettings(_Section):
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


class RunnerSettings(_Section):
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


class EnvSettings(_Section):
    allow: list[str] = Field(default_factory=list)
    """Names of further variables that travel from your shell to every agent; a trailing * stands for any ending."""


class SetupHook(_Section):
    """What runs in a fresh workspace before the agent: a shell line, or a list of arguments."""

    run: str | list[str] = ""
    timeout_s: Seconds = 600


class Hooks(_Section):
    setup: SetupHook = SetupHook()


class HarvestSettings(_Section):
    """What may come back from a workspace; more is rejected and stays under a rescue ref."""

    max_files: Size = 2000
    max_file_bytes: Size = 10 << 20
    max_total_bytes: Size = 100 << 20
    binaries: Literal["allow", "reject"] = "allow"


class Settings(_Section):
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
    harvest: HarvestSettings = HarvestSettings()

    @field_validator("version", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # Scalars come as text, and a literal is not converted by itself.
        return int(value) if isinstance(value, str) and value.isdigit() else value


class RepoDispatch(_Section):
    default_agent: str = ""
    default_template: str = ""


class RepoSettings(_Section):
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
        return bool(self.hooks.setup.run or self.commands)

    def harmless(self) -> RepoSettings:
        """The part that may be applied without trust."""
        return RepoSettings(dispatch=self.dispatch, harvest=self.harvest)


@dataclass(frozen=True)
class Loaded:
    """Settings in force, and what is odd about them without being wrong."""

    settings: Settings
    problems: list[str] = field(default_factory=list)
    path: str = ""


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
    settings = _checked(Settings, raw, path)
    user = (env or {}).get("HOME", "")
    root = settings.dispatch.workspace_root
    if user and (root == "~" or root.startswith("~/")):
        dispatch = settings.dispatch.model_copy(update={"workspace_root": user + root[1:]})
        settings = settings.model_copy(update={"dispatch": dispatch})
    return Loaded(settings, _oddities(settings, path), path)


def stamp(home: str) -> int:
    """A number that changes whenever agents.yaml does; 0 when there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(paths.settings_file(home))
        return hash((found.st_mtime_ns, found.st_size, found.st_ino)) or 1
    return 0


def load_text(text: str, name: str = "agents.yaml") -> Settings:
    """Check the text of an agents.yaml. Raises: settings_invalid."""
    return _checked(Settings, text.encode("utf-8", "surrogatepass"), name)


def load_repo(text: str, name: str = ".core/agents.yaml") -> RepoSettings:
    """Check the text of a repository's own settings. Raises: settings_invalid."""
    return _checked(RepoSettings, text.encode("utf-8", "surrogatepass"), name)


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
    known = [name for name in RUNNERS if name not in ("acp", "command")] + [f"acp:{name}" for name in settings.acp]
    known += [name for name, identity in settings.agents.items() if identity.host != "remote"]
    known += CLAUDE_MODELS
    # A command is found by its bare name too: that is what people forget to write.
    meant = {**{name: f"command:{name}" for name in settings.commands}, **{name: name for name in known}}
    near = _nearest(text, list(meant)) or _nearest(text.partition(":")[0], list(meant))
    offered = sorted(meant.values())
    hint = f"did you mean {' or '.join(meant[name] for name in near)}?" if near else f"there is {', '.join(offered)}"
    return _no_agent(text, hint, [meant[name] for name in near])


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


def pool_of(runner: str, model: str, settings: Settings) -> str:
    """The longest configured pool name that is the runner or is contained in `runner-model`; else the runner."""
    whole = f"{runner}-{model}" if model else runner
    fitting = [name for name in {*settings.concurrency, *settings.rates} if name and (name == runner or name in whole)]
    # By name where two are equally long, so that the answer does not hang on the order of a set.
    return max(fitting, key=lambda name: (len(name), name), default=runner)


def limit_of(pool: str, settings: Settings) -> int:
    """How many of a pool may run at once; 0 is unlimited."""
    found = settings.concurrency.get(pool)
    return found.total if found else 0


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
        ("dispatch.default_agent", settings.dispatch.default_agent),
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


def _checked(model: type[M], raw: bytes, path: str) -> M:
    try:
        node = parse(decode(raw))
    except BadYaml as error:
        raise _invalid(path, error.mark, [], error.message, error.hint) from None
    if not isinstance(node.value, dict):
        if node.value is None:
            return model()
        raise _invalid(path, node.mark, [], "the file must be a mapping", "start with `version: 1`")
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        raise _first_of(error, model, node, path) from None


def _first_of(error: ValidationError, model: type[BaseModel], node: Node, path: str) -> CoreAgentError:
    """The mistake that stands first in the file; the others are in `data`."""
    found: list[CoreAgentError] = []
    for one in error.errors():
        mark, keys = node.find(one["loc"])
        if one["type"] == "extra_forbidden":
            valid = _valid_keys(model, one["loc"][:-1])
            found.append(_unknown_key(path, mark, keys, valid, model))
        else:
            missing = one["type"] == "missing"
            keys = [*keys, str(one["loc"][-1])] if missing else keys
            message = "this key is needed" if missing else _words(one["msg"])
            given = one["input"] if isinstance(one["input"], str) else ""
            found.append(_invalid(path, mark, keys, message, "", f"it is {given!r}" if given and not missing else ""))
    found.sort(key=lambda each: (each.data["line"], each.data["column"]))
    found[0].data["others"] = [each.message for each in found[1:20]]
    return found[0]


def _unknown_key(path: str, mark: Mark, keys: list[str], valid: list[str], model: type[BaseModel]) -> CoreAgentError:
    near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
    if model is RepoSettings and _valid_keys(Settings, tuple(keys[:-1])).count(keys[-1]):
        hint = "a repository cannot set this; it belongs in your own agents.yaml"
    return _invalid(path, mark, keys, "there is no such key", hint, data={"nearest": near[0] if near else ""})


def _invalid(
    path: str, mark: Mark, keys: list[str], message: str, hint: str, cause: str = "", data: dict[str, Any] | None = None
) -> CoreAgentError:
    key = ".".join(keys)
    return CoreAgentError(
        "settings_invalid",
        f"{path}:{mark.line}:{mark.column}: {key + ': ' if key else ''}{message}",
        cause=cause,
        hint=hint or "agents.yaml.example shows every key",
        data={"path": path, "line": mark.line, "column": mark.column, "key": key, **(data or {})},
    )


def _words(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _valid_keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at `loc`; none when what stands there has no fixed keys."""
    here: Any = model
    for step in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            known = here.model_fields.get(str(step))
            here = _section(known.annotation) if known else None
        elif get_origin(here) is dict:
            here = _section(get_args(here)[1])
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _section(kind: Any) -> Any:
    """`kind` without what is said about it: the model or dict inside of Annotated and of an optional."""
    if get_origin(kind) in (Annotated, UnionType, Union):
        return next((found for arm in get_args(kind) if (found := _section(arm)) is not None), None)
    return kind if kind is not type(None) else None
