"""opencode: where it is, whether it is logged in, and what to execute for one turn.

Measured with 1.18.33 against the scripted model server; each oddity has its reason beside it. How its stream is read
stands in opencode_stream; `acp opencode` shares the configuration made here.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Usage
from coreagent.plainfile import read_plain
from coreagent.runners import program
from coreagent.runners.base import Found, Launch, Login, Plan, Runner, RunnerSettings, is_word, word
from coreagent.runners.opencode_plugin import SOURCE
from coreagent.runners.opencode_stream import OpencodeParser

PROGRAM: Final = program.Program(
    name="opencode",
    minimum="1.1.0",
    install="install it with `npm install -g opencode-ai`",
    upgrade="run `opencode upgrade`",
    places=(".opencode/bin/opencode", ".local/bin/opencode"),
)
# fmt: off
FLAGS: Final = program.Flags(
    program="opencode",
    pinned=frozenset({
        "--format", "--dir", "--session", "--continue", "--fork", "--attach", "--port", "--password", "--username",
        "--share", "--title", "--command", "--interactive", "--model", "--print-logs", "--help", "--version",
        "--replay", "--mini",
    }),
    widening=frozenset({"--auto", "--yolo", "--dangerously-skip-permissions", "--agent", "--file"}),
)
PROVIDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "amazon-bedrock": ("AWS_*",),
    "anthropic": ("ANTHROPIC_*",),
    "azure": ("AZURE_*",),
    "cerebras": ("CEREBRAS_*",),
    "cloudflare-ai-gateway": ("CLOUDFLARE_*",),
    "deepseek": ("DEEPSEEK_*",),
    "fireworks-ai": ("FIREWORKS_*",),
    "google": ("GEMINI_API_KEY", "GOOGLE_*"),
    "google-vertex": ("GOOGLE_*", "VERTEX_*"),
    "groq": ("GROQ_*",),
    "mistral": ("MISTRAL_*",),
    "moonshotai": ("MOONSHOT_*",),
    "openai": ("OPENAI_*",),
    "openrouter": ("OPENROUTER_*",),
    "togetherai": ("TOGETHER_*",),
    "xai": ("XAI_*",),
    "zai": ("ZHIPU_*", "ZAI_*"),
}
# fmt: on
"""Where a provider's key is found; with a model of one of them, the keys of the others stay out."""
VARIABLES: Final = tuple(dict.fromkeys(("OPENCODE_*", *(name for names in PROVIDERS.values() for name in names))))
HOMES: Final[Mapping[str, str]] = {
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_CACHE_HOME": "cache",
    "XDG_STATE_HOME": "state",
}
CREDENTIALS: Final = "data/opencode/auth.json"
GATEWAY: Final = "opencode"
"""Its makers' own models; some are free, need no login, and may keep what they are sent."""
MANAGED: Final = (Path("/etc/opencode"), Path("/Library/Application Support/opencode"))
"""Where an administrator's configuration is."""
CONFIGS: Final = ("config.json", "opencode.json", "opencode.jsonc")
OWN_KEYS: Final = ("provider", "model", "small_model", "enabled_providers", "disabled_providers")
CONFIG_LIMIT: Final = 1024 * 1024
# Else it asks npm's registry for a plugin package whenever it meets a new configuration directory.
LOCK: Final = b'{"lockfileVersion": 3, "packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}\n'
_COMMENT: Final = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/|,(?=\s*[}\]])', re.DOTALL)


