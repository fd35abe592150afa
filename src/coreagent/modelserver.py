"""A model that says what a script says: an HTTP server on loopback that speaks every wire of the family on one port.

`doctor --offline` proves an installation with it, and the tests run the real agent CLIs against it. It decides nothing:
the step of a script is chosen by what the conversation already holds, so it survives a resume and its own restart. It
knows wires, not runners. Run it alone with `python -m coreagent.modelserver --script FILE`.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from coreagent import wires
from coreagent.errors import CoreAgentError
from coreagent.modelscript import Script, Step, Tool, parse_scripts
from coreagent.wires.base import Reply, Request, Route, Text, ToolUse, Wire

__all__ = ["ModelServer", "Recorded", "Script", "Step", "Tool", "parse_scripts", "working_directory"]

# Where the CLIs tell the model about their directory: claude, opencode; codex; gemini.
_CWD: Final = (
    re.compile(r"(?:[Ww]orking directory|cwd)\s*[:=]\s*(/[^\n<]*)"),
    re.compile(r"<cwd>(/[^<]*)</cwd>"),
    re.compile(r"(?:working in the directory:\s*|Workspace Directories:\W*\n\s*- )(/[^\n]*)"),
)
_IN: Final = re.compile(r"\{in (\d+(?:\.\d+)?)\}")
_KEY: Final = re.compile(r"(?<=[?&]key=)[^&]*")
_SECRETS: Final = frozenset({"authorization", "x-api-key", "x-goog-api-key", "proxy-authorization", "cookie"})
BODY_LIMIT: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class Recorded:
    """One request as it came, raw."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    key: str = ""
    step: int = -1
    """Index of the step that answered; -1 when none did."""
    wire: str = ""

    @property
    def json(self) -> dict[str, Any]:
        body = json.loads(self.body or b"{}")
        return body if isinstance(body, dict) else {}


