"""What the runners of real CLIs share: finding the program and its version, and what may and may not be given to it.

Each CLI's runner comes in with its own tables. This room starts nothing but `--version`, writes nothing, and knows
neither a protocol nor a provider.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from coreagent.errors import CoreAgentError
from coreagent.runners.base import Found, Launch, RunnerSettings, bounded, version_tuple, which

CONTEXT_LIMIT: Final = 64 * 1024
VERSION_LIMIT_S: Final = 20.0
ANSWER_MOST: Final = 4096

# What the known CLIs give the processes below them. A CLI that sees its own, or another's, takes itself for a part of
# that session: it changes what it prints, attaches to a server of its parent, or refuses to start.
NESTED: Final = re.compile(
    r"CLAUDECODE|CLAUDE_PID|CLAUDE_EFFORT|AI_AGENT|AGENT"
    r"|CLAUDE_CODE_(ENTRYPOINT|EXECPATH|SESSION_ID|SSE_PORT|SESSION_ATTENDED|CHILD_.*|MESSAGING_.*)"
    r"|CODEX_(THREAD_ID|SESSION_ID|TOOL_CALL_ID|VERSION|CI|SANDBOX|SANDBOX_.*|INTERNAL_.*|MANAGED_.*|EXEC_SERVER_URL|APPLY_.*)"
    r"|GEMINI_CLI|GEMINI_CLI_(IDE_.*|SESSION_ID|PROMPT_ID|NO_RELAUNCH|SURFACE)|QWEN_CODE|COPILOT_CLI"
    r"|OPENCODE|OPENCODE_(PID|ROUTE|CLIENT|TERMINAL|EDITOR_.*|RUN_ID|PROCESS_ROLE|SERVER_.*|WORKSPACE_ID)"
)


@dataclass(frozen=True)
class Program:
    """One CLI: its name, where it is looked for, and what people are told when it is not there or too old."""

    name: str
    minimum: str
    install: str
    """How to get it."""
    upgrade: str
    """How to get a newer one."""
    places: Sequence[str] = ()
    """Usual places below the home directory, for shells whose PATH does not have them."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What keeps its `--version` from doing anything else."""
    native: Callable[[str], str] | None = None
    """The program that a found one is only a wrapper of; "" when it is none."""

    def all(self, env: Mapping[str, str], settings: RunnerSettings) -> list[str]:
        """Return every one there is, the one that is used first. Links to one program are one."""
        if settings.path:
            found = [which(settings.path, env)]
        else:
            home = env.get("HOME", "")
            on_path = [which(f"{place}/{self.name}", env) for place in _directories_of(env)]
            found = on_path + [which(f"{home}/{place}", env) for place in self.places if home]
        programs: dict[str, str] = {}
        for path in filter(None, found):
            programs.setdefault(os.path.realpath(path), path)
        return [self._preferred(path) for path in programs.values()]

    def locate(self, env: Mapping[str, str], settings: RunnerSettings) -> str:
        """Return the path of the one that is used: the settings' own, the first on PATH, a usual place; else ""."""
        return next(iter(self.all(env, settings)), "")

    def require(self, launch: Launch) -> str:
        """Return the path of the one that is used. Raises: runner_missing."""
        path = self.locate(launch.env, launch.settings)
        if not path:
            raise CoreAgentError("runner_missing", self._missing(launch.settings), hint=self._install())
        return path

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        """Return it with its version, or what is wrong with it. Blocks for `--version`, once for each program."""
        path, *others = self.all(env, settings) or [""]
        if not path:
            return Found(problem="runner_missing", message=self._missing(settings), hint=self._install())
        said = answer_of(path, self.variables)
        version = version_in(said)
        if not version:
            hint = f"reinstall it; {self._install()}"
            told = f"{path} does not answer to --version"
            if said:
                told = f"{path} does not tell its version: --version says {said.splitlines()[0]!a:.100}"
            return Found(path, "", "runner_missing", told, hint, tuple(others))
        if version_tuple(version) < version_tuple(self.minimum):
            message = f"{path} is {version}; at least {self.minimum} is needed"
            return Found(path, version, "runner_too_old", message, self.upgrade, tuple(others))
        return Found(path, version, others=tuple(others))

    def _preferred(self, path: str) -> str:
        return (self.native(path) if self.native else "") or path

    def _missing(self, settings: RunnerSettings) -> str:
        return f"{settings.path!r} is not an executable file" if settings.path else f"{self.name} is not on the PATH"

    def _install(self) -> str:
        return f"{self.install}, or set runners.{self.name}.path"


def _directories_of(env: Mapping[str, str]) -> list[str]:
    # An empty entry of PATH is the current directory, which is nobody's here.
    return [place for place in env.get("PATH", os.defpath).split(os.pathsep) if place.startswith(("/", "~"))]


def version_of(path: str, variables: Mapping[str, str] | None = None) -> str:
    """Return what a program answers to `--version`, as bare numbers; "" when it does not. Asked once per program."""
    return version_in(answer_of(path, variables))


def version_in(said: str) -> str:
    """Return the version in an answer, as bare numbers; "" when there is none. A single number is no version."""
    found = re.search(r"(?<![\w.])v?(\d+(?:\.\d+)+)", said)
    return ".".join(str(part) for part in version_tuple(found[1])) if found else ""


