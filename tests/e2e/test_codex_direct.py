"""The real codex CLI through the codex runner, against the scripted model server, in a network without a way out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import real
from tests.support.codex import KEY, MODEL, bench, patch, program, served, shell
from tests.support.netns import Netns, NoNetns
from tests.support.real import Bench

from coreagent.models.agent import EventKind, Reason, Usage
from coreagent.modelserver import ModelServer, Script, Step
from coreagent.runners import codex
from coreagent.runners.base import NoSettings

pytestmark = pytest.mark.real_cli

USAGE = Usage(input=1000, output=50, cache_read=30, cache_write=20)
TWICE = Usage(input=2000, output=100, cache_read=60, cache_write=40)
SLEEP = f"{sys.executable} -c 'import time; time.sleep(313)'"
DONE = Step("Done.", usage=USAGE)
NO_ROOM = "Your input exceeds the context window of this model."


def scripts() -> list[Script]:
    return [
        Script("EDIT", [Step("I will.", [shell("printf 'hello\\n' > a.txt")], usage=USAGE), DONE]),
        Script("PATCH", [Step("I will.", [patch("p.txt")], usage=USAGE), DONE]),
        Script("MORE", [Step("Again.", [shell("printf 'b\\n' > b.txt")], usage=USAGE), DONE]),
        Script("SLOW", [Step("Slow.", [shell(SLEEP, yield_time_ms=600_000)], usage=USAGE), DONE]),
        Script("LEFT", [Step("x", [shell("sleep 317", yield_time_ms=300)]), Step("Done.")]),
        Script("ENV", [Step("x", [shell("env > env.txt")]), Step("Done.")]),
        Script("OUT", [Step("x", [shell("echo x > ../outside.txt; echo x > .git/hooks/x; true")]), Step("Done.")]),
        Script("ASK", [Step("x", [shell("touch ../o", sandbox_permissions="require_escalated", justification="x")]),
                       Step("Done.")]),
        Script("FREE", [Step("x", [shell("echo x > ../outside.txt")]), Step("Done.")]),
        Script("LATE", [Step("x", [shell("true")], usage=USAGE), Step(error=429, message="slow down")]),
        Script("E400", [Step(error=400, message="bad 402913 shape")]),
        Script("E401", [Step(error=401, message="invalid key")]),
        Script("E403", [Step(error=403)]),
        Script("E404", [Step(error=404, message="The requested model 'x' does not exist.")]),
        Script("E429", [Step(error=429, message="slow down")]),
        Script("E500", [Step(error=500)]),
        Script("E503", [Step(error=503, message="overloaded")]),
        Script("LONG", [Step(error=400, message=NO_ROOM)]),
        Script("CUT", [Step("hello", cut=True)]),
        Script("HANG", [Step(hang=True)]),
        Script("RETRY", [Step(error=500, times=2, then=Step("Fine.", usage=USAGE))]),
        Script("SAY", [Step("Said.", usage=USAGE)]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[ModelServer, Netns | NoNetns]]:
    real.require("codex")
    with served(scripts()) as found:
        yield found


@pytest.fixture
def server(place: tuple[ModelServer, Netns | NoNetns]) -> ModelServer:
    return place[0]


@pytest.fixture
def desk(tmp_path: Path, place: tuple[ModelServer, Netns | NoNetns]) -> Bench:
    made = bench(tmp_path, place[0], program(place[1], tmp_path / "bin"))
    return Bench(made.root, made.server, made.launch.__class__(**{**made.launch.__dict__, "model": MODEL}), "codex")


def test_the_pinned_version_is_the_one_found_and_it_is_the_native_one() -> None:
    found = codex.Codex().find({"PATH": os.environ["PATH"]}, NoSettings(path=real.require("codex"))).require()
    assert found.version == real.pinned_version("codex")
    assert "/vendor/" in found.path


def test_edit_then_resume_with_the_usage_of_each_turn(desk: Bench) -> None:
    first = desk.run("EDIT please")
    assert (first.outcome.terminal, first.outcome.reason, first.exit_code) == ("success", None, 0), first
    assert (desk.repo / "a.txt").read_text() == "hello\n"
    assert uuid.UUID(first.outcome.session_id)
    assert first.outcome.usage == TWICE
    assert first.outcome.cost.usd is None
    assert (first.outcome.turns, first.outcome.unparsed) == (1, 0)
    assert (first.outcome.last_tool, first.outcome.last_text) == ("exec_command", "Done.")
    kinds = first.kinds()
    assert kinds[0] is EventKind.STARTED
    assert kinds[-1] is EventKind.RESULT
    assert {EventKind.TEXT, EventKind.TOOL_USE, EventKind.TOOL_RESULT} <= set(kinds)
    # The person's own home is untouched; the session lives in the private one, with our own files beside it.
    assert list((desk.root / "home").iterdir()) == []
    assert any((desk.root / "config" / "sessions").rglob(f"*{first.outcome.session_id}*"))

    second = desk.run("MORE please", resume=first.outcome.session_id, previous=first.outcome.usage)
    assert second.outcome.terminal == "success"
    assert second.outcome.session_id == first.outcome.session_id
    assert (desk.repo / "b.txt").read_text() == "b\n"
    # What was measured, and why the parser takes the totals: the CLI counts the whole thread.
    assert second.raw[-1]["usage"]["input_tokens"] == 4 * 1050
    assert second.outcome.usage == TWICE
    assert "EDIT please" in desk.server.requests[-1].body.decode()


def test_a_patch_is_an_edit(desk: Bench) -> None:
    ran = desk.run("PATCH")
    assert (ran.outcome.terminal, ran.outcome.last_tool) == ("success", "apply_patch"), ran
    assert (desk.repo / "p.txt").read_text() == "hello\n"
    (use,) = [event for event in ran.events if event.kind is EventKind.TOOL_USE]
    assert use.text == f"add {desk.repo}/p.txt"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("E400", Reason.BAD_REQUEST),
        ("E401", Reason.AUTH),
        ("E403", Reason.AUTH),
        ("E404", Reason.CONFIGURATION),
        ("E429", Reason.RATE_LIMIT),
        ("E500", Reason.MODEL_ERROR),
        ("E503", Reason.MODEL_ERROR),
        ("LONG", Reason.CONTEXT_OVERFLOW),
        ("CUT", Reason.NETWORK),
    ],
)
def test_model_failures_are_named_within_seconds(desk: Bench, prompt: str, reason: Reason) -> None:
    began = time.monotonic()
    ran = desk.run(f"{prompt} now")
    assert (ran.outcome.terminal, ran.outcome.reason, ran.exit_code) == ("error", reason, 1), ran
    assert ran.outcome.message
    assert not ran.outcome.message.startswith("{")
    assert ran.outcome.usage == Usage()
    assert time.monotonic() - began < 10
    # An `error` came before: it is no ending.
    assert ran.raw[-1]["type"] == "turn.failed"
    assert len([event for event in ran.events if event.terminal]) == 1


def test_a_failing_model_is_asked_six_times_and_a_refusing_one_three_times(desk: Bench) -> None:
    for prompt, most in (("E500", 6), ("E401", 3), ("E429", 3), ("E400", 1)):
        seen = len(desk.server.requests)
        desk.run(prompt)
        assert len([r for r in desk.server.requests[seen:] if r.key == prompt]) <= most, prompt


def test_there_is_no_way_out(place: tuple[ModelServer, Netns | NoNetns], tmp_path: Path) -> None:
    if isinstance(place[1], NoNetns):
        pytest.skip("this system gives no network namespace")
    reach = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    python = place[1].wrap(sys.executable, tmp_path)
    done = subprocess.run([python, "-c", reach], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in done.stderr


def test_nobody_listens(desk: Bench) -> None:
    began = time.monotonic()
    ran = desk.run("SAY", env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.NETWORK)
    assert time.monotonic() - began < 10


def test_a_retry_is_an_event_and_no_ending(desk: Bench) -> None:
    ran = desk.run("RETRY now")
    assert ran.outcome.terminal == "success"
    assert ran.outcome.usage == USAGE
    retries = [event for event in ran.events if event.kind is EventKind.RETRY]
    assert [event.reason for event in retries] == [Reason.MODEL_ERROR]


def test_a_limit_in_mid_turn_is_counted_when_the_thread_goes_on(desk: Bench) -> None:
    limited = desk.run("LATE")
    assert (limited.outcome.reason, limited.outcome.usage) == (Reason.RATE_LIMIT, Usage())
    again = desk.run("SAY", resume=limited.outcome.session_id, previous=limited.outcome.usage)
    assert (again.outcome.terminal, again.outcome.usage) == ("success", TWICE)


def test_interrupted_in_mid_tool_leaves_nothing_running_and_its_thread_goes_on(desk: Bench) -> None:
    for permissions in ("edits", "bypass"):
        with desk.start("SLOW", permissions=permissions) as turn:
            started = turn.read_until(lambda event: event.kind is EventKind.TOOL_USE)
            child = real.descendant(turn.process.pid, SLEEP.replace("'", "")[:40])
            turn.signal(signal.SIGINT)
            ran = turn.finish(timeout_s=5)
        assert "time.sleep(313)" in started.text
        assert (ran.outcome.terminal, ran.outcome.reason, ran.exit_code) == ("none", Reason.DIED, 1)
        assert real.ends(child)
        again = desk.run("MORE", resume=ran.outcome.session_id, previous=ran.outcome.usage)
        assert again.outcome.terminal == "success"
        # The answer that led to the tool is counted with the next turn.
        assert again.outcome.usage == TWICE.plus(USAGE)


def test_a_hang_is_stopped_at_once(desk: Bench) -> None:
    seen = len([r for r in desk.server.requests if r.key == "HANG"])
    with desk.start("HANG") as turn:
        assert desk.server.wait_requests(seen + 1, key="HANG")
        turn.signal(signal.SIGINT)
        ran = turn.finish(timeout_s=5)
    assert (ran.outcome.terminal, ran.outcome.reason) == ("none", Reason.DIED)


def test_a_tool_left_in_the_background_ends_with_the_turn(desk: Bench) -> None:
    with desk.start("LEFT", permissions="bypass") as turn:
        turn.read_until(lambda event: event.kind is EventKind.TOOL_USE)
        child = real.descendant(turn.process.pid, "sleep 317")
        ran = turn.finish()
    assert ran.outcome.terminal == "success"
    assert real.ends(child)


def test_an_unknown_thread_is_a_lost_session(desk: Bench) -> None:
    ran = desk.run("SAY", resume=str(uuid.uuid4()))
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.SESSION_LOST)
    assert ran.raw == []


def test_a_flag_or_a_value_that_it_does_not_know_is_a_configuration(desk: Bench) -> None:
    for args in (["--no-such-flag"], ["-c", 'model_reasoning_summary="never heard"']):
        ran = desk.run("SAY", args=args)
        assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.CONFIGURATION), (args, ran)


def test_edits_stay_in_the_checkout(desk: Bench) -> None:
    first = desk.run("OUT")
    assert first.outcome.terminal == "success"
    # The sandbox is a flag of each turn, and holds for a resumed one.
    desk.run("OUT", resume=first.outcome.session_id)
    assert not (desk.root / "outside.txt").exists()
    assert not (desk.repo / ".git" / "hooks" / "x").exists()
    asked = desk.run("ASK")
    assert (asked.outcome.terminal, asked.outcome.denied_tools) == ("success", ["exec_command"])
    assert not (desk.root / "o").exists()


def test_bypass_is_bypass(desk: Bench) -> None:
    assert desk.run("FREE", permissions="bypass").outcome.terminal == "success"
    assert (desk.root / "outside.txt").exists()


def test_its_tools_are_in_a_world_of_their_own(desk: Bench) -> None:
    nested = {"CODEX_THREAD_ID": "outer", "CODEX_SANDBOX": "outer", "CLAUDECODE": "1"}
    assert desk.run("ENV", env=nested).outcome.terminal == "success"
    env = dict(line.split("=", 1) for line in (desk.repo / "env.txt").read_text().splitlines() if "=" in line)
    assert env["TMPDIR"] == str(desk.root / "tmp")
    assert env["CODEX_HOME"] == str(desk.root / "config")
    assert "CLAUDECODE" not in env
    assert env["CODEX_THREAD_ID"] != "outer"


def test_instructions_of_workspace_and_checkout_reach_the_model_and_a_checkouts_settings_do_not(desk: Bench) -> None:
    (desk.root / "AGENTS.md").write_text("WORKSPACE-RULES\n")
    (desk.repo / "AGENTS.md").write_text("HOUSE-RULES\n")
    (desk.repo / ".codex").mkdir()
    (desk.repo / ".codex" / "config.toml").write_text(f'model = "evil"\nnotify = ["touch", "{desk.root}/notified"]\n')
    hook = {"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": f"touch {desk.root}/hooked"}]}]}}
    (desk.repo / ".codex" / "hooks.json").write_text(json.dumps(hook))
    assert desk.run("SAY").outcome.terminal == "success"
    sent = desk.server.requests[-1]
    assert "HOUSE-RULES" in sent.body.decode()
    assert "WORKSPACE-RULES" in sent.body.decode()
    assert sent.json["model"] == MODEL
    assert not (desk.root / "notified").exists()
    assert not (desk.root / "hooked").exists()


def test_what_an_agent_writes_into_its_own_home_is_gone_with_the_next_turn(desk: Bench) -> None:
    first = desk.run("SAY")
    config = desk.root / "config" / "config.toml"
    config.write_text(f'notify = ["touch", "{desk.root}/notified"]\nmodel_provider = "elsewhere"\n')
    (desk.root / "config" / "AGENTS.md").unlink()
    (desk.root / "config" / "AGENTS.md").mkdir()
    assert desk.run("SAY", resume=first.outcome.session_id).outcome.terminal == "success"
    assert not (desk.root / "notified").exists()


def test_the_key_goes_to_the_given_endpoint_by_the_environment(desk: Bench) -> None:
    plan = codex.Codex().plan(desk.launch)
    assert not any(KEY in arg for arg in plan.argv)
    assert desk.run("SAY").outcome.terminal == "success"
    assert desk.server.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_a_login_file_is_used_for_the_persons_own_provider_and_not_for_another_endpoint(desk: Bench) -> None:
    own = desk.root / "home" / ".codex"
    own.mkdir()
    (own / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": "sk-from-the-file"}))
    assert desk.run("SAY").outcome.terminal == "success"
    assert desk.server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    # openai_base_url is the person's own word, and what is logged in is sent there.
    (own / "config.toml").write_text(f'openai_base_url = "{desk.server.url}/v1"\nmodel = "gpt-5.5"\n')
    elsewhere = {"OPENAI_BASE_URL": "", "OPENAI_API_KEY": "", "OPENAI_ORGANIZATION": "org-mine"}
    assert desk.run("SAY", env=elsewhere, model="").outcome.terminal == "success"
    replies = [request for request in desk.server.requests if request.step >= 0]
    assert replies[-1].headers["authorization"] == "Bearer sk-from-the-file"
    assert replies[-1].headers["openai-organization"] == "org-mine"
    assert replies[-1].json["model"] == "gpt-5.5"


def test_a_provider_of_the_persons_own_is_taken_along_with_our_limits(desk: Bench) -> None:
    own = desk.root / "home" / ".codex"
    own.mkdir()
    (own / "config.toml").write_text(
        'model_provider = "house"\n[model_providers.house]\nname = "House"\nwire_api = "responses"\n'
        f'base_url = "{desk.server.url}/v1"\nenv_key = "HOUSE_KEY"\nhttp_headers = {{"x-house" = "yes"}}\n'
    )
    env = {"HOUSE_KEY": "sk-house", "OPENAI_BASE_URL": ""}
    assert desk.run("SAY", env=env).outcome.terminal == "success"
    headers = desk.server.requests[-1].headers
    assert (headers["authorization"], headers["x-house"]) == ("Bearer sk-house", "yes")
    seen = len([r for r in desk.server.requests if r.key == "E500"])
    assert desk.run("E500", env=env).outcome.reason is Reason.MODEL_ERROR
    assert len([r for r in desk.server.requests if r.key == "E500"]) - seen <= 6
