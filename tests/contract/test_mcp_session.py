"""An MCP session over a pair of byte streams: schemas, structured answers, errors, roles, progress, cancellation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client._transport import TransportStreams
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import BaseModel

from coreagent.bus import Bus
from coreagent.capability import EVERYONE, REGISTRY, Caller, capability
from coreagent.errors import CoreAgentError
from coreagent.mcp.server import serve
from coreagent.models.dispatch import Event

LIMIT_S = 20


class Sum(BaseModel):
    total: int
    by: str


async def add(core: Any, caller: Caller, a: int, b: int = 1) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b, by=caller.role)


async def names(core: Any) -> list[str]:
    """Name some."""
    return ["x", "y"]


async def refuse(core: Any) -> Sum:
    """Refuse."""
    raise CoreAgentError("repo_not_found", "there is no such repository", hint="add it")


async def break_down(core: Any) -> Sum:
    """Break."""
    raise ZeroDivisionError("oh")


async def hang(core: Any) -> Sum:
    """Never end by itself."""
    core.hanging.set()
    try:
        await asyncio.Event().wait()
    finally:
        core.ended.set()
    raise AssertionError


async def watch(core: Any, workspace: str = "") -> Sum:
    """Wait until the test lets go."""
    core.hanging.set()
    await core.let_go.wait()
    return Sum(total=0, by=workspace)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Stand these capabilities in the registry's place for one test."""
    before = dict(REGISTRY)
    REGISTRY.clear()
    capability("add", tool="test_add", roles=EVERYONE, read_only=True)(add)
    capability("names", tool="test_names", roles=EVERYONE)(names)
    capability("refuse", tool="test_refuse", destructive=True)(refuse)
    capability("break", tool="test_break")(break_down)
    capability("hang", tool="test_hang")(hang)
    capability("watch", tool="agentic_watch", read_only=True)(watch)
    capability("hidden")(names)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def reading(stream: asyncio.StreamReader) -> Callable[[], Awaitable[bytes]]:
    return lambda: stream.read(65536)


class Wire:
    """A client's transport whose other end is `serve`, joined by bytes in both directions."""

    def __init__(self, role: str = "mcp") -> None:
        self.core = SimpleNamespace(bus=Bus(), hanging=asyncio.Event(), ended=asyncio.Event(), let_go=asyncio.Event())
        self.caller = Caller(role=role, attempt="A1" if role == "worker" else "")

    @asynccontextmanager
    async def _streams(self) -> AsyncIterator[TransportStreams]:
        up, down = asyncio.StreamReader(), asyncio.StreamReader(limit=2**24)

        async def write(data: bytes) -> None:
            down.feed_data(data)

        task = asyncio.create_task(serve(self.core, self.caller, reading(up), write))
        to_client, client_in = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        client_out, from_client = anyio.create_memory_object_stream[SessionMessage](0)

        async def read_down() -> None:
            while line := await down.readline():
                await to_client.send(SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False)))

        async def send_up() -> None:
            async for item in from_client:
                data = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                # Cut anywhere: a message has no promise to come in one piece.
                for cut in (data[:7], data[7:]):
                    up.feed_data(cut)
                    await asyncio.sleep(0)

        pumps = [asyncio.create_task(read_down()), asyncio.create_task(send_up())]
        try:
            yield client_in, client_out
        finally:
            up.feed_eof()
            await asyncio.wait_for(task, LIMIT_S)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for stream in (to_client, client_in, client_out, from_client):
                stream.close()

    def transport(self) -> AbstractAsyncContextManager[TransportStreams]:
        return self._streams()


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_tools_come_from_the_registry(mode: str) -> None:
    async def test() -> None:
        async with Client(Wire().transport(), mode=mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {
                "test_add", "test_names", "test_refuse", "test_break", "test_hang", "agentic_watch",
            }  # fmt: skip
            tool = tools["test_add"]
            assert tool.description == "Add two numbers."
            assert tool.input_schema["required"] == ["a"]
            assert tool.input_schema["additionalProperties"] is False
            assert tool.output_schema is not None
            assert set(tool.output_schema["properties"]) == {"total", "by"}
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is True
            refuse_hints = tools["test_refuse"].annotations
            assert refuse_hints is not None
            assert refuse_hints.destructive_hint is True

            answer = await client.call_tool("test_add", {"a": 2, "b": 3})
            assert answer.structured_content == {"total": 5, "by": "mcp"}
            assert isinstance(answer.content[0], types.TextContent)
            assert json.loads(answer.content[0].text) == answer.structured_content
            listed = await client.call_tool("test_names", {})
            assert listed.structured_content == {"result": ["x", "y"]}

    run(test)


def test_errors_are_results_with_the_body_of_every_face() -> None:
    async def test() -> None:
        async with Client(Wire().transport()) as client:
            for name, arguments, slug in [
                ("test_refuse", {}, "repo_not_found"),
                ("test_add", {"a": "x"}, "invalid_argument"),
                ("test_add", {"a": 1, "surprise": True}, "invalid_argument"),
                ("test_break", {}, "internal"),
            ]:
                answer = await client.call_tool(name, arguments)
                assert answer.is_error
                assert answer.structured_content is not None
                assert answer.structured_content["error"]["slug"] == slug
            with pytest.raises(MCPError) as error:
                await client.call_tool("no_such_tool", {})
            assert error.value.code == types.INVALID_PARAMS

    run(test)


def test_a_worker_sees_and_calls_only_what_is_its_own() -> None:
    async def test() -> None:
        async with Client(Wire("worker").transport()) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"test_add", "test_names"}
            answer = await client.call_tool("test_refuse", {})
            assert answer.is_error
            assert answer.structured_content is not None
            assert answer.structured_content["error"]["slug"] == "role_forbidden"

    run(test)


