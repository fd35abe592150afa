"""Tasks that wait until others have ended well: `--after`.

What holds a task up is told by the states of those before it and by nothing else, so it can be told again at any time:
in the transaction that ends one of them, when a task arrives, and after a restart. The engine comes in with every
change. Nothing here waits or polls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coreagent.dispatch.queue import HELD
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Dispatch, Fate, State

if TYPE_CHECKING:
    from collections.abc import Collection

    from coreagent.dispatch.board import Board
    from coreagent.dispatch.engine import Engine

NOTHING: Mapping[str, Dispatch] = MappingProxyType({})
WAITS = "after"
FAILED = "after_failed"
"""Words of `waiting_for`: one before it has not ended yet; one did not end well, and a person must say what next."""


def ending(dispatch: Dispatch) -> str | None:
    """ "" when a task has ended well for those that wait for it, else why it has not; None while it still may."""
    if dispatch.fate is Fate.ACCEPTED:
        return ""
    if dispatch.fate is Fate.REJECTED:
        return "was rejected"
    if dispatch.workspace_gone:
        return "was let go"
    if dispatch.state is State.FAILED:
        return f"failed: {dispatch.reason}"
    if dispatch.state is State.CANCELLED:
        return "was cancelled"
    if is_held(dispatch) and dispatch.waiting_for == FAILED:
        return "is held up"
    if dispatch.state is not State.COMPLETED:
        return None
    if dispatch.harvest.status == "rejected":
        return f"could not be brought home: {dispatch.harvest.reason}"
    if dispatch.reason is Reason.NO_CHANGES and dispatch.options.expect == "changes":
        return "changed nothing"
    return ""


def is_held(dispatch: Dispatch) -> bool:
    """Whether it waits for another task, or for a person because of one."""
    return dispatch.state is State.QUEUED and dispatch.waiting_for in HELD


def check_top(made: Dispatch, before: Dispatch | None) -> None:
    """Raise when `made` cannot start from the result of `before`."""
    if before is None:
        return
    if (made.org, made.repo) != (before.org, before.repo):
        raise CoreAgentError(
            "conflicting_options",
            f"{before.workspace} is of another repository than {made.org}/{made.repo}",
            hint="without --on-top it only waits for it",
        )
    options = made.options
    given = [name for name, value in (("--with-changes", options.with_changes), ("--tag", options.tag is not None),
                                      ("--pr", options.pr is not None)) if value]  # fmt: skip
    if given:
        raise CoreAgentError("conflicting_options", f"--on-top and {given[0]} exclude each other")


class After:
    """Who waits for whom, as far as they still wait."""

    def __init__(self, board: Board, past: Iterable[Dispatch] = ()) -> None:
        self._board = board
        self._waiting: dict[str, set[str]] = {}
        """Id of a task -> ids of those that wait for it."""
        self._gone: dict[str, Dispatch] = {}
        """What others still wait for and is on the board no more."""
        for dispatch in list(board.queued):
            self.note(dispatch)
        self._gone = {d.id: d for d in past if d.id in self._waiting and d.workspace_gone}

    def note(self, new: Dispatch) -> None:
        """Keep up with a change of the board."""
        holding = is_held(new) and not new.workspace_gone
        for other in new.options.after:
            if holding:
                self._waiting.setdefault(other, set()).add(new.id)
                continue
            self._waiting.get(other, set()).discard(new.id)
            if not self._waiting.get(other, True):
                del self._waiting[other]
                self._gone.pop(other, None)
        if new.workspace_gone and new.id in self._waiting:
            self._gone[new.id] = new

    def remember(self, gone: Iterable[Dispatch]) -> None:
        """Know tasks that left the board before somebody asked to come after them."""
        self._gone.update((d.id, d) for d in gone)

    def known(self, dispatch_id: str) -> Dispatch | None:
        """A task that is waited for, from the board or of those that left it."""
        return self._board.get(dispatch_id) or self._gone.get(dispatch_id)

    def fields(self, dispatch: Dispatch, newer: Mapping[str, Dispatch] = NOTHING) -> dict[str, Any]:
        """What a waiting task's row must say; `newer` are rows that the board does not have yet."""
        waits, failed = [], []
        for other in dispatch.options.after:
            before = newer.get(other) or self.known(other)
            why = ending(before) if before is not None else "is not known any more"
            name = before.name if before is not None else other
            if why is None:
                waits.append(name)
            elif why:
                failed.append(f"{name} {why}")
        if failed:
            return {"waiting_for": FAILED, "detail": "; ".join(failed)}
        if waits:
            return {"waiting_for": WAITS, "detail": f"waits for {', '.join(waits)}"}
        return self.freed(dispatch, newer)

    def freed(self, dispatch: Dispatch, newer: Mapping[str, Dispatch] = NOTHING) -> dict[str, Any]:
        """What the row of a task says that waits no longer: it starts from the result it was to be built on."""
        fields: dict[str, Any] = {"waiting_for": "", "detail": ""}
        wanted = dispatch.options.on_top
        before = newer.get(wanted) or self.known(wanted)
        if before is not None and not dispatch.runs:
            sha = before.harvest.sha if before.harvest.status == "complete" else before.start_sha or before.base_sha
            fields |= {"base_sha": sha, "base_ref": before.base_ref}
        return fields

    def followers(self, new: Dispatch, arriving: Collection[str], now: datetime) -> list[tuple[Dispatch, Dispatch]]:
        """The tasks that a change of another one moves: each as it was, and as it is from then on.

        What is held up holds up those behind it.
        """
        newer, moved = {new.id: new}, dict[str, tuple[Dispatch, Dispatch]]()
        looked_at = [new.id]
        while looked_at:
            for waiting in sorted(self._waiting.get(looked_at.pop(), ())):
                before = self._board.get(waiting)
                if before is None or not is_held(before) or waiting in arriving or waiting == new.id:
                    continue
                after = _with(before, self.fields(before, newer), now)
                if after != newer.get(waiting, before):
                    newer[waiting] = after
                    moved[waiting] = (before, after)
                    looked_at.append(waiting)
        return [(before, after) for before, after in moved.values() if after is not before]

    def stuck(self, dispatch: Dispatch) -> bool:
        """Whether a waiting task goes on only when a person does something about it, or about one before it."""
        look_at, seen = [dispatch], set[str]()
        while look_at:
            one = look_at.pop()
            if one.state in (State.BLOCKED, State.PAUSED) or one.waiting_for == FAILED:
                return True
            if not is_held(one) or one.id in seen:
                continue
            seen.add(one.id)
            look_at += [before for other in one.options.after if (before := self.known(other)) is not None]
        return False

    async def look_again(self, engine: Engine, only: Iterable[str] | None = None) -> None:
        """Bring the rows of waiting tasks in line with those before them: after a restart, and when they arrived."""
        chosen = list(self._board.queued) if only is None else [self._board.get(one) for one in only]
        for dispatch in chosen:
            if dispatch is None or not is_held(dispatch):
                continue
            fields = self.fields(dispatch)
            if _with(dispatch, fields, engine.core.now()) is not dispatch:
                await engine.update(dispatch, **fields)
                engine.poke()


def _with(dispatch: Dispatch, fields: dict[str, Any], now: datetime) -> Dispatch:
    """The row with these fields; the very same when it says so already."""
    if all(getattr(dispatch, name) == value for name, value in fields.items()):
        return dispatch
    return dispatch.model_copy(update={**fields, "changed_at": now})