def answer_of(path: str, variables: Mapping[str, str] | None = None) -> str:
    """Return what a program answers to `--version`; "" when it fails or says nothing. Asked once per program."""
    try:
        stat = os.stat(path)
        return _answer_of(path, stat.st_mtime_ns, stat.st_size, stat.st_ino, tuple(sorted((variables or {}).items())))
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _answer_of(path: str, mtime_ns: int, size: int, inode: int, variables: tuple[tuple[str, str], ...]) -> str:
    """Raises: OSError, also when it does not answer in time: a machine that was too busy is asked again."""
    # A script's interpreter (`/usr/bin/env node`) may lie beside it and nowhere else.
    search = f"{os.path.dirname(path)}:{os.environ.get('PATH', '')}:{os.defpath}"
    try:
        # Some make their directories before they answer, and give up where they cannot.
        with tempfile.TemporaryDirectory(prefix="core-agent-", ignore_cleanup_errors=True) as home:
            done = subprocess.run(
                [path, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": search, "HOME": home, **dict(variables)},
                timeout=VERSION_LIMIT_S,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from None
    return "" if done.returncode else bounded(done.stdout.decode("utf-8", "replace").strip(), ANSWER_MOST)


MODEL_FLAGS: Final = ("-m", "--model", "--fallback-model")


@dataclass(frozen=True)
class Flags:
    """Which arguments of a CLI a user may not set, and which only the settings may."""

    program: str
    pinned: frozenset[str]
    """The protocol is ours: without these a run cannot be read, resumed or stopped."""
    widening: frozenset[str] = frozenset()
    """What an agent may do is told by agents.yaml, not by whoever queues a task."""
    short: frozenset[str] = frozenset()
    """Short flags that are harmless; every other one is refused, for they can be joined (`-pc`)."""

    def check(self, args: Sequence[str], *, widening: bool) -> None:
        """Refuse arguments that break the protocol, or, without `widening`, widen. Raises: blocked_flag."""
        for index, arg in enumerate(args):
            flag = arg.partition("=")[0]
            if arg == "--" or "\0" in arg:
                raise self.blocked(arg, "would end the options")
            if flag in self.pinned or (_is_short(arg) and arg not in self.short and flag not in self.widening):
                hint = self.model_hint if flag in MODEL_FLAGS else "leave it out"
                raise self.blocked(arg, f"belongs to core-agent's own protocol with {self.program}", hint)
            if flag in self.widening and not widening:
                raise self.widens(arg)
            if index == 0 and not arg.startswith("-"):
                raise self.blocked(arg, "would be taken for the prompt")

    @property
    def model_hint(self) -> str:
        """How a model is asked for, so that the limits of its pool see it."""
        return f"use `--agent {self.program}:MODEL`, or runners.{self.program}.model in agents.yaml"

    def blocked(self, arg: str, why: str, hint: str = "leave it out") -> CoreAgentError:
        return CoreAgentError("blocked_flag", f"the argument {arg!r:.200} {why}", hint=hint)

    def widens(self, arg: str) -> CoreAgentError:
        hint = f"put it under runners.{self.program}.args in agents.yaml"
        return self.blocked(arg, "would widen what the agent may do", hint)


def _is_short(arg: str) -> bool:
    return len(arg) > 1 and arg[0] == "-" and arg[1] != "-"


def own_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what a surrounding agent's session, of whichever CLI, left in it."""
    return {name: value for name, value in env.items() if not NESTED.fullmatch(name)}


def key_in(env: Mapping[str, str], names: Iterable[str]) -> str:
    """Return the first of these variables that holds something, or ""."""
    return next((name for name in names if env.get(name)), "")


def user_directory(env: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """Return the person's own configuration directory of a CLI: the variable's, or the usual one."""
    if variable and env.get(variable):
        return Path(env[variable])
    return Path(env["HOME"]) / below_home if env.get("HOME") else None


def credential(directory: Path | None, name: str) -> Path | None:
    """Return a credentials file, when there is one (on macOS some logins are in the keychain instead)."""
    file = directory / name if directory else None
    return file if file is not None and file.is_file() else None


def copies(launch: Launch, source: Path | None, name: str) -> tuple[tuple[str, str], ...]:
    """The copy plan of one credential into a private home; of nothing else that is in the person's own."""
    return ((str(source), f"{launch.config_home}/{name}"),) if launch.config_home and source is not None else ()


def directories(launch: Launch) -> tuple[str, ...]:
    return tuple(directory for directory in (launch.tmp_dir, launch.config_home) if directory)


def context(launch: Launch, name: str) -> bytes:
    """Return the workspace's and the checkout's instructions of that file name, one after the other."""
    parts = (read_context(f"{directory}/{name}") for directory in (launch.workspace_dir, launch.repo_dir))
    return b"\n\n".join(part for part in parts if part)


def read_context(path: str) -> bytes:
    """Return a file of instructions, as far as its limit, or nothing."""
    try:
        # No links: a repository's instructions may not be a window into the rest of the disk. Nor does a pipe hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(CONTEXT_LIMIT).strip()
    except OSError:
        return b""
