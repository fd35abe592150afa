"""Claude Code: where it is, whether it is logged in, and what to execute for one turn.

Measured with 2.1.328 against the scripted model server; each oddity has its reason beside it. How its stream is read
stands in claude_stream.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Final

from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Usage
from coreagent.runners.base import Found, Launch, Login, Plan, Runner, RunnerSettings, version_tuple, which, word
from coreagent.runners.claude_stream import ClaudeParser

CREDENTIALS: Final = ".credentials.json"
KEY_VARIABLES: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
CLOUD_VARIABLES: Final = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
INSTALL_HINT: Final = "install it with `npm install -g @anthropic-ai/claude-code`, or set runners.claude.path"
INSTRUCTIONS_LIMIT: Final = 64 * 1024

# What a claude gives the processes below it. A nested claude that sees these takes itself for a part of its parent.
NESTED: Final = re.compile(
    r"CLAUDECODE|CLAUDE_PID|CLAUDE_EFFORT|AI_AGENT"
    r"|CLAUDE_CODE_(ENTRYPOINT|EXECPATH|SESSION_ID|SSE_PORT|SESSION_ATTENDED|CHILD_.*|MESSAGING_.*)"
)

# The protocol is ours: without these a run cannot be read, resumed or stopped.
# fmt: off
PROTOCOL_FLAGS: Final = frozenset(
    {
        "--print", "--output-format", "--input-format", "--verbose", "--session-id", "--resume", "--continue",
        "--fork-session", "--no-session-persistence", "--resume-session-at", "--from-pr", "--replay-user-messages",
        "--permission-mode", "--dangerously-skip-permissions", "--allow-dangerously-skip-permissions",
        "--permission-prompts", "--permission-prompt-tool", "--setting-sources", "--background", "--bg", "--cloud",
        "--teleport", "--desktop", "--remote-control", "--environment", "--tmux", "--worktree", "--ide", "--chrome",
        "--help", "--version", "--prompt-suggestions",
    }
)
# fmt: on
# What an agent may do is told by agents.yaml, not by whoever queues a task.
# fmt: off
WIDENING_FLAGS: Final = frozenset(
    {
        "--allowedTools", "--allowed-tools", "--tools", "--add-dir", "--settings", "--mcp-config", "--plugin-dir",
        "--plugin-url", "--agents", "--system-prompt", "--system-prompt-file",
    }
)
# fmt: on
SHORT_FLAGS: Final = frozenset({"-d", "-n"})


class Claude(Runner):
    """The `claude` CLI, headless with stream-json."""

    name: ClassVar[str] = "claude"
    context_file: ClassVar[str] = "CLAUDE.md"
    minimum: ClassVar[str] = "2.0.0"
    variables: ClassVar[tuple[str, ...]] = (
        "ANTHROPIC_*",
        "CLAUDE_CODE_*",
        "CLAUDE_CONFIG_DIR",
        "API_TIMEOUT_MS",
        "MAX_THINKING_TOKENS",
        "BASH_DEFAULT_TIMEOUT_MS",
        "BASH_MAX_TIMEOUT_MS",
    )

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        path = program(env, settings)
        if not path:
            wanted = f"{settings.path!r} is not an executable file" if settings.path else "claude is not on the PATH"
            return Found(problem="runner_missing", message=wanted, hint=INSTALL_HINT)
        version = _version(path)
        if not version:
            return Found(
                path, "", "runner_missing", f"{path} does not answer to --version", "reinstall it; " + INSTALL_HINT
            )
        if version_tuple(version) < version_tuple(self.minimum):
            return Found(
                path,
                version,
                "runner_too_old",
                f"{path} is {version}; at least {self.minimum} is needed",
                "run `claude update`",
            )
        return Found(path, version)

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        for name in KEY_VARIABLES:
            if env.get(name):
                return Login("yes", name)
        for name in CLOUD_VARIABLES:
            if env.get(name):
                return Login("unknown", f"{name}: the cloud's own login")
        file = credentials(env)
        if file is not None:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return Login("unknown", str(file), "the credentials file cannot be read; run `claude /login`")
            if isinstance(content, dict) and content:
                return Login("yes", str(file))
        return Login("no", hint="set ANTHROPIC_API_KEY, or run `claude` once and use /login")

    def plan(self, launch: Launch) -> Plan:
        check_args(launch.settings.args, widening=True)
        check_args(launch.args, widening=launch.permissions == "bypass")
        path = _require(launch)
        bypass = launch.permissions == "bypass"
        # The caller's arguments come first: an option that takes many values ends at ours.
        argv = [path, *launch.settings.args, *launch.args]
        model = word(launch.model or launch.settings.model, "model")
        if model:
            argv += ["--model", model]
        # stream-json without --verbose is refused.
        argv += ["--print", "--output-format", "stream-json", "--verbose"]
        # Headless, a question is answered with nothing and the agent goes on as if it had been told something.
        argv += ["--disallowedTools", "AskUserQuestion"]
        if bypass:
            argv += ["--dangerously-skip-permissions"]
        else:
            argv += ["--permission-mode", "acceptEdits", "--allowedTools", _readable(launch.workspace_dir)]
        files: list[tuple[str, bytes]] = []
        # A checkout's .claude/settings.json sets variables (ANTHROPIC_BASE_URL sends the key elsewhere) and runs hooks,
        # trust dialog or not, and the agent can write it. So it is no source; what a person trusted is handed over, and
        # CLAUDE.md too, which is not read without that source.
        given = {arg.partition("=")[0] for arg in argv}
        argv += ["--setting-sources", "user"]
        if launch.trusted_settings and "--settings" not in given:
            file = f"{launch.tmp_dir}/settings.json"
            argv += ["--settings", file]
            files.append((file, launch.trusted_settings.encode("utf-8", "replace")))
        instructions = _instructions(launch)
        if instructions and not given & {"--append-system-prompt", "--append-system-prompt-file"}:
            file = f"{launch.tmp_dir}/instructions.md"
            argv += ["--append-system-prompt-file", file]
            files.append((file, instructions))
        if launch.config_home:
            argv += ["--strict-mcp-config"]
        argv += _session(launch)
        return Plan(
            argv=argv,
            env=_environment(launch, bypass=bypass),
            session_id=launch.resume_session or launch.session_id,
            stdin=_prompt(launch.prompt),
            # INT kills the running tool and still prints a result with the usage; TERM gives no result.
            stop_signal="INT",
            directories=_directories(launch),
            copies=_copies(launch),
            files=tuple(files),
            seeds=_seeds(launch),
        )

    def interactive(self, launch: Launch) -> Plan:
        check_args(launch.settings.args, widening=True)
        argv = [_require(launch), *launch.settings.args]
        argv += _session(launch)
        return Plan(
            argv=argv,
            env=_environment(launch, bypass=False),
            session_id=launch.resume_session or launch.session_id,
            directories=_directories(launch),
            copies=_copies(launch),
            seeds=_seeds(launch),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> ClaudeParser:
        return ClaudeParser(previous_cost=previous_cost)


def program(env: Mapping[str, str], settings: RunnerSettings) -> str:
    """Return the path of the CLI: the settings' own, the PATH's, or the native installer's usual places."""
    if settings.path:
        return which(settings.path, env)
    home = env.get("HOME", "")
    places = [f"{home}/.local/bin/claude", f"{home}/.claude/local/claude"] if home else []
    return next((path for path in (which(place, env) for place in ("claude", *places)) if path), "")


