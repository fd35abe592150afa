"""One MCP session inside the daemon, over a byte stream of newline-delimited JSON-RPC.

The daemon comes in with a connection and with who is on its other end. The MCP library is large, so it is imported with
the first session and not with the daemon, in a thread, for the loop has other callers to serve meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

from coreagent.capability import Caller

Receive = Callable[[], Awaitable[bytes]]
"""The next piece of the client's input, b"" at its end."""
Send = Callable[[bytes], Awaitable[None]]
"""Returns when the bytes are accepted; raises OSError when the client is gone."""


async def serve(core: Any, caller: Caller, receive: Receive, send: Send) -> None:
    """Serve one client until its input ends or it is gone; its open calls are cancelled then."""
    protocol = await asyncio.to_thread(importlib.import_module, "coreagent.mcp.protocol")
    await protocol.session(core, caller, receive, send)
