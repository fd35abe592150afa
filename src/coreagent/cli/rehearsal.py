"""What each agent's CLI needs to be led to a model of ours, and what that model then says to it.

`doctor --offline` comes in for the cast: who is there, and who is not. It starts nothing and asks nobody.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from coreagent import runners
from coreagent.config import RunnerSettings, Settings
from coreagent.errors import CoreAgentError
from coreagent.modelserver import Script, Step, Tool
from coreagent.runners.acp import KNOWN
from coreagent.runners.base import which

KEY: Final = "offline-proof-no-key"
TEXT: Final = "written by the agent\n"
REFUSED: Final = "Invalid authentication credentials: this key is refused, as it should be"


@dataclass(frozen=True)
class Part:
    """How one CLI is led, and how it calls the tool that writes a file."""

    leads: Callable[[str], Mapping[str, str]]
    """The URL of the model -> variables."""
    write: Callable[[str], Tool]
    model: str = ""
    """A model that the CLI has to be told; "" is its own."""


def _opencode(url: str) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "offline",
        "options": {"baseURL": f"{url}/v1", "apiKey": KEY},
        "models": {"proof": {"name": "proof", "limit": {"context": 200_000, "output": 8_000}}},
    }
    return {"OPENCODE_CONFIG_CONTENT": json.dumps({"provider": {"offline": provider}, "model": "offline/proof"})}


PARTS: Final[Mapping[str, Part]] = {
    "claude": Part(
        leads=lambda url: {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY},
        write=lambda name: Tool("Write", {"file_path": "{cwd}/" + name, "content": TEXT}),
    ),
    "codex": Part(
        leads=lambda url: {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY},
        # A model that its version does not know is offered no tool for patches, but always a shell.
        write=lambda name: Tool("exec_command", {"cmd": f"printf '{TEXT.strip()}\\n' > {name}"}),
    ),
    "gemini": Part(
        leads=lambda url: {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": KEY},
        write=lambda name: Tool("write_file", {"file_path": "{cwd}/" + name, "content": TEXT}),
        # Without a model it asks another one which to take, and waits minutes for an answer that it can read.
        model="gemini-2.5-pro",
    ),
    "opencode": Part(
        leads=_opencode,
        write=lambda name: Tool("write", {"filePath": "{cwd}/" + name, "content": TEXT}),
        model="offline/proof",
    ),
}
"""By runner. An ACP agent of the same name is led in the same way."""
NO_OTHER_MODEL: Final = frozenset({"copilot"})
"""ACP agents that nothing leads to another model."""


@dataclass(frozen=True)
class Actor:
    """One agent that may be proved."""

    name: str
    """As `--agent` takes it."""
    path: str = ""
    version: str = ""
    missing: str = ""
    """Why it cannot be started; "" when it can."""
    hint: str = ""
    part: Part | None = None
    """None: nothing is known of how it could be led to another model."""

    @property
    def slug(self) -> str:
        return self.name.replace(":", "-")

    @property
    def asked(self) -> str:
        """What `--agent` gets: the name, with the model where it has to be told."""
        return f"{self.name}:{self.part.model}" if self.part is not None and self.part.model else self.name

    def task(self, act: int) -> str:
        """What it is asked: 1 to edit, 2 to go on, 3 what the model refuses."""
        return f"{self.key(act)} write the file {self.file(act)}."

    def key(self, act: int) -> str:
        return f"ACT-{act} for {self.slug}:"

    def file(self, act: int) -> str:
        return f"PROOF-{act}.txt"

    def scripts(self) -> list[Script]:
        """What the model says to it."""
        if self.part is None:
            return []
        edits = [
            Script(self.key(act), [Step("I write the file.", [self.part.write(self.file(act))]), Step("Done.")])
            for act in (1, 2)
        ]
        return [*edits, Script(self.key(3), [Step(error=401, message=REFUSED)])]


def cast(env: Mapping[str, str], settings: Settings, asked: str) -> list[Actor]:
    """Whom to prove: one by name, every runner ("") or also every agent of the Agent Client Protocol ("all").

    Those that are not installed are in it too, but of ACP agents only when asked for by name. Blocking.
    Raises: unknown_agent.
    """
    if asked in ("", "all"):
        actors = [_runner(name, env, settings) for name in runners.REAL]
        if asked == "all":
            acp = [_acp(name, env, settings) for name in dict.fromkeys((*KNOWN, *settings.acp))]
            actors += [actor for actor in acp if not actor.missing]
        return actors
    if asked in runners.REAL:
        return [_runner(asked, env, settings)]
    kind, _, name = asked.partition(":")
    if kind == "acp" and (name in KNOWN or name in settings.acp):
        return [_acp(name, env, settings)]
    known = [*runners.REAL, *(f"acp:{name}" for name in dict.fromkeys((*KNOWN, *settings.acp)))]
    raise CoreAgentError("unknown_agent", f"{asked!r} cannot be proved", hint=f"one of {', '.join(known)}, or all")


def _runner(name: str, env: Mapping[str, str], settings: Settings) -> Actor:
    found = runners.load(name).find(env, settings.runners.get(name) or RunnerSettings())
    return Actor(
        name,
        path=found.path,
        version=found.version,
        missing=found.message if found.problem else "",
        hint=found.hint,
        part=PARTS.get(name),
    )


def _acp(name: str, env: Mapping[str, str], settings: Settings) -> Actor:
    own = settings.acp.get(name)
    program = (own.argv if own is not None else KNOWN[name].argv)[0]
    path = program if program.startswith("/") else which(program, env)
    hint = f"install it with `{KNOWN[name].install}`" if own is None else f"acp.{name}.argv in agents.yaml names it"
    # One of the settings' own is led by whatever it wants; a known name without them, as its runner is.
    return Actor(
        f"acp:{name}",
        path=path,
        missing="" if path else f"{program} is not on the PATH",
        hint=hint,
        part=PARTS.get(name) if own is None and name not in NO_OTHER_MODEL else None,
    )


def foreign(name: str) -> bool:
    """Whether a variable of the person's shell has no part in a proof: keys, endpoints, proxies, places of theirs."""
    return name.upper().endswith("_PROXY") or any(fnmatch.fnmatchcase(name, pattern) for pattern in _foreign())


@cache
def _foreign() -> tuple[str, ...]:
    patterns = [pattern for runner in (*runners.REAL, "acp") for pattern in runners.load(runner).variables]
    return ("GIT_*", "CORE_*", "XDG_*", "CLAUDE*", *dict.fromkeys(patterns))
