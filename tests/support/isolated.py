"""The model server and a CLI together in a network without a way out, where the system gives us one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from coreagent.modelserver import ModelServer, Script
from tests.support import netns, real
from tests.support.desk import Cli, Desk
from tests.support.home import Home


@dataclass(frozen=True)
class Place:
    """A server and the namespace that it listens in."""

    server: ModelServer
    space: netns.Netns | netns.NoNetns


@contextmanager
def served(scripts: Sequence[Script]) -> Iterator[Place]:
    space = netns.make()
    try:
        with space.call(lambda: ModelServer(scripts)) as server:
            yield Place(server, space)
    finally:
        space.close()


@contextmanager
def seated(
    home: Home,
    name: str,
    scripts: Sequence[Script],
    led: Callable[[str], Mapping[str, str]],
    settings: str = "",
    at_once: int = 2,
) -> Iterator[Desk]:
    """A desk with that CLI, which `led(url)` leads to a model that plays these scripts; at the end nothing runs."""
    path = real.require(name)
    with served(scripts) as place:
        wrapped = place.space.wrap(path, home.dir / "bin")
        desk = Desk(home, place.server, settings, Cli(name, wrapped, led(place.server.url)), at_once)
        yield desk
        assert desk.agents() == {}
