"""`acp:NAME`: any agent of the Agent Client Protocol, spoken with by the shim's own client.

NAME is one of `acp` in agents.yaml, or one of those that are known here; `acp:NAME:MODEL` asks it for a model. What
such an agent may do is answered request by request (shim_acp); one that never asks does what its own settings allow.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Usage
from coreagent.paths import VERSION
from coreagent.poolnames import DEFAULT_MODELS
from coreagent.runners import codex, named, opencode, program
from coreagent.runners.acp_stream import AcpParser
from coreagent.runners.base import Found, Launch, Login, Plan, Runner, RunnerSettings, which, word


@dataclass(frozen=True)
class Known:
    """An agent that needs no settings."""

    argv: tuple[str, ...]
    variables: tuple[str, ...]
    """Patterns of the variables that it may see; another agent's keys stay out."""
    home: Mapping[str, str] = field(default_factory=dict)
    """Variables that lead it into a private home, each with the place below that."""
    credential: tuple[str, str] = ("", "")
    """Where its login lies below the person's home, and where below a private one."""
    env: Mapping[str, str] = field(default_factory=dict)
    install: str = ""
    reads: bool = True
    """Whether it reads files through its client."""


KNOWN: Final[Mapping[str, Known]] = {
    "claude": Known(
        argv=("claude-agent-acp",),
        variables=("ANTHROPIC_*", "CLAUDE_CODE_*", "API_TIMEOUT_MS"),
        home={"CLAUDE_CONFIG_DIR": ""},
        credential=(".claude/.credentials.json", ".credentials.json"),
        env={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CODE_MAX_RETRIES": "2"},
        install="npm install -g @agentclientprotocol/claude-agent-acp",
    ),
    "codex": Known(
        argv=("codex-acp",),
        variables=("OPENAI_*", "CODEX_*", "AZURE_OPENAI_*"),
        home={"CODEX_HOME": ""},
        credential=(".codex/auth.json", "auth.json"),
        install="npm install -g @agentclientprotocol/codex-acp",
    ),
    "copilot": Known(
        argv=("copilot", "--acp"),
        variables=("COPILOT_*",),
        env={"COPILOT_AUTO_UPDATE": "false"},
        install="npm install -g @github/copilot",
    ),
    "gemini": Known(
        argv=("gemini", "--acp"),
        variables=("GEMINI_*", "GOOGLE_*"),
        home={"GEMINI_CLI_HOME": ""},
        credential=(".gemini/oauth_creds.json", ".gemini/oauth_creds.json"),
        # Else it starts itself a second time, half a second later.
        env={"GEMINI_CLI_NO_RELAUNCH": "true"},
        install="npm install -g @google/gemini-cli",
        # 0.61.0: through its client, a file that is not there is one that cannot be read, and so is never made.
        reads=False,
    ),
    "opencode": Known(
        argv=("opencode", "acp"),
        variables=opencode.VARIABLES,
        home=opencode.HOMES,
        credential=(".local/share/opencode/auth.json", "data/opencode/auth.json"),
        install="npm install -g opencode-ai",
    ),
}
KEYS: Final = tuple(dict.fromkeys(pattern for known in KNOWN.values() for pattern in known.variables))
GEMINI_SETTINGS: Final = (
    b'{"general": {"maxAttempts": 2, "enableAutoUpdate": false, "enableAutoUpdateNotification": false},'
    b' "privacy": {"usageStatisticsEnabled": false}, "telemetry": {"enabled": false}}\n'
)


class Acp(Runner):
    """Every agent that speaks the protocol."""

    name: ClassVar[str] = "acp"
    context_file: ClassVar[str] = "AGENTS.md"
    variables: ClassVar[tuple[str, ...]] = KEYS

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        # Which program runs is told by its name; the client itself is a part of us.
        present = [name for name, known in KNOWN.items() if which(known.argv[0], env)]
        told = f"known agents found: {', '.join(present)}" if present else "none of the known agents is on the PATH"
        return Found(path=settings.path or "/bin/sh", version="", message=told)

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        return Login("not_needed", "each agent's own")

    def plan(self, launch: Launch) -> Plan:
        name, _, model = launch.model.partition(":")
        known = KNOWN.get(name) or Known((), ())
        own = launch.acp
        if launch.args and launch.permissions != "bypass":
            hint = "put them into acp.NAME.argv or runners.acp.args in agents.yaml"
            raise CoreAgentError("blocked_flag", "an ACP agent takes no arguments of a task", hint=hint)
        argv = list(own.argv if own is not None else known.argv)
        if not argv:
            raise CoreAgentError(
                "settings_invalid",
                f"there is no ACP agent {name!r:.100}" if name else "the acp runner needs the name of an agent",
                hint=f"name it under `acp` in agents.yaml, or use acp:{', acp:'.join(KNOWN)}",
            )
        path = named.require(argv[0], launch.env, f"acp.{name}", known.install if own is None else "")
        # A private home is for agents of which we know where they keep their login.
        private = bool(launch.config_home and known.home and own is None)
        if name == "opencode" and own is None:
            opencode.require_no_plugins(launch)
        # Left to itself it asks another model first which to take, and on an error waits for more than a minute.
        model = model or (DEFAULT_MODELS["gemini"] if name == "gemini" and own is None else "")
        pure = opencode.purity(launch) if name == "opencode" and own is None else ()
        wish: dict[str, Any] = {
            "permissions": launch.permissions,
            "session": word(launch.resume_session, "session"),
            "fresh_prompt": _prompt(launch.fresh_prompt) if launch.resume_session else "",
            "readable": [f"{launch.workspace_dir}/{name}" for name in ("specs", "CODEX.md", "AGENTS.md")],
            "mode": own.mode if own is not None else "",
            "model": word(model, "model"),
            "auth": own.auth if own is not None else _auth(launch, name, private=private),
            "reads": own is not None or known.reads,
            "version": VERSION,
        }
        return Plan(
            argv=[path, *argv[1:], *pure, *launch.settings.args, *launch.args],
            env=_environment(launch, name, known, private=private),
            session_id=launch.resume_session or launch.session_id,
            stdin=_prompt(launch.prompt).encode("utf-8", "replace"),
            acp=wish,
            # After `session/cancel` was not heeded; before that nothing is signalled.
            stop_signal="TERM",
            directories=_directories(launch, name, known, private=private),
            copies=_copies(launch, known) if private else (),
            files=_files(launch, name, private=private),
            seeds=_seeds(launch, name) if private else (),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> AcpParser:
        return AcpParser(previous_cost=previous_cost)


def _prompt(prompt: str) -> str:
    # A prompt that begins with "/" would be run as a command of the agent.
    return "\n" + prompt if prompt.startswith("/") else prompt


def _auth(launch: Launch, name: str, *, private: bool) -> str:
    # Without a method in its settings gemini asks the client to choose one. codex-acp 2.6.0 does not look for a key,
    # and writes the one that it is told to use into its home.
    if name == "gemini" and launch.env.get("GEMINI_API_KEY"):
        return "gemini-api-key"
    return "api-key" if name == "codex" and private and codex.for_acp(launch)[1] else ""


def _environment(launch: Launch, name: str, known: Known, *, private: bool) -> dict[str, str]:
    own = launch.acp
    wanted = [*(known.variables if own is None else own.variables), *launch.settings.env]
    foreign = [pattern for pattern in KEYS if pattern not in wanted]
    env = {
        variable: value
        for variable, value in program.own_environment(launch.env).items()
        if _matches(variable, wanted) or not _matches(variable, foreign)
    }
    env = {**known.env, **env, "TMPDIR": launch.tmp_dir}
    if private:
        env |= {variable: f"{launch.config_home}/{place}".rstrip("/") for variable, place in known.home.items()}
        if name == "codex":
            env |= codex.for_acp(launch)[1]
    if name == "opencode" and own is None:
        env |= opencode.pins(replace(launch, model=launch.model.partition(":")[2]))
    return {**env, **own.env} if own is not None else env


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _directories(launch: Launch, name: str, known: Known, *, private: bool) -> tuple[str, ...]:
    made = program.directories(launch) if private else (launch.tmp_dir,)
    if private:
        made += tuple(f"{launch.config_home}/{place}" for place in known.home.values() if place)
        inner = known.credential[1].rpartition("/")[0]
        made += (f"{launch.config_home}/{inner}",) if inner else ()
        made += opencode.extra_directories(launch) if name == "opencode" else ()
    return made


def _copies(launch: Launch, known: Known) -> tuple[tuple[str, str], ...]:
    home = program.user_directory(launch.env, "", "")
    return program.copies(launch, program.credential(home, known.credential[0]), known.credential[1])


def _files(launch: Launch, name: str, *, private: bool) -> tuple[tuple[str, bytes], ...]:
    if name == "codex" and private:
        return codex.for_acp(launch)[0]
    return opencode.files(launch) if name == "opencode" and launch.acp is None else ()


def _seeds(launch: Launch, name: str) -> tuple[tuple[str, bytes], ...]:
    if name == "opencode":
        return opencode.seeds(launch)
    return ((f"{launch.config_home}/.gemini/settings.json", GEMINI_SETTINGS),) if name == "gemini" else ()
