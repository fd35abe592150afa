"""The client of an agent that speaks the Agent Client Protocol: JSON-RPC 2.0, one message a line, over its pipes.

Ground floor, standard library only; the shim's loop comes in with what the agent wrote, and only for an attempt whose
spec says `acp`. It opens a session, gives the prompt, answers what the agent asks for, and ends the agent when the
prompt is answered. In `out` every line of the agent begins with `<`, so that none can pass for one of the shim's own,
which tell what was called and what was refused. It must not know what an ending means; a runner's parser says that.
"""

from __future__ import annotations

import os
import select

from coreagent.plainjson import dumps, loads
from coreagent.procfs import slurp
from coreagent.shim_files import Refused, inside, read_text, write_text

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from coreagent.spool import Spool

    class Host(Protocol):
        """What the shim offers."""

        out: Spool
        umask: int

        def on(self, fd: int, handler: Callable[[int], None], events: int = ...) -> None: ...
        def off(self, fd: int) -> None: ...
        def mute(self, fd: int) -> bool: ...
        def pump(self, fd: int) -> None: ...
        def record(self, what: str, **more: Any) -> None: ...
        def wind_down(self, after_s: float) -> None: ...


PROTOCOL = 1
LINE_MAX = 32 << 20
PROMPT_MAX = 64 << 20
OUTBOX_MAX = 1 << 20
"""With more than this unread, the agent is not listened to before it has read."""
QUIET_S = 3.0
"""How long an agent may take to leave once its standard input was closed."""
NOTES_MAX = 200
"""Refusals that are noted; an agent that keeps asking must not fill the disk."""
UPDATE = b'{"jsonrpc":"2.0","method":"session/update"'
"""How most agents begin what needs no answer: not parsed here, so that a flood costs little."""
NOT_FOUND, BAD_PARAMS, FAILED = -32601, -32602, -32603
RESOURCE_NOT_FOUND = -32002
READING = ("read", "search")
EDITING = ("edit", "delete", "move")


