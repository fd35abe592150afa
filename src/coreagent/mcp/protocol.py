"""MCP proper: the library's server over our byte stream, one per client.

`mcp.server` comes in once the library may be loaded. Which tools there are and what they answer is `mcp.tools`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio
import mcp_types as types
import pydantic_core
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from coreagent.arguments import nearest
from coreagent.capability import Caller, Capability
from coreagent.mcp import tools
from coreagent.mcp.server import Receive, Send
from coreagent.models.dispatch import Event
from coreagent.paths import VERSION
from coreagent.pump import Lines

PIECE = 256 * 1024
"""Bytes written at once; a frame of the daemon's socket holds a little less than 1 MiB."""
HEARTBEAT_S = 5.0
"""How often a waiting `watch` reports progress, so that a client's own time limit does not end it."""
LINGER_S = 3.0
"""How long requests may still be answered after the end of a client's input; a `watch` may wait much longer."""
INSTRUCTIONS = (
    "Runs coding agents on tasks in checkouts of their own. agentic_dispatch starts one and returns at once;"
    " agentic_watch waits for news (pass the last `seq` as `since`); agentic_status tells what runs, waits and needs a"
    " person; agentic_resume answers a blocked agent or asks one again. Finished work lies on the branch agent/<name>;"
    " accepting it is left to the person."
)

_Context = ServerRequestContext[Any, Any]


async def session(core: Any, caller: Caller, receive: Receive, send: Send) -> None:
    """Serve one client; see `coreagent.mcp.server.serve`."""
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage](0)
    to_client, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    server = _server(core, caller)
    unanswered = _Unanswered()
    async with anyio.create_task_group() as group:
        group.start_soon(_pump_in, receive, to_server, to_client.clone(), unanswered)
        group.start_soon(_pump_out, from_server, send, group.cancel_scope, unanswered)
        await server.run(from_client, to_client, server.create_initialization_options())
        # What was said last is still on its way out; a client that does not read is not waited for.
        group.cancel_scope.deadline = anyio.current_time() + LINGER_S


class _Unanswered:
    """The requests of a client that have no answer yet."""

    def __init__(self) -> None:
        self._ids: set[types.RequestId] = set()
        self._changed = anyio.Event()

    def received(self, message: types.JSONRPCMessage) -> None:
        if isinstance(message, types.JSONRPCRequest):
            self._ids.add(message.id)
        elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            cancelled = (message.params or {}).get("requestId")
            if isinstance(cancelled, int | str):
                self._settle(cancelled)

    def sent(self, message: types.JSONRPCMessage) -> None:
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) and message.id is not None:
            self._settle(message.id)

    async def none(self) -> None:
        """Return when every request is answered or cancelled."""
        while self._ids:
            await self._changed.wait()

    def _settle(self, identity: types.RequestId) -> None:
        self._ids.discard(identity)
        self._changed.set()
        self._changed = anyio.Event()


def _server(core: Any, caller: Caller) -> Server[Any]:
    async def list_tools(_: _Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools.offered(caller))

    async def call_tool(context: _Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        found = tools.named(params.name)
        if found is None:
            near = nearest(params.name, [tool.name for tool in tools.offered(caller)])
            meant = f"; did you mean {near}?" if near else ""
            raise MCPError(types.INVALID_PARAMS, f"unknown tool: {params.name}{meant}")
        arguments = params.arguments or {}
        if found.name == "watch" and context.meta and "progress_token" in context.meta:
            return await _watch(core, caller, found, arguments, context)
        return await tools.answer(core, caller, found, arguments)

    return Server(
        "core-agent", version=VERSION, instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


async def _watch(
    core: Any, caller: Caller, found: Capability, arguments: dict[str, Any], context: _Context
) -> types.CallToolResult:
    """A `watch` that shows signs of life while it waits: each event as it comes, and a heartbeat."""
    news = core.bus.subscribe()
    # An agent hears of its own workspace only, whatever it asks for.
    asked = (caller.workspace or "none") if caller.role == "worker" else str(arguments.get("workspace") or "")
    teller = asyncio.create_task(_tell(news, asked, context))
    try:
        return await tools.answer(core, caller, found, arguments)
    finally:
        news.close()
        teller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await teller


async def _tell(news: Any, workspace: str, context: _Context) -> None:
    count = 0
    coming = asyncio.ensure_future(anext(news))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=HEARTBEAT_S)
            message = "waiting"
            if done:
                event: Event = coming.result()
                coming = asyncio.ensure_future(anext(news))
                if not _concerns(event, workspace):
                    continue
                message = f"{event.name} {event.workspace}".strip()
            count += 1
            await context.session.report_progress(count, message=message)
    except StopAsyncIteration:
        return
    finally:
        coming.cancel()


def _concerns(event: Event, workspace: str) -> bool:
    """Whether an event is about the workspace asked for, under any of the names that a person may use for it."""
    return not workspace or f"/{event.workspace}".endswith(f"/{workspace}") or event.dispatch_id.startswith(workspace)


async def _pump_in(
    receive: Receive,
    to_server: MemoryObjectSendStream[SessionMessage],
    to_client: MemoryObjectSendStream[SessionMessage],
    unanswered: _Unanswered,
) -> None:
    """Cut the client's bytes into messages; a line that is none is answered here, the library would ignore it.

    At the end of the input the library cancels what it still works on, so it hears of it when all is answered.
    """

    async def take(line: bytes, answer: bytes) -> None:
        if answer:
            await to_client.send(SessionMessage(types.jsonrpc_message_adapter.validate_json(answer)))
            return
        if not line.strip():
            return
        message = _message(line)
        if isinstance(message, types.JSONRPCError):
            await to_client.send(SessionMessage(message))
        else:
            unanswered.received(message)
            await to_server.send(SessionMessage(message))

    async with to_server, to_client:
        lines = Lines()
        while chunk := await receive():
            for line, answer in lines.feed(chunk):
                await take(line, answer)
        await take(*lines.end())
        with anyio.move_on_after(LINGER_S):
            await unanswered.none()


def _message(line: bytes) -> types.JSONRPCMessage:
    """Read one line; one that is no message becomes the error that answers it."""
    try:
        return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:
        pass
    try:
        data = pydantic_core.from_json(line)
    except ValueError as error:
        return _error(types.PARSE_ERROR, f"not JSON: {error}")
    identity = data.get("id") if isinstance(data, dict) and "method" in data else None
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        identity = None
    return _error(types.INVALID_REQUEST, "not a JSON-RPC 2.0 message", identity)


def _error(code: int, message: str, identity: types.RequestId | None = None) -> types.JSONRPCError:
    return types.JSONRPCError(jsonrpc="2.0", id=identity, error=types.ErrorData(code=code, message=message))


async def _pump_out(
    from_server: MemoryObjectReceiveStream[SessionMessage],
    send: Send,
    scope: anyio.CancelScope,
    unanswered: _Unanswered,
) -> None:
    async with from_server:
        async for item in from_server:
            data = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
            try:
                for start in range(0, len(data), PIECE):
                    await send(data[start : start + PIECE])
            except OSError:
                # The client is gone: its calls end, what they started goes on.
                scope.cancel()
                return
            unanswered.sent(item.message)