def test_a_cancelled_request_cancels_the_call() -> None:
    async def test() -> None:
        wire = Wire()
        async with Client(wire.transport()) as client:
            with pytest.raises(MCPError):
                await client.call_tool("test_hang", {}, read_timeout_seconds=0.3)
            await asyncio.wait_for(wire.core.ended.wait(), LIMIT_S)

    run(test)


def test_a_lost_client_cancels_its_calls() -> None:
    async def test() -> None:
        wire = Wire()
        up = asyncio.StreamReader()
        sent: list[bytes] = []

        async def write(data: bytes) -> None:
            sent.append(data)

        task = asyncio.create_task(serve(wire.core, wire.caller, reading(up), write))
        for message in (
            {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {},
             "clientInfo": {"name": "t", "version": "1"}}},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/call", "params": {"name": "test_hang", "arguments": {}}},
        ):  # fmt: skip
            up.feed_data(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        await asyncio.wait_for(wire.core.hanging.wait(), LIMIT_S)
        up.feed_eof()
        await asyncio.wait_for(task, LIMIT_S)
        assert wire.core.ended.is_set()

    run(test)


def test_watch_tells_of_events_while_it_waits() -> None:
    async def test() -> None:
        wire = Wire()
        told: list[str] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(message or "")
            wire.core.let_go.set()

        async with Client(wire.transport(), mode="legacy") as client:
            call = asyncio.create_task(
                client.call_tool("agentic_watch", {"workspace": "mend"}, progress_callback=progress)
            )
            await asyncio.wait_for(wire.core.hanging.wait(), LIMIT_S)
            for workspace in ("acme/parser/other", "acme/parser/mend"):
                wire.core.bus.publish(Event(at=datetime.now(UTC), name="AgentStarted", workspace=workspace))
            answer = await asyncio.wait_for(call, LIMIT_S)
        assert answer.structured_content == {"total": 0, "by": "mend"}
        assert told == ["AgentStarted acme/parser/mend"]

    run(test)


def test_a_line_that_is_no_message_is_answered_and_the_session_goes_on() -> None:
    async def test() -> None:
        wire = Wire()
        up, sent = asyncio.StreamReader(), asyncio.StreamReader()

        async def write(data: bytes) -> None:
            sent.feed_data(data)

        task = asyncio.create_task(serve(wire.core, wire.caller, reading(up), write))
        up.feed_data(b'{"jsonrpc": "2.0", "id": 1, "method"\n\n\xff\xfe\n')
        up.feed_data(b'{"jsonrpc": "2.0", "id": 2, "method": "ping"}\n')
        while True:
            answer = json.loads(await asyncio.wait_for(sent.readline(), LIMIT_S))
            if answer.get("id") == 2:
                break
        assert answer["result"] == {}
        up.feed_eof()
        await asyncio.wait_for(task, LIMIT_S)

    run(test)
