"""Rows of the terminal client: a warm `status`, and an MCP server that is ready."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.support.home import COMMAND

from bench.measure import Row, interleave, timed
from bench.person import Person, person

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
}


def empty_python(env: dict[str, str]) -> float:
    return timed(lambda: subprocess.run([sys.executable, "-c", "pass"], env=env, check=True))


def status(pairs: int) -> Row:
    """`core-agent status` as it is installed, its output read, while the daemon is there."""
    with person() as me:
        me.warm()

        def ours() -> float:
            return timed(
                lambda: subprocess.run([COMMAND, "status"], env=me.env, cwd=me.user, check=True, capture_output=True)
            )

        ours()
        measured = interleave(pairs * 5, ours, lambda: empty_python(me.env))
    return Row.of_ratio("warm status", 1.25, "python -c pass", measured)


def mcp(pairs: int) -> Row:
    """From the start of `core-agent mcp` to the answer to `initialize`."""
    with person() as me:
        me.warm()
        first, _ = session(me)
        sizes: list[float] = []

        def ours() -> float:
            took, size = session(me)
            sizes.append(size)
            return took

        measured = interleave(pairs * 2, ours, lambda: empty_python(me.env))
    return Row.of_time(
        "mcp ready", 60, "python -c pass", measured,
        parts={"first client of the daemon, ms": first * 1000, "client's memory, MB (aim <= 12)": max(sizes)},
    )  # fmt: skip


def session(me: Person) -> tuple[float, float]:
    """Seconds until a new MCP client has its first answer, and the MB its process then holds."""
    began = time.perf_counter()
    client = subprocess.Popen([COMMAND, "mcp"], env=me.env, cwd=me.user, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin and client.stdout
    client.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
    client.stdin.flush()
    answer = json.loads(client.stdout.readline())
    took = time.perf_counter() - began
    size = resident_mb(client.pid)
    client.stdin.close()
    client.wait(10)
    client.stdout.close()
    if "result" not in answer:
        raise RuntimeError(f"initialize was refused: {answer}")
    return took, size


def resident_mb(pid: int) -> float:
    """Resident memory, shared pages included; 0 where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next(float(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS"))
