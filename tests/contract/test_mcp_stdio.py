"""`core-agent mcp`, as a client starts it: the installed command, a real daemon, a real repository."""

from __future__ import annotations

import asyncio
import json
import subprocess
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
GREETING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


def said(home: Home, *lines: str, end: str = "\n") -> list[dict[str, Any]]:
    """What the command answers to these lines, with the end of its input right behind them."""
    done = home.run("mcp", stdin="\n".join(lines) + end)
    assert not done.err
    return [json.loads(line) for line in done.out.splitlines()]


def request(identity: int, method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": params})


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


def test_a_line_that_is_no_message_is_answered_with_an_error(home: Home) -> None:
    process = home.start("mcp", stdin=subprocess.PIPE)
    with process:
        assert process.stdin
        assert process.stdout

        def ask(line: bytes) -> Any:
            assert process.stdin
            assert process.stdout
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        for greeted in (False, True):
            for line, code, identity in (
                (b"not json", -32700, None),
                (b"\xff\xfe", -32700, None),
                (b'{"jsonrpc": "2.0", "id": 3, "method"', -32700, None),
                (b"[" * 100_000, -32700, None),
                (b"[]", -32600, None),
                (b"7", -32600, None),
                (b"{}", -32600, None),
                (b'{"id": 4, "method": "ping"}', -32600, 4),
                (b'{"jsonrpc": "2.0", "id": 5, "method": 6}', -32600, 5),
            ):
                answer = ask(line)
                assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", identity, code), line
            if not greeted:
                assert ask(json.dumps(GREETING).encode())["result"]["serverInfo"]["name"] == "core-agent"
        assert ask(request(9, "ping").encode())["result"] == {}
        process.stdin.close()
        assert process.wait(30) == 0


def test_what_was_asked_before_the_end_of_input_is_answered(home: Home) -> None:
    greeting = json.dumps(GREETING)
    for end in ("\n", ""):  # the first time the daemon starts meanwhile
        answers = {
            answer["id"]: answer for answer in said(home, request(0, "ping"), greeting, request(2, "ping"), end=end)
        }
        assert set(answers) == {0, 1, 2}
        assert answers[0]["result"] == answers[2]["result"] == {}
        assert "result" in answers[1]
    refused = said(home, "not json", "[]", request(3, "ping"), end="")
    assert sorted(answer.get("error", {}).get("code", 0) for answer in refused) == [-32700, -32600, 0]
    slow = request(4, "tools/call", name="agentic_watch", arguments={"timeout_s": 1})
    assert [answer["result"]["structuredContent"]["timed_out"] for answer in said(home, greeting, slow)[1:]] == [True]


def test_the_end_of_input_does_not_wait_for_a_call_without_end(home: Home) -> None:
    endless = request(2, "tools/call", name="agentic_watch", arguments={"timeout_s": 600})
    assert said(home, json.dumps(GREETING), endless)[0]["id"] == 1
