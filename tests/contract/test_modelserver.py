"""The scripted model server, spoken to over real HTTP, in every wire."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coreagent import wires
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Reason, Usage
from coreagent.modelserver import ModelServer, Script, Step, Tool, parse_scripts
from coreagent.wires.base import Builder, Reply, Request, Text, ToolResult, ToolUse, Turn, Wire, decode_sse

TOOLS = ("Write",)


@pytest.fixture(params=sorted(wires.FAMILY))
def wire(request: pytest.FixtureRequest) -> Wire:
    return wires.load(request.param)


def user(text: str) -> Turn:
    return Turn("user", (Text(text),))


def result(text: str = "ok") -> Turn:
    return Turn("user", (ToolResult("t", text),))


def assistant() -> Turn:
    return Turn("assistant", (ToolUse("t", "Write", {}),))


@contextmanager
def sent(server: ModelServer, path: str, body: Any, method: str = "POST", **headers: str) -> Iterator[Any]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, path, body if isinstance(body, str) else json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()


@contextmanager
def posted(
    server: ModelServer,
    wire: Wire,
    *turns: Turn,
    stream: bool = False,
    system: str = "",
    tools: tuple[str, ...] = TOOLS,
) -> Iterator[Any]:
    body = wire.encode_request(Request("m", turns, stream, system, tools), 100)
    with sent(server, wire.path("m", stream=stream), body) as response:
        yield response


def ask(server: ModelServer, wire: Wire, *turns: Turn, **more: Any) -> Reply:
    with posted(server, wire, *turns, **more) as response:
        assert response.status == 200
        return wire.decode_reply(json.loads(response.read()))


def built(wire: Wire, lines: list[bytes]) -> Builder:
    builder = wire.builder()
    for event in decode_sse(lines):
        builder.add(event)
    return builder


SCRIPTS = [
    Script("ALPHA", [Step("a0", [Tool("Write", {"path": "{cwd}/x", "list": ["{cwd}"]})]), Step("a1"), Step("a2")]),
    Script("BETA", [Step("b0", usage=Usage(input=7, output=8, cache_read=9, cache_write=1)), Step("b1")]),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(SCRIPTS) as running:
        yield running


def test_the_step_is_the_number_of_tool_results_after_the_key(server: ModelServer, wire: Wire) -> None:
    start = [user("do ALPHA")]
    assert ask(server, wire, *start).text == "a0"
    assert ask(server, wire, *start).text == "a0"
    assert ask(server, wire, *start, assistant(), result()).text == "a1"
    assert ask(server, wire, *start, assistant(), result(), assistant(), result()).text == "a2"
    assert ask(server, wire, *start, *[assistant(), result()] * 5).text == "a2"


def test_the_latest_key_wins_so_a_resumed_session_goes_on(server: ModelServer, wire: Wire) -> None:
    before = [user("do ALPHA"), assistant(), result(), assistant()]
    assert ask(server, wire, *before, user("now BETA")).text == "b0"
    assert ask(server, wire, *before, user("now BETA"), assistant(), result()).text == "b1"
    assert ask(server, wire, *before, user("and ALPHA again")).text == "a0"
    # A turn that failed is joined to what is said next.
    assert ask(server, wire, user("do ALPHA\nnow BETA")).text == "b0"
    assert ask(server, wire, user("do BETA\nnow ALPHA")).text == "a0"
    assert "No script" in ask(server, wire, user("gamma")).text


SAID = [
    "env:\n Working directory: /a/b c\nnext",
    "<environment_context>\n  <cwd>/a/b c</cwd>\n  <shell>bash</shell>",
    "I'm currently working in the directory: /a/b c\nHere is",
    "- **Workspace Directories:**\n  - /a/b c\n- **Directory Structure:**",
]


@pytest.mark.parametrize("said", SAID)
def test_the_directory_is_filled_in(server: ModelServer, wire: Wire, said: str) -> None:
    for reply in (ask(server, wire, user("ALPHA"), system=said), ask(server, wire, user(said), user("ALPHA"))):
        (tool,) = reply.tool_uses
        assert tool.input == {"path": "/a/b c/x", "list": ["/a/b c"]}
        assert reply.stop == "tool_use"


def test_streamed_and_whole_are_the_same(server: ModelServer, wire: Wire) -> None:
    with posted(server, wire, user("BETA"), stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        builder = built(wire, response.readlines())
    whole = ask(server, wire, user("BETA"))
    assert builder.complete
    assert (builder.reply.blocks, builder.reply.usage) == (whole.blocks, whole.usage)
    assert (whole.usage.total, whole.usage.output, whole.usage.cache_read) == (25, 8, 9)


def test_tokens_are_counted_models_listed_and_the_rest_is_not_found(server: ModelServer) -> None:
    for path in ("/v1/messages/count_tokens?beta=true", "/v1/responses/input_tokens", "/v1beta/models/m:countTokens"):
        with sent(server, path, {}) as response:
            assert 10 in json.loads(response.read()).values()
    for path in ("/v1/models", "/v1beta/models", "/v1/elsewhere"):
        with sent(server, path, "", "GET") as response:
            assert response.status == 200
            assert isinstance(json.loads(response.read()), dict)
    with sent(server, "/v1/other", {}) as response:
        assert response.status == 404
    with sent(server, "/", "", "HEAD") as response:
        assert (response.status, response.read()) == (200, b"")


def test_a_question_beside_the_conversation_gets_no_tool_and_spends_no_step(wire: Wire) -> None:
    act = Step("I will.", [Tool("Write")])
    with ModelServer([Script("K", [Step(error=500, times=1, then=act), Step("Done.")])]) as server:
        aside = ask(server, wire, user("a title for K"), tools=())
        assert (aside.tool_uses, server.requests[-1].step) == ((), -1)
        with posted(server, wire, user("K")) as response:
            assert response.status == 500
        assert ask(server, wire, user("K")).text == "I will."
        assert [r.wire for r in server.requests] == [wire.name] * 3


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 529])
def test_errors_with_headers(wire: Wire, status: int) -> None:
    step = Step(error=status, message="no", headers={"retry-after": "30"})
    with ModelServer([Script("", [step])]) as server, posted(server, wire, user("x")) as response:
        assert response.status == status
        failure = wire.decode_error(status, json.loads(response.read()), dict(response.headers), 100.0)
    assert (failure.message, failure.retry_at) == ("no", 130.0)


def test_a_refusal_says_when_to_come_back_in_the_words_of_its_wire(wire: Wire) -> None:
    with (
        ModelServer([Script("", [Step(error=429, retry_s=7)])]) as server,
        posted(server, wire, user("x"), stream=True) as response,
    ):
        failure = wire.decode_error(429, json.loads(response.read()), dict(response.headers), 100.0)
    assert (failure.reason, failure.retry_at) == (Reason.RATE_LIMIT, 107.0)


def test_a_step_may_give_way_to_another(wire: Wire) -> None:
    step = Step(error=500, times=2, then=Step("ok", times=1, then=Step("later")))
    with ModelServer([Script("", [step])]) as server:
        statuses = []
        for _ in range(2):
            with posted(server, wire, user("x")) as response:
                statuses.append(response.status)
        assert statuses == [500, 500]
        assert [ask(server, wire, user("x")).text for _ in range(3)] == ["ok", "later", "later"]


def test_a_cut_stream_is_seen_as_cut(wire: Wire) -> None:
    with (
        ModelServer([Script("", [Step("hello", cut=True)])]) as server,
        posted(server, wire, user("x"), stream=True) as response,
        pytest.raises(http.client.IncompleteRead) as error,
    ):
        response.read()
    builder = built(wire, error.value.partial.splitlines())
    assert not builder.complete
    assert builder.reply.text == "hello"


def test_a_gate_holds_until_released() -> None:
    wire = wires.load("anthropic")
    with ModelServer([Script("", [Step("through", gate="door")])]) as server:
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(ask(server, wire, user("x")).text))
        waiting.start()
        assert server.wait_requests(1)
        assert answers == []
        server.release("door")
        waiting.join(10)
        assert answers == ["through"]
        assert ask(server, wire, user("x")).text == "through"


def test_a_hang_ends_with_the_server(wire: Wire) -> None:
    server = ModelServer([Script("K", [Step(hang=True)])]).start()
    ended: list[type[Exception]] = []

    def wait() -> None:
        try:
            ask(server, wire, user("K"))
        except (http.client.HTTPException, ConnectionError) as error:
            ended.append(type(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert server.wait_requests(1, key="K")
    assert not server.wait_requests(2, timeout_s=0.01)
    server.close()
    server.close()
    waiting.join(10)
    assert len(ended) == 1


def test_requests_are_recorded_raw_and_secrets_stay_out_of_the_file(wire: Wire, tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = wire.path("m", stream=False) + "?key=sk-secret"
    body = json.dumps(wire.encode_request(Request("m", (user("hi"),), False, "", ()), 9))
    with ModelServer([Script("", [Step("x")])], log=log) as server:
        headers = {"X-Api-Key": "sk-secret", "X-Goog-Api-Key": "sk-secret", "Authorization": "Bearer sk-secret"}
        with sent(server, path, body, **headers) as response:
            assert response.status == 200
        with sent(server, path, "not json") as response:
            assert response.status == 400
    first, second = server.requests
    assert (first.body.decode(), first.headers["X-Api-Key"], first.step) == (body, "sk-secret", 0)
    assert second.step == -1
    assert "sk-secret" not in log.read_text()
    assert json.loads(log.read_text().splitlines()[0])["key"] == ""


FILE = """
scripts:
  - key: GO
    steps:
      - {text: hi, tools: [{name: Write, input: {a: 1}}], usage: {input: 3}, headers: {retry-after: 1}}
      - {error: 500, times: 1, then: {text: ok}}