def _require(launch: Launch) -> str:
    path = program(launch.env, launch.settings)
    if not path:
        raise CoreAgentError("runner_missing", "claude was not found", hint=INSTALL_HINT)
    return path


def _version(path: str) -> str:
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return _version_of(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _version_of(path: str, mtime_ns: int, size: int) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "HOME": "/nonexistent", "DISABLE_AUTOUPDATER": "1"},
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ".".join(str(part) for part in version_tuple(done.stdout.decode("utf-8", "replace")))


def check_args(args: Sequence[str], *, widening: bool) -> None:
    """Refuse arguments that would break the protocol, or widen what the agent may do. Raises: blocked_flag."""
    for index, arg in enumerate(args):
        flag = arg.partition("=")[0]
        why = ""
        if arg == "--" or "\0" in arg:
            why = "would end the options"
        elif flag in PROTOCOL_FLAGS or (arg[:1] == "-" and arg[:2] != "--" and len(arg) > 1 and arg not in SHORT_FLAGS):
            why = "belongs to core-agent's own protocol with claude"
        elif flag in WIDENING_FLAGS and not widening:
            why = "would widen what the agent may do"
        elif index == 0 and not arg.startswith("-"):
            why = "would be taken for the prompt"
        if why:
            hint = "put it under runners.claude.args in agents.yaml" if flag in WIDENING_FLAGS else "leave it out"
            raise CoreAgentError("blocked_flag", f"the argument {arg!r} {why}", hint=hint)


