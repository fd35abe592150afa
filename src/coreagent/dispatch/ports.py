"""Ports: each workspace has a block of its own on 127.0.0.1, from its first claim until it is let go.

The claim and preparation come in to choose one, whoever starts a program for a workspace to tell of it. The block is
part of the dispatch's row, so that it outlives resumes and daemons. Nothing here keeps a port open: that it was free is
looked at once, when it is chosen.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from coreagent.models.dispatch import Dispatch
from coreagent.sections import PortsSettings

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

HOST = "127.0.0.1"


class Blocks:
    """Which ports belong to an open workspace."""

    def __init__(self) -> None:
        self._blocks: dict[str, range] = {}
        self._taken: set[int] = set()
        self._next = 0

    def hold(self, dispatch: Dispatch) -> None:
        """Note the block of an open workspace."""
        block = range(dispatch.port, dispatch.port + dispatch.ports)
        if block and self._blocks.get(dispatch.id) != block:
            self.free(dispatch.id)
            self._blocks[dispatch.id] = block
            self._taken.update(block)

    def free(self, dispatch_id: str) -> None:
        """A workspace is gone: its ports are anybody's."""
        block = self._blocks.pop(dispatch_id, None)
        if block is not None:
            self._taken.difference_update(block)

    def choose(self, settings: PortsSettings) -> int:
        """The first port of a block that is nobody's and free right now; 0 when there is none.

        Goes around instead of beginning anew: what a workspace that just went has left running there is not met at
        once by the next one.
        """
        for base in self._around(settings):
            block = range(base, base + settings.count)
            if self._taken.isdisjoint(block) and all(map(is_free, block)):
                self._next = base + settings.count
                return base
        return 0

    def _around(self, settings: PortsSettings) -> Iterator[int]:
        if not settings.count:
            return
        bases = range(settings.base, settings.last - settings.count + 2, settings.count)
        begin = next((at for at, base in enumerate(bases) if base >= self._next), 0) if self._next else 0
        yield from bases[begin:]
        yield from bases[:begin]


def is_free(port: int) -> bool:
    """Whether a program could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def block_for(engine: Engine, dispatch: Dispatch) -> dict[str, Any]:
    """The changes that give a dispatch its block; none when it has one, or when there is none to be had."""
    settings = engine.core.settings.ports
    if dispatch.port or not settings.count:
        return {}
    base = engine.board.blocks.choose(settings)
    return {"port": base, "ports": settings.count} if base else {}


def environment(dispatch: Dispatch) -> Mapping[str, str]:
    """What every program that runs for a workspace is told of its ports."""
    if not dispatch.port:
        return {}
    return {"CORE_AGENT_PORT": str(dispatch.port), "CORE_AGENT_PORTS": shown(dispatch)}


def shown(dispatch: Dispatch) -> str:
    """The block as `first-last`; "" when it has none."""
    return f"{dispatch.port}-{dispatch.port + dispatch.ports - 1}" if dispatch.port else ""
