"""The real `codex` CLI for tests: its tools, and a workspace in which its turns are run, with no way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coreagent.modelserver import ModelServer, Script, Tool
from coreagent.runners.codex import native
from tests.support import netns, real
from tests.support.desk import Cli, Desk
from tests.support.home import Home
from tests.support.real import Bench

KEY = "sk-scripted-codex"
MODEL = "gpt-5.5"
"""One that this version knows: to others it offers no apply_patch."""


@contextmanager
def served(scripts: Sequence[Script]) -> Iterator[tuple[ModelServer, netns.Netns | netns.NoNetns]]:
    """A model server inside of a namespace, and the namespace."""
    space = netns.make()
    try:
        with space.call(lambda: ModelServer(scripts)) as server:
            yield server, space
    finally:
        space.close()


def environment(server: ModelServer) -> dict[str, str]:
    """What leads codex to the server."""
    return {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}


def program(space: netns.Netns | netns.NoNetns, directory: Path) -> str:
    """The pinned CLI, inside of the namespace; the native one, as the runner would choose it."""
    path = real.require("codex")
    return space.wrap(native(path) or path, directory)


def bench(root: Path, server: ModelServer, path: str, env: Mapping[str, str] | None = None) -> Bench:
    return real.bench(root, server, "codex", path, {**environment(server), **(env or {})})


@contextmanager
def seated(home: Home, scripts: Sequence[Script], settings: str = "") -> Iterator[Desk]:
    """A desk with codex whose model plays these scripts; at the end nothing runs that should not."""
    with served(scripts) as (server, space):
        desk = Desk(home, server, settings, Cli("codex", program(space, home.dir / "bin"), environment(server)))
        yield desk
        assert desk.agents() == {}


def shell(command: str, **more: object) -> Tool:
    return Tool("exec_command", {"cmd": command, **more})


def patch(name: str, content: str = "hello") -> Tool:
    return Tool("apply_patch", custom=f"*** Begin Patch\n*** Add File: {name}\n+{content}\n*** End Patch\n")
