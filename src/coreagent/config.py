"""PLACEHOLDER by the lead so that the engine runs; the owner of config replaces this whole file (names are what the engine uses)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from coreagent import paths
from coreagent.errors import CoreAgentError


class _S(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DispatchSettings(_S):
    default_agent: str = "claude"
    default_template: str = "coding"
    workspace_root: str = ".core/workspace"
    keep_days: float = 7
    idle_timeout_s: float = 600
    timeout_s: float = 4 * 3600
    max_output_bytes: int = 64 << 20


class SetupHook(_S):
    run: str | list[str] = ""
    timeout_s: float = 600


class Hooks(_S):
    setup: SetupHook = SetupHook()


class RunnerSettings(_S):
    path: str = ""
    home: Literal["private", "user"] = "private"
    permissions: Literal["edits", "bypass"] = "edits"
    env: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list)
    model: str = ""
    idle_timeout_s: float | None = None


class CommandSettings(_S):
    argv: list[str]
    env: dict[str, str] = Field(default_factory=dict)


class Identity(_S):
    host: str = "local"
    runner: str
    model: str = ""
    roles: list[str] = Field(default_factory=list)


class EnvSettings(_S):
    allow: list[str] = Field(default_factory=list)


class HarvestSettings(_S):
    max_files: int = 2000
    max_file_bytes: int = 10 << 20
    max_total_bytes: int = 100 << 20
    binaries: Literal["allow", "reject"] = "allow"


class Settings(_S):
    version: int = 1
    dispatch: DispatchSettings = DispatchSettings()
    concurrency: dict[str, int | dict[str, int]] = Field(default_factory=dict)
    rates: dict[str, dict[str, object]] = Field(default_factory=dict)
    agents: dict[str, Identity] = Field(default_factory=dict)
    commands: dict[str, CommandSettings] = Field(default_factory=dict)
    runners: dict[str, RunnerSettings] = Field(default_factory=dict)
    env: EnvSettings = EnvSettings()
    hooks: Hooks = Hooks()
    harvest: HarvestSettings = HarvestSettings()


class RepoSettings(_S):
    hooks: Hooks = Hooks()


@dataclass(frozen=True)
class Loaded:
    settings: Settings
    problems: list[str] = field(default_factory=list)
    path: str = ""


@dataclass(frozen=True)
class Chosen:
    runner: str
    model: str = ""
    identity: str = ""


def load(home: str, env: dict[str, str] | None = None) -> Loaded:
    path = Path(paths.settings_file(home))
    body = yaml.safe_load(path.read_text()) if path.exists() else {}
    return Loaded(Settings.model_validate(body or {}), [], str(path))


def stamp(home: str) -> int:
    """Changes whenever agents.yaml does; 0 when there is none."""
    try:
        return os.stat(paths.settings_file(home)).st_mtime_ns
    except OSError:
        return 0


def load_repo(text: str) -> RepoSettings:
    return RepoSettings.model_validate(yaml.safe_load(text) or {})


def resolve_agent(text: str, settings: Settings) -> Chosen:
    runner, _, model = text.partition(":")
    if runner not in ("claude", "command", "scripted"):
        raise CoreAgentError("unknown_agent", f"no agent {text!r}")
    return Chosen(runner, model)


def pool_of(runner: str, model: str, settings: Settings) -> str:
    return runner


def limit_of(pool: str, settings: Settings) -> int:
    found = settings.concurrency.get(pool, 0)
    return found if isinstance(found, int) else found.get("total", 0)


def workspace_root(settings: Settings, home: str) -> str:
    return str(Path(home).parent / settings.dispatch.workspace_root)