def _prompt(prompt: str) -> bytes:
    # A prompt that begins with "/" would be run as a slash command ("/clear" even changes the session).
    safe = "\n" + prompt if prompt.startswith("/") else prompt
    return safe.encode("utf-8", "replace")


def _session(launch: Launch) -> list[str]:
    # The id to resume was read from an agent's output, and --resume takes an optional value: "--x" would be a flag.
    if launch.resume_session:
        return ["--resume", word(launch.resume_session, "session")]
    return ["--session-id", word(launch.session_id, "session")]


def _readable(workspace_dir: str) -> str:
    # Two slashes are an absolute path in its rules. Commas separate rules, so a path with one cannot be told.
    rules = ["specs/**", "CODEX.md", "CLAUDE.md"]
    plain = not any(mark in workspace_dir for mark in ",()*")
    return ",".join(f"Read(/{workspace_dir}/{rule})" for rule in rules) if plain else "Read"


def _instructions(launch: Launch) -> bytes:
    parts = []
    for directory in (launch.workspace_dir, launch.repo_dir):
        try:
            # No links: a repository's CLAUDE.md may not be a window into the rest of the disk.
            descriptor = os.open(f"{directory}/CLAUDE.md", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as stream:
                parts.append(stream.read(INSTRUCTIONS_LIMIT).strip())
        except OSError:
            continue
    return b"\n\n".join(part for part in parts if part)


def _config_dir(env: Mapping[str, str]) -> Path | None:
    if env.get("CLAUDE_CONFIG_DIR"):
        return Path(env["CLAUDE_CONFIG_DIR"])
    return Path(env["HOME"]) / ".claude" if env.get("HOME") else None


def credentials(env: Mapping[str, str]) -> Path | None:
    """Return the user's credentials file, when there is one (on macOS the login is in the keychain instead)."""
    directory = _config_dir(env)
    file = directory / CREDENTIALS if directory else None
    return file if file is not None and file.is_file() else None


def _directories(launch: Launch) -> tuple[str, ...]:
    return tuple(directory for directory in (launch.tmp_dir, launch.config_home) if directory)


def _copies(launch: Launch) -> tuple[tuple[str, str], ...]:
    source = credentials(launch.env) if launch.config_home else None
    return ((str(source), f"{launch.config_home}/{CREDENTIALS}"),) if source else ()


def _seeds(launch: Launch) -> tuple[tuple[str, bytes], ...]:
    # Without it `attach` begins with the first-run screens, which want api.anthropic.com whatever the base URL is.
    # Whether the checkout is to be trusted stays a question to the person.
    return (
        ((f"{launch.config_home}/.claude.json", b'{"hasCompletedOnboarding": true}\n'),) if launch.config_home else ()
    )


def _environment(launch: Launch, *, bypass: bool) -> dict[str, str]:
    env = {
        # What a user may set otherwise.
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",  # a server left in the background keeps -p alive for ever
        "CLAUDE_CODE_MAX_RETRIES": "2",  # its default of 10 takes three minutes to admit a 401
        "API_TIMEOUT_MS": "300000",
        **{name: value for name, value in launch.env.items() if not NESTED.fullmatch(name)},
        # What it may not.
        "DISABLE_AUTOUPDATER": "1",
        "TMPDIR": launch.tmp_dir,
    }
    if launch.config_home:
        env["CLAUDE_CONFIG_DIR"] = launch.config_home
    env.pop("IS_SANDBOX", None)
    if bypass and os.geteuid() == 0:
        # Root is refused otherwise.
        env["IS_SANDBOX"] = "1"
    return env
