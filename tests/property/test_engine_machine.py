"""The real engine over a real store, with attempts that end as hypothesis likes, against a plain model.

Only the far end is made up: an attempt is told to have started and ended, and the verdict on the evidence moves the
state. Caps, order, restarts and what `why` and `status` say are the engine's own.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.engine_room import ROOMS

from coreagent.capability import Caller, call
from coreagent.core import Core
from coreagent.dispatch import attempt as attempts_of_work
from coreagent.dispatch import claim, ending, rows
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.pools import Ending
from coreagent.dispatch.verdict import Evidence, judge
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Outcome, Reason, Usage
from coreagent.models.dispatch import ACTIVE, LEGAL_MOVES, Attempt, Dispatch, State
from coreagent.store.store import Store

T = TypeVar("T")
POOLS = ("claude", "codex", "free")
LIMITS = {"claude": 1, "codex": 2}
SAVED: tuple[dict[str, int], ...] = (
    LIMITS,
    {"claude": 2, "codex": 1},
    {"claude": 3, "claude-x": 1},
    {"de-x": 1, "co": 2},
)
"""What a person may save as `concurrency`: other caps, and pools for variants that come and go."""
PERSON = Caller(env={"PATH": "/usr/bin"})
OUTCOMES = st.builds(
    Outcome,
    terminal=st.sampled_from(["success", "error", "none"]),
    reason=st.sampled_from([None, Reason.RATE_LIMIT, Reason.AUTH, Reason.CONTEXT_OVERFLOW]),
    session_id=st.sampled_from(["", "s1", "s2"]),
    usage=st.builds(Usage, input=st.integers(0, 9)),
    resets_at=st.sampled_from([None, float("nan"), 1.0, 4e9]),
)
EVIDENCE = st.builds(
    Evidence,
    outcome=OUTCOMES,
    stopped_by=st.sampled_from(["", "", "pause", "cancel", "idle_timeout"]),
    died=st.booleans(),
    changed=st.booleans(),
    question=st.sampled_from(["", "", "what now?"]),
)


class Held(Engine):
    """The engine whose claimed attempts wait for the test."""

    def watch_over(self, dispatch: Dispatch, work: Any) -> None:
        work.close()


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        assert ROOMS
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(prefix="engine-"))
        (self.home / "run").mkdir()
        self.saves = 0
        self._save(LIMITS)
        self.store = Store.memory("a test")
        self.born: dict[str, int] = {}
        """Dispatch id -> runs that the model counted."""
        self.used: dict[str, int] = {}
        self.frozen: set[str] = set()
        self.seq = 0

    def _save(self, limits: dict[str, int]) -> None:
        self.limits, self.saves = limits, self.saves + 1
        told = ", ".join(f"{pool}: {limit}" for pool, limit in limits.items())
        text = f"version: 1\nconcurrency: {{{told}}}\nrates: {{free: {{}}}}\n{'#' * self.saves}\n"
        (self.home / "agents.yaml").write_text(text)

    def pool(self, d: Dispatch) -> str:
        """The pool that a task is of by what was saved last."""
        whole = f"command-{d.model}"
        return max((name for name in (*self.limits, "free") if name in whole), key=len, default="command")

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def ask(self, name: str, **arguments: Any) -> Any:
        return self.do(call(self.core, name, arguments, PERSON))

    @initialize()
    def open(self) -> None:
        self.core = Core(str(self.home), {"HOME": str(self.home)}, self.store)
        self.engine = self.core.engine = Held(self.core)
        self.do(self.engine.load())

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.store.close()
        shutil.rmtree(self.home)

    def one(self, data: st.DataObject, *states: State) -> Dispatch:
        return data.draw(st.sampled_from([d for d in self.engine.board.values() if d.state in states]))

    def some(self, *states: State) -> bool:
        return any(d.state in states for d in self.engine.board.values())

    @rule(limits=st.sampled_from(SAVED))
    def saved(self, limits: dict[str, int]) -> None:
        self._save(limits)
        self.core.refresh_settings()
        self.engine.facts()  # whoever looks next

    @rule(model=st.sampled_from((*POOLS, "claude-x")), priority=st.integers(-1, 1))
    def dispatched(self, model: str, priority: int) -> None:
        now = self.core.now()
        made = Dispatch(
            id=self.core.new_id(), org="o", repo="r", name=f"n{len(self.born)}", repo_path="/nowhere", task="t",
            agent=model, runner="command", model=model, pool="", priority=priority, created_at=now, queued_at=now,
            changed_at=now,
        )  # fmt: skip
        self.engine.board[made.id] = made
        self.do(self.engine.update(made))
        self.born[made.id] = self.used[made.id] = 0

    @rule()
    def claimed(self) -> None:
        facts = self.engine.facts()
        may = [d for d in self.engine.board.queued if not claim.obstacle(d, self.engine.board.queued, facts)]
        assert self.do(self.engine._claim_one()) is bool(may)
        if may:
            assert self.engine.board[may[0].id].state is State.PREPARING
            chosen = self.engine.board[may[0].id]
            held = [d for d in self.engine.board.active.values() if self.pool(d) == self.pool(chosen)]
            assert len(held) <= self.limits.get(self.pool(chosen), 99)
            assert self.engine.attempts[chosen.id].pool == self.pool(chosen)
            # All within minutes here: an hour of waiting, which outweighs a step of priority, does not pass.
            assert all((d.priority, may[0].queued_at) <= (may[0].priority, d.queued_at) for d in may[1:])

    @precondition(lambda self: self.some(State.PREPARING))
    @rule(data=st.data())
    def started(self, data: st.DataObject) -> None:
        chosen = self.one(data, State.PREPARING)
        self.do(attempts_of_work.mark_started(self.engine, chosen, self.engine.attempts[chosen.id], 1, 1))
        self.born[chosen.id] += 1

    @precondition(lambda self: self.some(State.RUNNING))
    @rule(data=st.data(), evidence=EVIDENCE)
    def ended(self, data: st.DataObject, evidence: Evidence) -> None:
        chosen = self.one(data, State.RUNNING)
        verdict = judge(evidence)
        attempt = self.engine.attempts[chosen.id].model_copy(
            update={"outcome": evidence.outcome, "ended_at": self.core.now()}
        )
        for _ in range(2):  # a settling that is cut off is done again, and counts once
            said = Ending(verdict.state, verdict.reason, verdict.detail, evidence.outcome)
            controls = self.engine.pools.ended(chosen, said, self.core.now(), 5)
            changes = ending.changes(self.engine, chosen, attempt, verdict, evidence.question, controls)
            if self.engine.board[chosen.id] is chosen:
                self.do(self.engine.update(chosen, attempt=attempt, controls=controls, **changes))
        self.used[chosen.id] += evidence.outcome.usage.input

    @precondition(lambda self: self.some(State.QUEUED))
    @rule(data=st.data(), how=st.sampled_from(["pause", "cancel", "queue.drop"]))
    def stopped(self, data: st.DataObject, how: str) -> None:
        chosen = self.one(data, State.QUEUED)
        self.ask(how, workspace=chosen.id)
        wanted = State.PAUSED if how == "pause" else State.CANCELLED
        assert self.engine.board[chosen.id].state is wanted

    @precondition(lambda self: self.some(State.PAUSED, State.CANCELLED, State.FAILED))
    @rule(data=st.data(), said=st.sampled_from(["", "more"]))
    def resumed(self, data: st.DataObject, said: str) -> None:
        chosen = self.one(data, State.PAUSED, State.CANCELLED, State.FAILED)
        try:
            self.ask("resume", workspace=chosen.id, prompt=said)
        except CoreAgentError as error:
            assert error.slug == "workspace_gone"  # it ran, and no directory was ever made here
            assert chosen.runs
            assert self.engine.board[chosen.id] == chosen
            return
        now = self.engine.board[chosen.id]
        assert now.state is State.QUEUED
        assert said in now.next_prompt

    @rule(pool=st.sampled_from(["", *POOLS]))
    def froze(self, pool: str) -> None:
        self.ask("queue.freeze", pool=pool)
        self.frozen.add(pool)

    @rule(pool=st.sampled_from(["", *POOLS]))
    def thawed(self, pool: str) -> None:
        parked = dict(self.engine.pools.parks)
        waits = {d.id: d.waiting_until for d in self.engine.board.queued}
        was_frozen = pool in self.frozen
        self.ask("queue.start", pool=pool)
        self.frozen = self.frozen - {pool} if pool else set()
        if was_frozen or not pool:
            assert self.engine.pools.parks == parked
            assert {d.id: d.waiting_until for d in self.engine.board.queued} == waits
        else:
            assert pool not in self.engine.pools.parks
            assert not any(d.waiting_until for d in self.engine.board.queued if d.pool == pool)

    @rule()
    def restarted(self) -> None:
        before = dict(self.engine.board)
        self.open()
        assert {k: d.model_dump(mode="json") for k, d in self.engine.board.items()} == {
            k: d.model_dump(mode="json") for k, d in before.items()
        }

    @invariant()
    def caps_hold_and_nothing_is_lost(self) -> None:
        if not hasattr(self, "engine"):
            return
        assert all(d.pool == self.pool(d) for d in self.engine.board.values() if d.state is State.QUEUED)
        assert self.engine.running() == Counter(self.pool(d) for d in self.engine.board.active.values())
        assert {k: (d.runs, d.usage.input) for k, d in self.engine.board.items()} == {
            k: (runs, self.used[k]) for k, runs in self.born.items()
        }
        assert self.seq <= self.engine.seq
        self.seq = self.engine.seq
        counts = rows.report(self.engine, True).counts.model_dump()
        assert sum(counts.values()) == len(self.born)

    @invariant()
    def why_is_true(self) -> None:
        if not hasattr(self, "engine"):
            return
        facts = self.engine.facts()
        for d in self.engine.board.values():
            headline = self.ask("why", workspace=d.id).headline
            match d.state:
                case State.QUEUED if "" in self.frozen:
                    assert headline.startswith("The queue is frozen")
                case State.QUEUED if d.pool in self.frozen:
                    assert headline.startswith(f"Pool {d.pool} is frozen")
                case State.QUEUED if d.waiting_until and d.waiting_until > facts.now + timedelta(seconds=1):
                    assert "rate limit" in headline
                    assert ("its session" in headline) == (d.next_kind == "resume")
                case State.QUEUED if self.engine.pools.parks.get(d.pool):
                    assert "parked" in headline or "about to start" in headline or "in use" in headline
                case State.QUEUED if facts.running.get(d.pool, 0) >= self.limits.get(d.pool, 99):
                    assert "in use" in headline
                case State.QUEUED:
                    assert headline
                case _:
                    word = {"completed": "ended well", "blocked": "what now?", "preparing": "prepared"}
                    word |= {"completed": "none came"} if d.reason is Reason.NO_CHANGES else {}
                    assert word.get(d.state.value, d.state.value) in headline

    @invariant()
    def who_holds_no_slot_has_ended(self) -> None:
        if not hasattr(self, "engine"):
            return
        for key, d in self.engine.board.items():
            attempt: Attempt | None = self.engine.attempts.get(key)
            assert (d.state in ACTIVE) == (attempt is not None and attempt.ended_at is None)
            assert d.state in LEGAL_MOVES


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
