"""Rows of a long queue and of many agents: a claim, a queue of 100,000, sixteen starts at once."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.fixture import repository
from bench.measure import Row, interleave, quartiles, timed
from bench.person import Person, person
from bench.terminal import resident_mb
from coreagent.capabilities import about, control, dispatch, place, review, status
from coreagent.capability import Caller, call
from coreagent.config import PoolLimit, RateSettings
from coreagent.core import Core
from coreagent.dispatch import claim
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.limits import Starts
from coreagent.dispatch.pacing import Window
from coreagent.dispatch.queue import Queue
from coreagent.models.dispatch import Attempt, Dispatch
from coreagent.store.change import SaveDispatch
from coreagent.store.store import Store

ROOMS = (about, control, dispatch, place, review, status)
"""Imported for what they register."""
LONG, SHORT = 100_000, 1_000
POOLS = 50
AGENTS = 16
BURN_S = 0.3
"""Processor time that a stand-in for a real CLI takes before it says its first word."""


def waiting(number: int, at: datetime, pool: str = "command") -> Dispatch:
    return Dispatch(
        id=f"01J{number:023d}", org="local", repo="project", name=f"task-{number}", repo_path="/p", task="Do nothing.",
        agent="command:noop", runner="command", model="noop", pool=pool, priority=number % 3, created_at=at,
        queued_at=at, changed_at=at, base_ref="main", base_sha="0" * 40,
    )  # fmt: skip


class Desk:
    """A real engine over a real store in which so many tasks wait; nothing is started but what is asked for."""

    def __init__(self, top: Path, count: int) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ca-bench-"))
        (self.home / "run").mkdir(mode=0o700)
        noop = {"argv": [shutil.which("true") or "true"]}
        (self.home / "agents.yaml").write_text(json.dumps({"version": 1, "commands": {"noop": noop}}))
        store = Store.open(str(self.home / "db.duckdb"), copy_every_s=0)
        began = datetime.now(UTC) - timedelta(days=1)
        for first in range(0, count, 5000):
            numbers = range(first, min(first + 5000, count))
            store.commit_now(*(SaveDispatch(waiting(n, began + timedelta(milliseconds=n))) for n in numbers))
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "GIT_CONFIG_GLOBAL": "/dev/null"}
        self.core = Core(str(self.home), env, store)
        self.engine = self.core.engine = Engine(self.core)
        self.engine.run_attempt = self._nothing
        self.caller = Caller(cwd=str(top), env=env)
        self.next = 0

    async def _nothing(self, engine: Engine, claimed: Dispatch, attempt: Attempt) -> None:
        """A claim is all that is measured."""

    async def ask(self, capability: str, /, **arguments: Any) -> Any:
        return await call(self.core, capability, arguments, self.caller)

    async def dispatch(self) -> None:
        self.next += 1
        await self.ask("dispatch", task="Do nothing.", name=f"new-{self.next}", agent="command:noop")

    async def drop(self) -> None:
        await self.ask("queue.drop", workspace=f"new-{self.next}")

    async def claim(self) -> None:
        assert await self.engine._claim_one()

    async def list(self) -> None:
        await self.ask("queue.list")

    async def status(self) -> None:
        await self.ask("status")

    async def close(self) -> None:
        await asyncio.sleep(0)  # the last claim may not have begun
        await self.engine.stop("leave")
        await asyncio.to_thread(self.core.store.close)
        shutil.rmtree(self.home)


def queue(pairs: int) -> Row:
    """Each operation with 100,000 waiting against 1,000, through the engine with a real store; the worst one counts."""
    with repository("small") as top:
        ratios = asyncio.run(_queue(top, pairs * 3))
    medians = {name: statistics.median(found) for name, found in ratios.items()}
    worst = max(medians, key=lambda name: medians[name])
    return Row(
        f"queue operations, {LONG:,} waiting", medians[worst], "x", 1.5, floor=f"the same with {SHORT:,}",
        spread=quartiles(ratios[worst]), pairs=len(ratios[worst]),
        parts={f"{name}, x": value for name, value in medians.items()},
        note=f"the worst one is {worst}",
    )  # fmt: skip


async def _queue(top: Path, rounds: int) -> dict[str, list[float]]:
    long, short = Desk(top, LONG), Desk(top, SHORT)
    try:
        for desk in (long, short):
            await desk.engine.load()
            await desk.dispatch()  # the first one registers the repository
            await desk.drop()
        ratios: dict[str, list[float]] = {}
        for number in range(rounds):
            for name in ("dispatch", "drop", "claim", "list", "status"):
                order = (long, short) if number % 2 else (short, long)
                took = {desk: await _timed(getattr(desk, name)) for desk in order}
                ratios.setdefault(name, []).append(took[long] / took[short])
        return ratios
    finally:
        await long.close()
        await short.close()


async def _timed(operation: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await operation()
    return time.perf_counter() - began


def decision(pairs: int) -> Row:
    """One look at 50 pools with every limit there is and 20 repositories each, none of which may start anything."""
    now = datetime.now(UTC)
    tasks = [waiting(n, now, f"pool{n % POOLS}").model_copy(update={"repo": f"r{n % 977 % 20}"}) for n in range(20_000)]
    names = [f"pool{n}" for n in range(POOLS)]
    starts = {name: Starts([(now - timedelta(minutes=n + 1), f"{n}") for n in range(200)]) for name in names}
    window = Window(kind="w", used=0.5, resets_at=now + timedelta(hours=2), seen_at=now, price=0.0001)
    facts = claim.Facts(
        now=now,
        limits={name: PoolLimit(total=4, models={"noop": 1}) for name in names},
        rates={name: RateSettings(daily_limit=500, min_delay=30, sustained_delay=50) for name in names},
        running=dict.fromkeys(names, 1),
        models={(name, "noop"): 1 for name in names},
        starts=starts,
        windows={name: [window] for name in names},
    )
    held, free = Queue(tasks), Queue(tasks)
    open_facts = claim.Facts(now=now, starts=starts, rates=facts.rates)

    def of(queue: Queue, known: claim.Facts) -> Callable[[], float]:
        return lambda: timed(lambda: claim.next_claim(queue, known))

    assert claim.next_claim(held, facts) is None
    assert claim.next_claim(free, open_facts) is not None
    measured = interleave(pairs * 20, of(held, facts), of(free, open_facts))
    return Row.of_time(
        f"claim decision, {POOLS} pools", 1.0, "the same where everything may start", measured,
        note=f"{len(tasks):,} wait, in 20 repositories a pool; all of them are held up by some limit",
    )  # fmt: skip


STAND_IN = f"""\
#!{sys.executable} -IS
import json, sys, time
if "--version" in sys.argv:
    print("2.1.328 (Claude Code)")
    sys.exit()
