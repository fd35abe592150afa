"""Codex: where it is, whether it is logged in, and what to execute for one turn.

Measured with 0.169.0 against the scripted model server; each oddity has its reason beside it. How its stream is read
stands in codex_stream.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from coreagent.models.agent import Cost, Usage
from coreagent.plainfile import read_plain
from coreagent.poolnames import DEFAULT_MODELS
from coreagent.runners import program
from coreagent.runners.base import Found, Launch, Login, Plan, Runner, RunnerSettings, bounded, is_word, word
from coreagent.runners.codex_stream import CodexParser

CREDENTIALS: Final = "auth.json"
KEY: Final = "CODEX_API_KEY"
DEFAULT_MODEL: Final = DEFAULT_MODELS["codex"]
CONFIG_LIMIT: Final = 1024 * 1024
PROVIDER: Final = "core-agent"
# Its own are 4 requests in each of 5 streams: 25 seconds to admit a 500. A 429 is only tried again by the stream.
RETRIES: Final = {"request_max_retries": 1, "stream_max_retries": 2}
PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def native(path: str) -> str:
    """Return the program that npm's wrapper would start: without Node it is there sooner, and signals reach it."""
    real = Path(os.path.realpath(path))
    if real.name != "codex.js":
        return ""
    package = real.parent.parent
    machine = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(os.uname().machine, "")
    platform = f"codex-{'darwin' if sys.platform == 'darwin' else 'linux'}-{machine}"
    roots = (package.parent / platform, package / "node_modules" / "@openai" / platform, package)
    found = (file for root in roots for file in sorted(root.glob("vendor/*/bin/codex")) if os.access(file, os.X_OK))
    return str(next(found, ""))


PROGRAM: Final = program.Program(
    name="codex",
    minimum="0.100.0",
    install="install it with `npm install -g @openai/codex`",
    upgrade="run `npm install -g @openai/codex@latest`, or `codex update`",
    places=(".local/bin/codex", ".codex/bin/codex"),
    native=native,
)
# fmt: off
FLAGS: Final = program.Flags(
    program="codex",
    pinned=frozenset({
        "--json", "-s", "--sandbox", "-a", "--ask-for-approval", "--approve-for-me", "--full-auto", "--yolo",
        "--dangerously-bypass-approvals-and-sandbox", "--dangerously-bypass-hook-trust", "-C", "--cd", "--worktree",
        "--skip-git-repo-check", "--trust", "--ephemeral", "--color", "-m", "--model", "--last", "--all",
        "-h", "--help", "-V", "--version", "--remote",
    }),
    widening=frozenset({
        "--add-dir", "-p", "--profile", "--oss", "--local-provider", "-o", "--output-last-message",
        "--ignore-rules", "--cyber-access-program",
    }),
    short=frozenset({"-c", "-i"}),
)
VALUED: Final = frozenset({
    "-c", "--config", "--enable", "--disable", "-i", "--image", "--local-provider", "-p", "--profile", "--add-dir",
    "--output-schema", "-o", "--output-last-message", "--thread-source", "--cyber-access-program",
})
# Keys of its configuration: nobody's but ours, and those that anyone may give. What is neither is for the settings.
PINNED_KEYS: Final = (
    "sandbox_mode", "approval_policy", "approvals_reviewer", "default_permissions", "projects", "model",
    "check_for_update_on_startup", "analytics", "features.plugins", "features.apps",
    "features.unbounded_connection_retries", "features.daemon_auto_start", f"model_providers.{PROVIDER}",
)
PINNED_ENDINGS: Final = tuple(f".{name}" for name in RETRIES)
HARMLESS_KEYS: Final = frozenset({
    "model_reasoning_effort", "model_reasoning_summary", "model_verbosity", "model_context_window",
    "model_auto_compact_token_limit", "plan_mode_reasoning_effort", "tool_output_token_limit", "service_tier",
    "personality", "web_search", "hide_agent_reasoning", "show_raw_agent_reasoning", "project_doc_max_bytes",
})
# fmt: on
# After the caller's own, so that they hold whatever he gave.
PINS: Final = {
    "check_for_update_on_startup": False,
    "analytics.enabled": False,
    # Both ask the provider for more than a model; with a ChatGPT login the agent would get the person's connectors.
    "features.plugins": False,
    "features.apps": False,
    # Else a refused connection is tried for ever.
    "features.unbounded_connection_retries": False,
    "features.daemon_auto_start": False,
}
# Before the caller's own: /tmp is other people's too, and this agent has a TMPDIR.
DEFAULTS: Final = {"sandbox_workspace_write.exclude_slash_tmp": True}


