"""The `scripted` runner's agent: a real process (`python -I`, standard library only) that plays one turn of a script.

It reads one JSON job from standard input and prints one JSON event per line. What it does is what a model would have
decided: edits, commands, waits, failures. It knows nothing of core-agent but these two formats.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

POLL_S = 0.02
OUTPUT_LIMIT = 16 * 1024


class Stop(Exception):
    """A step ended the turn with this exit code."""

    def __init__(self, code: int) -> None:
        self.code = code


def emit(kind: str, **fields: Any) -> None:
    """Print one event and flush: the reader is live."""
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()


def fail(reason: str, message: str, code: int, **fields: Any) -> NoReturn:
    emit("error", reason=reason, text=message, terminal=True, is_error=True, **fields)
    raise Stop(code)


def tool(number: int, name: str, text: str, result: str, is_error: bool = False) -> None:
    emit("tool_use", tool=name, text=text, tool_id=f"step-{number}")
    emit("tool_result", tool=name, text=result, tool_id=f"step-{number}", is_error=is_error)


def play(number: int, verb: str, value: Any) -> None:
    """Do one step of the script."""
    match verb:
        case "say":
            emit("text", text=value)
        case "write" | "append":
            path = Path(value["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w" if verb == "write" else "a", encoding="utf-8") as stream:
                stream.write(value["content"])
            if value.get("executable"):
                path.chmod(0o755)
            tool(number, "Write" if verb == "write" else "Append", value["path"], "written")
        case "replace":
            path = Path(value["path"])
            text = path.read_text(encoding="utf-8")
            if value["old"] not in text:
                tool(number, "Edit", value["path"], "the text to replace was not found", is_error=True)
                fail("error", f"{value['path']}: the text to replace was not found", 1)
            path.write_text(text.replace(value["old"], value["new"], 1), encoding="utf-8")
            tool(number, "Edit", value["path"], "edited")
        case "delete":
            Path(value["path"]).unlink()
            tool(number, "Delete", value["path"], "deleted")
        case "run":
            run(number, value)
        case "tool":
            tool(
                number,
                value["name"],
                value.get("input", ""),
                value.get("result", ""),
                is_error=bool(value.get("is_error")),
            )
        case "usage":
            emit("usage", usage=value["usage"], cost=value["cost"])
        case "wait":
            time.sleep(value)
        case "wait_for":
            wait_for(value)
        case "fail":
            fail(value["reason"], value.get("message", "the script says so"), value.get("exit", 1))
        case "rate_limit":
            resets_in = value.get("resets_in")
            fail(
                "rate_limit",
                value.get("message", "rate limited"),
                1,
                resets_at=None if resets_in is None else time.time() + resets_in,
            )
        case "block":
            Path("BLOCKED.md").write_text(value + "\n", encoding="utf-8")
            emit("text", text=value)
            raise Stop(0)
        case "exit":
            raise Stop(value)
        case "die":
            os.kill(os.getpid(), getattr(signal, f"SIG{value}"))
            time.sleep(60)


def run(number: int, value: dict[str, Any]) -> None:
    """Execute a command and show it as a tool; with `check`, a failure ends the turn."""
    shown = " ".join(value["argv"])
    emit("tool_use", tool="Bash", text=shown, tool_id=f"step-{number}")
    try:
        done = subprocess.run(
            value["argv"],
            env={**os.environ, **value.get("env", {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=value.get("timeout_s"),
            check=False,
        )
        code, output = done.returncode, done.stdout[-OUTPUT_LIMIT:].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        code, output = 124, "timed out"
    except OSError as error:
        code, output = 127, str(error)
    emit("tool_result", tool="Bash", text=output, tool_id=f"step-{number}", is_error=code != 0)
    if code and value.get("check"):
        fail("error", f"{shown}: exit code {code}", 1)


def wait_for(value: dict[str, Any]) -> None:
    deadline = time.monotonic() + value.get("timeout_s", 3600)
    while not Path(value["path"]).exists():
        if time.monotonic() > deadline:
            fail("timeout", f"{value['path']} did not appear", 1)
        time.sleep(POLL_S)


def next_turn(job: dict[str, Any]) -> int:
    """Return the index of the turn to play, or one past the last; remember that it began."""
    state = Path(job["state"])
    last = len(job["turns"]) - 1
    turn = 0
    if job["resume"]:
        try:
            before = json.loads(state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            fail("session_lost", f"no session {job['session']} is known here", 1)
        # The last turn is played again when it was cut off; otherwise a resume goes on with the next one.
        turn = before["turn"] + (1 if before["ended"] or before["turn"] < last else 0)
    remember(state, turn, ended=False)
    return turn


def remember(state: Path, turn: int, *, ended: bool) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    fresh = state.with_name(f".{state.name}.new")
    fresh.write_text(json.dumps({"turn": turn, "ended": ended}), encoding="utf-8")
    fresh.replace(state)


def main() -> int:
    """Play one turn; returns the exit code."""
    # A stop must look like a stop: by the signal itself, not by a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    job = json.load(sys.stdin)
    state = Path(job["state"])
    turn = -1
    try:
        emit("started", session_id=job["session"], model=job["model"])
        turn = next_turn(job)
        if turn >= len(job["turns"]):
            emit("text", text="The script has no further turn.")
        else:
            for number, (verb, value) in enumerate(job["turns"][turn], 1):
                play(number, verb, value)
        code = 0
    except Stop as stop:
        code = stop.code
    except OSError as error:
        with contextlib.suppress(Stop):
            fail("error", str(error), 1)
        code = 1
    if turn >= 0:
        remember(state, turn, ended=True)
    if code == 0:
        emit("result", text="done")
    return code


if __name__ == "__main__":
    sys.exit(main())
