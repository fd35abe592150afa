"""`core-agent mcp`, as a client starts it: the installed command, a real daemon, a real repository."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from tests.support.home import COMMAND, Home

SCRIPT = """
steps:
  - write: {path: new.txt, content: "done\\n"}
"""
TOOLS = {
    "agentic_dispatch",
    "agentic_dispatch_shutdown",
    "agentic_dispatch_start",
    "agentic_prep_workspace",
    "agentic_resume",
    "agentic_status",
    "agentic_watch",
}


@asynccontextmanager
async def connected(home: Home) -> AsyncIterator[Client]:
    server = StdioServerParameters(command=str(COMMAND), args=["mcp"], env=home.env, cwd=str(home.user))
    async with Client(stdio_client(server)) as client:
        yield client


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.structured_content
    assert answer.structured_content is not None
    return answer.structured_content


def test_a_task_goes_from_dispatch_to_its_branch(home: Home) -> None:
    repo = home.repo("app")

    async def test() -> None:
        async with connected(home) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            seq = (await ask(client, "agentic_watch", timeout_s=0.01))["seq"]
            reply = await ask(
                client, "agentic_dispatch", task="Write it", repo=str(repo), agent="scripted", name="it", script=SCRIPT
            )
            assert reply["branch"] == "agent/it"
            while True:
                news = await ask(client, "agentic_watch", workspace="it", since=seq, timeout_s=20)
                seq = news["seq"]
                if news["workspaces"][0]["state"] == "completed":
                    break
                assert not news["timed_out"]
            status = await ask(client, "agentic_status", all=True)
            assert status["counts"]["completed"] == 1

    asyncio.run(asyncio.wait_for(test(), 60))
    assert home.git("show", "agent/it:new.txt", cwd=repo) == "done\n"


def test_errors_and_queue_controls_come_through(home: Home) -> None:
    async def test() -> None:
        async with connected(home) as client, connected(home) as other:
            wrong = await client.call_tool("agentic_dispatch", {"task": "x", "repo": str(home.dir / "nowhere")})
            assert wrong.is_error
            assert wrong.structured_content is not None
            assert wrong.structured_content["error"]["slug"] == "not_a_repository"
            unknown = await client.call_tool("agentic_status", {"surprise": 1})
            assert unknown.is_error
            assert (await ask(client, "agentic_dispatch_shutdown"))["frozen"] is True
            assert (await ask(other, "agentic_dispatch_start"))["frozen"] is False

    asyncio.run(asyncio.wait_for(test(), 60))
