"""The board: every open dispatch by id, with the few that wait or run kept apart.

A claim, a status and the question who is calling look at those few; thousands of finished workspaces must not slow
them down. The engine alone writes here.
"""

from __future__ import annotations

from collections.abc import Iterable

from coreagent.models.dispatch import ACTIVE, Dispatch, State


class Board(dict[str, Dispatch]):
    """A dictionary that is written by `board[id] = dispatch` and `board.pop(id, None)`, and in no other way."""

    def __init__(self, dispatches: Iterable[Dispatch] = ()) -> None:
        super().__init__()
        self.queued: dict[str, Dispatch] = {}
        self.active: dict[str, Dispatch] = {}
        """Those that hold a slot."""
        for dispatch in dispatches:
            self[dispatch.id] = dispatch

    def __setitem__(self, key: str, dispatch: Dispatch) -> None:
        super().__setitem__(key, dispatch)
        for group, belongs in ((self.queued, dispatch.state is State.QUEUED), (self.active, dispatch.state in ACTIVE)):
            if belongs:
                group[key] = dispatch
            else:
                group.pop(key, None)

    def pop(self, key: str, default: Dispatch | None = None) -> Dispatch | None:  # type: ignore[override]
        self.queued.pop(key, None)
        self.active.pop(key, None)
        return super().pop(key, default)