class ModelServer:
    """The server; a context manager. `url` is what a CLI's base URL variable gets."""

    def __init__(
        self, scripts: Sequence[Script], *, host: str = "127.0.0.1", port: int = 0, log: Path | None = None
    ) -> None:
        self.scripts = list(scripts)
        self.requests: list[Recorded] = []
        self._served: dict[tuple[str, int], int] = {}
        self._log = log
        self._changed = threading.Condition()
        self._released: set[str] = set()
        self._closing = False
        self._http = _Http((host, port), self)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, name="modelserver", daemon=True
        )

    @property
    def url(self) -> str:
        host, port = self._http.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Let every held request go and stop. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def release(self, gate: str) -> None:
        """Let the requests held at `gate` be answered, now and later."""
        with self._changed:
            self._released.add(gate)
            self._changed.notify_all()

    def wait_requests(self, count: int, timeout_s: float = 10.0, key: str | None = None) -> bool:
        """Wait until `count` model requests came (of one script's key when given); False when time ran out."""

        def enough() -> bool:
            return sum(1 for r in self.requests if r.step >= 0 and (key is None or r.key == key)) >= count

        with self._changed:
            return self._changed.wait_for(enough, timeout_s)

    # ---- what the handler asks ----

    def choose(self, request: Request) -> tuple[str, int, Step]:
        """Pick the script and step for a conversation; a conversation no script knows gets a plain answer."""
        best: tuple[int, int, int, Script] | None = None
        for script in self.scripts:
            for index in range(len(request.turns) - 1, -1, -1):
                turn = request.turns[index]
                if turn.role == "user" and script.key in turn.text and (script.key or turn.text):
                    # CLIs join what was said after a failed turn to the message before: the last word counts.
                    at = turn.text.rfind(script.key) if script.key else -1
                    rank = (index, at, len(script.key), script)
                    if best is None or rank[:3] > best[:3]:
                        best = rank
                    break
        if best is None:
            return "", -1, Step(text="No script knows this conversation.")
        index, _, _, script = best
        if not request.tools and any(_acts(step) for step in script.steps):
            # A CLI's own question beside the conversation (for a title, say) quotes it, but could not use a tool.
            return "", -1, Step(text="An answer beside the script.")
        done = sum(turn.tool_results for turn in request.turns[index + 1 :])
        number = min(done, len(script.steps) - 1)
        return script.key, number, self._turn_of(script.key, number, script.steps[number])

    def _turn_of(self, key: str, number: int, step: Step) -> Step:
        with self._changed:
            served = self._served.get((key, number), 0)
            self._served[key, number] = served + 1
        while step.then is not None and step.times and served >= step.times:
            served -= step.times
            step = step.then
        return step

    def record(self, recorded: Recorded) -> None:
        with self._changed:
            self.requests.append(recorded)
            if self._log is not None:
                headers = {n: "***" if n.lower() in _SECRETS else v for n, v in recorded.headers.items()}
                line = {
                    "method": recorded.method,
                    "wire": recorded.wire,
                    "path": _KEY.sub("***", recorded.path),
                    "headers": headers,
                    "key": recorded.key,
                    "step": recorded.step,
                    "body": recorded.body.decode("utf-8", "replace"),
                }
                with self._log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
            self._changed.notify_all()

    def hold(self, step: Step) -> bool:
        """Wait as the step says; False when the server closes meanwhile, and so there is nobody to answer for."""
        with self._changed:
            if step.delay_s:
                self._changed.wait_for(lambda: self._closing, step.delay_s)
            if step.hang or step.gate:
                self._changed.wait_for(lambda: self._closing or (not step.hang and step.gate in self._released))
            return not self._closing


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    # A client that was killed leaves its thread in a hold; close() must not wait for it.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], model: ModelServer) -> None:
        self.model = model
        self.wires = [wires.load(name) for name in wires.FAMILY]
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is the normal end of a killed agent."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """The request log is `record`, not stderr."""

    def do_HEAD(self) -> None:
        self._note(b"")
        self._json(200, {})

    def do_GET(self) -> None:
        self._note(b"")
        wire, route = self._routed()
        self._json(200, wire.encode_models(()) if route else {"data": [], "has_more": False})

    def do_POST(self) -> None:
        wire, route = self._routed()
        try:
            length = int(self.headers.get("content-length", "0"))
        except ValueError:
            length = -1
        if not 0 <= length <= BODY_LIMIT:
            self._json(413, wire.encode_error(413, "request too large"), close=True)
            return
        body = self.rfile.read(length)
        if route == "reply":
            self._reply(wire, body)
            return
        self._note(body)
        if route == "count":
            self._json(200, wire.encode_count(10))
        else:
            self._json(404, wire.encode_error(404, f"no such endpoint: {self.path.partition('?')[0]}"))

    def _routed(self) -> tuple[Wire, Route]:
        path = self.path.partition("?")[0]
        for wire in self.server.wires:
            route = wire.route(self.command, path)
            if route:
                return wire, route
        return self.server.wires[0], ""

    def _note(self, body: bytes, key: str = "", step: int = -1, wire: str = "") -> None:
        headers = dict(self.headers.items())
        self.server.model.record(Recorded(self.command, self.path, headers, body, key, step, wire))

    def _reply(self, wire: Wire, body: bytes) -> None:
        try:
            raw = json.loads(body)
        except ValueError:
            raw = None
        if not isinstance(raw, dict):
            self._note(body, wire=wire.name)
            self._json(400, wire.encode_error(400, "the body is not a JSON object"))
            return
        request = wire.decode_request(self.path, raw)
        key, number, step = self.server.model.choose(request)
        self._note(body, key, number, wire.name)
        if not self.server.model.hold(step):
            self.close_connection = True
            return
        headers = _timed(step)
        if step.error:
            error = wire.encode_error(step.error, step.message or f"scripted error {step.error}", step.retry_s)
            self._json(step.error, error, headers=headers)
            return
        reply = _reply(step, request)
        if request.stream:
            self._stream(wire, reply, step, headers)
        elif step.cut:
            self.close_connection = True
        else:
            self._json(200, wire.encode_reply(reply), headers=headers)

    def _stream(self, wire: Wire, reply: Reply, step: Step, headers: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        # Chunked, so that a cut stream is seen as cut and not as a short one.
        self.send_header("transfer-encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        stream = wire.stream(reply)
        for chunk in stream.chunks[: stream.cut] if step.cut else stream.chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        if step.cut:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def _json(
        self, status: int, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if close:
            self.send_header("connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _timed(step: Step) -> dict[str, str]:
    now = time.time()
    headers = {"retry-after": f"{step.retry_s:g}"} if step.retry_s else {}
    headers |= step.headers
    return {name: _IN.sub(lambda m: str(round(now + float(m[1]))), value) for name, value in headers.items()}


def _all(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.then is not None:
            yield from _all([step.then])


def _acts(step: Step) -> bool:
    return any(one.tools for one in _all([step]))


def _reply(step: Step, request: Request) -> Reply:
    identity = uuid.uuid4().hex[:20]
    cwd = working_directory(request)
    blocks: list[Text | ToolUse] = []
    if step.text or not step.tools:
        blocks.append(Text(step.text))
    for index, tool in enumerate(step.tools):
        custom = _filled(tool.custom, cwd)
        blocks.append(ToolUse(f"toolu_{identity}{index}", tool.name, _filled(tool.input, cwd), tool.namespace, custom))
    return Reply(f"msg_{identity}", request.model, tuple(blocks), step.usage, step.stop_reason)


def working_directory(request: Request) -> str:
    """Return the directory the client told the model about, or "."."""
    texts = (request.system, *(turn.text for turn in request.turns))
    for text in texts:
        for pattern in _CWD:
            match = pattern.search(text)
            if match:
                return match.group(1).strip()
    return "."


def _filled(value: Any, cwd: str) -> Any:
    if isinstance(value, str):
        return value.replace("{cwd}", cwd)
    if isinstance(value, Mapping):
        return {key: _filled(item, cwd) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, cwd) for item in value]
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a script file until a signal; prints `{"url": ...}` first."""
    parser = argparse.ArgumentParser(prog="coreagent.modelserver", description="A scripted model on loopback.")
    parser.add_argument("--script", required=True, type=Path, help="YAML or JSON: scripts: [{key, steps}]")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append every request to this file, one JSON object a line")
    options = parser.parse_args(argv)
    try:
        scripts = parse_scripts(options.script.read_text(encoding="utf-8"))
    except CoreAgentError as error:
        sys.stderr.write("\n".join(error.lines()) + "\n")
        return error.exit_code
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ModelServer(scripts, port=options.port, log=options.log) as server, suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        while not stop.is_set():
            # A plain wait() would hold a signal back until somebody else wakes the thread.
            time.sleep(0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
