"""The real `opencode` CLI for tests: a workspace in which its turns are run, and what its tools are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from coreagent.models.agent import Usage
from coreagent.modelserver import ModelServer, Tool
from tests.support import real
from tests.support.real import Bench

MODEL = "mock/m1"
USAGE = Usage(input=1000, output=50, cache_read=30)
TWICE = USAGE.plus(USAGE)
PRICES = {"input": 3.0, "output": 15.0, "cache_read": 0.3}


def leads(url: str, **more: object) -> dict[str, str]:
    """What leads opencode to a server: a provider of its own, in the variable that counts most."""
    model = {"name": "m1", "cost": PRICES, "limit": {"context": 200000, "output": 8000}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "mock",
        "options": {"baseURL": f"{url}/v1", "apiKey": "sk-scripted"},
        "models": {"m1": model},
    }
    return {"OPENCODE_CONFIG_CONTENT": json.dumps({"provider": {"mock": provider}, "model": MODEL, **more})}


def bench(root: Path, server: ModelServer, path: str, env: Mapping[str, str] | None = None) -> Bench:
    made = real.bench(root, server, "opencode", path, {**leads(server.url), **(env or {})})
    return Bench(made.root, made.server, made.launch.__class__(**{**made.launch.__dict__, "model": MODEL}), "opencode")


def write(name: str, content: str = "hello\n") -> Tool:
    return Tool("write", {"filePath": "{cwd}/" + name, "content": content})


def shell(command: str) -> Tool:
    return Tool("bash", {"command": command, "description": "x"})
