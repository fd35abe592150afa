"""The waiting dispatches in the order of their claim, so that a claim among a hundred thousand is no search.

Ageing as a constant: a step of priority is worth an hour of waiting. Both sides of a comparison age alike, so the order
of two never changes, a sorted list holds it, and nothing starves. Tasks of one pool, runner, model and repository stand
in one lane; limits stop whole lanes. What waits for a time or for another task stands apart until that comes. The board
alone writes here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from heapq import heappop, heappush

from coreagent.models.dispatch import Dispatch

PRIORITY_STEP_S = 3600.0
HELD = frozenset({"after", "after_failed"})
"""Words of `waiting_for` that an event ends, not a time."""
ASKED = "asked"
"""The word of one that a person asked for: it does not wait until its pool is no longer parked."""

FEW = 100
"""From so many on it is quicker to let all stand anew than to move each."""

Key = tuple[float, str]
Lane = tuple[str, str, str, str]
"""Pool, runner, model, and org/repo."""


def key_of(dispatch: Dispatch) -> Key:
    """Where a dispatch stands in the queue; smaller is sooner."""
    return (dispatch.queued_at.timestamp() - dispatch.priority * PRIORITY_STEP_S, dispatch.id)


def lane_of(dispatch: Dispatch) -> Lane:
    return (dispatch.pool, dispatch.runner, dispatch.counted_model, f"{dispatch.org}/{dispatch.repo}")


class Queue:
    """Queued dispatches by id, in order, in lanes."""

    def __init__(self, dispatches: Iterable[Dispatch] = ()) -> None:
        self._known: dict[str, Dispatch] = {d.id: d for d in dispatches}
        self._order: list[Key] = sorted(key_of(d) for d in self._known.values())
        self.pools: dict[str, dict[Lane, list[Key]]] = {}
        """Pool -> its lanes -> keys of what may start as far as it itself is concerned."""
        self.flexible: dict[str, set[str]] = {}
        """Pool -> ids of those that another agent may do as well."""
        self.asked: dict[str, set[str]] = {}
        """Pool -> ids of those that a person asked for."""
        self._counts: dict[str, int] = {}
        self._later: list[tuple[datetime, str]] = []
        """A heap of times to look at a task again; entries of tasks that moved since are passed over."""
        self._stand()

    def _stand(self) -> None:
        """Put every task that is known where it belongs, but for the order, which holds already."""
        for index in (self.pools, self.flexible, self.asked, self._counts, self._later):
            index.clear()
        for d in self._known.values():
            self._note(d)
            if d.waiting_until is not None:
                heappush(self._later, (d.waiting_until, d.id))
        for key in self._order:
            d = self._known[key[1]]
            if _is_ready(d):
                self._lane(lane_of(d)).append(key)  # in order already

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, dispatch_id: object) -> bool:
        return dispatch_id in self._known

    def __iter__(self) -> Iterator[Dispatch]:
        """Every waiting dispatch, soonest first."""
        return (self._known[key[1]] for key in self._order)

    def __getitem__(self, dispatch_id: str) -> Dispatch:
        return self._known[dispatch_id]

    def waiting(self, pool: str) -> int:
        """How many wait for this pool."""
        return self._counts.get(pool, 0)

    def pools_waiting(self) -> list[str]:
        """The pools that something waits for."""
        return list(self._counts)

    def position(self, dispatch: Dispatch) -> int:
        """1 for the first in the queue."""
        return bisect_left(self._order, key_of(dispatch)) + 1

    def put(self, dispatch: Dispatch) -> None:
        """Add a waiting dispatch, or replace what is known of it."""
        self.drop(dispatch.id)
        key = key_of(dispatch)
        self._known[dispatch.id] = dispatch
        self._note(dispatch)
        insort(self._order, key)
        if _is_ready(dispatch):
            insort(self._lane(lane_of(dispatch)), key)
        elif dispatch.waiting_until is not None:
            heappush(self._later, (dispatch.waiting_until, dispatch.id))

    def replace(self, dispatches: Sequence[Dispatch]) -> None:
        """Replace what is known of waiting dispatches, of which none has another place in the order."""
        if len(dispatches) < FEW:
            for dispatch in dispatches:
                self.put(dispatch)
            return
        self._known.update((d.id, d) for d in dispatches)
        self._stand()

    def drop(self, dispatch_id: str) -> None:
        """Remove a dispatch; nothing happens when it is not there."""
        dispatch = self._known.pop(dispatch_id, None)
        if dispatch is None:
            return
        key = key_of(dispatch)
        _take(self._order, key)
        self._counts[dispatch.pool] -= 1
        if not self._counts[dispatch.pool]:
            del self._counts[dispatch.pool]
        self.flexible.get(dispatch.pool, set()).discard(dispatch_id)
        self.asked.get(dispatch.pool, set()).discard(dispatch_id)
        lane = lane_of(dispatch)
        lanes = self.pools.get(dispatch.pool, {})
        keys = lanes.get(lane)
        if keys is not None:
            _take(keys, key)
            if not keys:
                del lanes[lane]
                if not lanes:
                    del self.pools[dispatch.pool]

    def wake(self, now: datetime) -> None:
        """Let those whose time has come stand in their lanes."""
        while self._later and self._later[0][0] <= now:
            until, dispatch_id = heappop(self._later)
            dispatch = self._known.get(dispatch_id)
            if dispatch is None or dispatch.waiting_until != until or dispatch.waiting_for in HELD:
                continue
            keys, key = self._lane(lane_of(dispatch)), key_of(dispatch)
            at = bisect_left(keys, key)
            if at == len(keys) or keys[at] != key:
                keys.insert(at, key)

    def next_time(self) -> datetime | None:
        """When the next waiting time ends."""
        while self._later:
            until, dispatch_id = self._later[0]
            dispatch = self._known.get(dispatch_id)
            if dispatch is not None and dispatch.waiting_until == until and dispatch.waiting_for not in HELD:
                return until
            heappop(self._later)
        return None

    def _note(self, dispatch: Dispatch) -> None:
        self._counts[dispatch.pool] = self._counts.get(dispatch.pool, 0) + 1
        if dispatch.options.agents:
            self.flexible.setdefault(dispatch.pool, set()).add(dispatch.id)
        if dispatch.waiting_for == ASKED:
            self.asked.setdefault(dispatch.pool, set()).add(dispatch.id)

    def _lane(self, lane: Lane) -> list[Key]:
        return self.pools.setdefault(lane[0], {}).setdefault(lane, [])


def _is_ready(dispatch: Dispatch) -> bool:
    return dispatch.waiting_until is None and dispatch.waiting_for not in HELD


def _take(keys: list[Key], key: Key) -> None:
    at = bisect_left(keys, key)
    if at < len(keys) and keys[at] == key:
        del keys[at]
