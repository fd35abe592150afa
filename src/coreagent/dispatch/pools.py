"""What is known of pools and repositories beside the board: starts, parks, breakers, learned windows and sizes.

The engine comes in with how a turn ended and gets the controls to write with it, in the same transaction; what it holds
changes only by `apply`, after the commit, so that an ending which must be written twice is counted once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ValidationError

from coreagent import events
from coreagent.dispatch import admission, breaker, pacing, park
from coreagent.dispatch.breaker import Breaker
from coreagent.dispatch.gate import Gate
from coreagent.dispatch.limits import Starts
from coreagent.dispatch.pacing import Window
from coreagent.dispatch.park import Park, Trouble
from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import Dispatch, State

log = logging.getLogger(__name__)

KEPT = timedelta(days=8)
"""How long starts are remembered: the longest window that is priced."""
_KINDS: Mapping[str, type[BaseModel]] = {"park": Park, "trouble": Trouble, "breaker": Breaker, "window": Window}

Controls = dict[str, Any]
"""Key -> JSON value; None takes it away."""


@dataclass(frozen=True)
class Ending:
    """How a turn ended, as far as pools care."""

    state: State
    reason: Reason | None
    detail: str
    outcome: Outcome
    claimed_at: datetime | None = None
    max_rss: int = 0
    unusable: bool = False
    """That agent could not be used at all, which says nothing of the repository."""
    goes_on: bool = False
    """Another agent has the task now, so that a provider's failure costs no task."""


