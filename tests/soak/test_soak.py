"""Two hundred tasks of real processes, eight at once, with faults: what the daemon holds must not grow."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pytest

from tests.support.home import Home
from tests.support.world import World

SECONDS = float(os.environ.get("CORE_AGENT_SOAK", "0"))
TASKS = int(os.environ.get("CORE_AGENT_SOAK_TASKS", "200"))
AT_ONCE = 8
ROUND = 10
SETTLED = ("attempts", "workspace", "run", "pending")
"""Directories that are as empty after a round as before it; store and archive are the history and grow."""
STEPS = (
    "{write: {path: made.txt, content: made}}",
    "{say: working}",
    "{wait: 0.3}",
    "{rate_limit: {resets_in: 1}}",
    "{block: 'Which one?'}",
    "{fail: error}",
    "{die: KILL}",
)


@dataclass(frozen=True)
class Held:
    """What a daemon holds while nothing runs."""

    memory_kib: int
    descriptors: int
    threads: int
    files: int
    processes: int

    @classmethod
    def of(cls, home: Home) -> Held:
        proc = Path(f"/proc/{home.daemon_pid}")
        told = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return cls(
            int(told["RssAnon"].split()[0]),
            len(list((proc / "fd").iterdir())),
            int(told["Threads"]),
            sum(len(names) for top in SETTLED for _, _, names in os.walk(home.core / top)),
            len(home.processes()),
        )


def rows(home: Home) -> list[dict[str, object]]:
    found: list[dict[str, object]] = home.json("status", "--all")["workspaces"]
    return found


def settle(home: Home, chance: random.Random, deadline: float) -> None:
    """Wait until nothing runs or waits, and hit somebody now and then meanwhile."""
    while busy := [r for r in rows(home) if r["state"] in ("queued", "preparing", "running")]:
        assert time.monotonic() < deadline, busy
        pids = [int(str(r["pid"])) for r in busy if r["pid"]]
        if pids and chance.random() < 0.3:
            try:
                os.kill(chance.choice(pids), chance.choice((signal.SIGKILL, signal.SIGTERM)))
            except ProcessLookupError:
                continue
        home.run("watch", "--once", "--timeout", "300ms", "--json", code=None)


@pytest.mark.soak
@pytest.mark.skipif(not SECONDS, reason="only with CORE_AGENT_SOAK=SECONDS (task soak)")
@pytest.mark.timeout(0)
def test_nothing_grows(home: Home) -> None:
    chance = random.Random(5)
    world = World(home)
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("command: 0}", f"scripted: {AT_ONCE}}}"))
    given, samples, ends = 0, [], time.monotonic() + SECONDS
    rounds = TASKS // ROUND
    while given < TASKS:
        began = time.monotonic()
        for _ in range(ROUND):
            given += 1
            steps = ", ".join(chance.choices(STEPS, weights=(4, 4, 4, 1, 1, 1, 1), k=chance.randint(1, 5)))
            file = home.dir / "script.yaml"
            file.write_text(f"steps: [{steps}]\n")
            home.run(
                "dispatch", "soak", "--name", f"t{given}", "--agent", "scripted", "--script", str(file),
                cwd=world.repo,
            )  # fmt: skip
        settle(home, chance, time.monotonic() + 120)
        home.run("queue", "start", "--pool", "scripted")
        home.run("queue", "start", "--repo", "local/repo", code=None)
        settle(home, chance, time.monotonic() + 120)
        for row in rows(home):
            home.run("reject", str(row["workspace"]))
        home.run("workspace", "clean")
        assert rows(home) == []
        samples.append(Held.of(home))
        print(json.dumps({f.name: getattr(samples[-1], f.name) for f in fields(Held)}), flush=True)
        left = (ends - time.monotonic()) / max(1, rounds - len(samples))
        time.sleep(max(0.0, min(left - (time.monotonic() - began), 30.0)))  # ten minutes are ten minutes
    third = len(samples) // 3
    early, late = samples[third : 2 * third], samples[-third:]
    for name, first, last in zip(
        [f.name for f in fields(Held)], zip(*map(astuple, early), strict=True), zip(*map(astuple, late), strict=True),
        strict=True,
    ):  # fmt: skip
        before, after = statistics.median(first), statistics.median(last)
        allowed = 0.05 * before + 4096 if name == "memory_kib" else 2
        assert after <= before + allowed, f"{name} grew from {before} to {after}: {samples}"
