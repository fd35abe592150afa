"""kill -9 at random moments, under load: of the daemon, of shims, of agents, of everything at once.

Invariants after every storm: every acknowledged task rests, none was executed twice in one attempt, none more often
than its `runs` say, its work is on its branch or rescued, and nothing is left over.
"""

from __future__ import annotations

import json
import random
import time

import pytest
from tests.support.home import Home
from tests.support.world import World, kill, shims_of

from coreagent import process

PER_ROUND = 2


def check(world: World, acknowledged: list[dict[str, object]], *, died_is_fine: bool) -> None:
    rows = world.settle(timeout=120)
    executed = world.executions()
    attempts = [attempt for _, attempt in executed]
    assert len(attempts) == len(set(attempts)), "an attempt was executed twice"
    for reply in acknowledged:
        row = rows[str(reply["dispatch_id"])]
        times = sum(1 for dispatch, _ in executed if dispatch == reply["dispatch_id"])
        if row["state"] == "completed":
            assert times == row["runs"] == 1, row
            made = world.file_at(str(row["branch"]), f"made-{row['dispatch_id']}.txt")
            assert made.startswith("task ")
        else:
            assert died_is_fine, row
            assert (row["state"], row["reason"]) == ("failed", "died"), row
            # `started` is written before the exec: an attempt that was cut off between them counts, and never ran.
            assert times <= row["runs"] == 1, row
    assert {d for d, _ in executed} <= set(rows)
    world.check_nothing_left(rows)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("half", [0, 1])
def test_the_daemon_is_killed_under_load(home: Home, rounds: int, half: int) -> None:
    """Each half takes half of the rounds, so that two workers share them."""
    chance = random.Random(half)
    world = World(home, seconds=0.05, limit=3)
    acknowledged = []
    for number in range(rounds // 2):
        for one in range(PER_ROUND):
            reply = world.dispatch(f"task {half} {number} {one}", code=None)
            if reply is not None:
                acknowledged.append(reply)
        time.sleep(chance.uniform(0, 0.25))  # the moment of the kill is what is random here
        home.kill_daemon()
    check(world, acknowledged, died_is_fine=False)
    assert len(acknowledged) >= rounds // 2 * PER_ROUND * 0.9


def test_shims_and_agents_are_killed(home: Home) -> None:
    chance = random.Random(7)
    world = World(home, seconds=0.2, limit=4)
    acknowledged = []
    for number in range(12):
        reply = world.dispatch(f"task {number}")
        assert reply is not None
        acknowledged.append(reply)
        victims = shims_of(home.core)
        if victims and number % 3 == 0:
            kill(chance.choice(victims))
        if victims and number % 3 == 1:
            agents = [pid for pid, what in home.processes().items() if "sleep" in what]
            for pid in agents[:1]:
                kill(pid)
        if victims and number % 4 == 3:
            home.kill_daemon()
            kill(chance.choice(victims))
    rows = world.settle()
    executed = world.executions()
    assert len({a for _, a in executed}) == len(executed)
    for reply in acknowledged:
        row = rows[reply["dispatch_id"]]
        assert row["state"] in ("completed", "failed")
        if row["state"] == "failed":
            assert row["reason"] in ("died", "error")
    world.check_nothing_left(rows)


def test_the_machine_goes_down(home: Home) -> None:
    """Everything is killed at once; the next daemon says what died, keeps its work, and goes on with the queue."""
    world = World(home, limit=2)
    running = [world.dispatch(f"task {n}", "--agent", "command:long") for n in range(2)]
    waiting = [world.dispatch(f"task {n}") for n in range(2, 4)]
    while len(world.executions()) < 2:
        home.run("watch", "--timeout", "1", "--json", code=None)
    for row in world.rows().values():
        if row["state"] == "running":
            place = home.core / "workspace" / row["workspace"] / "repo"
            (place / "half-done.txt").write_text("half\n")
    daemon = home.daemon_pid
    for pid in [daemon, *home.processes()]:
        kill(pid)
    rows = world.settle()
    for reply in running:
        assert reply is not None
        row = rows[reply["dispatch_id"]]
        assert (row["state"], row["reason"]) == ("failed", "died")
        assert world.file_at(row["branch"], "half-done.txt") == "half\n"
    for reply in waiting:
        assert reply is not None
        assert rows[reply["dispatch_id"]]["state"] == "completed"
    world.check_nothing_left(rows)


@pytest.mark.parametrize("what", ["attempts/*", "attempts/*/started"])
@pytest.mark.parametrize("dies", [True, False])
def test_an_agent_that_deletes_its_own_record_is_not_run_again(home: Home, what: str, dies: bool) -> None:
    world = World(home, settings=f"  sly: {{argv: [/bin/sh, -c, 'echo $CORE_AGENT_DISPATCH $CORE_AGENT_ATTEMPT >> "
                                 f"{home.dir}/ledger; echo work > work.txt; rm -rf {home.core}/{what}; "
                                 f"touch {home.dir}/gone; sleep 2']}}\n")  # fmt: skip
    reply = world.dispatch("task", "--agent", "command:sly")
    assert reply is not None
    while not (home.dir / "gone").exists():
        home.run("watch", "--timeout", "1", "--json", code=None)
    if dies:
        home.kill_daemon()
    row = world.settle()[reply["dispatch_id"]]
    assert len(world.executions()) == 1
    assert row["runs"] == 1
    assert row["state"] in ("failed", "completed")
    assert world.file_at(row["branch"], "work.txt") == "work\n"
    assert "was not executed" not in home.run("why", reply["workspace"]).out


def test_an_agent_that_deletes_its_record_and_kills_its_shim_leaves_nothing_running(home: Home) -> None:
    """Not even a child that emptied its environment: the session of the shim tells whose it is."""
    bare = f"env -i /bin/sh -c 'echo $$ > {home.dir}/child; exec /bin/sleep 900' &"
    script = f"{bare} while [ ! -s {home.dir}/child ]; do sleep 0.02; done; rm -rf {home.core}/attempts/*/started; "
    settings = f"  sly: {{argv: [/bin/sh, -c, {json.dumps(script + 'kill -9 $PPID')}]}}\n"
    world = World(home, settings=settings)
    reply = world.dispatch("task", "--agent", "command:sly")
    assert reply is not None
    row = world.settle()[reply["dispatch_id"]]
    assert (row["state"], row["reason"], row["runs"]) == ("failed", "died", 1)
    child = process.look(int((home.dir / "child").read_text()))
    assert child is None or child.dead


def test_agents_go_on_while_there_is_no_daemon(home: Home) -> None:
    world = World(home, seconds=1.0)
    reply = world.dispatch("task alone")
    assert reply is not None
    while not world.executions():
        home.run("watch", "--timeout", "1", "--json", code=None)
    home.kill_daemon()
    shims = shims_of(home.core)
    assert len(shims) == 1
    row = world.settle()[reply["dispatch_id"]]
    assert (row["state"], row["runs"]) == ("completed", 1)
    world.check_nothing_left(world.rows())


def test_many_clients_start_one_daemon(home: Home) -> None:
    world = World(home)
    clients = [home.start("daemon", "status", "--json") for _ in range(1)]
    clients += [home.start("status", "--json", cwd=world.repo) for _ in range(12)]
    for client in clients:
        client.communicate(timeout=60)
    assert all(client.returncode == 0 for client in clients[1:])
    daemons = [what for what in home.processes().values() if "coreagent.daemon" in what]
    assert len(daemons) == 1, daemons
