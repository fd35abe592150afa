"""The opencode runner and the parser of its stream; what was measured is in tests/e2e/test_opencode_direct.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import EventKind, Reason, Usage
from coreagent.runners.acp import Acp
from coreagent.runners.base import Launch, lay_out
from coreagent.runners.opencode import Opencode, purity, read_own
from coreagent.runners.opencode_plugin import GAVE_UP
from coreagent.runners.opencode_stream import OpencodeParser

NOW = 1_800_000_000.0


def line(kind: str, **part: Any) -> bytes:
    return json.dumps({"type": kind, "sessionID": "ses_1", "part": part}).encode()


def start(message: str = "m1") -> bytes:
    return line("step_start", messageID=message)


def finish(reason: str, message: str = "m1", **more: Any) -> bytes:
    tokens = {"input": 970, "output": 45, "reasoning": 5, "cache": {"read": 30, "write": 2}}
    return line("step_finish", messageID=message, reason=reason, tokens=tokens, **more)


def tool(error: str = "", name: str = "bash") -> bytes:
    state = {"status": "error" if error else "completed", "input": {"command": "ls"}, "output": "a", "error": error}
    return line("tool_use", tool=name, callID="c1", state=state)


def failure(name: str = "APIError", **data: Any) -> bytes:
    return json.dumps({"type": "error", "sessionID": "ses_1", "error": {"name": name, "data": data}}).encode()


def parsed(*lines: bytes) -> OpencodeParser:
    parser = OpencodeParser(clock=lambda: NOW)
    for each in lines:
        parser.feed(each)
    return parser


def test_steps_add_up() -> None:
    parser = parsed(start(), tool(), finish("tool-calls", cost=0.5), start("m2"), finish("stop", "m2", cost=0.25))
    out = parser.end(0, None)
    assert (out.terminal, out.reason, out.turns, out.session_id) == ("success", None, 2, "ses_1")
    assert out.usage == Usage(input=1940, output=100, cache_read=60, cache_write=4)
    assert (out.cost.usd, out.cost.source, out.last_tool, out.unparsed) == (0.75, "reported", "bash", 0)


@pytest.mark.parametrize(
    ("lines", "code", "stderr", "terminal", "reason"),
    [
        ([start()], 0, b"", "none", Reason.DIED),
        ([start(), finish("stop"), start("m2")], 0, b"", "none", Reason.DIED),
        ([], 0, b"", "none", Reason.DIED),
        ([start(), finish("length")], 0, b"", "error", Reason.MODEL_ERROR),
        ([start(), finish("content-filter")], 0, b"", "error", Reason.MODEL_REFUSED),
        ([start(), finish("weather")], 0, b"", "error", Reason.ERROR),
        ([start(), tool("The user rejected permission to use it."), finish("tool-calls")], 0, b"", "error",
         Reason.PERMISSION),
        ([start(), tool(), finish("tool-calls")], 0, b"", "error", Reason.ERROR),
        ([failure(message="no", statusCode=401)], 1, b"", "error", Reason.AUTH),
        ([failure(message="no", statusCode=503)], 1, b"", "error", Reason.MODEL_ERROR),
        ([failure("ContextOverflowError", message="x")], 1, b"", "error", Reason.CONTEXT_OVERFLOW),
        ([start(), failure("UnknownError", message="Unable to connect. Is the computer able to access the url?")], 1,
         b"", "error", Reason.NETWORK),
        ([failure("ContextOverflowError", message="x"), start(), finish("stop")], 1, b"", "success", None),
        ([], 1, b"\x1b[91mError: \x1b[0mSession not found", "error", Reason.SESSION_LOST),
        ([], 1, b"Error: Configuration is invalid at x", "error", Reason.CONFIGURATION),
    ],
)  # fmt: skip
def test_endings(lines: list[bytes], code: int, stderr: bytes, terminal: str, reason: Reason | None) -> None:
    out = parsed(*lines).end(code, None, stderr)
    assert (out.terminal, out.reason) == (terminal, reason), out
    assert reason is None or out.message


def test_a_killed_turn_died_whatever_it_had_said() -> None:
    out = parsed(start(), finish("stop")).end(None, 15, b"")
    assert (out.terminal, out.reason) == ("none", Reason.DIED)


def test_a_limit_names_its_reset() -> None:
    headers = {"retry-after": "60"}
    parser = parsed()
    events = parser.feed(failure(message="slow down", statusCode=429, responseHeaders=headers))
    assert [event.kind for event in events][-2:] == [EventKind.RATE_LIMIT, EventKind.ERROR]
    out = parser.end(1, None)
    assert (out.reason, out.resets_at) == (Reason.RATE_LIMIT, NOW + 60)


@pytest.mark.parametrize(
    "error",
    [
        "The user has specified a rule which prevents you from using it",
        "Model tried to call unavailable tool 'invalid'",
    ],
)
def test_denials_are_found(error: str) -> None:
    assert parsed(tool(error)).outcome.denied_tools == ["bash"]
    assert parsed(tool("no such file")).outcome.denied_tools == []


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    for name in ("bin", "repo", "home/.config/opencode", "home/.local/share/opencode"):
        (tmp_path / name).mkdir(parents=True)
    program = tmp_path / "bin" / "opencode"
    program.write_text("#!/bin/sh\necho 1.18.33\n")
    program.chmod(0o755)
    return Launch(
        prompt="do it",
        session_id="fresh",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        config_home=str(tmp_path / "config"),
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "LANG": "C"},
    )


def content(launch: Launch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Opencode().plan(launch).env["OPENCODE_CONFIG_CONTENT"])
    return found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".opencode/plugin/x.ts", ""),
        (".opencode/plugins/x.js", ""),
        ("opencode.json", '{"plugin": ["./x.ts"]}'),
        ("opencode.jsonc", '{/**/"Plugins": []}'),
        (".opencode/opencode.json", '{"\\u0070lugin": ["./x.ts"]}'),
        ("opencode.json", " " * (1 << 20) + '{"plugin": ["./x.ts"]}'),
    ],
)
def test_plugins_of_the_checkout_are_not_executed(launch: Launch, path: str, text: str) -> None:
    file = Path(launch.repo_dir) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    acp = replace(launch, model="opencode")
    (Path(launch.workspace_dir) / "bin/opencode").chmod(0o755)
    for make in (lambda: Opencode().plan(launch), lambda: Opencode().interactive(launch), lambda: Acp().plan(acp)):
        with pytest.raises(CoreAgentError) as refused:
            make()
        assert refused.value.slug == "consent_needed"
    assert Opencode().plan(replace(launch, permissions="bypass")).argv


def test_other_settings_of_the_checkout_are_left_alone(launch: Launch) -> None:
    (Path(launch.repo_dir) / "opencode.json").write_text('{"model": "a/b"}')
    (Path(launch.repo_dir) / ".opencode").write_text("a file")
    assert Opencode().plan(launch).argv


def test_nothing_is_asked_and_nothing_phones(launch: Launch) -> None:
    plan = Opencode().plan(launch)
    config = content(launch)
    assert config["autoupdate"] is False and config["share"] == "disabled" and config["snapshot"] is False
    assert config["permission"]["*"] == "deny" and "--auto" not in plan.argv
    assert config["disabled_providers"] == ["opencode"]  # the makers' free models
    for name in ("OPENCODE_DISABLE_PROJECT_CONFIG", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_AUTOUPDATE"):
        assert plan.env[name] == "1"
    assert plan.env["XDG_DATA_HOME"] == f"{launch.config_home}/data"
    free = replace(launch, permissions="bypass", model="opencode/big-pickle")
    assert "--auto" in Opencode().plan(free).argv and content(free)["permission"] == {"*": "allow"}
    assert "disabled_providers" not in content(free)


def test_of_the_persons_own_configuration_only_the_models_are_used(launch: Launch) -> None:
    file = Path(launch.env["HOME"], ".config/opencode/opencode.jsonc")
    file.write_text('{\n// mine\n"provider": {"x": {"options": {"baseURL": "http://x//y"}}}, "plugin": ["evil"],\n}')
    assert read_own(launch.env) == {"provider": {"x": {"options": {"baseURL": "http://x//y"}}}}
    assert content(launch)["provider"]["x"] and "evil" not in str(content(launch))
    assert "provider" not in content(replace(launch, config_home=""))  # there it reads its own
    assert Opencode().login(launch.env, launch.settings).state == "yes"
    file.write_text("{broken")
    assert read_own(launch.env) == {} and Opencode().login(launch.env, launch.settings).state == "no"


def test_what_an_agent_wrote_into_its_home_does_not_configure_the_next_turn(launch: Launch) -> None:
    (Path(launch.repo_dir) / "AGENTS.md").write_text("rules")
    plan = Opencode().plan(launch)
    lay_out(plan, launch.workspace_dir)
    home = Path(launch.config_home, "config/opencode")
    (home / "opencode.jsonc").write_text('{"mcp": {"evil": {"type": "local", "command": ["evil"]}}}')
    lay_out(plan, launch.workspace_dir)
    assert (home / "opencode.jsonc").read_text() == "{}\n"
    assert Path(content(launch)["instructions"][0]).read_text() == "rules"
    assert "--pure" not in Opencode().plan(launch).argv
    (home / "plugins").mkdir()
    assert "--pure" in Opencode().plan(launch).argv and "plugin" not in content(launch)


def test_our_plugin_is_the_only_one_or_there_is_none(launch: Launch) -> None:
    plan = Opencode().plan(launch)
    (plugin,) = content(launch)["plugin"]
    files = {Path(path).as_uri(): text for path, text in plan.files}
    assert GAVE_UP.encode() in files[plugin] and "--pure" not in plan.argv
    assert purity(replace(launch, config_home="")) == ("--pure",)
    credentials = Path(launch.env["HOME"], ".local/share/opencode/auth.json")
    credentials.parent.mkdir(parents=True, exist_ok=True)
    credentials.write_text('{"https://x": {"type": "wellknown", "key": "K", "token": "t"}}')
    assert purity(launch) == ("--pure",)  # its server sends a configuration
    credentials.write_text('{"groq": {"type": "api", "key": "k"}}')
    assert purity(launch) == ()
    Path(launch.env["HOME"], ".opencode/plugin").mkdir(parents=True)
    assert purity(launch) == ("--pure",) and "plugin" not in content(launch)
    assert "plugin" not in json.loads(Opencode().interactive(launch).env["OPENCODE_CONFIG_CONTENT"])


@pytest.mark.parametrize(
    ("data", "reason", "resets_at"),
    [
        ({"message": "boom", "statusCode": 500, "responseHeaders": {}}, Reason.MODEL_ERROR, None),
        (
            {"message": "slow down", "statusCode": 429, "responseHeaders": {"retry-after": "3600"}},
            Reason.RATE_LIMIT,
            3600,
        ),
        ({"message": "Cannot connect to API: Unable to connect. Is the computer able to access"}, Reason.NETWORK, None),
        ({"message": "Connection reset by server"}, Reason.NETWORK, None),
    ],
)
def test_what_our_plugin_says_when_it_gives_up(data: dict[str, Any], reason: Reason, resets_at: float | None) -> None:
    out = parsed(failure(**data)).end(1, None)
    assert (out.terminal, out.reason, out.message) == ("error", reason, data["message"])
    assert out.resets_at == (NOW + resets_at if resets_at else None)


def test_with_a_providers_model_only_that_ones_keys_go_along(launch: Launch) -> None:
    env = {**launch.env, "ANTHROPIC_API_KEY": "a", "GROQ_API_KEY": "g"}
    plan = Opencode().plan(replace(launch, env=env, model="groq/llama"))
    assert {name for name in plan.env if name.endswith("_API_KEY")} == {"GROQ_API_KEY"}
    assert Opencode().login(env, launch.settings).how == "ANTHROPIC_API_KEY"


@pytest.mark.parametrize("arg", ["--format=default", "--auto", "-s", "--share", "--agent=build", "prompt", "--"])
def test_flags_that_are_not_the_callers(launch: Launch, arg: str) -> None:
    with pytest.raises(CoreAgentError) as caught:
        Opencode().plan(replace(launch, args=[arg]))
    assert caught.value.slug == "blocked_flag"
    assert "--variant" in Opencode().plan(replace(launch, args=["--variant", "high"])).argv


def test_attach_opens_the_session_with_the_persons_own_say(launch: Launch) -> None:
    plan = Opencode().interactive(replace(launch, resume_session="ses_1"))
    assert plan.argv[1:] == ["--session", "ses_1"]
    assert "permission" not in json.loads(plan.env["OPENCODE_CONFIG_CONTENT"])
