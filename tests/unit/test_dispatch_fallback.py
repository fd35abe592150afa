"""A list of agents: which one goes on, and that the story of it is told as it was."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh

from coreagent.capability import Caller
from coreagent.dispatch import fallback
from coreagent.dispatch.park import Park
from coreagent.models.dispatch import State

FAILS = 'case "$0" in other) echo x > b.txt;; *) exit 3;; esac'


def test_each_attempt_is_told_with_the_agent_that_made_it(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        agents = "acp:copilot,command:work,command:other"
        made = await room.ask("dispatch", task="do", name="one", agent=agents, ephemeral=True)
        found = room.engine.board[made.dispatch_id]
        done = await room.until(found, State.COMPLETED, State.FAILED)
        assert (done.state, done.agent) == (State.COMPLETED, "command:other")
        facts = (await room.ask("why", workspace="one")).facts
        assert "queued for acp:copilot, else command:work, else command:other in" in facts[0]
        (passed,), (first,), (handed,), (second,) = (
            [at for at, line in enumerate(facts) if words in line]
            for words in (
                "acp:copilot was passed over: runner missing",
                "attempt 1 executed (dispatch), command:work, shim",
                "command:work failed (error); command:other goes on",
                "attempt 2 executed (fresh), command:other, shim",
            )
        )
        assert passed < first < handed < second
        told = [("acp:copilot", "runner_missing"), ("command:work", "error")]
        shown = await room.ask("workspace.show", workspace="one")
        assert [(one.agent, one.reason) for one in shown.tried] == told
        assert [one["agent"] for one in shown.attempts] == ["command:work", "command:other"]
        assert shown.agents == agents.split(",")
        (row,) = await room.ask("history")
        assert [(one.agent, one.reason) for one in row.tried] == told

    in_room(tmp_path, body, running=True, script=FAILS)


def test_who_is_parked_is_passed_over_and_not_forgotten(tmp_path: Path) -> None:
    settings = "concurrency: {command-work: 1, command-other: 1}\n"

    async def body(room: Room) -> None:
        made = await room.ask("dispatch", task="do", agent="command:work,command:other,claude:x", ephemeral=True)
        now = room.core.now()
        for pool in ("command-work", "command-other"):
            room.engine.pools.parks[pool] = Park(until=now + timedelta(hours=1), why="rate_limit", since=now)
        moved = fallback.around_park(room.engine, room.engine.board[made.dispatch_id], now)
        assert moved is not None and moved["agent"] == "claude:x"
        assert [(one.agent, one.reason, one.passing) for one in moved["tried"]] == [
            ("command:work", "parked", False),
            ("command:other", "parked", True),
        ]
        told = fallback.story(room.engine.board[made.dispatch_id].model_copy(update=moved))
        assert [line for _, line in told] == [
            "command:work was passed over: its pool was parked",
            "command:other was passed over: its pool was parked",
        ]
        # When the one that goes on fails too, who was only passed over gets it.
        del room.engine.pools.parks["command-other"]
        parked = room.engine.board[made.dispatch_id].model_copy(update={**moved, "pool": "command-work"})
        again = fallback.around_park(room.engine, parked, now)
        assert again is not None and again["agent"] == "command:other"

    in_room(tmp_path, body, settings=settings)


def test_what_waits_for_a_pool_is_told_how_it_can_go_on(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.ask("dispatch", task="do", name="one", ephemeral=True)
        found = room.engine.find("one")
        assert (await room.ask("why", workspace="one")).next[0] == "core-agent queue drop one"
        now = room.core.now()
        room.engine.pools.parks["command"] = Park(until=now + timedelta(hours=1), why="rate_limit", since=now)
        assert (await room.ask("why", workspace="one")).next[0] == "core-agent queue start --pool command"
        await room.engine.update(found, waiting_until=now + timedelta(hours=1), waiting_for="rate_limit")
        offered = (await room.ask("why", workspace="one")).next
        assert {"core-agent queue start --pool command", "core-agent resume one"} == set(offered[:2])
        await room.ask("resume", workspace="one")  # what is offered can be done

    in_room(tmp_path, body)


def test_what_a_checkout_would_have_executed_is_told_and_the_next_agent_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "opencode"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 1.18.33\n")
    program.chmod(0o755)

    async def body(room: Room) -> None:
        plugin = room.repo / ".opencode" / "plugin" / "x.ts"
        plugin.parent.mkdir(parents=True)
        plugin.write_text("")
        sh(room.repo, "add", "-f", ".opencode")
        sh(room.repo, "commit", "-q", "-m", "plugin")
        env = {**room.env, "PATH": f"{program.parent}:{room.env['PATH']}"}
        person = Caller(cwd=str(room.repo), env=env)
        for agents, state in (("acp:opencode", State.FAILED), ("acp:opencode,command:other", State.COMPLETED)):
            made = await room.ask("dispatch", person, task="do", agent=agents, ephemeral=True)
            done = await room.until(room.engine.board[made.dispatch_id], State.COMPLETED, State.FAILED)
            assert done.state is state, done
            if state is State.FAILED:
                assert "own plugins" in done.detail and "repo trust --bypass" in done.detail
                # It says nothing of the repository: no other agent has to wait for that.
                assert room.engine.pools.breakers == {}
            else:
                assert [(one.agent, one.reason) for one in done.tried] == [("acp:opencode", "consent_needed")]

    in_room(tmp_path, body, running=True, script=FAILS)
