"""Tasks that wait for others, whatever happens in whatever order, against a plain model.

The model says of each waiting task from scratch what it should be: held while one before it is open, held up when one
did not end well, else free. What was let go on by a person stays so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_claim import queued

from coreagent.dispatch.after import FAILED, WAITS, After, ending, is_held
from coreagent.dispatch.board import Board
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Dispatch, Fate, Options, State

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ENDS: dict[str, dict[str, Any]] = {
    "run": {"state": State.RUNNING, "waiting_for": ""},
    "well": {"state": State.COMPLETED, "waiting_for": ""},
    "badly": {"state": State.FAILED, "waiting_for": "", "reason": Reason.DIED},
    "asks": {"state": State.BLOCKED, "waiting_for": ""},
    "nothing": {"state": State.COMPLETED, "waiting_for": "", "reason": Reason.NO_CHANGES},
    "cancel": {"state": State.CANCELLED, "waiting_for": ""},
    "again": {"state": State.QUEUED, "waiting_for": "", "reason": None},
    "accept": {"fate": Fate.ACCEPTED, "waiting_for": "", "state": State.COMPLETED},
    "reject": {"fate": Fate.REJECTED, "waiting_for": "", "state": State.FAILED},
    "gone": {"workspace_gone": True, "waiting_for": "", "state": State.COMPLETED},
    "go on": {"waiting_for": ""},
}


class Model:
    def __init__(self, before: list[list[int]]) -> None:
        self.board = Board()
        self.all: dict[str, Dispatch] = {}
        self.after = After(self.board)
        for n, others in enumerate(before):
            made = queued(n).model_copy(
                update={"id": f"{n:03}", "name": f"t{n}", "options": Options(after=[f"{o:03}" for o in others])}
            )
            self.write(made.model_copy(update=self.after.fields(made) if others else {}))

    def write(self, new: Dispatch) -> None:
        self.all[new.id] = new
        self.after.note(new)
        if new.workspace_gone:
            self.board.pop(new.id, None)
        else:
            self.board[new.id] = new

    def move(self, n: int, how: str) -> None:
        old = self.all[f"{n:03}"]
        if old.workspace_gone:
            return
        new = old.model_copy(update=ENDS[how])
        for _, follower in self.after.followers(new, (), NOW):
            self.all[follower.id] = follower
            self.write(follower)
        self.write(new)

    def check(self) -> None:
        for one in self.all.values():
            if not is_held(one):
                continue
            whys = [ending(self.all[other]) for other in one.options.after]
            wanted = FAILED if any(whys) else WAITS if None in whys else ""
            assert one.waiting_for == wanted, (one.name, one.detail, whys)


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[list[int]], list[tuple[int, str]]]:
    count = draw(st.integers(2, 7))
    before = [draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else [] for n in range(count)]
    steps = st.tuples(st.integers(0, count - 1), st.sampled_from(sorted(ENDS)))
    return before, draw(st.lists(steps, max_size=20))


@settings(max_examples=200, deadline=None)
@given(stories())
def test_what_holds_a_task_up_is_told_by_those_before_it(story: tuple[list[list[int]], list[tuple[int, str]]]) -> None:
    before, steps = story
    model = Model(before)
    model.check()
    for n, how in steps:
        model.move(n, how)
        model.check()
    # The next daemon, that has nothing but the rows, says the same.
    rows = list(model.all.values())
    board = Board(d for d in rows if not d.workspace_gone)
    again = After(board, rows)
    for one in board.queued:
        if is_held(one):
            assert again.fields(one)["waiting_for"] == one.waiting_for


def test_a_long_chain_is_no_burden() -> None:
    model = Model([[n - 1] if n else [] for n in range(1500)])
    model.move(0, "badly")
    model.check()
    assert model.after.stuck(model.all["1499"])
    model.move(0, "again")
    assert not model.after.stuck(model.all["1499"])
