"""The scripted runner: its grammar, and its agent as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import Launch, lay_out
from coreagent.runners.scripted import Scripted, parse_script


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    (tmp_path / "repo").mkdir()
    return Launch(
        prompt="Do it.",
        session_id="s-1",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        env={"PATH": os.defpath},
    )


def play(launch: Launch, script: str, resume: str = "") -> tuple[Outcome, list[AgentEvent]]:
    runner = Scripted()
    plan = runner.plan(replace(launch, script=script, resume_session=resume))
    lay_out(plan, launch.workspace_dir)
    done = subprocess.run(
        plan.argv, input=plan.stdin, env=plan.env, cwd=launch.repo_dir, capture_output=True, check=False
    )
    parser = runner.parser()
    events = [event for line in done.stdout.splitlines() for event in parser.feed(line)]
    code = done.returncode
    outcome = parser.end(code if code >= 0 else None, -code if code < 0 else None, done.stderr)
    assert outcome.unparsed == 0
    return outcome, events


EVERYTHING = """
session: chosen
steps:
  - say: Looking.
  - write: {path: src/a.txt, content: "one\\n"}
  - append: {path: src/a.txt, content: "two\\n"}
  - replace: {path: src/a.txt, old: one, new: three}
  - write: {path: run.sh, content: "#!/bin/sh\\necho ran > ran.txt\\n", executable: true}
  - run: [./run.sh]
  - run: {argv: "echo $WHO > who.txt", env: {WHO: me}, check: true}
  - run: [/bin/sh, -c, "exit 4"]
  - delete: run.sh
  - tool: {name: Search, input: q, result: none, is_error: true}
  - usage: {input: 100, output: 5, cost_usd: 0.25}
  - usage: {cache_read: 3, cost_usd: 0.5}
  - wait: 0.01
  - wait_for: src/a.txt
  - say: Done.
"""


def test_every_step(launch: Launch) -> None:
    outcome, events = play(launch, EVERYTHING)
    repo = Path(launch.repo_dir)
    assert (repo / "src/a.txt").read_text() == "three\ntwo\n"
    assert (repo / "ran.txt").read_text() == "ran\n"
    assert (repo / "who.txt").read_text() == "me\n"
    assert not (repo / "run.sh").exists()
    assert outcome.terminal == "success"
    assert outcome.session_id == "chosen"
    assert outcome.usage == Usage(input=100, output=5, cache_read=3)
    assert outcome.cost == Cost(usd=0.75, source="reported")
    assert (outcome.last_tool, outcome.last_text) == ("Search", "Done.")
    assert [e.is_error for e in events if e.kind is EventKind.TOOL_RESULT] == [False] * 6 + [True, False, True]
    assert events[0].kind is EventKind.STARTED
    assert events[-1].kind is EventKind.RESULT


@pytest.mark.parametrize(
    ("step", "reason", "message"),
    [
        ("fail: auth", Reason.AUTH, "the script says so"),
        ("fail: {reason: context_overflow, message: too long, exit: 7}", Reason.CONTEXT_OVERFLOW, "too long"),
        ("fail: {reason: model_error, exit: 0}", Reason.MODEL_ERROR, "the script says so"),
        ("exit: 9", Reason.ERROR, "exit code 9"),
        ("replace: {path: nope, old: a, new: b}", Reason.ERROR, "nope"),
        ("delete: nope", Reason.ERROR, "nope"),
        ("run: {argv: [/bin/false], check: true}", Reason.ERROR, "/bin/false: exit code 1"),
        ("run: {argv: [/nonexistent], check: true}", Reason.ERROR, "127"),
        ("run: {argv: [sleep, '9'], check: true, timeout_s: 0.05}", Reason.ERROR, "124"),
        ("wait_for: {path: nope, timeout_s: 0.01}", Reason.TIMEOUT, "nope"),
    ],
)
def test_failures_are_named(launch: Launch, step: str, reason: Reason, message: str) -> None:
    outcome, _ = play(launch, f"steps:\n  - {step}\n")
    assert (outcome.terminal, outcome.reason) == ("error", reason)
    assert message in outcome.message


def test_a_rate_limit_names_its_reset(launch: Launch) -> None:
    before = time.time()
    outcome, _ = play(launch, "steps: [{rate_limit: {resets_in: 90}}]")
    assert (outcome.terminal, outcome.reason) == ("error", Reason.RATE_LIMIT)
    assert outcome.resets_at is not None
    assert before + 89 < outcome.resets_at < time.time() + 91
    assert play(launch, "steps: [{rate_limit: }]")[0].resets_at is None


def test_a_question_blocks(launch: Launch) -> None:
    outcome, _ = play(launch, "steps: [{block: 'Which colour?'}, {fail: error}]")
    assert outcome.terminal == "success"
    assert (Path(launch.repo_dir) / "BLOCKED.md").read_text() == "Which colour?\n"


def test_dying_is_no_ending(launch: Launch) -> None:
    outcome, _ = play(launch, "steps: [{say: hi}, {die: KILL}]")
    assert (outcome.terminal, outcome.reason) == ("none", Reason.DIED)


TURNS = """
turns:
  - steps: [{say: first}, {rate_limit: {resets_in: 60}}]
  - [{say: second}]