while time.process_time() < {BURN_S}:
    pass
def say(**record):
    print(json.dumps(record), flush=True)
say(type="system", subtype="init", session_id="11111111-1111-4111-8111-111111111111", model="m")
if "--once" in sys.argv:
    sys.exit()
time.sleep(600)
"""


def sixteen(pairs: int) -> Row:
    """From the first of 16 tasks given until the last agent has said a word, against 16 starts of the program."""
    with repository("small") as top, person(warm=0) as me:
        program = me.dir / "claude"
        program.write_text(STAND_IN)
        program.chmod(0o755)
        settings = json.loads((me.core / "agents.yaml").read_text())
        settings["runners"] = {"claude": {"path": str(program)}}
        settings["dispatch"]["memory_reserve_mib"] = 0
        (me.core / "agents.yaml").write_text(json.dumps(settings))
        me.env["ANTHROPIC_API_KEY"] = "none"
        me.warm()
        me.call("repo.add", path=str(top))
        sizes: list[tuple[float, float]] = []
        measured = interleave(max(3, pairs // 3), lambda: _all_up(me, top, sizes), lambda: _in_turn(program))
    return Row.of_ratio(
        f"{AGENTS} agents at once", 1.0, "one after the other", measured,
        parts={
            "one idle shim, MB (aim <= 12)": statistics.median(size for size, _ in sizes),
            "resident, MB": statistics.median(size for _, size in sizes),
        },
        note=f"a stand-in that takes {BURN_S:g} s of processor time; a shim's memory is its proportional set",
    )  # fmt: skip


def _all_up(me: Person, top: Path, sizes: list[tuple[float, float]]) -> float:
    """Seconds until all have spoken; then they are stopped."""
    began = time.perf_counter()
    given = [me.call("dispatch", task="Wait.", repo=str(top), agent="claude") for _ in range(AGENTS)]
    deadline = time.monotonic() + 120
    while sum(file.stat().st_size > 0 for file in (me.core / "attempts").glob("*/out")) < AGENTS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all came up\n{me.log()[-2000:]}")
        time.sleep(0.01)
    took = time.perf_counter() - began
    rows = me.call("status")["workspaces"]
    sizes += [(proportional_mb(row["pid"]), resident_mb(row["pid"])) for row in rows if row["pid"]]
    for one in given:
        me.call("cancel", workspace=one["dispatch_id"])
    me.clean()
    return took


def _in_turn(program: Path) -> float:
    def run() -> None:
        for _ in range(AGENTS):
            subprocess.run([str(program), "--once"], check=True, stdout=subprocess.DEVNULL)

    return timed(run)


def proportional_mb(pid: int) -> float:
    """Memory of a process, each shared page counted by how many share it; resident where that is not told."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next(float(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:"))
