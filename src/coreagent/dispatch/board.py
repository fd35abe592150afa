"""The board: every open dispatch by id, with the few that wait or run kept apart.

A claim, a status and the question who is calling look at those few; thousands of finished workspaces must not slow
them down. The engine alone writes here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from coreagent.dispatch.ports import Blocks
from coreagent.dispatch.queue import Queue
from coreagent.models.dispatch import ACTIVE, Dispatch, State


class Board(dict[str, Dispatch]):
    """A dictionary that is written by `board[id] = dispatch` and `board.pop(id, None)`, and in no other way."""

    def __init__(self, dispatches: Iterable[Dispatch] = ()) -> None:
        known = {d.id: d for d in dispatches}
        super().__init__(known)
        self.queued = Queue(d for d in known.values() if d.state is State.QUEUED)
        self.active: dict[str, Dispatch] = {d.id: d for d in known.values() if d.state in ACTIVE}
        """Those that hold a slot."""
        self.resting: dict[str, Dispatch] = {}
        """Those that neither wait nor hold a slot."""
        self.counts: Counter[State] = Counter()
        self.names: dict[tuple[str, str], dict[str, str]] = {}
        """(org, repo) -> name -> id."""
        self._called: dict[str, set[str]] = {}
        """Name -> ids, in whatever repository."""
        self.blocks = Blocks()
        for dispatch in known.values():
            self.blocks.hold(dispatch)
            self._index(dispatch)

    def __setitem__(self, key: str, dispatch: Dispatch) -> None:
        self._forget(key)
        super().__setitem__(key, dispatch)
        self._index(dispatch)
        self.blocks.hold(dispatch)
        if dispatch.state is State.QUEUED:
            self.queued.put(dispatch)
        else:
            self.queued.drop(key)
        if dispatch.state in ACTIVE:
            self.active[key] = dispatch
        else:
            self.active.pop(key, None)

    def pop(self, key: str, default: Dispatch | None = None) -> Dispatch | None:  # type: ignore[override]
        self._forget(key)
        self.queued.drop(key)
        self.active.pop(key, None)
        self.blocks.free(key)
        return super().pop(key, default)

    def replace(self, waiting: Sequence[Dispatch], running: Sequence[Dispatch]) -> None:
        """Take newer rows of tasks that wait, and that run, which differ in nothing but pool and model."""
        for dispatch in (*waiting, *running):
            super().__setitem__(dispatch.id, dispatch)
        self.queued.replace(waiting)
        self.active.update((d.id, d) for d in running)

    def called(self, text: str) -> list[Dispatch]:
        """Those that `text` names in full, by id or `[[org/]repo/]name`, without a look at the others."""
        wanted = text.strip().strip("/")
        ids = {wanted} & self.keys() | self._called.get(wanted.rpartition("/")[2], set())
        found = [self[i] for i in ids]
        return [d for d in found if wanted in (d.id, d.workspace, f"{d.repo}/{d.name}", d.name)]

    def _index(self, dispatch: Dispatch) -> None:
        self.counts[dispatch.state] += 1
        self.names.setdefault((dispatch.org, dispatch.repo), {})[dispatch.name] = dispatch.id
        self._called.setdefault(dispatch.name, set()).add(dispatch.id)
        if dispatch.state is not State.QUEUED and dispatch.state not in ACTIVE:
            self.resting[dispatch.id] = dispatch

    def _forget(self, key: str) -> None:
        known = self.get(key)
        if known is None:
            return
        self.counts[known.state] -= 1
        self.resting.pop(key, None)
        names = self.names[known.org, known.repo]
        if names.get(known.name) == key:
            del names[known.name]
            if not names:
                del self.names[known.org, known.repo]
        ids = self._called[known.name]
        ids.discard(key)
        if not ids:
            del self._called[known.name]
