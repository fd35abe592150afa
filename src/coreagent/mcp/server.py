"""One MCP session inside the daemon, over a byte stream of newline-delimited JSON-RPC.

The daemon comes in with a connection and with who is on its other end. The MCP library is large, so it is imported with
the first session and not with the daemon, in a thread, for the loop has other callers to serve meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from coreagent.capability import Caller


class Reader(Protocol):
    """What is needed of an `asyncio.StreamReader`: up to `n` bytes, b"" at the end."""

    async def read(self, n: int) -> bytes: ...


Write = Callable[[bytes], Awaitable[None]]


async def serve(core: Any, caller: Caller, reader: Reader, write: Write) -> None:
    """Serve one client until its input ends or it can no longer be written to; its open calls are cancelled then.

    `write` returns when the bytes are accepted, and raises OSError when the client is gone.
    """
    protocol = await asyncio.to_thread(importlib.import_module, "coreagent.mcp.protocol")
    await protocol.session(core, caller, reader, write)