class Pools:
    def __init__(self) -> None:
        self.starts: dict[str, Starts] = {}
        self.parks: dict[str, Park] = {}
        self.troubles: dict[str, Trouble] = {}
        self.breakers: dict[str, Breaker] = {}
        """By org/repo."""
        self.windows: dict[str, list[Window]] = {}
        self.sizes: dict[str, int] = {}
        """Highest resident bytes of an agent, by the name that `admission.called` gives it."""
        self.gate = Gate()
        self.counting = asyncio.Lock()
        """Held from the reading of what an ending changes until that is written."""

    def load(self, controls: Mapping[str, Any], starts: Iterable[tuple[str, datetime, str]]) -> None:
        """Take over what the store holds; `starts` are (pool, when, attempt id)."""
        by_pool: dict[str, list[tuple[datetime, str]]] = {}
        for pool, at, attempt_id in starts:
            by_pool.setdefault(pool, []).append((at, attempt_id))
        self.starts = {pool: Starts(entries) for pool, entries in by_pool.items()}
        self.apply(controls)

    def apply(self, controls: Mapping[str, Any]) -> None:
        """Remember controls that were written; keys of others are passed over."""
        for key, value in controls.items():
            kind, _, name = key.partition(":")
            if kind == "size":
                self.sizes[name] = int(value or 0)
            elif kind in _KINDS:
                self._set(kind, name, value)

    def _set(self, kind: str, name: str, value: Any) -> None:
        try:
            model = None if value is None else _KINDS[kind].model_validate(value)
        except ValidationError:
            log.warning("the control %s:%s makes no sense and is passed over", kind, name)
            return
        if kind == "window":
            pool, _, window = name.rpartition(":")
            others = [w for w in self.windows.get(pool, []) if w.kind != window]
            self.windows[pool] = [*others, model] if isinstance(model, Window) else others
            return
        tables: dict[str, Any] = {"park": self.parks, "trouble": self.troubles, "breaker": self.breakers}
        held: dict[str, Any] = tables[kind]
        if model is None:
            held.pop(name, None)
        else:
            held[name] = model

    def newly_parked(self, controls: Mapping[str, Any], now: datetime) -> list[events.Message]:
        """What is told of the parks that these controls begin."""
        told: list[events.Message] = []
        for key, value in controls.items():
            kind, _, pool = key.partition(":")
            known = self.parks.get(pool)
            if kind == "park" and value is not None and (known is None or known.until <= now):
                made = Park.model_validate(value)
                told.append(events.PoolParked(pool=pool, until=made.until.isoformat(), why=made.why))
        return told

    def started(self, pool: str, at: datetime, attempt_id: str) -> None:
        """A claim was made."""
        starts = self.starts.setdefault(pool, Starts())
        starts.note(at, attempt_id)
        starts.forget_before(at - KEPT)

    def never_started(self, pool: str, attempt_id: str) -> None:
        """A claim came to no exec: it is not a start of the day."""
        if pool in self.starts:
            self.starts[pool].take_back(attempt_id)

    def ended(self, dispatch: Dispatch, ending: Ending, now: datetime, breaker_most: int) -> Controls:
        """The controls that an ending changes. Changes nothing itself."""
        repo = f"{dispatch.org}/{dispatch.repo}"
        size = self._of_size(admission.called(dispatch.runner, dispatch.counted_model), ending.max_rss)
        if ending.state is State.FAILED and ending.reason in park.OUTAGE:
            return self._of_outage(dispatch.pool, repo, ending, now, breaker_most) | size
        changes = self._of_provider(dispatch.pool, ending, now)
        most = 0 if ending.unusable else breaker_most
        return changes | self._of_repo(repo, ending, now, most) | size

    def _of_repo(self, repo: str, ending: Ending, now: datetime, most: int, *, in_vain: bool = False) -> Controls:
        before = self.breakers.get(repo, Breaker())
        after = breaker.after(before, ending.state, ending.reason, ending.detail, now, most, in_vain=in_vain)
        return _broken(repo, before, after)

    def _of_outage(self, pool: str, repo: str, ending: Ending, now: datetime, most: int) -> Controls:
        """What a failed model call changes: it is the provider's fault, or that of the repository."""
        known, trouble = self.parks.get(pool), self.troubles.get(pool, Trouble())
        if known is not None and known.covers(ending.claimed_at, now):
            return {}  # it began before what is known already
        tried = known is not None and known.why == "outage" and known.until <= now
        after = trouble.failed(repo)
        if after.is_outage(tried=tried) and ending.reason is not None:
            changes = _parked(pool, park.after_outage(after, now, ending.reason))
            for other, failures in trouble.failed_in.items():
                before = self.breakers.get(other, Breaker())
                changes |= _broken(other, before, breaker.forgive(before, failures, most))
            return changes
        most = 0 if ending.unusable or ending.goes_on else most
        return {f"trouble:{pool}": after.model_dump(mode="json")} | self._of_repo(
            repo, ending, now, most, in_vain=tried
        )

    def _of_provider(self, pool: str, ending: Ending, now: datetime) -> Controls:
        known, trouble = self.parks.get(pool), self.troubles.get(pool, Trouble())
        if ending.reason is Reason.RATE_LIMIT:
            made = park.after_rate_limit(known, trouble, ending.outcome.resets_at, now, ending.claimed_at)
            return _parked(pool, made)
        if ending.outcome.terminal != "success":
            return {}
        changes: Controls = {}
        if trouble != Trouble():
            changes[f"trouble:{pool}"] = None
        if known is not None and (known.until <= now or known.why == "outage"):
            changes[f"park:{pool}"] = None
        return changes

    def _of_size(self, name: str, seen: int) -> Controls:
        if seen <= 0:
            return {}
        before = self.sizes.get(name, 0)
        after = admission.learn(before, seen)
        # A number that hardly moves is not worth a write.
        return {f"size:{name}": after} if abs(after - before) * 10 > before else {}

    def unpark(self, pool: str) -> Controls:
        """A person lets a pool go on."""
        changes: Controls = {}
        if pool in self.parks:
            changes[f"park:{pool}"] = None
        if pool in self.troubles:
            changes[f"trouble:{pool}"] = None
        return changes

    def forget_windows(self, pool: str) -> Controls:
        """A person lets a pool go on that is paced: prices are learned anew."""
        return {f"window:{pool}:{window.kind}": None for window in self.windows.get(pool, [])}

    def close_breaker(self, repo: str) -> Controls:
        """A person lets a repository go on."""
        return {f"breaker:{repo}": None} if repo in self.breakers else {}

    def reported(self, pool: str, windows: Mapping[str, tuple[float, float]], now: datetime, running: int) -> Controls:
        """The controls that the report of a run changes, one of so many that are running.

        `windows` are kind -> (share used, reset in epoch seconds).
        """
        changes: Controls = {}
        known = {w.kind: w for w in self.windows.get(pool, [])}
        starts = self.starts.get(pool, Starts())
        for kind, (used, resets_at) in windows.items():
            end = park.reset_of(resets_at, now)
            before = known.get(kind)
            if end is None or (before is not None and before.used == used and abs(before.resets_at - end) < _SAME):
                continue
            after = pacing.learn(before, kind, used, datetime.fromtimestamp(resets_at, UTC), now, starts, running)
            changes[f"window:{pool}:{kind}"] = after.model_dump(mode="json")
        return changes


_SAME = timedelta(minutes=5)


def _broken(repo: str, before: Breaker, after: Breaker) -> Controls:
    if after == before:
        return {}
    return {f"breaker:{repo}": after.model_dump(mode="json") if after != Breaker() else None}


def _parked(pool: str, made: Park) -> Controls:
    # The count of failures begins anew; how often it was parked in a row is kept until a turn goes well.
    return {
        f"park:{pool}": made.model_dump(mode="json"),
        f"trouble:{pool}": Trouble(refused=made.times).model_dump(mode="json"),
    }
