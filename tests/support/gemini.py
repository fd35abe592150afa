"""The real `gemini` CLI for tests: a workspace in which its turns are run, and what its tools are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coreagent.models.agent import Usage
from coreagent.modelserver import ModelServer, Script, Step, Tool
from tests.support import real
from tests.support.real import Bench

KEY = "gemini-scripted"
MODEL = "gemini-3-pro-preview"
# It tells nothing of what was written to the cache.
USAGE = Usage(input=1000, output=50, cache_read=30)
CALL = USAGE.total


def write(name: str, content: str = "hello\n") -> Tool:
    return Tool("write_file", {"file_path": "{cwd}/" + name, "content": content})


def shell(command: str) -> Tool:
    return Tool("run_shell_command", {"command": command, "description": "x"})


def edit(key: str, *names: str, **first: Any) -> Script:
    """Two answers: write the files, then say that it is done."""
    return Script(key, [Step("I will.", [write(n) for n in names], usage=USAGE, **first), Step("Done.", usage=USAGE)])


def environment(url: str) -> dict[str, str]:
    """What leads the CLI to a model of ours."""
    return {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": KEY}


def at_once(home: Path) -> None:
    """Let a person's own settings say that a failed call is not tried again, so that tests need not wait for it."""
    directory = home / ".gemini"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "settings.json").write_text(json.dumps({"general": {"maxAttempts": 1}}))


def bench(root: Path, server: ModelServer, path: str, env: Mapping[str, str] | None = None) -> Bench:
    """Lay out a workspace below `root` whose gemini talks to `server`."""
    made = real.bench(root, server, "gemini", path, {**environment(server.url), **(env or {})})
    at_once(root / "home")
    return made
