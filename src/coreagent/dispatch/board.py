"""The board: every open dispatch by id, with the few that wait or run kept apart.

A claim, a status and the question who is calling look at those few; thousands of finished workspaces must not slow
them down. The engine alone writes here.
"""

from __future__ import annotations

from collections.abc import Iterable

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
        self.blocks = Blocks()
        for dispatch in known.values():
            self.blocks.hold(dispatch)

    def __setitem__(self, key: str, dispatch: Dispatch) -> None:
        super().__setitem__(key, dispatch)
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
        self.queued.drop(key)
        self.active.pop(key, None)
        self.blocks.free(key)
        return super().pop(key, default)