@dataclass(frozen=True)
class Own:
    """What the person's own config.toml says about the model and how it is reached; nothing else of it is used."""

    model: str = ""
    provider: str = ""
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base_url: str = ""
    store: str = ""
    """Where its login is kept: "" and `file` are auth.json."""


class Codex(Runner):
    """The `codex` CLI, headless with `exec --json`."""

    name: ClassVar[str] = "codex"
    context_file: ClassVar[str] = "AGENTS.md"
    minimum: ClassVar[str] = PROGRAM.minimum
    variables: ClassVar[tuple[str, ...]] = ("OPENAI_*", "CODEX_*", "AZURE_OPENAI_*")

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        return PROGRAM.find(env, settings)

    def own_model(self, env: Mapping[str, str], settings: RunnerSettings) -> str:
        model = read_own(env).model
        return model if is_word(model) else ""

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        own = read_own(env)
        chosen = _chosen(own, settings.args)
        if chosen and chosen != "openai":
            return _login_of_provider(chosen, own, env)
        if env.get(KEY):
            return Login("yes", KEY)
        file = _credentials(env)
        if file is not None and not (env.get("OPENAI_BASE_URL") and not chosen):
            content = _json_of(file)
            if content is None:
                return Login("unknown", str(file), "the credentials file cannot be read; run `codex login`")
            if content.get("tokens") or content.get("OPENAI_API_KEY"):
                return Login("yes", str(file))
        if env.get("OPENAI_API_KEY"):
            return Login("yes", "OPENAI_API_KEY")
        if env.get("CODEX_ACCESS_TOKEN"):
            return Login("unknown", "CODEX_ACCESS_TOKEN")
        if env.get("OPENAI_BASE_URL"):
            return Login("unknown", "OPENAI_BASE_URL without a key")
        if own.store in ("keyring", "auto"):
            if settings.home == "user":
                return Login("unknown", "the system's keyring")
            # It is kept under the name of its directory, where a private one does not find it.
            return Login(
                "no",
                hint="a login in the keyring needs `runners.codex.home: user`; or set "
                f'cli_auth_credentials_store = "file" and run `codex login`, or set {KEY}',
            )
        return Login("no", hint=f"run `codex login`, or set {KEY} or OPENAI_API_KEY")

    def plan(self, launch: Launch) -> Plan:
        check_args(launch.settings.args, widening=True)
        check_args(launch.args, widening=launch.permissions == "bypass")
        own = read_own(launch.env)
        argv = [PROGRAM.require(launch), "exec", *_flags(launch, own)]
        if launch.permissions == "bypass":
            argv += ["--dangerously-bypass-approvals-and-sandbox"]
        else:
            argv += ["--sandbox", "workspace-write", *_config({"approval_policy": "never"})]
        # A workspace is a checkout, but what makes one trusted for codex is a question on a terminal.
        argv += ["--json", "--skip-git-repo-check", "--color", "never"]
        if launch.resume_session:
            # `resume` takes none of the flags before it. A name it does not know would begin a new thread.
            argv += ["resume", word(launch.resume_session, "session")]
        # An open pipe on its standard input is waited for without end: "-" is a file of ours.
        argv += ["-"]
        return Plan(
            argv=argv,
            env=_environment(launch, own),
            session_id=launch.resume_session or word(launch.session_id, "session"),
            stdin=launch.prompt.encode("utf-8", "replace"),
            # TERM and KILL leave its tools running where there is no sandbox around them.
            stop_signal="INT",
            directories=program.directories(launch),
            copies=program.copies(launch, _credentials(launch.env), CREDENTIALS),
            files=_files(launch, own),
        )

    def interactive(self, launch: Launch) -> Plan:
        check_args(launch.settings.args, widening=True)
        own = read_own(launch.env)
        argv = [PROGRAM.require(launch)]
        if launch.resume_session:
            argv += ["resume", word(launch.resume_session, "session")]
        argv += [*_flags(launch, own, caller=False), "--sandbox", "workspace-write", "--ask-for-approval", "on-request"]
        return Plan(
            argv=argv,
            env=_environment(launch, own),
            session_id=launch.resume_session or word(launch.session_id, "session"),
            directories=program.directories(launch),
            copies=program.copies(launch, _credentials(launch.env), CREDENTIALS),
            files=_files(launch, own),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> CodexParser:
        return CodexParser(previous_usage=previous_usage)


# ---- arguments ----


def check_args(args: Sequence[str], *, widening: bool) -> None:
    """Refuse what would break the protocol, or widen what the agent may do. Raises: blocked_flag."""
    FLAGS.check(args, widening=widening)
    for at, arg in enumerate(args):
        if not arg.startswith("-") and args[at - 1] not in VALUED:
            raise FLAGS.blocked(arg, "would be taken for the prompt or a command")
    for shown, key in _keys(args):
        if not PLAIN_KEY.fullmatch(key):
            raise FLAGS.blocked(shown, "does not name a key plainly", "write it as `-c key.of.it=value`")
        if key.endswith(PINNED_ENDINGS) or any(_covers(key, pin) or _covers(pin, key) for pin in PINNED_KEYS):
            hint = FLAGS.model_hint if key == "model" else "leave it out"
            raise FLAGS.blocked(shown, "belongs to core-agent's own protocol with codex", hint)
        if key not in HARMLESS_KEYS and not widening:
            raise FLAGS.widens(shown)


def _covers(one: str, other: str) -> bool:
    return one == other or other.startswith(one + ".")


def _keys(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The configuration keys that arguments set: (as it is written, the key)."""
    for flag, value in _options(args):
        if flag in ("-c", "--config"):
            yield f"{flag} {value}", value.partition("=")[0].strip()
        elif flag in ("--enable", "--disable"):
            yield f"{flag} {value}", f"features.{value}"


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for at, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in VALUED:
            yield flag, value if equals else args[at + 1] if at + 1 < len(args) else ""


def _flags(launch: Launch, own: Own, *, caller: bool = True) -> list[str]:
    """The flags of headless and interactive runs alike: defaults, the caller's, and ours, which win."""
    args = [*launch.settings.args, *(launch.args if caller else ())]
    model = word(launch.model or own.model, "model") or DEFAULT_MODEL
    flags = [*_config(DEFAULTS), *args]
    # What it reads by itself, a profile of the person's may say otherwise.
    if launch.config_home or model != own.model:
        flags += ["--model", model]
    if not launch.config_home and (said := program.read_context(f"{launch.workspace_dir}/AGENTS.md")):
        flags += _config({"developer_instructions": bounded(said.decode("utf-8", "replace"))})
    return [*flags, *_config(PINS), *_provider(launch, own)]


def _config(values: Mapping[str, Any]) -> list[str]:
    return [part for key, value in values.items() for part in ("-c", f"{key}={toml(value)}")]


# ---- the provider ----


def _provider(launch: Launch, own: Own) -> list[str]:
    """Through whom the model is reached. The built-in provider cannot be told to give up soon; ours stands for it."""
    chosen = _chosen(own, launch.settings.args)
    if chosen:
        # Of a built-in one nothing can be set at all; one of the person's own gets our limits.
        known = chosen in own.providers or any(key.startswith(f"model_providers.{chosen}") for _, key in _keys(
            launch.settings.args))  # fmt: skip
        limits = {f"model_providers.{chosen}.{name}": count for name, count in RETRIES.items()}
        return _config(limits) if known and PLAIN_KEY.fullmatch(chosen) else []
    ours: dict[str, Any] = {"wire_api": "responses", "supports_websockets": False, **RETRIES}
    if launch.env.get("OPENAI_BASE_URL"):
        # Codex itself does not read that variable. A ChatGPT login is not for whoever it names: only a key goes there.
        ours |= {"name": "OPENAI_BASE_URL", "base_url": launch.env["OPENAI_BASE_URL"]}
        if _key_of(launch.env):
            ours["env_key"] = KEY
    else:
        headers = {"OpenAI-Organization": "OPENAI_ORGANIZATION", "OpenAI-Project": "OPENAI_PROJECT"}
        ours |= {"name": "OpenAI", "requires_openai_auth": True, "env_http_headers": headers}
        if own.base_url:
            ours["base_url"] = own.base_url
    return _config({"model_provider": PROVIDER, f"model_providers.{PROVIDER}": ours})


def _chosen(own: Own, args: Sequence[str]) -> str:
    """The provider that the person chose, "" when none: in the settings' arguments, else in his config.toml."""
    for flag, value in reversed(list(_options(args))):
        if flag in ("-c", "--config") and value.partition("=")[0].strip() == "model_provider":
            return value.partition("=")[2].strip().strip("\"'")
    return own.provider


def _login_of_provider(chosen: str, own: Own, env: Mapping[str, str]) -> Login:
    key = own.providers.get(chosen, {}).get("env_key")
    if not isinstance(key, str) or not key:
        return Login("unknown", f"model provider {chosen}")
    if env.get(key):
        return Login("yes", key)
    return Login("no", hint=f"set {key}, which model provider {chosen} wants, and name it under runners.codex.env")


def read_own(env: Mapping[str, str]) -> Own:
    """Read the person's own config.toml, as far as it is about the model and the login; a broken one says nothing."""
    directory = program.user_directory(env, "CODEX_HOME", ".codex")
    try:
        # The directory is named by the environment: whatever lies there must not hold us.
        raw = tomllib.loads(read_plain(f"{directory}/config.toml", CONFIG_LIMIT, follow=True).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return Own()

    def text(key: str) -> str:
        return raw[key] if isinstance(raw.get(key), str) else ""

    providers = raw.get("model_providers")
    tables = providers.items() if isinstance(providers, dict) else ()
    return Own(
        model=text("model"),
        provider=text("model_provider"),
        providers={name: table for name, table in tables if isinstance(table, dict)},
        base_url=text("openai_base_url"),
        store=text("cli_auth_credentials_store"),
    )


# ---- the private home ----


def _files(launch: Launch, own: Own) -> tuple[tuple[str, bytes], ...]:
    """What of a private home is ours, written before each turn: an agent without a sandbox can change it."""
    if not launch.config_home:
        return ()
    config: dict[str, Any] = {}
    if own.provider:
        # Not on the command line: its headers may hold a key.
        config["model_provider"] = own.provider
        if own.provider in own.providers:
            config["model_providers"] = {own.provider: {**own.providers[own.provider], **RETRIES}}
    text = "".join(f"{key} = {toml(value)}\n" for key, value in config.items())
    instructions = program.read_context(f"{launch.workspace_dir}/AGENTS.md")
    return (
        (f"{launch.config_home}/config.toml", f"# Written by core-agent before each turn.\n{text}".encode()),
        # It reads the checkout's own AGENTS.md by itself, but none above the checkout.
        (f"{launch.config_home}/AGENTS.md", instructions + b"\n" if instructions else b""),
    )


def for_acp(launch: Launch) -> tuple[tuple[tuple[str, bytes], ...], dict[str, str]]:
    """The files of a private home, and the key, with which the adapter of the protocol runs as the headless CLI does.

    The adapter takes no flags: what they would say is in the configuration.
    """
    own = read_own(launch.env)
    (path, config), *rest = _files(launch, own)
    said = [*_config({**DEFAULTS, **PINS}), *_provider(launch, own)][1::2]
    env = _environment(launch, own)
    return ((path, config + "".join(f"{line}\n" for line in said).encode()), *rest), {
        name: env[name] for name in (KEY,) if name in env
    }


def _credentials(env: Mapping[str, str]) -> Path | None:
    return program.credential(program.user_directory(env, "CODEX_HOME", ".codex"), CREDENTIALS)


def _json_of(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _key_of(env: Mapping[str, str]) -> str:
    return env.get(KEY) or env.get("OPENAI_API_KEY", "")


def _environment(launch: Launch, own: Own) -> dict[str, str]:
    env = program.own_environment(launch.env)
    env["TMPDIR"] = launch.tmp_dir
    if launch.config_home:
        env["CODEX_HOME"] = launch.config_home
    # It reads OPENAI_API_KEY from no environment. A login comes before a key that may be there for something else.
    elsewhere = bool(env.get("OPENAI_BASE_URL")) and not _chosen(own, launch.settings.args)
    if _key_of(env) and (elsewhere or _credentials(launch.env) is None):
        env[KEY] = _key_of(env)
    return env


def toml(value: Any) -> str:
    """Write a value of a TOML file; dates become texts, which no key of a provider is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    # A basic string is JSON's but for DEL, and for surrogates, of which there are none in UTF-8.
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")
