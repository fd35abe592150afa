"""The scripted model server, spoken to over real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import Usage
from coreagent.modelserver import ModelServer, Script, Step, Tool, parse_scripts
from coreagent.wires import anthropic as wire

Turns = Sequence[dict[str, Any]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def result(text: str = "ok") -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": text}]}


def assistant() -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Write", "input": {}}]}


@contextmanager
def posted(server: ModelServer, turns: Turns, path: str = "/v1/messages", **body: Any) -> Iterator[Any]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("POST", path, json.dumps({"model": "m", "messages": list(turns), **body}))
        yield connection.getresponse()
    finally:
        connection.close()


def ask(server: ModelServer, *turns: dict[str, Any], **body: Any) -> wire.Reply:
    with posted(server, turns, **body) as response:
        assert response.status == 200
        return wire.decode_reply(json.loads(response.read()))


def said(reply: wire.Reply) -> str:
    return "".join(block.text for block in reply.blocks if isinstance(block, wire.Text))


SCRIPTS = [
    Script("ALPHA", [Step("a0", [Tool("Write", {"path": "{cwd}/x", "list": ["{cwd}"]})]), Step("a1"), Step("a2")]),
    Script("BETA", [Step("b0", usage=Usage(input=7, output=8, cache_read=9, cache_write=1)), Step("b1")]),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(SCRIPTS) as running:
        yield running


def test_the_step_is_the_number_of_tool_results_after_the_key(server: ModelServer) -> None:
    start = [user("do ALPHA")]
    assert said(ask(server, *start)) == "a0"
    assert said(ask(server, *start)) == "a0"
    assert said(ask(server, *start, assistant(), result())) == "a1"
    assert said(ask(server, *start, assistant(), result(), assistant(), result())) == "a2"
    assert said(ask(server, *start, *[assistant(), result()] * 5)) == "a2"


def test_the_latest_key_wins_so_a_resumed_session_goes_on(server: ModelServer) -> None:
    before = [user("do ALPHA"), assistant(), result(), assistant()]
    assert said(ask(server, *before, user("now BETA"))) == "b0"
    assert said(ask(server, *before, user("now BETA"), assistant(), result())) == "b1"
    assert said(ask(server, *before, user("and ALPHA again"))) == "a0"
    # A turn that failed is joined to what is said next.
    assert said(ask(server, user("do ALPHA\nnow BETA"))) == "b0"
    assert said(ask(server, user("do BETA\nnow ALPHA"))) == "a0"
    assert "No script" in said(ask(server, user("gamma")))


def test_the_directory_is_filled_in(server: ModelServer) -> None:
    reply = ask(server, user("ALPHA"), system=[{"type": "text", "text": "env:\n Working directory: /a/b c\nnext"}])
    (tool,) = [block for block in reply.blocks if isinstance(block, wire.ToolUse)]
    assert tool.input == {"path": "/a/b c/x", "list": ["/a/b c"]}
    assert reply.stop == "tool_use"


def test_streamed_and_whole_are_the_same(server: ModelServer) -> None:
    with posted(server, [user("BETA")], stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        builder = wire.ReplyBuilder()
        for event in wire.decode_sse(response.readlines()):
            builder.add(event)
    whole = ask(server, user("BETA"))
    assert builder.complete
    assert (builder.reply.blocks, builder.reply.usage) == (whole.blocks, whole.usage)
    assert whole.usage == Usage(input=7, output=8, cache_read=9, cache_write=1)


def test_tokens_are_counted_and_the_rest_is_not_found(server: ModelServer) -> None:
    with posted(server, [], "/v1/messages/count_tokens?beta=true") as response:
        assert json.loads(response.read()) == {"input_tokens": 10}
    with posted(server, [], "/v1/other") as response:
        assert response.status == 404


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 529])
def test_errors_with_headers(status: int) -> None:
    step = Step(error=status, message="no", headers={"retry-after": "30"})
    with ModelServer([Script("", [step])]) as server, posted(server, [user("x")]) as response:
        assert response.status == status
        failure = wire.decode_error(status, json.loads(response.read()), dict(response.headers), 100.0)
    assert (failure.message, failure.retry_at) == ("no", 130.0)


def test_a_step_may_give_way_to_another() -> None:
    step = Step(error=500, times=2, then=Step("ok", times=1, then=Step("later")))
    with ModelServer([Script("", [step])]) as server:
        statuses = []
        for _ in range(2):
            with posted(server, [user("x")]) as response:
                statuses.append(response.status)
        assert statuses == [500, 500]
        assert [said(ask(server, user("x"))) for _ in range(3)] == ["ok", "later", "later"]


def test_a_cut_stream_is_seen_as_cut() -> None:
    with (
        ModelServer([Script("", [Step("hello", cut=True)])]) as server,
        posted(server, [user("x")], stream=True) as response,
        pytest.raises(http.client.IncompleteRead) as error,
    ):
        response.read()
    builder = wire.ReplyBuilder()
    for event in wire.decode_sse(error.value.partial.splitlines()):
        builder.add(event)
    assert not builder.complete


def test_a_gate_holds_until_released() -> None:
    with ModelServer([Script("", [Step("through", gate="door")])]) as server:
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(said(ask(server, user("x")))))
        waiting.start()
        assert server.wait_requests(1)
        assert answers == []
        server.release("door")
        waiting.join(10)
        assert answers == ["through"]
        assert said(ask(server, user("x"))) == "through"


def test_a_hang_ends_with_the_server() -> None:
    server = ModelServer([Script("K", [Step(hang=True)])]).start()
    ended: list[type[Exception]] = []

    def wait() -> None:
        try:
            ask(server, user("K"))
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


def test_requests_are_recorded_raw_and_secrets_stay_out_of_the_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ModelServer([Script("", [Step("x")])], log=log) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        body = json.dumps({"messages": [user("hi")]})
        connection.request("POST", "/v1/messages?beta=true", body, {"X-Api-Key": "sk-secret"})
        connection.getresponse().read()
        connection.request("POST", "/v1/messages", "not json")
        assert connection.getresponse().status == 400
        connection.close()
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
        connection.request("POST", "/v1/messages", json.dumps({"messages": [user("GO")]}))
        assert json.loads(connection.getresponse().read())["content"][0]["text"] == "hi"
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    script.write_text("nonsense")
    refused = subprocess.run(command, capture_output=True, env=env, check=False)
    assert refused.returncode == 2
    assert b"E4006" in refused.stderr