"""


def test_each_resume_plays_the_next_turn(launch: Launch) -> None:
    first, _ = play(launch, TURNS)
    assert (first.last_text, first.reason) == ("first", Reason.RATE_LIMIT)
    second, _ = play(launch, TURNS, resume=first.session_id)
    assert (second.last_text, second.terminal, second.session_id) == ("second", "success", first.session_id)
    third, _ = play(launch, TURNS, resume=first.session_id)
    assert (third.last_text, third.terminal) == ("The script has no further turn.", "success")
    fresh, _ = play(launch, TURNS)
    assert fresh.last_text == "first"


def test_a_turn_that_was_cut_off_is_played_again_when_it_is_the_last(launch: Launch) -> None:
    cut = "steps: [{append: {path: log, content: x}}, {die: KILL}]"
    first, _ = play(launch, cut)
    again, _ = play(launch, cut.replace("{die: KILL}", "{say: whole}"), resume=first.session_id)
    assert again.last_text == "whole"
    assert (Path(launch.repo_dir) / "log").read_text() == "xx"


def test_an_unknown_session_is_lost(launch: Launch) -> None:
    outcome, _ = play(launch, TURNS, resume="never-seen")
    assert (outcome.terminal, outcome.reason) == ("error", Reason.SESSION_LOST)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_a_signal_and_not_a_traceback(launch: Launch, number: signal.Signals) -> None:
    runner = Scripted()
    plan = runner.plan(replace(launch, script="steps: [{say: up}, {wait: 60}]"))
    lay_out(plan, launch.workspace_dir)
    with subprocess.Popen(
        plan.argv, env=plan.env, cwd=launch.repo_dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(plan.stdin or b"")
        process.stdin.close()
        while json.loads(process.stdout.readline())["kind"] != "text":
            pass
        process.send_signal(number)
        assert process.wait(10) == -number


def test_the_checkout_cannot_shadow_the_standard_library(launch: Launch) -> None:
    (Path(launch.repo_dir) / "json.py").write_text("raise SystemExit('shadowed')")
    assert play(launch, "steps: [{say: fine}]")[0].terminal == "success"


@pytest.mark.parametrize(
    ("script", "line", "message", "hint"),
    [
        ("", 0, "empty", "steps"),
        ("play.yaml", 1, "not the name of a file", "--script FILE"),
        ("steps: []", 1, "not empty", ""),
        ("stepz: [{say: a}]", 1, "stepz", "steps"),
        ("session: a", 1, "either", ""),
        ("steps: [{say: a}]\nturns: [[{say: a}]]", 1, "either", ""),
        ("session: a/b\nsteps: [{say: a}]", 1, "slashes", ""),
        ("steps:\n  - say: a\n  - wirte: {path: a, content: b}", 3, "wirte", "write"),
        ("steps:\n  - write: {path: a}", 2, "needs 'content'", ""),
        ("steps:\n  - write: {path: a, contents: b}", 2, "contents", "content"),
        ("steps:\n  - write: a", 2, "takes path", ""),
        ("steps:\n  - say: a\n    wait: 1", 2, "one verb", ""),
        ("steps:\n  - say", 2, "one verb", ""),
        ("steps:\n  - wait: soon", 2, "wait", ""),
        ("steps:\n  - wait: true", 2, "wait", ""),
        ("steps:\n  - wait: -1", 2, "wait", ""),
        ("steps:\n  - fail: tired", 2, "reason", ""),
        ("steps:\n  - exit: 256", 2, "exit", ""),
        ("steps:\n  - die: NOW", 2, "die", ""),
        ("steps:\n  - run: []", 2, "argv", ""),
        ("turns:\n  - steps: [{say: a}]\n  - stops: [{say: a}]", 3, "stops", "steps"),
        ("steps:\n  - say: [", 2, "", ""),
        ("steps:\n  - say: !!python/object:os.system x", 2, "cannot be read", ""),
        ("a: \x00", 0, "", ""),
    ],
)
def test_a_bad_script_names_its_line(script: str, line: int, message: str, hint: str) -> None:
    with pytest.raises(CoreAgentError) as error:
        parse_script(script)
    assert error.value.slug == "bad_script"
    assert message in error.value.message
    assert hint in error.value.hint
    assert error.value.data["line"] in (line, line + 1)
