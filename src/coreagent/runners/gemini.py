"""Gemini CLI: where it is, whether it is logged in, and what to execute for one turn.

Measured with 0.61.0 against the scripted model server; each oddity has its reason beside it. How its stream is read
stands in gemini_stream.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from coreagent.models.agent import Cost, Usage
from coreagent.poolnames import DEFAULT_MODELS
from coreagent.runners import program
from coreagent.runners.base import Found, Launch, Login, Permissions, Plan, Runner, RunnerSettings, word
from coreagent.runners.gemini_stream import GeminiParser

DIRECTORY: Final = ".gemini"
CREDENTIALS: Final = "oauth_creds.json"
ACCOUNTS: Final = "google_accounts.json"
SETTINGS_LIMIT: Final = 1024 * 1024
DEFAULT_MODEL: Final = DEFAULT_MODELS["gemini"]
# Of its own ten it makes 3 to 4 minutes of a 500. A person's own `general.maxAttempts` is heeded.
ATTEMPTS: Final = 3
ATTEMPTS_MAX: Final = 10

PROGRAM: Final = program.Program(
    name="gemini",
    minimum="0.50.0",
    install="install it with `npm install -g @google/gemini-cli`",
    upgrade="run `npm install -g @google/gemini-cli@latest`",
    places=(".local/bin/gemini", ".npm-global/bin/gemini"),
    variables={"GEMINI_CLI_NO_RELAUNCH": "true"},
)
# fmt: off
FLAGS: Final = program.Flags(
    program="gemini",
    pinned=frozenset({
        "-m", "--model", "-p", "--prompt", "-i", "--prompt-interactive", "-o", "--output-format", "-r", "--resume",
        "--session-id", "--session-file", "--list-sessions", "--delete-session", "-y", "--yolo", "--approval-mode",
        "--skip-trust", "-w", "--worktree", "-s", "--sandbox", "--acp", "--experimental-acp", "-l",
        "--list-extensions", "-v", "--version", "-h", "--help", "--raw-output", "--accept-raw-output-risk",
        "--screen-reader", "--fake-responses", "--fake-responses-non-strict", "--record-responses", "--ignore-env",
    }),
    widening=frozenset({
        "--policy", "--admin-policy", "--allowed-tools", "--allowedTools", "--allowed-mcp-server-names",
        "--include-directories", "-e", "--extensions",
    }),
    short=frozenset({"-d"}),
)
# fmt: on
# yargs takes `--approvalMode` for `--approval-mode`, and `--no-x` for the opposite of x.
CAMEL: Final = re.compile(r"(?<=[a-z])([A-Z])")
VALUED: Final = frozenset({"--policy", "--admin-policy", "--allowed-tools", "--allowed-mcp-server-names"}) | {
    "--include-directories", "-e", "--extensions"
}  # fmt: skip

KEY: Final = "GEMINI_API_KEY"
# What a repository's own .env could set where nobody else did. An empty one counts as set.
REDIRECTING: Final = (
    "GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL", "CODE_ASSIST_ENDPOINT", "GEMINI_SYSTEM_MD",
    "GEMINI_WRITE_SYSTEM_MD", "GEMINI_SANDBOX", "GEMINI_TELEMETRY_ENABLED", "NODE_TLS_REJECT_UNAUTHORIZED",
    "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", KEY, "GOOGLE_API_KEY", "NODE_OPTIONS",
)  # fmt: skip
# Of the person's shell, but not for an agent: they decide what is trusted, or where its tools run.
UNWANTED: Final = frozenset({
    "GEMINI_CLI_TRUST_WORKSPACE", "GEMINI_RESTRICTED_MODE", "GEMINI_CLI_TRUSTED_FOLDERS_PATH", "GEMINI_SANDBOX",
    "GEMINI_CLI_SYSTEM_SETTINGS_PATH", "GEMINI_CLI_ACTIVITY_LOG_TARGET", "GEMINI_CLI_INTEGRATION_TEST",
})  # fmt: skip

# What `@` takes for a path, as the CLI's own pattern has it.
AT_PATH: Final = re.compile(
    r"(?<!\\)@((?:\"[^\"]*\"|\\.|[^ \t\n\r,;!?()\[\]{}.]|\.(?!$|[ \t\n\r]))+)", re.DOTALL | re.ASCII
)
# `@file` in a home's own instructions is replaced by that file, whichever it is; these were written by the repository.
IMPORT: Final = re.compile(rb"(?<!\S)@(?=[./A-Za-z])")


class Gemini(Runner):
    """The `gemini` CLI, headless with stream-json."""

    name: ClassVar[str] = "gemini"
    context_file: ClassVar[str] = "GEMINI.md"
    minimum: ClassVar[str] = PROGRAM.minimum
    variables: ClassVar[tuple[str, ...]] = ("GEMINI_*", "GOOGLE_*")

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        return PROGRAM.find(env, settings)

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        return authentication(env).login

    def plan(self, launch: Launch) -> Plan:
        check_args(launch.settings.args, widening=True)
        check_args(launch.args, widening=launch.permissions == "bypass")
        argv = [PROGRAM.require(launch), *launch.settings.args, *launch.args, "--model", _model(launch)]
        # The prompt is standard input: an argument is cut off at 128 KiB and seen by everybody.
        argv += ["--output-format", "stream-json"]
        files: list[tuple[str, bytes]] = []
        if launch.config_home:
            policy = f"{launch.tmp_dir}/permissions.toml"
            files.append((policy, permissions(launch.permissions, launch.workspace_dir)))
            argv += ["--policy", policy]
        else:
            argv += ["--skip-trust", "--approval-mode", "yolo" if launch.permissions == "bypass" else "auto_edit"]
        argv += ["--include-directories", f"{launch.workspace_dir}/specs"] if _plain(launch.workspace_dir) else []
        argv += _session(launch)
        return Plan(
            argv=argv,
            env=_environment(launch),
            session_id=launch.resume_session or launch.session_id,
            stdin=_prompt(launch),
            # No signal makes it tell how it ended, and none reaches its tools.
            stop_signal="TERM",
            stop_grace_s=3.0,
            directories=_directories(launch),
            copies=_copies(launch),
            files=(*files, *_files(launch, restricted=True)),
        )

    def interactive(self, launch: Launch) -> Plan:
        check_args(launch.settings.args, widening=True)
        argv = [PROGRAM.require(launch), *launch.settings.args, "--model", _model(launch), *_session(launch)]
        return Plan(
            argv=argv,
            env=_environment(launch, interactive=True),
            session_id=launch.resume_session or launch.session_id,
            directories=_directories(launch),
            copies=_copies(launch),
            # Whether the checkout is trusted is asked of the person.
            files=_files(launch, restricted=False),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> GeminiParser:
        return GeminiParser()


# ---- arguments ----


def check_args(args: tuple[str, ...] | list[str] | Any, *, widening: bool) -> None:
    """Refuse what would break the protocol, or widen what the agent may do. Raises: blocked_flag."""
    plain = [_dashed(arg) for arg in args]
    FLAGS.check(plain, widening=widening)
    for at, arg in enumerate(plain):
        if not arg.startswith("-") and plain[at - 1] not in VALUED:
            raise FLAGS.blocked(arg, "would be taken for the prompt or a command")


def _dashed(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    flag = CAMEL.sub(r"-\1", flag).lower()
    if flag.startswith("--no-"):
        flag = "--" + flag[5:]
    # `--prompt.x` sets a key of --prompt.
    return flag.partition(".")[0] + equals + value


def _model(launch: Launch) -> str:
    return word(launch.model, "model") or DEFAULT_MODEL


def _session(launch: Launch) -> list[str]:
    if launch.resume_session:
        # A number would be the n-th session of the list, `latest` the last of it.
        return ["--resume", word(launch.resume_session, "session")]
    return ["--session-id", word(launch.session_id, "session")]


def _plain(path: str) -> bool:
    # It splits the option at commas.
    return "," not in path


def _prompt(launch: Launch) -> bytes:
    # What begins with "/" is a command, or is forgotten when the session goes on, as what begins with "?" is. A `@path`
    # is replaced by what is in it, and "@./" by everything.
    text = f"My request: {launch.prompt}" if launch.prompt.lstrip()[:1] in ("/", "?") else launch.prompt
    return AT_PATH.sub(lambda found: _kept(found, launch.repo_dir), text).encode("utf-8", "replace")


def _kept(found: re.Match[str], repo_dir: str) -> str:
    # The backslash stands where a file is meant and nowhere else: `@dataclass` stays what it is.
    said = found[1]
    spellings = {said, said.replace("\\", ""), said.replace('"', ""), said.replace("\\", "").replace('"', "")}
    is_path = any("\0" not in name and os.path.lexists(os.path.join(repo_dir, name)) for name in spellings)
    return f"\\{found[0]}" if is_path else found[0]


# ---- permissions ----


def permissions(granted: Permissions, workspace_dir: str) -> bytes:
    """Write the policy of a checkout that is not trusted: what the agent may do all the same.

    Trust would be the other way to let it work, but a trusted checkout brings its own settings, variables, hooks and
    commands, and the agent can write them.
    """
    if granted == "bypass":
        return _rules(
            {"toolName": "*", "decision": "allow", "priority": 900},
            # Without a pattern `git` would be refused in a checkout that is not trusted, and whatever looks risky.
            {
                "toolName": "run_shell_command",
                "argsPattern": ".",
                "decision": "allow",
                "priority": 950,
                "allowRedirection": True,
            },
        )
    specs = rf'"file_path":"([^"]*\.\.|{re.escape(workspace_dir)})/specs/'
    return _rules(
        {"toolName": ["write_file", "replace"], "decision": "allow", "priority": 900},
        {
            "toolName": ["write_file", "replace"],
            "argsPattern": specs,
            "decision": "deny",
            "priority": 950,
            "denyMessage": "The specs are for reading.",
        },
    )


def _rules(*rules: Mapping[str, Any]) -> bytes:
    # JSON's texts, lists, numbers and words are TOML's too.
    lines = [
        line
        for rule in rules
        for line in ("[[rule]]", *(f"{key} = {json.dumps(value)}" for key, value in rule.items()), "")
    ]
    return "\n".join(["# Written by core-agent before each turn.", *lines]).encode("utf-8", "replace")


# ---- login ----


@dataclass(frozen=True)
class Authentication:
    """How it logs in: the value of `security.auth.selectedType`, and what can be told of it."""

    method: str
    login: Login


def authentication(env: Mapping[str, str]) -> Authentication:
    """Say how this environment logs in. What the person chose in his own settings comes first, when it can be."""
    found = _methods(env)
    chosen = _at(read_own(env), "security", "auth", "selectedType")
    if isinstance(chosen, str) and chosen in found:
        return Authentication(chosen, found[chosen])
    if found:
        method = next(iter(found))
        return Authentication(method, found[method])
    return Authentication("", Login("no", hint=f"set {KEY}, or run `gemini` once and sign in"))


def _methods(env: Mapping[str, str]) -> dict[str, Login]:
    """Every way that is open, the one that the CLI itself would take first."""
    found: dict[str, Login] = {}
    file = program.credential(_own_directory(env), CREDENTIALS)
    google = Login("yes", str(file)) if file is not None else None
    if google and env.get("GOOGLE_GENAI_USE_GCA") == "true":
        found["oauth-personal"] = google
    located = bool(env.get("GOOGLE_CLOUD_PROJECT") and env.get("GOOGLE_CLOUD_LOCATION"))
    vertex = Login("yes", "GOOGLE_API_KEY") if env.get("GOOGLE_API_KEY") else None
    if not vertex and located:
        vertex = Login("unknown", "GOOGLE_CLOUD_PROJECT: the cloud's own login")
    if vertex and env.get("GOOGLE_GENAI_USE_VERTEXAI") == "true":
        found["vertex-ai"] = vertex
    if env.get(KEY):
        found["gemini-api-key"] = Login("yes", KEY)
    if google:
        found.setdefault("oauth-personal", google)
    # A project alone may be there for other programs; a key is for a model.
    if vertex and env.get("GOOGLE_API_KEY"):
        found.setdefault("vertex-ai", vertex)
    if env.get("GEMINI_CLI_USE_COMPUTE_ADC") == "true":
        found["compute-default-credentials"] = Login("unknown", "the machine's own login")
    return found


def _own_directory(env: Mapping[str, str]) -> Path | None:
    home = program.user_directory(env, "GEMINI_CLI_HOME", "")
    return home / DIRECTORY if home else None


def read_own(env: Mapping[str, str]) -> dict[str, Any]:
    """Read the person's own settings.json; a broken one says nothing."""
    directory = _own_directory(env)
    try:
        with (directory / "settings.json").open("rb") if directory else open(os.devnull, "rb") as file:
            content = json.loads(file.read(SETTINGS_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _at(settings: object, *keys: str) -> object:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


# ---- the private home ----


def settings(env: Mapping[str, str], *, restricted: bool) -> dict[str, Any]:
    """The settings.json of a private home. Nothing of the person's own is in it but what cannot be left out."""
    attempts = _at(read_own(env), "general", "maxAttempts")
    known = isinstance(attempts, int) and not isinstance(attempts, bool) and attempts > 0
    security: dict[str, Any] = {"auth": {"selectedType": authentication(env).method}}
    if restricted:
        # Trust is not asked for, and not given either: GEMINI_CLI_TRUST_WORKSPACE says so.
        security["folderTrust"] = {"enabled": False}
    return {
        "security": security,
        "general": {
            "maxAttempts": min(int(str(attempts)), ATTEMPTS_MAX) if known else ATTEMPTS,
            "enableAutoUpdate": False,
            "enableAutoUpdateNotification": False,
            # Nobody could agree to the plan.
            "plan": {"enabled": not restricted},
            "topicUpdateNarration": False,
            # It would delete sessions after 30 days; ours end with their workspace.
            "sessionRetention": {"enabled": False},
        },
        # Else a `@word` of a prompt is looked for in the whole tree.
        "context": {"fileFiltering": {"enableRecursiveFileSearch": not restricted}},
        "advanced": {"ignoreLocalEnv": True},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
    }


def _files(launch: Launch, *, restricted: bool) -> tuple[tuple[str, bytes], ...]:
    """What of a private home is ours, written before each turn: an agent that may run commands can change it."""
    if not launch.config_home:
        return ()
    directory = f"{launch.config_home}/{DIRECTORY}"
    written = json.dumps(settings(launch.env, restricted=restricted), indent=1)
    # Of a checkout that is not trusted it reads no GEMINI.md, and none above it; a home's own it reads always.
    instructions = program.context(launch, "GEMINI.md") if restricted else b""
    return (
        (f"{directory}/settings.json", written.encode()),
        (f"{directory}/GEMINI.md", IMPORT.sub(rb"\\@", instructions) + b"\n" if instructions else b""),
    )


def _directories(launch: Launch) -> tuple[str, ...]:
    inner = (f"{launch.config_home}/{DIRECTORY}",) if launch.config_home else ()
    return (*program.directories(launch), *inner)


def _copies(launch: Launch) -> tuple[tuple[str, str], ...]:
    own = _own_directory(launch.env)
    if not launch.config_home or own is None:
        return ()
    found = ((program.credential(own, name), name) for name in (CREDENTIALS, ACCOUNTS))
    return tuple((str(file), f"{launch.config_home}/{DIRECTORY}/{name}") for file, name in found if file is not None)


def _environment(launch: Launch, *, interactive: bool = False) -> dict[str, str]:
    env = {name: value for name, value in program.own_environment(launch.env).items() if name not in UNWANTED}
    env["TMPDIR"] = launch.tmp_dir
    if launch.config_home:
        env["GEMINI_CLI_HOME"] = launch.config_home
    if interactive:
        return env
    # Else it starts itself again below itself, with more memory: half a second, and one process more to stop. On a
    # terminal it leaves with code 199 to be started again, when the person has trusted the folder, and has to be.
    env["GEMINI_CLI_NO_RELAUNCH"] = "true"
    if launch.config_home:
        env["GEMINI_CLI_TRUST_WORKSPACE"] = "false"
        return env
    # It loads the checkout's .env as soon as that is trusted, where it could send the key elsewhere.
    return {**dict.fromkeys(REDIRECTING, ""), **env}
