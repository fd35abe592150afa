"""Claude Code: where it is, whether it is logged in, and what to execute for one turn.

Measured with 2.1.328 against the scripted model server; each oddity has its reason beside it. How its stream is read
stands in claude_stream.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from coreagent.models.agent import Cost, Usage
from coreagent.plainfile import read_plain
from coreagent.runners import program
from coreagent.runners.base import Found, Launch, Login, Plan, Runner, RunnerSettings, is_word, word
from coreagent.runners.claude_stream import ClaudeParser

CREDENTIALS: Final = ".credentials.json"
KEY_VARIABLES: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
CLOUD_VARIABLES: Final = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")

PROGRAM: Final = program.Program(
    name="claude",
    minimum="2.0.0",
    install="install it with `npm install -g @anthropic-ai/claude-code`",
    upgrade="run `claude update`",
    places=(".local/bin/claude", ".claude/local/claude"),
    variables={"DISABLE_AUTOUPDATER": "1"},
)

SETTINGS_LIMIT: Final = 1024 * 1024
# fmt: off
FLAGS: Final = program.Flags(
    program="claude",
    pinned=frozenset({
        "--print", "--output-format", "--input-format", "--verbose", "--session-id", "--resume", "--continue",
        "--fork-session", "--no-session-persistence", "--resume-session-at", "--from-pr", "--replay-user-messages",
        "--permission-mode", "--dangerously-skip-permissions", "--allow-dangerously-skip-permissions",
        "--permission-prompts", "--permission-prompt-tool", "--setting-sources", "--background", "--bg", "--cloud",
        "--teleport", "--desktop", "--remote-control", "--environment", "--tmux", "--worktree", "--ide", "--chrome",
        "--help", "--version", "--prompt-suggestions", "--model", "--fallback-model",
    }),
    widening=frozenset({
        "--allowedTools", "--allowed-tools", "--tools", "--add-dir", "--settings", "--mcp-config", "--plugin-dir",
        "--plugin-url", "--agents", "--system-prompt", "--system-prompt-file",
    }),
    short=frozenset({"-d", "-n"}),
)
# fmt: on


class Claude(Runner):
    """The `claude` CLI, headless with stream-json."""

    name: ClassVar[str] = "claude"
    context_file: ClassVar[str] = "CLAUDE.md"
    minimum: ClassVar[str] = PROGRAM.minimum
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
        return PROGRAM.find(env, settings)

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        if name := program.key_in(env, KEY_VARIABLES):
            return Login("yes", name)
        if name := program.key_in(env, CLOUD_VARIABLES):
            return Login("unknown", f"{name}: the cloud's own login")
        file = _credentials(env)
        if file is not None:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return Login("unknown", str(file), "the credentials file cannot be read; run `claude /login`")
            if isinstance(content, dict) and content:
                return Login("yes", str(file))
        return Login("no", hint="set ANTHROPIC_API_KEY, or run `claude` once and use /login")

    def own_model(self, env: Mapping[str, str], settings: RunnerSettings) -> str:
        told = env.get("ANTHROPIC_MODEL", "") or (_own_settings(env).get("model") if settings.home == "user" else "")
        return told if isinstance(told, str) and is_word(told) else ""

    def plan(self, launch: Launch) -> Plan:
        FLAGS.check(launch.settings.args, widening=True)
        FLAGS.check(launch.args, widening=launch.permissions == "bypass")
        path = PROGRAM.require(launch)
        bypass = launch.permissions == "bypass"
        # The caller's arguments come first: an option that takes many values ends at ours.
        argv = [path, *launch.settings.args, *launch.args]
        model = word(launch.model, "model")
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
        if launch.config_home:
            # The hooks of this file are run, and an agent that may run everything can write it.
            files.append((f"{launch.config_home}/settings.json", b"{}\n"))
        # A checkout's .claude/settings.json sets variables (ANTHROPIC_BASE_URL sends the key elsewhere) and runs hooks,
        # trust dialog or not, and the agent can write it. So it is no source; what a person trusted is handed over, and
        # CLAUDE.md too, which is not read without that source.
        given = {arg.partition("=")[0] for arg in argv}
        argv += ["--setting-sources", "user"]
        if launch.trusted_settings and "--settings" not in given:
            file = f"{launch.tmp_dir}/settings.json"
            argv += ["--settings", file]
            files.append((file, launch.trusted_settings.encode("utf-8", "replace")))
        instructions = program.context(launch, self.context_file)
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
            directories=program.directories(launch),
            copies=program.copies(launch, _credentials(launch.env), CREDENTIALS),
            files=tuple(files),
            seeds=_seeds(launch),
        )

    def interactive(self, launch: Launch) -> Plan:
        FLAGS.check(launch.settings.args, widening=True)
        argv = [PROGRAM.require(launch), *launch.settings.args]
        argv += _session(launch)
        return Plan(
            argv=argv,
            env=_environment(launch, bypass=False),
            session_id=launch.resume_session or launch.session_id,
            directories=program.directories(launch),
            copies=program.copies(launch, _credentials(launch.env), CREDENTIALS),
            seeds=_seeds(launch),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> ClaudeParser:
        return ClaudeParser(previous_cost=previous_cost)


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


def _credentials(env: Mapping[str, str]) -> Path | None:
    return program.credential(program.user_directory(env, "CLAUDE_CONFIG_DIR", ".claude"), CREDENTIALS)


def _own_settings(env: Mapping[str, str]) -> dict[str, Any]:
    """What the person's own settings.json says; a broken one says nothing."""
    directory = program.user_directory(env, "CLAUDE_CONFIG_DIR", ".claude")
    try:
        found = json.loads(read_plain(f"{directory}/settings.json", SETTINGS_LIMIT, follow=True))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


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
        **program.own_environment(launch.env),
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
