"""The gemini runner: what it plans, and how it reads recorded and broken streams."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import Launch, NoSettings, Plan, lay_out
from coreagent.runners.gemini import REDIRECTING, Gemini, authentication, check_args, permissions
from coreagent.runners.gemini_stream import GeminiParser, classify, readable

FIXTURE = Path(__file__).with_name("fixtures") / "gemini.jsonl"
NOW = 1_800_000_000.0


def feed(parser: GeminiParser, *records: Mapping[str, Any]) -> list[AgentEvent]:
    return [event for record in records for event in parser.feed(json.dumps(record).encode() + b"\n")]


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text, "delta": True, **more}


def used(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "tool_use", "tool_name": name, "tool_id": f"{name}_1", "parameters": parameters}


def refused(name: str, kind: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_id": f"{name}_1", "status": "error", "error": {"type": kind, "message": "no"}}


def result(status: str = "success", **more: Any) -> dict[str, Any]:
    stats = {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "cached": 0}
    return {"type": "result", "status": status, "stats": stats, **more}


def failure(message: str) -> dict[str, Any]:
    return result("error", error={"type": "unknown", "message": message})


# ---- the stream -----------------------------------------------------------------------------------------------------


def test_a_recorded_run() -> None:
    parser = GeminiParser()
    events = [event for line in FIXTURE.read_bytes().splitlines() for event in parser.feed(line)]
    assert [event.kind for event in events] == [
        EventKind.STARTED,
        EventKind.TEXT,
        EventKind.TOOL_USE,
        EventKind.TOOL_RESULT,
        EventKind.TEXT,
        EventKind.RESULT,
    ]
    assert (events[2].tool, events[2].text, events[3].tool) == ("write_file", "hello_gemini.txt", "write_file")
    assert parser.end(0, None) == Outcome(
        terminal="success",
        session_id="dba6bb4e-cbc0-4cf3-9728-dfc407b3023e",
        model="gemini-3-pro-preview",
        usage=Usage(input=2234, output=96),
        turns=1,
        last_tool="write_file",
        last_text="Done: file written.",
        events=6,
    )


def test_text_comes_in_pieces_and_is_told_in_one() -> None:
    parser = GeminiParser()
    assert feed(parser, said("I "), said("will")) == []
    told = feed(parser, said(" do."), used("run_shell_command", command="make"))
    assert [(event.kind, event.text) for event in told] == [
        (EventKind.TEXT, "I will do."),
        (EventKind.TOOL_USE, "make"),
    ]
    assert feed(parser, said("x" * 9000))[0].kind is EventKind.TEXT
    feed(parser, said("cut off"))
    assert parser.end(None, 9).last_text == "cut off"


def test_what_was_thought_is_counted_once() -> None:
    stats = {"total_tokens": 1500, "input_tokens": 1000, "output_tokens": 100, "cached": 300, "input": 700}
    parser = GeminiParser()
    feed(parser, result() | {"stats": stats})
    assert parser.outcome.usage == Usage(input=700, output=500, cache_read=300)


DENIALS = [
    ("run_shell_command", "tool_not_registered", True),
    ("no_such_tool", "tool_not_registered", False),
    ("write_file", "path_not_in_workspace", True),
    ("write_file", "policy_violation", True),
    ("replace", "edit_no_occurrence_found", False),
]


@pytest.mark.parametrize(("tool", "kind", "denied"), DENIALS)
def test_a_denial_is_told_from_a_mistake(tool: str, kind: str, denied: bool) -> None:
    parser = GeminiParser()
    events = feed(parser, used(tool), refused(tool, kind))
    assert (events[-1].is_error, events[-1].denied) == (True, denied)
    assert parser.outcome.denied_tools == ([tool] if denied else [])


API = '[API Error: {{"error":{{"code":{},"message":"{}","status":"X"}}}}]'
FAILURES = [
    (API.format(400, "API key not valid. Please pass a valid API key."), 144, Reason.AUTH),
    (API.format(401, "x"), 145, Reason.AUTH),
    (API.format(400, "bad 429 shape"), 144, Reason.BAD_REQUEST),
    (API.format(500, "x"), 244, Reason.MODEL_ERROR),
    ("[API Error: something of 503]", 247, Reason.MODEL_ERROR),
    ("[API Error: something else]", 17, Reason.MODEL_ERROR),
    ("[API Error: something else]", 1, Reason.ERROR),
    ("[API Error: You have exhausted your daily quota on this model.]", 1, Reason.RATE_LIMIT),
    ("[API Error: models/x is not found for API version v1beta]", 1, Reason.CONFIGURATION),
    ("[API Error: terminated]", 1, Reason.NETWORK),
    ("[API Error: exception TypeError: fetch failed sending request]", 1, Reason.NETWORK),
    ("Reached max session turns for this session.", 53, Reason.MAX_TURNS),
    ("Operation cancelled.", 130, Reason.CANCELLED),
    ("", 1, Reason.ERROR),
]


@pytest.mark.parametrize(("message", "code", "reason"), FAILURES)
def test_failures_are_named(message: str, code: int, reason: Reason) -> None:
    parser = GeminiParser()
    (event,) = feed(parser, failure(message))
    outcome = parser.end(code, None, b"a stack trace")
    assert (outcome.terminal, outcome.reason, event.terminal) == ("error", reason, True)
    assert outcome.message


def test_an_answer_that_was_nothing_is_told_before_its_end() -> None:
    parser = GeminiParser()
    blocked = "The response was blocked due to safety filters."
    feed(parser, {"type": "error", "severity": "error", "message": blocked}, result("error"))
    assert (parser.outcome.reason, parser.outcome.message) == (Reason.MODEL_REFUSED, blocked)
    warned = GeminiParser()
    feed(warned, {"type": "error", "severity": "warning", "message": "Loop detected"}, said("x"), result())
    assert (warned.outcome.terminal, warned.outcome.last_text) == ("success", "x")


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("[API Error: Quota exceeded\nPlease retry in 34.5s.\nSuggested retry after 34s.]\nPlease wait", 34.5),
        ("[API Error: You have exhausted your capacity on this model. Your quota will reset after 5h3m2s.]", 18182.0),
        ("[API Error: quota exceeded]", None),
        ("[API Error: terminated, please retry in 5s]", None),
    ],
)
def test_resets(message: str, seconds: float | None) -> None:
    parser = GeminiParser(clock=lambda: NOW)
    (event,) = feed(parser, failure(message))
    assert event.resets_at == parser.outcome.resets_at == (NOW + seconds if seconds else None)


def test_a_session_is_kept_once_an_answer_was_whole() -> None:
    start = {"type": "init", "session_id": "s", "model": "m"}
    lost, kept, killed = GeminiParser(), GeminiParser(), GeminiParser()
    feed(lost, start, said("half"), failure("[API Error: terminated]"))
    feed(kept, start, used("glob"), {"type": "tool_result", "tool_id": "glob_1", "status": "success"})
    feed(kept, failure("[API Error: terminated]"))
    feed(killed, start)
    assert (lost.end(1, None).session_id, kept.end(1, None).session_id) == ("", "s")
    assert killed.end(0, None).session_id == "s"


REFUSALS = [
    (42, b'Error resuming session: Invalid session identifier "x".', Reason.SESSION_LOST),
    (42, b"Error resuming session: No previous sessions found for this project.", Reason.SESSION_LOST),
    (42, b'Error starting session: Session ID "x" already exists.', Reason.SESSION_LOST),
    (41, b"When using Gemini API, you must specify the GEMINI_API_KEY environment variable.", Reason.AUTH),
    (1, b"Unknown argument: nonsense\nUsage: gemini", Reason.CONFIGURATION),
    (55, b"Gemini CLI is not running in a trusted directory.", Reason.CONFIGURATION),
]


@pytest.mark.parametrize(("code", "stderr", "reason"), REFUSALS)
def test_what_it_refuses_to_begin(code: int, stderr: bytes, reason: Reason) -> None:
    outcome = GeminiParser().end(code, None, stderr)
    assert (outcome.terminal, outcome.reason) == ("error", reason)
    unknown = GeminiParser().end(code, None, b"something new")
    assert (unknown.terminal, unknown.reason) == ("none", Reason.DIED)


def test_readable_never_raises() -> None:
    for text in ("", "[API Error: ", "[API Error: {]", "[API Error: []]", '[API Error: {"error": 7}]', "[" * 100):
        status, told = readable(text)
        assert status == 0
        assert isinstance(told, str)
        assert classify(status, told) is Reason.ERROR


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    for name in ("bin", "repo", "home/.gemini", "specs"):
        (tmp_path / name).mkdir(parents=True)
    program = tmp_path / "bin" / "gemini"
    program.write_text("#!/bin/sh\necho 0.61.0\n")
    program.chmod(0o755)
    return Launch(
        prompt="Fix it.",
        session_id="22222222-2222-4222-8222-222222222222",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        config_home=str(tmp_path / "config"),
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "GEMINI_API_KEY": "secret"},
    )


def written(plan: Plan, name: str) -> str:
    return next(content.decode() for path, content in plan.files if path.endswith(name))


def test_a_plan_of_a_private_home(launch: Launch) -> None:
    plan = Gemini().plan(launch)
    assert plan.argv[1:] == [
        "--model", "pro", "--output-format", "stream-json", "--policy", f"{launch.tmp_dir}/permissions.toml",
        "--include-directories", f"{launch.workspace_dir}/specs", "--session-id", launch.session_id,
    ]  # fmt: skip
    assert plan.stdin == b"Fix it."
    assert plan.env["GEMINI_CLI_HOME"] == launch.config_home
    assert (plan.env["GEMINI_CLI_NO_RELAUNCH"], plan.env["GEMINI_CLI_TRUST_WORKSPACE"]) == ("true", "false")
    settings = json.loads(written(plan, "settings.json"))
    assert settings["security"] == {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}}
    assert (settings["general"]["maxAttempts"], settings["general"]["enableAutoUpdate"]) == (3, False)
    assert settings["telemetry"] == {"enabled": False}
    resumed = Gemini().plan(replace(launch, resume_session="earlier", model="flash"))
    assert resumed.argv[-2:] == ["--resume", "earlier"]
    assert resumed.argv[2] == "flash"


def test_a_plan_in_the_persons_own_home_trusts_the_checkout_and_lets_it_redirect_nothing(launch: Launch) -> None:
    own = replace(launch, config_home="", env={**launch.env, "GOOGLE_GEMINI_BASE_URL": "https://mine"})
    plan = Gemini().plan(own)
    assert ("--skip-trust" in plan.argv, plan.argv[plan.argv.index("--approval-mode") + 1]) == (True, "auto_edit")
    assert "yolo" in Gemini().plan(replace(own, permissions="bypass")).argv
    assert plan.files == ()
    assert "GEMINI_CLI_HOME" not in plan.env
    assert plan.env["GOOGLE_GEMINI_BASE_URL"] == "https://mine"
    assert all(name in plan.env for name in REDIRECTING)
    assert plan.env["GEMINI_SYSTEM_MD"] == ""


def test_what_decides_on_trust_does_not_come_from_a_shell(launch: Launch) -> None:
    more = {"GEMINI_CLI_TRUST_WORKSPACE": "true", "GEMINI_SANDBOX": "docker", "GEMINI_CLI_IDE_PID": "7"}
    env = Gemini().plan(replace(launch, env={**launch.env, **more})).env
    assert env["GEMINI_CLI_TRUST_WORKSPACE"] == "false"
    assert not {"GEMINI_SANDBOX", "GEMINI_CLI_IDE_PID"} & env.keys()


def test_the_persons_own_limit_of_attempts_is_heeded(launch: Launch) -> None:
    file = Path(launch.env["HOME"]) / ".gemini" / "settings.json"
    for said_there, attempts in (
        ('{"general": {"maxAttempts": 1}}', 1),
        ('{"general": {"maxAttempts": 99}}', 10),
        ('{"general": {"maxAttempts": "many"}}', 3),
        ('{"general": {"maxAttempts": true}}', 3),
        ("[]", 3),
        ("nonsense", 3),
    ):
        file.write_text(said_there)
        settings = json.loads(written(Gemini().plan(launch), "settings.json"))
        assert settings["general"]["maxAttempts"] == attempts, said_there


def test_policies_are_toml(launch: Launch) -> None:
    rules = tomllib.loads(permissions("edits", '/a "b"\\c/ü').decode())["rule"]
    assert [(rule["decision"], rule["toolName"]) for rule in rules] == [
        ("allow", ["write_file", "replace"]),
        ("deny", ["write_file", "replace"]),
    ]
    assert rules[1]["priority"] > rules[0]["priority"]
    free = tomllib.loads(permissions("bypass", "/a").decode())["rule"]
    assert {rule["toolName"] for rule in free} == {"*", "run_shell_command"}
    assert "--include-directories" not in Gemini().plan(replace(launch, workspace_dir="/a,b")).argv


def test_instructions_are_handed_over(launch: Launch) -> None:
    (Path(launch.repo_dir) / "GEMINI.md").write_text("of the house")
    (Path(launch.workspace_dir) / "GEMINI.md").write_text("of the workspace")
    assert written(Gemini().plan(launch), "GEMINI.md") == "of the workspace\n\nof the house\n"
    (Path(launch.repo_dir) / "GEMINI.md").write_text("@/etc/passwd @a.md\n@./b me@example.org `@c` @ d")
    assert written(Gemini().plan(launch), "GEMINI.md").splitlines()[-2:] == [
        "\\@/etc/passwd \\@a.md",
        "\\@./b me@example.org `@c` @ d",
    ]
    (Path(launch.repo_dir) / "GEMINI.md").unlink()
    (Path(launch.repo_dir) / "GEMINI.md").symlink_to("/etc/passwd")
    assert written(Gemini().plan(launch), "GEMINI.md") == "of the workspace\n"


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("/clear", "My request: /clear"),
        (" \n/clear", "My request:  \n/clear"),
        ("? why", "My request: ? why"),
        ("// a comment", "My request: // a comment"),
        ("see @src and @src/a.py!", "see \\@src and \\@src/a.py!"),
        ("all of @./ and @.", "all of \\@./ and @."),
        ('the "@"src"" one', 'the "\\@"src"" one'),
        ("@dataclass, me@example.org, @none/such", "@dataclass, me@example.org, @none/such"),
        ("\\@src", "\\@src"),
        ("-p --yolo", "-p --yolo"),
    ],
)
def test_no_prompt_is_a_command_or_a_path(launch: Launch, prompt: str, sent: str) -> None:
    (Path(launch.repo_dir) / "src").mkdir()
    (Path(launch.repo_dir) / "src" / "a.py").write_text("")
    plan = Gemini().plan(replace(launch, prompt=prompt))
    assert plan.stdin == sent.encode()
    assert prompt not in plan.argv


@pytest.mark.parametrize(
    "args",
    [
        ["--approval-mode", "yolo"], ["--approvalMode=yolo"], ["-y"], ["-yd"], ["--no-yolo"], ["--yolo=true"],
        ["--skip-trust"], ["--skipTrust"], ["--prompt", "x"], ["--prompt.a", "x"], ["-m", "x"], ["--model=x"],
        ["--resume"], ["--sandbox"], ["--output-format", "text"], ["--outputFormat", "text"], ["--"], ["mcp", "add"],
        ["--policy", "x", "a prompt"], ["--session-id", "x"], ["--acp"],
    ],
)  # fmt: skip
def test_arguments_that_nobody_may_give(args: list[str]) -> None:
    with pytest.raises(CoreAgentError) as error:
        check_args(args, widening=True)
    assert error.value.slug == "blocked_flag"


def test_arguments_that_widen_are_for_the_settings(launch: Launch) -> None:
    for args in (["--policy", "x.toml"], ["--allowedTools", "x"], ["--include-directories=/"], ["-e", "x"]):
        with pytest.raises(CoreAgentError) as error:
            Gemini().plan(replace(launch, args=args))
        assert "runners.gemini.args" in error.value.hint
        assert args[0] in Gemini().plan(replace(launch, settings=NoSettings(args=args))).argv
    assert "--debug" in Gemini().plan(replace(launch, args=["--debug"])).argv


def test_attach_asks_the_person_whom_to_trust(launch: Launch) -> None:
    plan = Gemini().interactive(replace(launch, resume_session="earlier"))
    assert (plan.stdin, plan.argv[-2:]) == (None, ["--resume", "earlier"])
    # Who has trusted it must be started again by a parent of the CLI's own.
    assert not {"GEMINI_CLI_TRUST_WORKSPACE", "GEMINI_CLI_NO_RELAUNCH"} & plan.env.keys()
    assert "folderTrust" not in json.loads(written(plan, "settings.json"))["security"]


# ---- the login ------------------------------------------------------------------------------------------------------

CREDS, VERTEX = "oauth_creds.json", {"GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "l"}
LOGINS: list[tuple[dict[str, str], list[str], str, str, str]] = [
    ({}, [], "", "", "no"),
    ({"GEMINI_API_KEY": "k"}, [], "", "gemini-api-key", "yes"),
    ({"GEMINI_API_KEY": "k"}, [CREDS], "", "gemini-api-key", "yes"),
    ({"GEMINI_API_KEY": "k"}, [CREDS], "oauth-personal", "oauth-personal", "yes"),
    ({"GEMINI_API_KEY": "k"}, [], "oauth-personal", "gemini-api-key", "yes"),
    ({"GEMINI_API_KEY": "k", "GOOGLE_GENAI_USE_GCA": "true"}, [CREDS], "", "oauth-personal", "yes"),
    ({}, [CREDS], "", "oauth-personal", "yes"),
    ({"GOOGLE_API_KEY": "k"}, [], "", "vertex-ai", "yes"),
    ({"GOOGLE_API_KEY": "k", "GEMINI_API_KEY": "k"}, [], "vertex-ai", "vertex-ai", "yes"),
    ({**VERTEX, "GOOGLE_GENAI_USE_VERTEXAI": "true"}, [], "", "vertex-ai", "unknown"),
    (VERTEX, [], "", "", "no"),
    ({"GEMINI_CLI_USE_COMPUTE_ADC": "true"}, [], "", "compute-default-credentials", "unknown"),
]


@pytest.mark.parametrize(("env", "files", "chosen", "method", "state"), LOGINS)
def test_logins(tmp_path: Path, env: dict[str, str], files: list[str], chosen: str, method: str, state: str) -> None:
    directory = tmp_path / ".gemini"
    directory.mkdir()
    for name in files:
        (directory / name).write_text("{}")
    (directory / "settings.json").write_text(json.dumps({"security": {"auth": {"selectedType": chosen}}}))
    for home in ({"HOME": str(tmp_path)}, {"HOME": "/nonexistent", "GEMINI_CLI_HOME": str(tmp_path)}):
        found = authentication({**home, **env})
        assert (found.method, found.login.state) == (method, state)
        assert Gemini().login({**home, **env}, NoSettings()) == found.login
    assert bool(found.login.hint) == (state == "no")


def test_a_login_is_copied_into_a_private_home(launch: Launch) -> None:
    own = Path(launch.env["HOME"]) / ".gemini"
    (own / CREDS).write_text('{"refresh_token": "t"}')
    plan = Gemini().plan(replace(launch, env={k: v for k, v in launch.env.items() if k != "GEMINI_API_KEY"}))
    lay_out(plan, launch.workspace_dir)
    copied = Path(launch.config_home) / ".gemini" / CREDS
    assert (copied.read_text(), copied.stat().st_mode & 0o777) == ('{"refresh_token": "t"}', 0o600)
    assert json.loads(written(plan, "settings.json"))["security"]["auth"]["selectedType"] == "oauth-personal"