class Acp:
    """One prompt to one agent."""

    def __init__(self, host: Host, spec: dict[str, Any], agent_in: int, agent_out: int, now: float) -> None:
        self.host, self.wish = host, spec["acp"]
        self.fd, self.source = agent_in, agent_out
        self.cwd = str(spec["cwd"])
        self.bypass = self.wish.get("permissions") == "bypass"
        self.edits = ["/"] if self.bypass else [os.path.realpath(self.cwd)]
        self.reads = self.edits + [os.path.realpath(path) for path in self.wish.get("readable", ())]
        self.prompt = slurp(str(spec["stdin"]), PROMPT_MAX).decode("utf-8", "replace")
        self.deadline: float | None = now + float(self.wish.get("handshake_s") or 60)
        """When the session must stand; None once it does."""
        self.outbox, self.part, self.batch = bytearray(), bytearray(), bytearray()
        self.cut = self.calls = self.notes = 0
        self.waiting: dict[int, Callable[[dict[str, Any]], None]] = {}
        """What to do with the replies to our calls."""
        self.session = ""
        self.prompted = self.cancelled = self.over = False
        self.held = self.paused = False
        os.set_blocking(agent_in, False)

    # -- the conversation

    def begin(self) -> None:
        files = {"readTextFile": self.wish.get("reads") is not False, "writeTextFile": True}
        self.call(
            "initialize",
            {
                "protocolVersion": PROTOCOL,
                "clientCapabilities": {"fs": files, "terminal": False},
                "clientInfo": {"name": "core-agent", "version": str(self.wish.get("version", ""))},
            },
            self.initialized,
        )

    def initialized(self, reply: dict[str, Any]) -> None:
        result = self.must(reply)
        if result is None:
            return
        if result.get("protocolVersion") != PROTOCOL:
            self.fail("protocol", f"the agent speaks version {result.get('protocolVersion')!r:.40} of the protocol")
            return
        abilities = result.get("agentCapabilities")
        self.loads = isinstance(abilities, dict) and abilities.get("loadSession") is True
        if self.wish.get("auth"):
            self.call("authenticate", {"methodId": self.wish["auth"]}, self.authenticated)
        else:
            self.enter()

    def authenticated(self, reply: dict[str, Any]) -> None:
        if self.must(reply) is not None:
            self.enter()

    def enter(self) -> None:
        """Open the session that was asked for, or a new one."""
        earlier = self.wish.get("session")
        if not earlier:
            self.call("session/new", self.where(), self.opened)
        elif self.loads:
            self.call("session/load", {"sessionId": earlier, **self.where()}, self.loaded)
        else:
            self.lost("the agent cannot load sessions")

    def where(self) -> dict[str, Any]:
        return {"cwd": self.cwd, "mcpServers": self.wish.get("mcp") or []}

    def loaded(self, reply: dict[str, Any]) -> None:
        if "error" in reply:
            self.lost(said(reply["error"]))
        else:
            self.session = str(self.wish["session"])
            self.choose(reply.get("result"))

    def lost(self, why: str) -> None:
        """The earlier session is gone: a new one in the same workspace, with the prompt that is meant for one."""
        self.note("session_lost", session=self.wish["session"], why=why[:400], then="fresh")
        self.host.record("session_lost", session=self.wish["session"], why=why[:400], then="fresh")
        self.prompt = str(self.wish.get("fresh_prompt") or self.prompt)
        self.call("session/new", self.where(), self.opened)

    def opened(self, reply: dict[str, Any]) -> None:
        result = self.must(reply)
        if result is None:
            return
        session = result.get("sessionId")
        if not isinstance(session, str) or not session:
            self.fail("protocol", "the agent opened a session without an id")
            return
        self.session = session
        self.choose(result)

    def choose(self, offered: object) -> None:
        """Set mode and model, each only when asked for, in the way that the agent offers."""
        offered = offered if isinstance(offered, dict) else {}
        steps: list[tuple[str, dict[str, Any]]] = []
        if mode := self.wish.get("mode"):
            steps.append(("session/set_mode", {"modeId": mode}))
        if model := self.wish.get("model"):
            options = offered.get("configOptions")
            known = [each for each in options if isinstance(each, dict)] if isinstance(options, list) else []
            named = [
                each["id"] for each in known if "model" in (each.get("category"), each.get("id")) and each.get("id")
            ]
            if named:
                steps.append(("session/set_config_option", {"configId": named[0], "value": model}))
            else:
                steps.append(("session/set_model", {"modelId": model}))
        self.step(steps)

    def step(self, steps: list[tuple[str, dict[str, Any]]]) -> None:
        if not steps:
            self.ask()
            return
        (method, params), *rest = steps

        def then(reply: dict[str, Any]) -> None:
            if self.must(reply) is not None:
                self.step(rest)

        self.call(method, {"sessionId": self.session, **params}, then)

    def ask(self) -> None:
        self.deadline = None
        self.prompted = True
        content = [{"type": "text", "text": self.prompt}]
        self.call("session/prompt", {"sessionId": self.session, "prompt": content}, self.answered)
        self.prompt = ""
        if self.cancelled:
            self.tell("session/cancel", {"sessionId": self.session})

    def answered(self, reply: dict[str, Any]) -> None:
        self.end()

    def must(self, reply: dict[str, Any]) -> dict[str, Any] | None:
        """Return what a call brought; an error is the end (the parser reads it in the agent's own line)."""
        if "error" in reply:
            self.end()
            return None
        result = reply.get("result")
        return result if isinstance(result, dict) else {}

    def fail(self, what: str, why: str) -> None:
        self.note("failed", kind=what, why=why[:400])
        self.host.record("acp_failed", kind=what, why=why[:400])
        self.end(0.0)

    def end(self, quiet_s: float = QUIET_S) -> None:
        """Nothing more is to be said: close the agent's standard input, and have it ended if that does not."""
        self.over, self.deadline = True, None
        self.flush(self.fd)
        if self.paused:
            self.listen()
        self.host.wind_down(quiet_s)

    def cancel(self) -> bool:
        """Ask the agent to stop; False when it has nothing that it could stop."""
        if self.over or self.cancelled:
            return not self.over
        self.cancelled = True
        if not self.prompted:
            self.note("failed", kind="cancelled", why="stopped before the prompt was given")
            self.end(0.0)
            return False
        self.tell("session/cancel", {"sessionId": self.session})
        return True

    def due(self, now: float) -> float | None:
        """End an agent whose session does not come about; return when that will be."""
        if self.deadline is not None and now >= self.deadline:
            pending = max(self.waiting, default=0)
            self.fail("handshake_timeout", f"no answer to call {pending} of the handshake")
        return self.deadline

    # -- out

    def call(self, method: str, params: dict[str, Any], then: Callable[[dict[str, Any]], None]) -> None:
        self.calls += 1
        self.waiting[self.calls] = then
        loading = {"session": params["sessionId"]} if method == "session/load" else {}
        self.note("call", id=self.calls, method=method, **loading)
        self.send({"id": self.calls, "method": method, "params": params})

    def tell(self, method: str, params: dict[str, Any]) -> None:
        self.note("call", method=method)
        self.send({"method": method, "params": params})

    def send(self, message: dict[str, Any]) -> None:
        if self.fd < 0 or self.over:
            return
        self.outbox += dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        self.flush(self.fd)

    def flush(self, _: int) -> None:
        """Write what fits; the rest when there is room again. Never waits."""
        try:
            while self.outbox and self.fd >= 0:
                del self.outbox[: os.write(self.fd, self.outbox[: 1 << 16])]
        except BlockingIOError:
            pass
        except OSError:  # it closed its standard input; its output and its end tell the rest
            self.outbox.clear()
            self.shut()
        if self.fd >= 0 and self.over and not self.outbox:
            self.shut()
        if self.fd >= 0 and bool(self.outbox) != self.held:
            self.held = bool(self.outbox)
            if self.held:
                self.host.on(self.fd, self.flush, select.POLLOUT)
            else:
                self.host.mute(self.fd)
        if self.paused and len(self.outbox) <= OUTBOX_MAX:
            self.listen()

    def shut(self) -> None:
        if self.held:
            self.host.mute(self.fd)
        os.close(self.fd)
        self.fd, self.held = -1, False

    def listen(self) -> None:
        self.paused = False
        self.host.on(self.source, self.host.pump)

    def note(self, what: str, **more: Any) -> None:
        """A line of ours among the agent's."""
        self.drain()
        self.host.out.feed(dumps({"core_agent": "acp", "what": what, **more}).encode() + b"\n")

    # -- in

    def feed(self, data: bytes) -> None:
        """Take what the agent wrote: every line goes to `out`, and what needs an answer gets one."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self.part:
                self.hold(line)
                line, self.part = bytes(self.part), bytearray()
            self.line(line)
        self.hold(rest)
        self.drain()
        if len(self.outbox) > OUTBOX_MAX and not self.paused and not self.over:
            self.paused = True
            self.host.mute(self.source)

    def drain(self) -> None:
        if self.batch:
            batch, self.batch = bytes(self.batch), bytearray()
            self.host.out.feed(batch)

    def hold(self, data: bytes) -> None:
        room = LINE_MAX - len(self.part)
        self.part += data[:room]
        self.cut += max(0, len(data) - room)

    def line(self, line: bytes) -> None:
        if self.cut:
            self.note("cut", bytes=self.cut + len(line))
            self.cut = 0
            return
        if not line.strip():
            return
        self.batch += b"<" + line + b"\n"
        if line.startswith(UPDATE):
            return
        try:
            message = loads(line)
        except ValueError:
            return  # noise; agents print banners and warnings there
        if isinstance(message, dict):
            self.message(message)

    def message(self, message: dict[str, Any]) -> None:
        method, identity = message.get("method"), message.get("id")
        if isinstance(method, str):
            if "id" in message and not self.over:
                self.send({"id": identity, **self.reply(method, message.get("params"))})
        elif isinstance(identity, int) and not self.over and (then := self.waiting.pop(identity, None)):
            then(message)

    def close(self) -> None:
        """The agent is gone: what it began to write is a line too."""
        self.over = True
        if self.part:
            line, self.part = bytes(self.part), bytearray()
            self.line(line)
        self.drain()

    # -- what the agent asks

    def reply(self, method: str, params: object) -> dict[str, Any]:
        given = params if isinstance(params, dict) else {}
        try:
            if method == "session/request_permission":
                return {"result": {"outcome": self.permit(given)}}
            if method == "fs/read_text_file":
                text = read_text(given.get("path"), self.reads, given.get("line"), given.get("limit"))
                return {"result": {"content": text}}
            if method == "fs/write_text_file":
                write_text(given.get("path"), given.get("content"), self.edits, self.host.umask)
                return {"result": {}}
        except Refused as why:
            missing = str(why).startswith("Resource not found")
            if not missing:
                self.refuse(method.partition("/")[2], "", str(given.get("path"))[:400], str(why))
            return {"error": {"code": RESOURCE_NOT_FOUND if missing else BAD_PARAMS, "message": str(why)}}
        except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
            return {"error": {"code": FAILED, "message": str(error)[:400]}}
        return {"error": {"code": NOT_FOUND, "message": f"{method[:100]} is not offered here"}}

    def permit(self, asked: dict[str, Any]) -> dict[str, str]:
        """Answer a request for permission by the policy; nobody is there to be asked."""
        options = [each for each in asked.get("options") or () if isinstance(each, dict)]
        tool = asked.get("toolCall")
        tool = tool if isinstance(tool, dict) else {}
        allowed = not self.cancelled and (self.bypass or self.harmless(tool))
        for kind in ("allow_once", "allow_always") if allowed else ("reject_once", "reject_always"):
            for option in options:
                if option.get("kind") == kind and isinstance(option.get("optionId"), str):
                    if not allowed:
                        self.deny(tool)
                    return {"outcome": "selected", "optionId": option["optionId"]}
        self.deny(tool)
        return {"outcome": "cancelled"}

    def deny(self, tool: dict[str, Any]) -> None:
        if not self.cancelled:
            self.refuse(str(tool.get("kind") or "other")[:100], str(tool.get("toolCallId"))[:200], describe(tool), "")

    def harmless(self, tool: dict[str, Any]) -> bool:
        """Whether a tool only reads or edits, and only inside the workspace, as far as it says."""
        kind = tool.get("kind")
        if kind not in READING + EDITING:
            return kind == "think"
        places = [*(tool.get("locations") or ()), *(tool.get("content") or ())]
        named = [each["path"] for each in places if isinstance(each, dict) and "path" in each]
        writing = kind in EDITING
        roots = self.edits if writing else self.reads
        return bool(named) and all(inside(path, roots, writing=writing) for path in named)

    def refuse(self, tool: str, identity: str, what: str, why: str) -> None:
        self.notes += 1
        if self.notes <= NOTES_MAX:
            self.note("denied", tool=tool, tool_id=identity, text=what[:400], why=why)
            self.host.record("denied", tool=tool, text=what[:400], why=why)


def describe(tool: dict[str, Any]) -> str:
    title = tool.get("title")
    return title[:400] if isinstance(title, str) else ""


def said(error: object) -> str:
    """What a JSON-RPC error says."""
    if not isinstance(error, dict):
        return str(error)
    data = error.get("data")
    details = data.get("details") if isinstance(data, dict) else data
    return ": ".join(str(part) for part in (error.get("message"), details) if isinstance(part, str) and part)