class Opencode(Runner):
    """The `opencode` CLI, headless with `run --format json`."""

    name: ClassVar[str] = "opencode"
    context_file: ClassVar[str] = "AGENTS.md"
    minimum: ClassVar[str] = PROGRAM.minimum
    variables: ClassVar[tuple[str, ...]] = VARIABLES

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        return PROGRAM.find(env, settings)

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        keys = [name for name in env if name.endswith(("_KEY", "_TOKEN", "_API_KEY")) and _matches(name, VARIABLES)]
        if found := program.key_in(env, sorted(keys)):
            return Login("yes", found)
        file = _credentials(env)
        if file is not None and _json_of(file):
            return Login("yes", str(file))
        if _parsed(env.get("OPENCODE_CONFIG_CONTENT", "")).get("provider") or read_own(env).get("provider"):
            return Login("yes", "the providers of your configuration")
        return Login("no", hint="run `opencode auth login`, or set the key of a provider, like OPENROUTER_API_KEY")

    def own_model(self, env: Mapping[str, str], settings: RunnerSettings) -> str:
        return _own_model(env)

    def plan(self, launch: Launch) -> Plan:
        FLAGS.check(launch.settings.args, widening=True)
        FLAGS.check(launch.args, widening=launch.permissions == "bypass")
        require_no_plugins(launch)
        argv = [PROGRAM.require(launch), "run", *launch.settings.args, *launch.args]
        argv += ["--format", "json", *purity(launch), "--dir", launch.repo_dir]
        if model := word(launch.model, "model"):
            argv += ["--model", model]
        if launch.permissions == "bypass":
            argv += ["--auto"]
        if launch.resume_session:
            argv += ["--session", word(launch.resume_session, "session")]
        else:
            # Without a title it asks the model for one.
            argv += ["--title", "core-agent"]
        return Plan(
            argv=argv,
            env=_environment(launch) | pins(launch),
            session_id=launch.resume_session or word(launch.session_id, "session"),
            stdin=launch.prompt.encode("utf-8", "replace"),
            # It heeds no signal: whichever comes, it is gone at once, and its tools are for us to end.
            stop_signal="TERM",
            directories=(*program.directories(launch), *extra_directories(launch)),
            copies=_copies(launch),
            files=files(launch),
            seeds=seeds(launch),
        )

    def interactive(self, launch: Launch) -> Plan:
        FLAGS.check(launch.settings.args, widening=True)
        require_no_plugins(launch)
        argv = [PROGRAM.require(launch), *launch.settings.args]
        if launch.resume_session:
            argv += ["--session", word(launch.resume_session, "session")]
        return Plan(
            argv=argv,
            env=_environment(launch) | pins(launch, headless=False),
            session_id=launch.resume_session or word(launch.session_id, "session"),
            directories=(*program.directories(launch), *extra_directories(launch)),
            copies=_copies(launch),
            files=files(launch),
            seeds=seeds(launch),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> OpencodeParser:
        return OpencodeParser()


# ---- its configuration ----


def pins(launch: Launch, *, headless: bool = True) -> dict[str, str]:
    """The variables that hold whatever the person's own and the repository's configuration say.

    `launch.model` is opencode's own, whoever asks.
    """
    own = read_own(launch.env)
    given = _parsed(launch.env.get("OPENCODE_CONFIG_CONTENT", ""))
    config: dict[str, Any] = {**(own if launch.config_home else {}), **given}
    config |= {
        "autoupdate": False,
        "share": "disabled",
        # Of every step it would keep a copy of the tree, a second and more each; git has the work.
        "snapshot": False,
    }
    if headless:
        config["permission"] = _permissions(launch)
    if headless and not purity(launch):
        config["plugin"] = [Path(_plugin_file(launch)).as_uri()]
    if _context(launch):
        config["instructions"] = [*_texts(given.get("instructions")), _context_file(launch)]
    model = launch.model or str(config.get("model") or "")
    gateway = f"{GATEWAY}/"
    if gateway not in f"{model}/" and not launch.env.get("OPENCODE_API_KEY") and _credentials(launch.env) is None:
        config["disabled_providers"] = sorted({*_texts(config.get("disabled_providers")), GATEWAY})
    return {
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        # A checkout's own may name a program to run (plugins, servers) and where the key is sent, and the agent can
        # write it.
        "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        # The list of models that it brings along is as old as it is; asking for a newer one is asking the network.
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }


def purity(launch: Launch) -> tuple[str, ...]:
    """The flag that keeps every plugin out, ours too: for where another than ours could come along."""
    home = program.user_directory(launch.env, "", "")
    places = [*MANAGED, *([home / ".opencode"] if home else []), Path(launch.config_home, "config/opencode")]
    others = any(os.path.lexists(place / name) for place in places for name in ("plugin", "plugins"))
    managed = any(os.path.lexists(place / name) for place in MANAGED for name in CONFIGS)
    file = _credentials(launch.env)
    # Of such a login the server says what is configured.
    told = [each for each in (_json_of(file) if file else {}).values() if isinstance(each, dict)]
    remote = any(each.get("type") == "wellknown" for each in told)
    return () if launch.config_home and not (others or managed or remote) else ("--pure",)


def _permissions(launch: Launch) -> Any:
    if launch.permissions == "bypass":
        return {"*": "allow"}
    # "deny" is told to the model, which goes on; "ask" would be answered with a no that ends the turn. The last rule
    # that fits counts.
    allowed = ("read", "glob", "grep", "list", "todowrite", "todoread", "task", "skill", "lsp")
    return {
        "*": "deny",
        **dict.fromkeys(allowed, "allow"),
        "edit": {"*": "allow", ".git/*": "deny", "*/.git/*": "deny"},
        "external_directory": {"*": "deny", f"{launch.workspace_dir}/specs/*": "allow"},
    }


def read_own(env: Mapping[str, str]) -> dict[str, Any]:
    """What the person's own configuration says of models and how they are reached; nothing else of it is used."""
    directory = program.user_directory(env, "OPENCODE_CONFIG_DIR", ".config/opencode")
    if not env.get("OPENCODE_CONFIG_DIR") and env.get("XDG_CONFIG_HOME"):
        directory = Path(env["XDG_CONFIG_HOME"]) / "opencode"
    files = [directory / name for name in ("opencode.json", "opencode.jsonc")] if directory else []
    if env.get("OPENCODE_CONFIG"):
        files.append(Path(env["OPENCODE_CONFIG"]))
    found: dict[str, Any] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                found |= _parsed(stream.read(CONFIG_LIMIT).decode("utf-8", "replace"))
        except OSError:
            continue
    return {key: found[key] for key in OWN_KEYS if key in found}


def _own_model(env: Mapping[str, str]) -> str:
    model = {**read_own(env), **_parsed(env.get("OPENCODE_CONFIG_CONTENT", ""))}.get("model")
    return model if isinstance(model, str) and is_word(model) else ""


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object with comments and trailing commas; an empty one of what is none."""
    try:
        value = json.loads(_COMMENT.sub(lambda match: match[1] or "", text) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


# ---- the private home ----


def extra_directories(launch: Launch) -> tuple[str, ...]:
    if not launch.config_home:
        return ()
    homes = tuple(f"{launch.config_home}/{place}" for place in HOMES.values())
    inner = ("data/opencode", "config/opencode", "config/opencode/node_modules")
    return (*homes, *(f"{launch.config_home}/{place}" for place in inner))


def seeds(launch: Launch) -> tuple[tuple[str, bytes], ...]:
    return ((f"{launch.config_home}/config/opencode/package-lock.json", LOCK),) if launch.config_home else ()


def _context(launch: Launch) -> bytes:
    # Without the project's configuration it does not read the project's instructions either.
    return program.context(launch, Opencode.context_file)


def _context_file(launch: Launch) -> str:
    return f"{launch.tmp_dir}/instructions.md"


def _plugin_file(launch: Launch) -> str:
    return f"{launch.tmp_dir}/core-agent.js"


def files(launch: Launch) -> tuple[tuple[str, bytes], ...]:
    context = _context(launch)
    written = [(_context_file(launch), context)] if context else []
    if launch.config_home:
        # An agent without a sandbox can write there, and a configuration names programs to run.
        written += [(f"{launch.config_home}/config/opencode/{name}", b"{}\n") for name in CONFIGS]
        written.append((_plugin_file(launch), SOURCE.encode()))
    return tuple(written)


def _credentials(env: Mapping[str, str]) -> Path | None:
    directory = program.user_directory(env, "XDG_DATA_HOME", ".local/share")
    return program.credential(directory, "opencode/auth.json")


def _copies(launch: Launch) -> tuple[tuple[str, str], ...]:
    return program.copies(launch, _credentials(launch.env), CREDENTIALS)


def _json_of(file: Path) -> dict[str, Any]:
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _environment(launch: Launch) -> dict[str, str]:
    # Beside a model of the person's own configuration, that may name a small one of another provider.
    provider = "" if launch.model == _own_model(launch.env) else launch.model.partition("/")[0]
    wanted = (*PROVIDERS.get(provider, VARIABLES), "OPENCODE_*", *launch.settings.env)
    env = {
        name: value
        for name, value in program.own_environment(launch.env).items()
        if _matches(name, wanted) or not _matches(name, VARIABLES)
    }
    env |= {"TMPDIR": launch.tmp_dir, "PWD": launch.repo_dir}
    if launch.config_home:
        env |= {name: f"{launch.config_home}/{place}" for name, place in HOMES.items()}
        env.pop("OPENCODE_CONFIG", None)
        env.pop("OPENCODE_CONFIG_DIR", None)
    return env


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


# ---- the checkout's own plugins ----


def require_no_plugins(launch: Launch) -> None:
    """Refuse a checkout whose plugins opencode would execute, unless anything may be executed.

    1.18.33 imports them whatever `--pure` and OPENCODE_DISABLE_PROJECT_CONFIG say, and an agent that may only edit
    could write one for its next turn.

    Raises: consent_needed.
    """
    if launch.permissions == "bypass":
        return
    for place in (launch.repo_dir, launch.workspace_dir):
        if found := _plugins(Path(place)):
            raise CoreAgentError(
                "consent_needed",
                f"opencode would execute the checkout's own plugins ({found})",
                cause="it loads them whatever it is told, and permissions are `edits`",
                hint="remove them, take another agent, or agree with `core-agent repo trust --bypass` and use"
                " --permissions bypass",
            )


def _plugins(place: Path) -> str:
    """What opencode would take a plugin from, relative to that place; "" for nothing. In doubt it is something."""
    for name in (".opencode/plugin", ".opencode/plugins"):
        if os.path.lexists(place / name):
            return name
    for directory in ("", ".opencode"):
        for name in ("opencode.json", "opencode.jsonc"):
            file = place / directory / name
            try:
                said = read_plain(file, CONFIG_LIMIT, follow=True)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError):
                return f"{directory}/{name}".lstrip("/")
            # Its format has comments, and keys can be escaped: whatever could name plugins counts.
            if b"plugin" in said.lower() or b"\\u" in said or len(said) == CONFIG_LIMIT:
                return f"{directory}/{name}".lstrip("/")
    return ""
