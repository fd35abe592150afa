"""What people see of tasks that belong together: nothing wider than the screen, nothing unsafe."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coreagent.cli.views import compare
from coreagent.cli.views.text import Paint, width_of
from coreagent.models.agent import Cost, Reason
from coreagent.models.batch import (
    AdoptCandidate,
    AdoptReply,
    BatchReply,
    BatchRow,
    CompareReport,
    CompareRow,
    PickReply,
    TrialResult,
)
from coreagent.models.dispatch import Fate, State
from coreagent.models.report import AcceptReply, MoveReply

EVIL = "\x1b[2J\x1b]0;x\x07\u202e\r\nrm -rf ~"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def row(**more: object) -> CompareRow:
    known = {"workspace": f"o/r/{EVIL}", "dispatch_id": "1", "agent": EVIL, "state": State.FAILED, "created_at": NOW,
             "reason": Reason.ERROR, "sha": "a" * 40, "files": 3,
             "cost": Cost(usd=0.5, source="reported"), "worked_s": 61.0}  # fmt: skip
    return CompareRow.model_validate({**known, **more})


def batch(**more: object) -> BatchReply:
    one = BatchRow(key=EVIL, workspace=EVIL, state=State.QUEUED, agent=EVIL, pool="p", branch=EVIL, after=[EVIL],
                   on_top=EVIL, note=EVIL, task=EVIL)  # fmt: skip
    return BatchReply.model_validate({"batch": EVIL, "tasks": [one] * 3, "notes": [EVIL], **more})


def every_view(width: int) -> dict[str, list[str]]:
    paint = Paint(False)
    tests = TrialResult(verdict="failed", exit_code=3, seconds=70, tail=[EVIL, "x" * 300])
    report = CompareReport(batch=EVIL, rows=[row(), row(tests=tests, same_as=EVIL)], notes=[EVIL])
    landed = AcceptReply(workspace=EVIL, strategy="merge", onto=EVIL, before="a" * 40, after="b" * 40, undo=EVIL)
    gone = MoveReply(workspace=EVIL, state=State.FAILED, note=EVIL)
    adopted = AdoptReply(workspace=EVIL, dispatch_id="1", state=State.PAUSED, path=EVIL, source=EVIL, branch=EVIL,
                         agent=EVIL, notes=[EVIL])  # fmt: skip
    found = AdoptCandidate(path=EVIL, branch=EVIL, title=EVIL, commits=2, dirty=1, session_id=EVIL)
    return {
        "batch": compare.batch_lines(batch(), width, paint),
        "plan": compare.batch_lines(batch(dry_run=True), width, paint),
        "compare": compare.compare_lines(report, width, paint),
        "diff": compare.compare_lines(report.model_copy(update={"diff": EVIL, "truncated": True}), width, paint),
        "pick": compare.pick_lines(PickReply(workspace=EVIL, accepted=landed, rejected=[gone]), width, paint),
        "again": compare.pick_lines(PickReply(workspace=EVIL, undo=EVIL), width, paint),
        "adopt": compare.adopt_lines(adopted, width, paint),
        "candidates": compare.candidate_lines([found, found.model_copy(update={"adopted_as": EVIL})], width, paint),
    }


@pytest.mark.parametrize("width", [60, 100, 200])
def test_no_view_lets_an_agent_reach_the_terminal(width: int) -> None:
    for name, lines in every_view(width).items():
        for line in lines:
            assert not set(line) & {"\x1b", "\x07", "\r", "\n", "\u202e"}, name


def test_tables_fit_the_screen() -> None:
    for name in ("batch", "compare", "candidates"):
        assert [line for line in every_view(80)[name][1:3] if width_of(line) > 80] == [], name


def test_what_a_row_says() -> None:
    report = CompareReport(batch="w", rows=[row(workspace="o/r/w-1", agent="codex", fate=Fate.ACCEPTED)])
    lines = compare.compare_lines(report, 200, Paint(False))
    assert lines[1].split() == ["w-1", "codex", "accepted", "3", "files", "+0", "-0", "unknown", "$0.50", "-", "1m01s",
                                "-"]  # fmt: skip
    assert len(lines) == 2
    assert compare.candidate_lines([], 80, Paint(False)) == ["there is no other worktree of this repository"]
