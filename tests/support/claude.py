"""The real `claude` CLI for tests: the pinned one, and a workspace in which its turns are run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coreagent.modelserver import ModelServer
from tests.support import real
from tests.support.real import Bench, Ran, Turn

__all__ = ["KEY", "Bench", "Ran", "Turn", "bench", "find_claude", "pinned_version", "require_claude"]

KEY = "sk-ant-scripted"


def pinned_version() -> str:
    return real.pinned_version("claude")


def find_claude() -> str:
    return real.find("claude")


def require_claude() -> str:
    return real.require("claude")


def bench(root: Path, server: ModelServer, path: str, env: Mapping[str, str] | None = None) -> Bench:
    """Lay out a workspace below `root` whose claude talks to `server`."""
    own = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": KEY,
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "API_TIMEOUT_MS": "15000",
    }
    return real.bench(root, server, "claude", path, {**own, **(env or {})})
