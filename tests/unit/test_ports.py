"""Blocks of ports: unique, free when chosen, given back, and bounded by the settings."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.engine_room import Room, in_room

from coreagent.core import Core
from coreagent.dispatch import ports
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.ports import Blocks
from coreagent.dispatch.workspace import layout
from coreagent.models.dispatch import Dispatch, State
from coreagent.sections import PortsSettings
from coreagent.store.store import Store

BASE = 23100


def held(number: str, port: int, count: int = 10) -> Dispatch:
    return Dispatch.model_construct(id=number, port=port, ports=count)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Ports that somebody else listens on; the others are free."""
    busy: set[int] = set()
    monkeypatch.setattr(ports, "is_free", lambda port: port not in busy)
    return busy


def test_blocks_never_overlap_and_come_back(free: set[int]) -> None:
    blocks, settings = Blocks(), PortsSettings(base=32738, count=10)
    given = []
    while base := blocks.choose(settings):
        blocks.hold(held(str(base), base))
        given.append(base)
    assert given == [32738, 32748, 32758]
    blocks.free("32748")
    assert blocks.choose(settings) == 32748


def test_a_block_that_was_just_given_back_is_the_last_to_be_given_again(free: set[int]) -> None:
    blocks, settings = Blocks(), PortsSettings(base=BASE, count=10)
    first = blocks.choose(settings)
    blocks.hold(held("one", first))
    blocks.free("one")
    assert blocks.choose(settings) == first + 10


def test_a_port_that_somebody_listens_on_is_gone_around() -> None:
    settings = PortsSettings(base=BASE, count=2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        assert not ports.is_free(taken)
    with socket.socket() as other:
        other.bind(("0.0.0.0", BASE + 1))
        assert Blocks().choose(settings) == BASE + 2


def test_a_changed_size_respects_blocks_of_the_old_one(free: set[int]) -> None:
    blocks = Blocks()
    blocks.hold(held("old", BASE + 5, 10))
    assert blocks.choose(PortsSettings(base=BASE, count=4)) == BASE
    blocks.hold(held("new", BASE, 4))
    assert blocks.choose(PortsSettings(base=BASE, count=4)) == BASE + 16


@pytest.mark.parametrize("given", [{"base": 80}, {"base": 65530, "count": 10}, {"base": 32765}, {"count": -1}])
def test_what_cannot_be_given_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        PortsSettings(**given)


def test_none_are_given_when_none_are_wanted(free: set[int]) -> None:
    assert Blocks().choose(PortsSettings(count=0)) == 0


def test_the_same_block_for_hook_agent_and_every_later_turn(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.ask("dispatch", task="a task", ephemeral=True)
        done = await room.until(room.engine.board[made.dispatch_id], State.COMPLETED, State.FAILED)
        wanted = f"{done.port} {done.port}-{done.port + 9}"
        place = layout(str(room.home), room.core.settings, done)
        assert done.port >= BASE
        assert place.setup_log.read_text().splitlines()[0] == wanted
        assert (place.repo / "seen").read_text() == f"{wanted}\n"
        await room.ask("resume", workspace=done.id, prompt="again")
        again = await room.until(room.engine.board[done.id], State.COMPLETED, State.FAILED)
        assert again.runs == 2
        assert (place.repo / "seen").read_text() == f"{wanted}\n" * 2
        shown = await room.ask("workspace.show", workspace=done.id)
        assert shown.ports == f"{done.port}-{done.port + 9}"

    say = 'echo "$CORE_AGENT_PORT $CORE_AGENT_PORTS"'
    settings = f"ports: {{base: {BASE}}}\nhooks: {{setup: {{run: '{say}'}}}}\n"
    in_room(tmp_path, body, running=True, script=f"{say} >> seen", settings=settings)


def test_open_workspaces_have_their_own_and_a_new_daemon_knows_them(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = [await room.prepare(name) for name in ("one", "two", "three")]
        assert len({port for d in made for port in range(d.port, d.port + d.ports)}) == 3 * 4
        store: Store = room.core.store
        again = Core(str(room.home), room.env, store)
        again.engine = Engine(again)
        await again.engine.load()
        assert {d.id: d.port for d in again.engine.board.values()} == {d.id: d.port for d in made}
        for block in (range(d.port, d.port + d.ports) for d in made):
            fresh: Any = again.engine.board.blocks.choose(again.settings.ports)
            assert fresh not in block
        await room.ask("reject", workspace=made[1].id)
        assert made[1].id not in room.engine.board.blocks._blocks

    in_room(tmp_path, body, settings=f"ports: {{base: {BASE}, count: 4}}\n")