"""


def test_scripts_are_read_from_yaml() -> None:
    (script,) = parse_scripts(FILE)
    assert script.key == "GO"
    assert script.steps[0] == Step("hi", [Tool("Write", {"a": 1})], usage=Usage(input=3), headers={"retry-after": "1"})
    assert script.steps[1].then == Step("ok")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "scripts: []", "scripts: [7]", "scripts: [{key: a}]", "scripts: [{key: a, steps: []}]", "a: [", "{x: 1}",
     "scripts: [{key: a, steps: [{txt: b}]}]", "scripts: [{key: a, steps: [{tools: [{nam: b}]}]}]"],
)  # fmt: skip
def test_bad_scripts_are_refused(text: str) -> None:
    with pytest.raises(CoreAgentError) as error:
        parse_scripts(text)
    assert error.value.slug == "bad_script"


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    script = tmp_path / "s.yaml"
    script.write_text(FILE)
    command = [sys.executable, "-m", "coreagent.modelserver", "--script", str(script), "--log", str(tmp_path / "log")]
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        host, _, port = url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        turn = {"role": "user", "content": "GO"}
        connection.request("POST", "/v1/messages", json.dumps({"messages": [turn], "tools": [{"name": "Write"}]}))
        assert json.loads(connection.getresponse().read())["content"][0]["text"] == "hi"
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    script.write_text("nonsense")
    refused = subprocess.run(command, capture_output=True, env=env, check=False)
    assert refused.returncode == 2
    assert b"E4006" in refused.stderr
