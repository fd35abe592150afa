"""What every member of the runner family keeps, whoever it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent import runners, wire
from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import TEXT_LIMIT, Launch, NoSettings, Parser, Plan, allow, lay_out, version_tuple

MEMBERS = sorted(runners.FAMILY)
WITHOUT_PROTOCOL = {"command", "scripted"}
CLIS = sorted(set(MEMBERS) - WITHOUT_PROTOCOL)
KEYS = ("ANTHROPIC_API_KEY", "CODEX_API_KEY", "GEMINI_API_KEY")


@dataclass(frozen=True)
class Own:
    argv: list[str]
    env: Mapping[str, str]
    variables: tuple[str, ...] = ()
    mode: str = ""
    model: str = ""
    auth: str = ""


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    for name in ("bin", "repo", "home"):
        (tmp_path / name).mkdir()
    for name in CLIS:
        program = tmp_path / "bin" / name
        program.write_text("#!/bin/sh\necho 99.0.0\n")
        program.chmod(0o755)
    return Launch(
        prompt="Fix it — \ud800 ünïcode.",
        session_id="22222222-2222-4222-8222-222222222222",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        config_home=str(tmp_path / "config"),
        env={
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            "HOME": str(tmp_path / "home"),
            **dict.fromkeys(KEYS, "secret"),
        },
        command=Own(["cat"], {"OWN": "1"}),
        acp=Own(["cat"], {"OWN": "1"}),
        script="steps: [{say: hello}]",
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_it_says_who_it_is(name: str) -> None:
    runner = runners.load(name)
    assert runner.name == name
    assert runner.context_file.endswith(".md")
    assert runner.minimum == "" or version_tuple(runner.minimum)


@pytest.mark.parametrize("name", MEMBERS)
def test_links_on_the_way_to_what_is_ours_lead_nowhere(name: str, launch: Launch, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "config").mkdir(parents=True, mode=0o755)
    (elsewhere / "config" / "settings.json").write_text("mine")
    for link in ("own", "tmp"):
        (tmp_path / link).symlink_to(elsewhere)
    changed = replace(launch, config_home=str(tmp_path / "own" / "config"))
    lay_out(runners.load(name).plan(changed), launch.workspace_dir)
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["config", "settings.json"]
    assert (elsewhere / "config" / "settings.json").read_text() == "mine"
    assert (elsewhere / "config").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", MEMBERS)
def test_a_plan_touches_nothing_and_tells_all(name: str, launch: Launch, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = runners.load(name).plan(launch)
    assert sorted(tmp_path.rglob("*")) == before
    assert plan == runners.load(name).plan(launch)
    assert all(isinstance(arg, str) and "\0" not in arg for arg in plan.argv)
    assert Path(plan.argv[0]).is_absolute()
    assert plan.env["TMPDIR"] == launch.tmp_dir
    assert plan.env["PATH"] == launch.env["PATH"]
    assert not any(variable.startswith("CORE_AGENT_") for variable in plan.env)
    assert not any("secret" in arg for arg in plan.argv)
    assert plan.session_id == launch.session_id
    assert plan.stop_signal in ("INT", "TERM", "KILL")
    assert plan.stdin is not None
    lay_out(plan, launch.workspace_dir)
    lay_out(plan, launch.workspace_dir)
    assert all((Path(directory).stat().st_mode & 0o777) == 0o700 for directory in plan.directories)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_resumed_plan_keeps_the_session(name: str, launch: Launch) -> None:
    resumed = Launch(**{**launch.__dict__, "resume_session": "earlier"})
    assert runners.load(name).plan(resumed).session_id == "earlier"


@pytest.mark.parametrize("name", MEMBERS)
def test_find_and_login_answer_without_a_network(name: str, launch: Launch) -> None:
    runner = runners.load(name)
    found = runner.find(launch.env, launch.settings).require()
    assert os.access(found.path, os.X_OK)
    assert runner.login(launch.env, launch.settings).state in ("yes", "not_needed")


@pytest.mark.parametrize("name", MEMBERS)
def test_interactive_is_a_plan_or_a_clear_no(name: str, launch: Launch) -> None:
    try:
        plan = runners.load(name).interactive(launch)
    except CoreAgentError as error:
        assert error.slug == "cannot_attach"
        assert error.hint
    else:
        assert plan.stdin is None


@pytest.mark.parametrize("name", MEMBERS)
def test_a_signal_or_no_ending_is_a_death(name: str) -> None:
    for code, signal in ((None, 9), (None, None), (0, 15)):
        outcome = runners.load(name).parser().end(code, signal, b"tail \xff of stderr")
        assert (outcome.terminal, outcome.reason) == ("none", Reason.DIED)
        assert "tail" in outcome.message


@pytest.mark.parametrize("name", MEMBERS)
def test_a_silent_success_is_one_only_without_a_protocol(name: str) -> None:
    outcome = runners.load(name).parser().end(0, None)
    assert outcome.terminal == ("success" if name in WITHOUT_PROTOCOL else "none")


HOSTILE = [
    b"",
    b"\n",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"[" * 100_000,
    b'{"type": "assistant"',
    b'{"type":"assistant","message":null}',
    b'{"type":"assistant","message":{"content":[null,7,{"type":"text"}]}}',
    b'{"type":"user","message":{"content":{"a":1}}}',
    b'{"type":"result","usage":{"input_tokens":1e400},"total_cost_usd":"x","num_turns":-1,"permission_denials":7}',
    b'{"type":"rate_limit_event"}',
    b'{"type":"system","subtype":["init"]}',
    b'{"type":["x"]}',
    b'{"type":"item.completed","item":null}',
    b'{"type":"item.completed","item":{"type":"file_change","changes":[7,null]}}',
    b'{"type":"item.completed","item":{"type":"command_execution","id":7,"exit_code":"x","aggregated_output":[]}}',
    b'{"type":"turn.completed","usage":{"input_tokens":1e400}}',
    b'{"type":"turn.failed","error":{"message":{"a":1}}}',
    b'{"type":"error","message":"Reconnecting... 99999999999999999999/5"}',
    b'{"kind":"text","text":{"a":1}}',
    b'{"kind":"usage","usage":{"input":"many"}}',
    b'{"kind":"hologram"}',
    b'{"text":"\\ud800 lone"}',
    b"\xff\xfe\x00 \x1b[31m",
    b"x" * 200_000,
]


@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_an_agent_prints_raises(name: str) -> None:
    parser = runners.load(name).parser()
    for line in HOSTILE:
        _check(parser.feed(line))
        _check(parser.feed(line + b"\n"))
    outcome = parser.end(None, 9, b"\xff" * 10_000)
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome


@pytest.mark.parametrize("name", MEMBERS)
@given(line=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda s: json.dumps(s).encode())))
def test_no_line_raises(name: str, line: bytes) -> None:
    _check(runners.load(name).parser().feed(line))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
# fmt: off
_KINDS = [
    "assistant", "user", "result", "system", "rate_limit_event", "error", "usage", "item.completed", "item.started",
    "turn.completed", "turn.failed", "thread.started", "message", "tool_use", "tool_result", "init",
]
_KEYS = [
    "subtype", "message", "content", "usage", "tool_use_result", "permission_denials", "errors", "result",
    "rate_limit_info", "num_turns", "error", "session_id", "model", "total_cost_usd", "model_usage_since_last_result",
    "api_error_status", "resetsAt", "kind", "text", "tool", "cost", "item", "thread_id", "stats", "status",
    "output", "parameters", "tool_name", "tool_id", "severity", "role", "delta",
]
# fmt: on


@pytest.mark.parametrize("name", MEMBERS)
@given(
    kind=st.sampled_from(_KINDS),
    fields=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=5),
)
def test_no_shape_raises(name: str, kind: str, fields: dict[str, object]) -> None:
    parser = runners.load(name).parser()
    line = json.dumps({"type": kind, "kind": kind, **fields}).encode()
    _check(parser.feed(line))
    Outcome.model_validate_json(parser.outcome.model_dump_json())


@pytest.mark.parametrize("name", MEMBERS)
def test_what_the_shim_dropped_is_said_and_is_not_garbage(name: str) -> None:
    parser = runners.load(name).parser()
    (event,) = parser.feed(b'{"core_agent": "dropped", "bytes": 12345}\n')
    assert "12,345" in event.text
    assert parser.outcome.unparsed == 0
    assert parser.outcome.last_text == ""


@pytest.mark.parametrize("name", MEMBERS)
def test_what_the_shim_cut_is_said_and_is_not_garbage(name: str) -> None:
    parser = runners.load(name).parser()
    (event,) = parser.feed(b'{"core_agent": "cut", "bytes": 8388608}\n')
    assert event.text == "[8.0 MiB of this line were cut]"
    assert (parser.outcome.unparsed, parser.outcome.last_text) == (0, "")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_line_over_the_limit_is_survived(name: str) -> None:
    line = b'{"type":"assistant","text":"' + b"x" * (33 * 1024 * 1024) + b'"}'
    parser = runners.load(name).parser()
    _check(parser.feed(line))
    assert parser.outcome.unparsed + parser.outcome.events == 1


def test_a_line_below_the_limit_is_parsed() -> None:
    content = "x" * (20 * 1024 * 1024)
    message = {"type": "assistant", "message": {"id": "m", "content": [{"type": "text", "text": content}]}}
    (event,) = runners.load("claude").parser().feed(json.dumps(message).encode())
    assert event.text.startswith("xxx")
    _check([event])


@pytest.mark.parametrize("name", MEMBERS)
def test_its_variables_pass_and_others_do_not(name: str) -> None:
    runner = runners.load(name)
    env = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "UNHEARD_OF_API_KEY": "x",
        "CORE_AGENT_ATTEMPT": "1",
        "MINE": "1",
        "EXTRA_A": "1",
    }
    env |= {pattern.replace("*", "X"): "1" for pattern in runner.variables}
    passed = allow(env, runner, NoSettings(env=["MINE"]), ["EXTRA_*"])
    expected = set(env) - {"UNHEARD_OF_API_KEY", "CORE_AGENT_ATTEMPT"}
    assert set(passed) == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_what_it_needs_of_an_environment_is_sent_by_the_client(name: str) -> None:
    wanted = {pattern.replace("*", "X") for pattern in runners.load(name).variables}
    assert {name for name in wanted if name not in wire.PASSED and not name.startswith(wire.PASSED_PREFIXES)} == set()


@pytest.mark.parametrize(
    ("name", "changes", "terminal", "reason"),
    [
        ("command", {}, "success", None),
        ("command", {"command": Own(["/bin/sh", "-c", "echo bad >&2; exit 3"], {})}, "error", Reason.ERROR),
        ("command", {"command": Own(["/bin/sh", "-c", "kill -9 $$"], {})}, "none", Reason.DIED),
        ("scripted", {}, "success", None),
        ("scripted", {"script": "steps: [{exit: 3}]"}, "error", Reason.ERROR),
        ("scripted", {"script": "steps: [{die: KILL}]"}, "none", Reason.DIED),
    ],
)
def test_its_plan_runs(
    name: str, changes: dict[str, object], terminal: str, reason: Reason | None, launch: Launch
) -> None:
    runner = runners.load(name)
    plan = runner.plan(Launch(**{**launch.__dict__, **changes}))
    outcome = run(plan, launch.repo_dir, runner.parser())
    assert (outcome.terminal, outcome.reason) == (terminal, reason)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(CoreAgentError) as error:
        runners.load("cluade")
    assert (error.value.slug, "claude" in error.value.hint) == ("unknown_agent", True)
    with pytest.raises(CoreAgentError):
        runners.load("no.such.module:Runner")


def test_a_dotted_path_is_a_runner() -> None:
    assert runners.load("coreagent.runners.claude:Claude").name == "claude"


def run(plan: Plan, cwd: str, parser: Parser) -> Outcome:
    lay_out(plan, Path(cwd).parent)
    done = subprocess.run(plan.argv, input=plan.stdin, env=plan.env, cwd=cwd, capture_output=True, check=False)
    for line in done.stdout.splitlines():
        parser.feed(line)
    code = done.returncode
    return parser.end(code if code >= 0 else None, -code if code < 0 else None, done.stderr)


def _check(events: list[AgentEvent]) -> None:
    for event in events:
        assert isinstance(event, AgentEvent)
        assert len(event.text.encode()) <= TEXT_LIMIT
        assert event.kind in set(EventKind)
        assert event.usage is None or isinstance(event.usage, Usage)
        event.model_dump_json()
