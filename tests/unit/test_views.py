"""What people see: nothing wider than the screen, nothing unsafe, nothing coloured where colour is not wanted."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coreagent.cli.terminal import Terminal
from coreagent.cli.views import answer, event, listing, live
from coreagent.cli.views.status import hint_lines, mark, sections, state_words, status_lines, what_now
from coreagent.cli.views.text import (
    Paint,
    ago,
    diffstat,
    duration,
    fit,
    fit_middle,
    money,
    next_lines,
    one_line,
    pad,
    running_words,
    size,
    table,
    tokens,
    width_of,
    wrap,
)
from coreagent.models.agent import AgentEvent, Cost, EventKind, Reason, Usage
from coreagent.models.dispatch import Fate, Stage, State
from coreagent.models.report import (
    AcceptReply,
    AgentRow,
    CleanReply,
    Counts,
    DaemonStatus,
    DiffReply,
    DispatchReply,
    HistoryRow,
    LogEntry,
    LogReply,
    MoveReply,
    PoolRow,
    QueueReport,
    QueueRow,
    RepoRow,
    RescueRow,
    StatusReport,
    StopReply,
    TemplateRow,
    TemplateShow,
    TrustReply,
    WhyReport,
    WorkspaceRow,
    WorkspaceShow,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PLAIN, COLOUR = Paint(False), Paint(True)
EVIL = "\x1b]0;owned\x07\x1b[2Jlook\u202e\u009b31m\nsecond\tline"
SGR = re.compile(r"\x1b\[[0-9;]*m")


def row(state: State, **more: Any) -> WorkspaceRow:
    base: dict[str, Any] = {
        "workspace": f"core/app/{more.pop('name', state)}",
        "dispatch_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "state": state,
        "agent": "claude:opus",
        "pool": "claude",
        "branch": "agent/x",
        "task": "Fix the thing that is broken",
        "created_at": NOW - timedelta(hours=1),
        "changed_at": NOW,
        "since": NOW - timedelta(minutes=5),
        "elapsed_s": 245.0,
        "tokens": 45_200,
        "cost": Cost(usd=0.42, source="reported"),
        "files": 3,
        "insertions": 10,
        "deletions": 2,
    }
    return WorkspaceRow(**{**base, **more})


def report() -> StatusReport:
    rows = [
        row(State.RUNNING, last_tool="Bash pytest -q " + "x" * 200),
        row(State.PREPARING),
        row(State.QUEUED, waiting_for="rate_limit", waiting_until=NOW + timedelta(hours=2), elapsed_s=None),
        row(State.BLOCKED, needs_me=True, question=EVIL, since=NOW - timedelta(minutes=1)),
        row(State.FAILED, needs_me=True, reason=Reason.AUTH, detail=EVIL, since=NOW - timedelta(hours=9)),
        row(State.COMPLETED, needs_me=True, stage=Stage.HARVESTED, since=NOW - timedelta(hours=3), name="w" * 90),
        row(State.CANCELLED, agent=EVIL, bypass=True),
        row(State.COMPLETED, fate=Fate.ACCEPTED),
        row(State.PAUSED, name="日本語の作業場所"),
    ]
    return StatusReport(
        counts=Counts(running=1, queued=1, blocked=1, failed=1, completed=2),
        workspaces=rows,
        pools=[PoolRow(pool="claude", running=1, limit=2, queued=1, parked_until=NOW + timedelta(hours=2))],
        warnings=["settings: " + EVIL],
    )


def safe(lines: list[str]) -> bool:
    """No control character but our own colours, no bidirectional override, no line break inside a line."""
    rest = SGR.sub("", "".join(lines))
    return not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in rest)


@pytest.mark.parametrize("width", [40, 60, 80, 112, 120, 200])
@pytest.mark.parametrize("paint", [PLAIN, COLOUR])
def test_status_fits_every_width_and_is_safe(width: int, paint: Paint) -> None:
    lines = status_lines(report(), width, paint, NOW)
    assert max(width_of(line) for line in lines) <= width
    assert safe(lines)
    assert any("\x1b" in line for line in lines) is paint.colour


def test_status_puts_what_needs_me_on_top_oldest_first() -> None:
    told = dict(sections(report()))
    assert [r.state for r in told["needs you"]] == [State.FAILED, State.COMPLETED, State.BLOCKED]
    assert [r.state for r in told["running"]] == [State.RUNNING, State.PREPARING]
    lines = status_lines(report(), 120, PLAIN, NOW)
    heads = [line for line in lines if line.isupper()]
    assert heads == ["NEEDS YOU", "RUNNING", "QUEUED", "SETTLED"]


def test_status_of_nothing() -> None:
    assert status_lines(StatusReport(), 80, PLAIN, NOW) == ["nothing is running, queued or waiting for you"]
    assert hint_lines(StatusReport(), 80, PLAIN) == []


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (row(State.BLOCKED, question="Which port?"), "asks: Which port?"),
        (row(State.QUEUED, waiting_for="slot"), "waits for a free slot"),
        (row(State.RUNNING, last_tool="Bash", last_text="testing"), "Bash - testing"),
        (row(State.RUNNING, last_tool="Bash make"), "Bash make"),
        (row(State.COMPLETED, needs_me=True), "ready to accept: agent/x"),
        (row(State.COMPLETED, denied_tools=["Bash"]), "done, but was refused: Bash"),
        (
            row(State.COMPLETED, stage=Stage.HARVEST_REJECTED, harvest_reason="too_large"),
            "the work could not be brought home (too_large); `why` tells where it is",
        ),
        (
            row(State.COMPLETED, stage=Stage.HARVEST_REJECTED, harvest_reason="too_large", rescue_ref="refs/x"),
            "the work could not be brought home (too_large); the work is kept",
        ),
        (row(State.FAILED, detail="no credit"), "no credit"),
    ],
)
def test_what_now(made: WorkspaceRow, said: str) -> None:
    assert what_now(made, NOW).startswith(said)


def test_work_that_could_not_be_brought_home_looks_like_no_success() -> None:
    made = row(State.COMPLETED, stage=Stage.HARVEST_REJECTED, harvest_reason="damaged_history")
    assert (mark(made, PLAIN), state_words(made)) == ("!", "not brought home")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State.BLOCKED, "resume core/app/blocked --answer"),
        (State.COMPLETED, "core-agent accept"),
        (State.FAILED, "core-agent why"),
        (State.PAUSED, "core-agent resume"),
    ],
)
def test_the_hint_fits_the_state(state: State, said: str) -> None:
    (_, *lines) = hint_lines(StatusReport(workspaces=[row(state, needs_me=True)]), 80, PLAIN)
    assert said in "\n".join(lines)


def test_small_words() -> None:
    assert [duration(s) for s in (None, 0, 59.9, 184, 3900, 183600)] == ["-", "0s", "59s", "3m04s", "1h05m", "2d03h"]
    assert [tokens(n) for n in (0, 950, 12_345, 999_960, 1_250_000)] == ["-", "950", "12.3k", "1.0M", "1.2M"]
    assert money(Cost()) == "-"
    assert money(Cost(usd=0.1234, source="reported")) == "$0.12"
    assert money(Cost(usd=0.001, source="priced")) == "~<$0.01"
    assert money(Cost(usd=0.1234)) == "$0.12+"
    assert money(Cost(usd=0.001)) == "$0.00+"
    assert diffstat(0, 0, 0) == ""
    assert diffstat(1, 2, 0) == "1 file +2 -0"
    assert size(999) == "999 B"
    assert size(84_500_000_000) == "84.5 GB"
    assert ago(None, NOW) == "-"
    assert [ago(NOW - timedelta(seconds=s), NOW) for s in (5, 65, 7300, 200_000)] == ["5s", "1m", "2h", "2d"]


def test_cutting_and_filling_count_cells_not_characters() -> None:
    assert fit("hello", 5) == "hello"
    assert fit("hello!", 5) == "hell…"
    assert fit("x", 0) == ""
    assert width_of(fit("日本語の作業", 7)) <= 7
    assert width_of(pad(COLOUR.red("ab"), 5)) == 5
    assert fit_middle("core/app/a-long-workspace-name", 20).endswith("name")
    assert width_of(fit_middle("core/app/a-long-workspace-name", 20)) == 20
    assert all(
        width_of(line) <= 12 for line in wrap("some words and averyveryverylongwordthatdoesnotfit 日本語の作業場所", 12)
    )
    assert " ".join(wrap("a b  c", 80)) == "a b  c"
    assert one_line("a\n b\x1b[0m") == "a b␛[0m"


def test_next_steps_stand_beside_each_other_only_where_they_fit() -> None:
    assert next_lines(["one", "two"], 80) == ["  next: one    two"]
    assert next_lines(["one" * 9, "two" * 9], 40) == ["  next: " + "one" * 9, "        " + "two" * 9]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_give_way(width: int) -> None:
    rows = [["a" * 30, "b" * 50, "c" * 60], ["short", "x", "y"]]
    lines = table(["ONE", "TWO", "THREE"], rows, width, PLAIN, flex=1)
    assert max(width_of(line) for line in lines) <= width
    assert lines[0].startswith("ONE")


def everything(width: int, paint: Paint) -> list[str]:
    """Every other view once, each fed with hostile text."""
    cost, usage = Cost(usd=0.5, source="reported"), Usage(input=5, output=6, cache_read=7)
    base = row(State.BLOCKED, question=EVIL, task=EVIL, workspace="o/r/" + EVIL, branch=EVIL)
    show = WorkspaceShow(
        row=base, path="/x" + EVIL, exists=False, repo_path=EVIL, base_ref=EVIL, base_sha="a" * 40, session_id=EVIL,
        attempts=[{"n": 1, "kind": EVIL, "exit_code": 1}], usage=usage, keep_until=NOW,
    )  # fmt: skip
    reply = DispatchReply(
        dispatch_id="01", workspace=EVIL, state=State.QUEUED, branch=EVIL, agent=EVIL, pool="p", notes=[EVIL],
        base_sha="b" * 40, prompt=EVIL, argv=["x", EVIL, "it's"],
    )  # fmt: skip
    past = HistoryRow(
        dispatch_id="01", workspace=EVIL, agent=EVIL, state=State.FAILED, reason=Reason.DIED, fate=Fate.OPEN, runs=1,
        worked_s=5.0, tokens=5, cost=cost, files=1, insertions=1, deletions=1, created_at=NOW, started_at=NOW,
        ended_at=NOW, task=EVIL,
    )  # fmt: skip
    events = [
        AgentEvent(kind=kind, text=EVIL, tool=EVIL, session_id=EVIL, usage=usage, cost=cost) for kind in EventKind
    ]
    events += [AgentEvent(kind=EventKind.TOOL_RESULT, text=EVIL, **{flag: True}) for flag in ("is_error", "denied")]
    log = LogReply(
        workspace="w", entries=[LogEntry(attempt=1, offset=i, event=e) for i, e in enumerate(events)], stderr=EVIL
    )
    repo = RepoRow(org=EVIL, name=EVIL, path=EVIL)
    queued = QueueRow(
        position=1, workspace=EVIL, agent=EVIL, pool="p", priority=1, waiting_for=EVIL, waiting_until=NOW, queued_at=NOW
    )
    agent = AgentRow(
        name=EVIL, kind="identity", runner=EVIL, found=True, problem=EVIL, version=EVIL, login="no", login_how=EVIL
    )
    message = {"seq": 1, "at": NOW, "name": "DispatchChanged", "workspace": EVIL, "data": {"State": EVIL, "x": EVIL}}
    return [
        *answer.workspace_lines(show, width, paint, NOW),
        *answer.dispatch_lines(reply, width, paint),
        *answer.dispatch_lines(reply.model_copy(update={"dry_run": True}), width, paint),
        *answer.move_lines(MoveReply(workspace=EVIL, state=State.PAUSED, note=EVIL), width, paint),
        *answer.reject_lines(MoveReply(workspace=EVIL, state=State.FAILED, note=EVIL), width, paint),
        *answer.accept_lines(
            AcceptReply(workspace=EVIL, strategy="squash", onto=EVIL, before="a" * 40, after="b" * 40, undo=EVIL),
            width,
            paint,
        ),
        *answer.why_lines(
            WhyReport(workspace=EVIL, state=State.FAILED, headline=EVIL, facts=[EVIL], next=[EVIL]), width, paint
        ),
        *answer.diff_lines(DiffReply(workspace=EVIL, base="a", head="b", text="+" + EVIL + "\n-x\n@@ y"), paint),
        *answer.diff_summary(DiffReply(workspace=EVIL, base="a", head="b", live=True, truncated=True), paint),
        *answer.clean_lines(CleanReply(removed=[EVIL], kept={EVIL: EVIL}), width, paint),
        *answer.daemon_lines(
            DaemonStatus(
                pid=1, version=EVIL, home=EVIL, socket=EVIL, uptime_s=5, rss_bytes=5, draining=True, warnings=[EVIL]
            ),
            paint,
        ),
        *answer.stop_lines(StopReply(mode="leave", running=1, note=EVIL), paint),
        *listing.history_lines([past], width, paint, NOW),
        *listing.queue_lines(QueueReport(rows=[queued], frozen_pools=[EVIL]), width, paint, NOW),
        *listing.rescue_lines(
            [RescueRow(workspace=EVIL, n=1, ref="r", sha="a" * 40, reason=EVIL, at=NOW)], width, paint, NOW
        ),
        *listing.repo_lines([repo], width, paint, NOW),
        *listing.trust_lines(TrustReply(repo=repo, hash="h", settings={EVIL: EVIL}, applied=True), width, paint),
        *listing.agent_lines([agent], width, paint, NOW),
        *listing.template_lines([TemplateRow(name=EVIL, kind="persona", summary=EVIL, source=EVIL)], width, paint),
        *listing.template_text(
            TemplateShow(name=EVIL, kind="template", source=EVIL, text=EVIL, variables=[EVIL]), paint
        ),
        *listing.workspace_rows([base], width, paint, NOW),
        *event.log_lines(log, width, paint, 0)[0],
        *event.stderr_lines(log, width, paint),
        *event.raw_lines(log.entries[0]),
        event.message_line(message, width, paint),
    ]


@pytest.mark.parametrize("paint", [PLAIN, COLOUR])
def test_no_view_lets_an_agent_reach_the_terminal(paint: Paint) -> None:
    lines = everything(100, paint)
    assert safe(lines)
    assert any("\x1b" in line for line in lines) is paint.colour


def test_empty_lists_say_so() -> None:
    assert listing.history_lines([], 80, PLAIN, NOW) == ["nothing was dispatched yet"]
    assert listing.queue_lines(QueueReport(frozen=True), 80, PLAIN, NOW)[-1] == "nothing is queued"
    assert listing.rescue_lines([], 80, PLAIN, NOW) == ["nothing had to be rescued"]
    assert "repo add" in listing.repo_lines([], 80, PLAIN, NOW)[0]
    assert listing.workspace_rows([], 80, PLAIN, NOW) == ["there is no workspace"]
    assert answer.clean_lines(CleanReply(), 80, PLAIN) == ["nothing to remove"]


def test_stopping_says_what_becomes_of_the_agents() -> None:
    assert "2 agents of yours go on" in answer.stop_lines(StopReply(mode="leave", running=2), PLAIN)[0]
    assert "draining" in answer.stop_lines(StopReply(mode="drain", running=1), PLAIN)[0]
    assert answer.stop_lines(StopReply(mode="now", running=0), PLAIN) == ["stopped"]
    assert running_words(0, 0) == "0 agents running"
    assert running_words(1, 2) == "1 agent running, 2 more that the store does not know"


def test_every_resting_state_has_its_exit_code() -> None:
    codes = {
        state: answer.exit_code(state) for state in (State.COMPLETED, State.FAILED, State.BLOCKED, State.CANCELLED)
    }
    assert list(codes.values()) == [0, 10, 11, 12]


def screen(width: int = 40, height: int = 10) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    made = Terminal(
        out=out,
        err=io.StringIO(),
        stdin=io.StringIO(),
        width=width,
        height=height,
        colour=True,
        interactive=True,
        cwd="/",
    )
    return made, out


def test_live_lines_are_drawn_over_and_never_wrap() -> None:
    terminal, out = screen()
    lines = live.Live(terminal)
    lines.draw(["one", "x" * 100])
    lines.draw(["two"])
    lines.above(["stays"])
    lines.draw(["three"])
    lines.clear()
    drawn = out.getvalue()
    assert "\x1b[2A" in drawn
    assert "stays\n" in drawn
    assert drawn.count("x") < 40
    assert drawn.endswith("\x1b[1A\x1b[J")


def test_the_screen_is_given_back_whatever_happens() -> None:
    terminal, out = screen()
    with pytest.raises(KeyboardInterrupt), live.Screen(terminal) as drawn:
        drawn.draw([f"line {n}" for n in range(30)], "Ctrl-C leaves")
        raise KeyboardInterrupt
    assert "22 more lines below" in out.getvalue()
    assert "line 8" not in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def crowd(state: State, count: int, **more: Any) -> list[WorkspaceRow]:
    return [row(state, name=f"{state}{n}", since=NOW - timedelta(hours=count - n), **more) for n in range(count)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (120, 24), (40, 6)])
def test_a_long_status_fits_the_screen_and_counts_the_rest(width: int, height: int) -> None:
    rows = [*crowd(State.BLOCKED, 30, needs_me=True, question="Which?"), *crowd(State.RUNNING, 9)]
    rows += crowd(State.QUEUED, 20, waiting_for="slot")
    many = StatusReport(counts=Counts(blocked=30, running=9, queued=20), workspaces=rows, pools=report().pools)
    lines = status_lines(many, width, PLAIN, NOW, height, "core-agent status --all")
    assert len(lines) <= height
    assert lines[0].startswith("20 queued, 9 running")
    (more,) = [line for line in lines if line.startswith("+")]
    shown = sum(line.startswith(("? ", "● ", "· ")) for line in lines)
    assert more == f"+{59 - shown} more: core-agent status --all"
    if height >= 24:  # each section has its share: what runs is in sight however many need a person
        marks = [line[0] for line in lines if line.startswith(("? ", "● ", "· "))]
        assert max(marks.count(mark) for mark in "?●·") - min(marks.count(mark) for mark in "?●·") <= 1
    if height >= 12:
        assert any("blocked0 " in line for line in lines)
    if height >= 24:
        assert [line for line in lines if line.isupper()] == ["NEEDS YOU", "RUNNING", "QUEUED"]
    assert len(status_lines(many, width, PLAIN, NOW)) > 59


def test_a_status_that_fits_is_not_touched() -> None:
    whole = status_lines(report(), 80, PLAIN, NOW)
    assert status_lines(report(), 80, PLAIN, NOW, len(whole)) == whole
    assert len(status_lines(report(), 80, PLAIN, NOW, len(whole) - 1)) < len(whole)


def test_a_diff_on_a_screen_keeps_its_lines_and_shows_what_they_hold() -> None:
    text = "+\tone\r\n+a\x0cb\u2028c\x1b[2J\n-\u202ed\n"
    lines = answer.diff_lines(DiffReply(workspace="w", base="a", head="b", text=text), Paint(False))
    assert lines == ["+   one␍", "+a␌b<U+2028>c␛[2J", "-<U+202E>d"]
    assert answer.diff_lines(DiffReply(workspace="w", base="a", head="a"), Paint(False)) == []


@pytest.mark.parametrize("height", [7, 9, 12])
def test_what_runs_is_seen_before_what_is_warned_of(height: int) -> None:
    warned = [f"warning {n}: " + "far too long for one line " * 4 for n in range(4)]
    few = StatusReport(counts=Counts(running=1), workspaces=[row(State.RUNNING, name="me")], warnings=warned)
    lines = status_lines(few, 50, PLAIN, NOW, height, "core-agent status --all")
    assert len(lines) <= height
    assert any("app/me" in line for line in lines)
    assert "1 running" in lines
    told = [line for line in lines if line.startswith("! ")]
    assert 0 < len(told) <= 4
    assert all(width_of(line) <= 50 for line in lines)
    if len(told) < 4:
        assert told[-1] == f"! {4 - len(told) + 1} warnings: core-agent status --all"
