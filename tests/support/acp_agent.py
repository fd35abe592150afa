"""An agent that speaks the Agent Client Protocol as a test tells it to: `acp_agent.py BEHAVIOUR`. Hostile ones too.

Standard library only, run with `python -I -S`. What it saw goes to `seen.jsonl` in its working directory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

BEHAVIOUR = sys.argv[1]
HERE = os.getcwd()
SESSION = "sess-1"
number = 100


def say(message: dict[str, Any]) -> None:
    raw = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"
    while raw:
        raw = raw[os.write(1, raw) :]


def update(what: str, **more: Any) -> None:
    say({"method": "session/update", "params": {"sessionId": SESSION, "update": {"sessionUpdate": what, **more}}})


def text(words: str) -> None:
    update("agent_message_chunk", content={"type": "text", "text": words})


def hear() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    message: dict[str, Any] = json.loads(line)
    with open(f"{HERE}/seen.jsonl", "a") as seen:
        seen.write(json.dumps(message) + "\n")
    return message


def ask(method: str, **params: Any) -> dict[str, Any]:
    global number
    number += 1
    say({"id": number, "method": method, "params": {"sessionId": SESSION, **params}})
    while True:
        message = hear()
        if message.get("id") == number and "method" not in message:
            return message


def permission(kind: str, *paths: str, **more: Any) -> str:
    options = [
        {"optionId": "always", "kind": "allow_always", "name": "Always"},
        {"optionId": "yes", "kind": "allow_once", "name": "Yes"},
        {"optionId": "no", "kind": "reject_once", "name": "No"},
    ]
    tool = {"toolCallId": f"t-{number}", "kind": kind, "title": f"{kind} it", "locations": [{"path": p} for p in paths]}
    reply = ask("session/request_permission", toolCall={**tool, **more}, options=options)
    return str(reply["result"]["outcome"].get("optionId", "cancelled"))


def work(identity: Any, words: str) -> None:
    """What is done with the prompt."""
    stop: dict[str, Any] = {"stopReason": "end_turn"}
    match BEHAVIOUR:
        case "edit":
            text("I ")
            text("will.")
            update("tool_call", toolCallId="t-1", title="write", kind="edit", status="pending")
            if permission("edit", f"{HERE}/a.txt") == "yes":
                ask("fs/write_text_file", path=f"{HERE}/a.txt", content="hello\n")
            update("tool_call_update", toolCallId="t-1", status="completed")
            text("Done.")
            stop["usage"] = {"inputTokens": 1000, "outputTokens": 50, "cachedReadTokens": 30, "totalTokens": 1080}
        case "greedy":
            with open(f"{HERE}/secret-link", "w"):
                pass
            os.unlink(f"{HERE}/secret-link")
            os.symlink("/etc", f"{HERE}/link")
            asked = {
                "edit inside": permission("edit", f"{HERE}/b.txt"),
                "edit by diff": permission("edit", content=[{"type": "diff", "path": f"{HERE}/b.txt"}]),
                "edit nowhere": permission("edit"),
                "edit outside": permission("edit", f"{HERE}/b.txt", "/etc/passwd"),
                "edit through a link": permission("edit", f"{HERE}/link/passwd"),
                "edit git": permission("edit", f"{HERE}/.git/hooks/pre-commit"),
                "read inside": permission("read", f"{HERE}/b.txt"),
                "read outside": permission("read", "/etc/passwd"),
                "execute": permission("execute", HERE),
                "fetch": permission("fetch"),
                "nonsense": permission("hologram", HERE),
                "think": permission("think"),
                "no options": str(ask("session/request_permission", toolCall=None, options=None)["result"]["outcome"]),
            }
            files = {
                "write": ask("fs/write_text_file", path=f"{HERE}/deep/er/c.txt", content="c"),
                "write outside": ask("fs/write_text_file", path=f"{HERE}/../out.txt", content="c"),
                "write through a link": ask("fs/write_text_file", path=f"{HERE}/link/out.txt", content="c"),
                "write git": ask("fs/write_text_file", path=f"{HERE}/.git/config", content="c"),
                "read": ask("fs/read_text_file", path=f"{HERE}/deep/er/c.txt"),
                "read missing": ask("fs/read_text_file", path=f"{HERE}/none.txt"),
                "read outside": ask("fs/read_text_file", path="/etc/passwd"),
                "read through a link": ask("fs/read_text_file", path=f"{HERE}/link/passwd"),
                "read a directory": ask("fs/read_text_file", path=HERE),
                "relative": ask("fs/read_text_file", path="seen.jsonl"),
                "terminal": ask("terminal/create", command="id"),
                "unknown": ask("no/such", a=1),
                "bad": ask("fs/read_text_file", path=7, line="x"),
            }
            with open(f"{HERE}/answers.json", "w") as answers:
                json.dump({"asked": asked, "files": files}, answers)
        case "slow" | "stops well":
            text("slow")
            reason = "cancelled" if BEHAVIOUR == "slow" else "end_turn"
            while True:
                message = hear()
                if message.get("method") == "session/cancel":
                    say({"id": identity, "result": {"stopReason": reason}})
                    hear()
        case "deaf":
            text("deaf")
            signal.signal(signal.SIGTERM, lambda *_: (text("asked by signal"), os._exit(9)))
            while True:
                time.sleep(60)
        case "stubborn":
            text("stubborn")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say({"id": identity, "result": stop})
            while True:
                time.sleep(60)
        case "forger":
            os.write(1, b'{"core_agent": "acp", "what": "call", "id": 77, "method": "session/prompt"}\n')
            os.write(1, b'{"core_agent": "dropped", "bytes": 5}\n<{"id": 3, "result": {"stopReason": "end_turn"}}\n')
            os.write(1, b'{"jsonrpc": "2.0", "id": 77, "result": {"stopReason": "end_turn"}}\n\xff\xfe\n[]\n"x"\n')
            os.write(1, b"[" * 100_000 + b"\n" + b'{"half": ')
            os._exit(0)
        case "flood":
            for _ in range(2000):
                text("x" * 1000)
            long = b'{"jsonrpc":"2.0","method":"session/update","params":{"x":"' + b"y" * (40 << 20) + b'"}}\n'
            while long:
                long = long[os.write(1, long[: 1 << 20]) :]
        case "asks without reading":
            for n in range(20000):
                say({"id": n, "method": "fs/read_text_file", "params": {"path": f"{HERE}/big.txt"}})
        case "error":
            data = {"errorKind": "rate_limit"}
            say({"id": identity, "error": {"code": -32603, "message": "Rate limited", "data": data}})
            return
        case "exits":
            text("bye")
            os._exit(3)
    say({"id": identity, "result": stop})


def main() -> None:
    if BEHAVIOUR == "silent":
        time.sleep(600)
    if BEHAVIOUR == "dies at once":
        sys.stderr.write("cannot start: no login\n")
        sys.exit(41)
    if BEHAVIOUR == "noise":
        os.write(1, b"Welcome to the agent!\n\x1b[31mwarning\x1b[0m\n\n{not json\n")
    while True:
        message = hear()
        identity, method, params = message.get("id"), message.get("method"), message.get("params") or {}
        match method:
            case "initialize":
                version = 7 if BEHAVIOUR == "other version" else 1
                abilities = {"loadSession": BEHAVIOUR != "no load"}
                say({"id": identity, "result": {"protocolVersion": version, "agentCapabilities": abilities}})
            case "session/new" if BEHAVIOUR == "no login":
                say({"id": identity, "error": {"code": -32000, "message": "Authentication required"}})
            case "session/new":
                options = [{"id": "model", "category": "model", "type": "select"}] if BEHAVIOUR == "options" else None
                say({"id": identity, "result": {"sessionId": SESSION, "configOptions": options}})
            case "session/load" if params.get("sessionId") != SESSION:
                error = {"code": -32603, "message": "Internal error", "data": {"details": "no such session"}}
                say({"id": identity, "error": error})
            case "session/load":
                text("from before")
                say({"id": identity, "result": None})
            case "session/set_mode" if params.get("modeId") == "wrong":
                say({"id": identity, "error": {"code": -32602, "message": "no such mode"}})
            case "session/prompt":
                work(identity, params["prompt"][0]["text"])
            case _ if identity is not None and method:
                say({"id": identity, "result": {}})


main()
