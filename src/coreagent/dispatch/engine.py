"""The engine: the board of open dispatches, the one way to change them, and the loop that claims.

Every change goes through `update`: memory first (so that the next claim sees it), then one transaction with its
events, then the bus. Runs on the daemon's event loop only. It knows hands by their base and no face.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from coreagent import events, paths
from coreagent.core import Core
from coreagent.dispatch import admission, claim, environment, factsheet, fallback, names, ports, recovery, trust
from coreagent.dispatch import attempt as attempts_of_work
from coreagent.dispatch.after import After
from coreagent.dispatch.board import Board
from coreagent.dispatch.live import LiveAttempt
from coreagent.dispatch.notify import Notifier
from coreagent.dispatch.places import Places
from coreagent.dispatch.pools import KEPT, Pools
from coreagent.dispatch.strangers import Strangers
from coreagent.dispatch.upkeep import Upkeep
from coreagent.errors import CoreAgentError
from coreagent.git.inspect import Base
from coreagent.models.dispatch import ACTIVE, RESTING, Attempt, Dispatch, Event, Repo, State, check_move
from coreagent.nursery import Nursery
from coreagent.store.change import SaveAttempt, SaveDispatch, SaveEvent, SetControl
from coreagent.store.store import Store

log = logging.getLogger(__name__)

CLOCK_LOOK_S = 30.0
STOP_NOW_S = 20.0
"""How long a stop waits for turns to end and settle; what is left then, the next daemon settles."""


async def open_core(home: str, env: dict[str, str]) -> Core:
    """Open the store and the settings, and return a Core whose engine is loaded but not started.

    Raises: store_locked, store_newer, store_damaged. A file that cannot be opened for permission or I/O gives a
    store in memory; dispatch then needs `--ephemeral`, and status says so.
    """
    store = await asyncio.to_thread(_open_store, paths.database(home))
    core = Core(home, env, store)
    core.engine = Engine(core)
    await core.engine.load()
    return core


def _open_store(path: str) -> Store:
    try:
        return Store.open(path)
    except CoreAgentError as error:
        if error.slug != "store_unopenable":
            raise
        return Store.memory(": ".join(part for part in (error.message, error.cause) if part))


class Engine:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.board = Board()
        """Open dispatches by id: all whose workspace is not gone."""
        self.attempts: dict[str, Attempt] = {}
        """The last attempt of each dispatch on the board, by dispatch id."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.controls: dict[str, Any] = {}
        self.pools = Pools()
        self.after = After(self.board)
        self.places = Places(self)
        self.strangers = Strangers(self)
        self.free_memory = admission.free_memory
        self.upkeep = Upkeep(self)
        self.notifier = Notifier(self)
        self.run_attempt = attempts_of_work.run
        self.recover_attempt = recovery.recover
        """What a claim, and an attempt that a restart finds, come to: other hands than the real ones are for tests."""
        self.live: dict[str, LiveAttempt] = {}
        """Attempts that this daemon follows, by dispatch id."""
        self.bases: dict[str, Base] = {}
        """What intake found out about a repository, so that preparation need not look again."""
        self._applied: dict[str, trust.Applied] = {}
        self.reserved: set[tuple[str, str, str]] = set()
        """(org, repo, name) of dispatches on their way to the queue."""
        self.common_dirs: dict[str, str] = {}
        """Work tree -> git directory that it shares with the other worktrees of its repository, as last looked at."""
        self.arriving: set[str] = set()
        """Ids of new dispatches whose row is not durable yet: not to be claimed."""
        self.stop_wishes: dict[str, str] = {}
        """Why an attempt shall stop that is claimed and not yet followed, by dispatch id."""
        self.troubles: dict[str, str] = {}
        """What the daemon cannot do right now, by dispatch id, for `status`."""
        self.nursery = Nursery(core.home)
        self.draining = False
        self.stopping = False
        self._seq = 0
        self._poke = asyncio.Event()
        self.turns = 0
        """Counts what was told, so that nobody who looks and then waits misses what came in between."""
        self._changed = asyncio.Event()
        self._deciding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None

    # -- state ---------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        snapshot = await asyncio.to_thread(self.core.store.load)
        self.board = Board(d for d in snapshot.dispatches if not d.workspace_gone)
        self.after = After(self.board, snapshot.dispatches)
        self.attempts = {key: a for key, a in snapshot.attempts.items() if key in self.board}
        self.repos = {(r.org, r.name): r for r in snapshot.repos}
        self.controls = dict(snapshot.controls)
        self.places = Places(self)
        self.places.follow()
        self.pools.load(self.controls, await self.core.store.starts(self.core.now() - KEPT))
        self._seq = snapshot.last_seq

    @property
    def seq(self) -> int:
        """Sequence number of the newest event."""
        return self._seq

    async def update(
        self,
        dispatch: Dispatch,
        *messages: events.Message,
        attempt: Attempt | None = None,
        extra: Sequence[Any] = (),
        controls: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Dispatch:
        """Change one dispatch and tell of it, durably: the only place where state moves.

        `controls` are written in the same transaction and hold from then on.

        Raises: illegal_move; workspace_gone; store errors, after which the board is as before.
        """
        old = self.board.get(dispatch.id)
        if old is None:
            raise CoreAgentError("workspace_gone", f"{dispatch.workspace} was let go meanwhile")
        state = changes.get("state", old.state)
        if state is not old.state:
            check_move(old.state, state, f"{old.workspace}")
        now = self.core.now()
        since = now if state is not old.state or old.state_since is None else old.state_since
        new = old.model_copy(update={**changes, "changed_at": now, "state_since": since})
        if new.state is State.QUEUED:
            new = self.places.placed(new)
        # Those that waited for it go on, or are held up, in the transaction that ends it.
        followers = self.after.followers(new, self.arriving, now)
        told = [self._event(new, m) for m in (*messages, *self.pools.newly_parked(controls or {}, now))]
        told += [self._event(d, self._moved(d)) for d in (new, *(after for _, after in followers))]
        batch: list[Any] = [SaveDispatch(new), *(SaveEvent(e) for e in told), *extra, *_saved(controls or {})]
        batch += [SaveDispatch(after) for _, after in followers]
        if attempt is not None:
            batch.append(SaveAttempt(attempt))
        previous_attempt = self.attempts.get(new.id)
        self._remember(new, attempt)
        for _, after in followers:
            self._remember(after, None)
        try:
            saved = await self.core.store.commit(*batch)
        except BaseException:
            for before, after in [(old, new), *followers]:
                if self.places.same(self.board.get(after.id, after), after):
                    self._restore(before, previous_attempt if after is new else self.attempts.get(after.id))
            raise
        self._apply(controls or {})
        self._tell(saved)
        if followers or (old.state in ACTIVE and new.state not in ACTIVE):
            self.poke()  # a slot is free
        return new

    async def arrive(self, made: Sequence[Dispatch], extra: Sequence[Any] = ()) -> None:
        """Put new dispatches on the board and write them, all of them or none; not claimed before they are durable.

        Raises: store errors, after which none of them is on the board.
        """
        made = [self.places.placed(d) if d.state is State.QUEUED else d for d in made]
        told = [self._event(d, self._moved(d)) for d in made]
        self.arriving.update(d.id for d in made)
        for dispatch in made:
            self._remember(dispatch, None)
        try:
            saved = await self.core.store.commit(*extra, *map(SaveDispatch, made), *map(SaveEvent, told))
        except BaseException:
            for dispatch in made:
                self._remember(dispatch.model_copy(update={"workspace_gone": True}), None)
            raise
        finally:
            self.arriving.difference_update(d.id for d in made)
        self._tell(saved)

    def _tell(self, saved: Sequence[Event]) -> None:
        """Publish events that the store has numbered, and wake whoever waits in `changed`."""
        self._seq = max([self._seq, *(e.seq for e in saved)])
        self.core.bus.publish(*saved)
        self.turns += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _restore(self, old: Dispatch, attempt: Attempt | None) -> None:
        """Take a change back that could not be written."""
        old = self.places.placed(old) if old.state in (*ACTIVE, State.QUEUED) else old
        self.board[old.id] = old
        self.after.note(old)
        if attempt is not None:
            self.attempts[old.id] = attempt
        else:
            self.attempts.pop(old.id, None)

    def _remember(self, new: Dispatch, attempt: Attempt | None) -> None:
        self.after.note(new)
        if new.workspace_gone:
            for of_one in (self.board, self.attempts, self._applied, self.bases, self.troubles, self.stop_wishes):
                of_one.pop(new.id, None)
            return
        self.board[new.id] = new
        if attempt is not None:
            self.attempts[new.id] = attempt

    def _moved(self, d: Dispatch) -> events.Message:
        state, reason, moved = d.state.value, d.reason or "", d.state_since == d.changed_at
        return events.DispatchChanged(workspace=d.workspace, state=state, reason=reason, fate=d.fate, moved=moved)

    def _event(self, d: Dispatch, message: events.Message) -> Event:
        return Event(
            at=self.core.now(),
            name=message.type,
            dispatch_id=d.id,
            workspace=d.workspace,
            data=message.payload(),
        )

    async def announce(self, dispatch: Dispatch, *messages: events.Message) -> None:
        """Store and publish messages that change nothing."""
        told = [self._event(dispatch, m) for m in messages]
        self._tell(await self.core.store.commit(*(SaveEvent(e) for e in told)))

    async def proclaim(self, message: events.Message) -> None:
        """Store and publish a message that is of no dispatch."""
        event = Event(at=self.core.now(), name=message.type, data=message.payload())
        self._tell(await self.core.store.commit(SaveEvent(event)))

    async def set_controls(self, controls: Mapping[str, Any]) -> None:
        """Write controls that hold from now on; None and "" take one away."""
        if controls:
            await self.core.store.commit(*_saved(controls))
            self._apply(controls)
            self.poke()

    def _apply(self, controls: Mapping[str, Any]) -> None:
        for key, value in controls.items():
            if value in (None, ""):
                self.controls.pop(key, None)
            else:
                self.controls[key] = value
        self.pools.apply(controls)

    def find(self, text: str) -> Dispatch:
        """The open dispatch that `text` names (names.find)."""
        return names.find(text, self.board.called(text) or self.board.values())

    async def changed(self, timeout_s: float | None, since: int) -> bool:
        """Wait until anything was told after `turns` was `since`; False when the time ran out."""
        if self.turns != since:
            return True
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextlib.asynccontextmanager
    async def deciding(self, what: str) -> AsyncIterator[None]:
        """Hold off every other decision about a dispatch: resume, accept, reject, cleaning, and what attach changed.

        A decision looks at the dispatch after it came in here, and nothing it relies on is taken back before it is
        out again. The end of a turn is no decision and does not wait. Landings in a repository take turns the same way.
        """
        # Held by those who are in here or wait: it is gone with the last of them.
        lock = self._deciding.get(what) or self._deciding.setdefault(what, asyncio.Lock())
        async with lock:
            yield

    async def forget_environment(self, dispatch_id: str) -> None:
        """Remove the environment of a task that rests; one that was resumed meanwhile keeps it."""
        async with self.deciding(dispatch_id):
            dispatch = self.board.get(dispatch_id)
            if dispatch is None or dispatch.state in RESTING:
                environment.forget(self.core.home, dispatch_id)  # one unlink costs less than a change of thread

    async def apply_settings(self, dispatch: Dispatch) -> trust.Applied:
        """Find out which settings are in force for a dispatch, and remember it for `settings_of`."""
        repo = self.repos.get((dispatch.org, dispatch.repo))
        if repo is None:
            return trust.Applied(self.core.settings)
        known = self._applied.get(dispatch.id)
        if known is not None and known.made_from == trust.depends_on(self.core.settings, repo):
            return known
        applied = await asyncio.to_thread(trust.apply, self.core.settings, repo, dispatch.base_sha)
        self._applied[dispatch.id] = applied
        return applied

    def remember_settings(self, dispatch: Dispatch, applied: trust.Applied) -> None:
        """Note for `settings_of` what intake found in force."""
        self._applied[dispatch.id] = applied

    def forget_settings(self, dispatch: Dispatch) -> None:
        """A dispatch that intake looked at did not come to the board."""
        self._applied.pop(dispatch.id, None)

    def settings_of(self, dispatch: Dispatch) -> trust.Applied:
        """The settings in force for a dispatch, as `apply_settings` found them when its attempt began."""
        return self._applied.get(dispatch.id) or trust.Applied(self.core.settings)

    # -- who is running ------------------------------------------------------------------------------------------

    def live_shims(self) -> dict[tuple[int, int], Attempt]:
        """(pid, start time) of every shim of an attempt that has not been settled."""
        attempts = (self.attempts.get(key) for key in self.board.active)
        return {(a.shim_pid, a.shim_start): a for a in attempts if a is not None and a.shim_pid and a.ended_at is None}

    def dispatch_of_attempt(self, attempt_id: str) -> str:
        return next((a.dispatch_id for a in self.attempts.values() if a.id == attempt_id), "")

    def running(self) -> Counter[str]:
        """Slots held, by pool: recounted, never remembered."""
        return Counter(d.pool for d in self.board.active.values()) + self.strangers.running()

    def facts(self) -> claim.Facts:
        return factsheet.facts(self)

    # -- the loop ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reconcile with what happened while nobody looked, then begin to claim."""
        await recovery.reconcile(self)
        await self.after.look_again(self)
        self._loop_task = asyncio.create_task(self._drain(), name="drain")
        self.upkeep.start()
        self.notifier.start()

    def poke(self) -> None:
        """Look at the queue again, now."""
        self._poke.set()

    async def _drain(self) -> None:
        while not self.stopping:
            self._poke.clear()
            try:
                self.places.follow()
                await self.places.write()
                await self._tell_limits()
                await fallback.go_around_parks(self)
                while await self._claim_one():
                    pass
            except CoreAgentError as error:
                log.error("claim failed: %s", error.message)
                await asyncio.sleep(1)  # the store refused a write (disk full); a person may be freeing space
                self.poke()
            except Exception:
                log.exception("claim failed")  # a mistake of ours; a queue that stands still would be a worse one
                await asyncio.sleep(1)
                self.poke()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), self._until_next())

    async def _tell_limits(self) -> None:
        """Put the configured totals where the contract's `concurrency` group shows them."""
        totals = {f"limit:{pool}": limit.total for pool, limit in self.core.settings.concurrency.items()}
        known = {key: value for key, value in self.controls.items() if key.startswith("limit:")}
        for key in sorted(known.keys() | totals.keys()):
            if known.get(key) != totals.get(key):
                await self.core.store.commit(SetControl(key, totals.get(key)))
        self.controls = {k: v for k, v in self.controls.items() if k not in known} | totals

    def _until_next(self) -> float | None:
        facts = self.facts()
        when = claim.next_time(self.board.queued, facts)
        # Looked at again now and then: the clock of the wait does not count the sleep of a machine, nor a clock set.
        return None if when is None else min(max(0.0, (when - facts.now).total_seconds()), CLOCK_LOOK_S)

    async def _claim_one(self) -> bool:
        chosen = claim.next_claim(self.board.queued, self.facts(), self.arriving)
        if chosen is None:
            return False
        attempt = Attempt(
            id=self.core.new_id(),
            dispatch_id=chosen.id,
            n=chosen.attempts + 1,
            kind=chosen.next_kind,
            prompt=chosen.next_prompt,
            resume_session=chosen.session_id if chosen.next_kind == "resume" else "",
            session_id=str(uuid.uuid4()),
            agent=chosen.agent,
            pool=chosen.pool,
            claimed_at=self.core.now(),
        )
        self.core.crash_point("before-claim")
        self.pools.started(chosen.pool, attempt.claimed_at, attempt.id)
        try:
            claimed = await self.update(
                chosen,
                attempt=attempt,
                state=State.PREPARING,
                attempts=attempt.n,
                attempt_id=attempt.id,
                waiting_for="",
                waiting_until=None,
                **ports.block_for(self, chosen),
            )
        except BaseException:
            self.pools.never_started(chosen.pool, attempt.id)
            raise
        self.core.crash_point("after-claim")
        self.watch_over(claimed, self.run_attempt(self, claimed, attempt))
        return True

    def watch_over(self, dispatch: Dispatch, work: Any) -> None:
        """Run an attempt's coroutine as a task that can never end without the dispatch saying how."""
        task: asyncio.Task[None] = asyncio.create_task(
            attempts_of_work.guarded(self, dispatch, work), name=f"attempt {dispatch.workspace}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end_turn(self, dispatch_id: str, why: str) -> None:
        """Ask for the end of a claimed or running attempt; its settling tells when."""
        live = self.live.get(dispatch_id)
        if live is None:
            self.stop_wishes[dispatch_id] = why
        else:
            await live.stop(why)

    async def stop(self, mode: str) -> None:
        """`leave`: agents go on. `drain`: wait for running ones. `now`: stop them, keeping their work."""
        self.stopping = True
        self.draining = mode == "drain"
        self.poke()
        self.upkeep.stop()
        self.strangers.stop()
        if self._loop_task is not None:
            self._loop_task.cancel()
        if mode == "now":
            wishes = (self.end_turn(d.id, "shutdown") for d in self.busy())
            for failed in await asyncio.gather(*wishes, return_exceptions=True):
                if isinstance(failed, Exception):
                    log.error("a turn could not be told to end: %s", failed)
        while mode == "drain" and self._tasks:
            await asyncio.wait(self._tasks)
        if mode == "now" and self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_NOW_S)
        for one in list(self.live.values()):
            one.detach()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_NOW_S)
        await self.notifier.stop()
        self.nursery.close()

    def busy(self) -> Iterable[Dispatch]:
        return list(self.board.active.values())


def _saved(controls: Mapping[str, Any]) -> list[SetControl]:
    return [SetControl(key, None if value == "" else value) for key, value in controls.items()]
