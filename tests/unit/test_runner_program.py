"""What all runners of real CLIs share: which program, which version, which arguments, which surroundings."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from coreagent.errors import CoreAgentError
from coreagent.runners import program
from coreagent.runners.base import Launch, NoSettings

TOOL = program.Program("tool", "2.0.0", "get it", "renew it", places=(".local/bin/tool",))
FLAGS = program.Flags("tool", frozenset({"--json"}), frozenset({"--allow", "-w"}), frozenset({"-d"}))


def make(path: Path, script: str = "echo 'tool 2.1.0'") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return str(path)


def test_two_of_one_name_are_told_and_links_to_one_are_one(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a" / "tool"), make(tmp_path / "b" / "tool", "echo 1.0")
    usual = make(tmp_path / "home" / ".local" / "bin" / "tool")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tool").symlink_to(first)
    env = {"PATH": f"{tmp_path}/a::relative:{tmp_path}/c:{tmp_path}/b", "HOME": str(tmp_path / "home")}
    found = TOOL.find(env, NoSettings()).require()
    assert (found.path, found.version, found.others) == (first, "2.1.0", (second, usual))
    # A person who names one has chosen.
    chosen = TOOL.find(env, NoSettings(path=second))
    assert (chosen.path, chosen.problem, chosen.others) == (second, "runner_too_old", ())


def test_none_and_a_mute_one_say_how_to_get_it(tmp_path: Path) -> None:
    missing = TOOL.find({"PATH": str(tmp_path), "HOME": str(tmp_path)}, NoSettings())
    assert (missing.problem, missing.hint) == ("runner_missing", "get it, or set runners.tool.path")
    mute = TOOL.find({}, NoSettings(path=make(tmp_path / "mute", "exit 3")))
    assert (mute.problem, "does not answer" in mute.message) == ("runner_missing", True)
    for n, said in enumerate(("banana", "v9", "build 20261121", "line 12: 9e9\n")):
        odd = TOOL.find({}, NoSettings(path=make(tmp_path / f"odd{n}", f"printf %s '{said}'")))
        assert odd.problem == "runner_missing" and said.strip() in odd.message, odd
    broken = TOOL.find({}, NoSettings(path=make(tmp_path / "broken", "echo 2.0.1; exit 1")))
    assert (broken.problem, broken.version) == ("runner_missing", "")
    launch = Launch("x", "s", "/r", "/w", "/t", env={"PATH": str(tmp_path)})
    with pytest.raises(CoreAgentError) as error:
        TOOL.require(launch)
    assert error.value.slug == "runner_missing"


def test_a_wrapper_gives_way_to_its_native_program(tmp_path: Path) -> None:
    wrapper, native = make(tmp_path / "bin" / "tool", "exit 9"), make(tmp_path / "native")
    wraps = replace(TOOL, native=lambda path: native if path == wrapper else "")
    assert wraps.find({"PATH": str(tmp_path / "bin")}, NoSettings()).require().path == native


def test_a_version_is_asked_once_until_the_program_changes(tmp_path: Path) -> None:
    path = make(tmp_path / "tool", f"echo >> {tmp_path}/asked; echo 2.0.1")
    assert [program.version_of(path), program.version_of(path)] == ["2.0.1", "2.0.1"]
    assert (tmp_path / "asked").read_text() == "\n"
    os.utime(path, (1, 1))
    assert program.version_of(path) == "2.0.1"
    assert (tmp_path / "asked").read_text() == "\n\n"
    assert program.version_of(str(tmp_path / "gone")) == ""


@pytest.mark.parametrize(
    "args", [["--json"], ["--json=x"], ["--"], ["-p"], ["-dp"], ["a prompt"], ["--fine\0"], ["--fine", "--json"]]
)
def test_the_protocol_is_ours(args: list[str]) -> None:
    with pytest.raises(CoreAgentError) as error:
        FLAGS.check(args, widening=True)
    assert error.value.slug == "blocked_flag"


@pytest.mark.parametrize("args", [["--allow", "x"], ["--allow=x"], ["-w", "x"]])
def test_only_who_may_widen_widens(args: list[str]) -> None:
    FLAGS.check(args, widening=True)
    with pytest.raises(CoreAgentError) as error:
        FLAGS.check(args, widening=False)
    assert "runners.tool.args" in error.value.hint
    FLAGS.check(["--effort", "high", "-d"], widening=False)


def test_every_clis_session_is_left_behind() -> None:
    nested = [
        "CLAUDECODE", "CLAUDE_CODE_SSE_PORT", "CODEX_THREAD_ID", "CODEX_CI", "CODEX_SANDBOX_NETWORK_DISABLED",
        "CODEX_MANAGED_BY_NPM", "GEMINI_CLI", "GEMINI_CLI_IDE_SERVER_PORT", "OPENCODE", "OPENCODE_SERVER_PASSWORD",
        "AGENT", "AI_AGENT",
    ]  # fmt: skip
    kept = dict.fromkeys(
        ("CODEX_HOME", "CODEX_API_KEY", "GEMINI_API_KEY", "CLAUDE_CODE_MAX_RETRIES", "USER_AGENT"), "1"
    )
    assert program.own_environment({**dict.fromkeys(nested, "1"), **kept}) == kept


def test_instructions_are_read_to_their_limit_and_never_through_a_link_or_a_pipe(tmp_path: Path) -> None:
    for name in ("ws", "repo"):
        (tmp_path / name).mkdir()
    launch = Launch("x", "s", str(tmp_path / "repo"), str(tmp_path / "ws"), "/t")
    assert program.context(launch, "X.md") == b""
    (tmp_path / "ws" / "X.md").write_text("ours\n")
    (tmp_path / "repo" / "X.md").write_bytes(b"y" * (program.CONTEXT_LIMIT + 5))
    assert program.context(launch, "X.md") == b"ours\n\n" + b"y" * program.CONTEXT_LIMIT
    (tmp_path / "repo" / "X.md").unlink()
    (tmp_path / "repo" / "X.md").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "ws" / "X.md").unlink()
    (tmp_path / "fifo").rename(tmp_path / "ws" / "X.md")
    assert program.context(launch, "X.md") == b""


def test_one_credential_and_nothing_else(tmp_path: Path) -> None:
    own = program.user_directory({"TOOL_HOME": str(tmp_path)}, "TOOL_HOME", ".tool")
    assert own == tmp_path
    assert program.user_directory({"HOME": "/h"}, "TOOL_HOME", ".tool") == Path("/h/.tool")
    assert program.user_directory({}, "TOOL_HOME", ".tool") is None
    assert program.credential(own, "auth.json") is None
    (tmp_path / "auth.json").write_text("{}")
    launch = Launch("x", "s", "/r", "/w", "/t", config_home="/c")
    found = program.credential(own, "auth.json")
    assert program.copies(launch, found, "auth.json") == ((str(tmp_path / "auth.json"), "/c/auth.json"),)
    assert program.copies(replace(launch, config_home=""), found, "auth.json") == ()
    assert program.key_in({"A": "", "B": "x"}, ("A", "B")) == "B"
