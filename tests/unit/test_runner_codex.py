"""The codex runner: what it plans, whose model and provider it asks, and what may be given to it."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent import config, poolnames
from coreagent.errors import CoreAgentError
from coreagent.runners.base import Launch, NoSettings, Plan, lay_out
from coreagent.runners.codex import Codex, native, read_own, toml

THREAD = "01a1fcbd-872f-7443-b15c-d1d5eeb2c778"


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    program = tmp_path / "bin" / "codex"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho codex-cli 0.169.0\n")
    program.chmod(0o755)
    for name in ("repo", "home"):
        (tmp_path / name).mkdir()
    return Launch(
        prompt="Do it.",
        session_id="11111111-1111-4111-8111-111111111111",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        config_home=str(tmp_path / "config"),
        env={"PATH": str(program.parent), "HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "secret"},
    )


def plan(launch: Launch, **changes: Any) -> Plan:
    return Codex().plan(replace(launch, **changes))


def own(launch: Launch, text: str, name: str = "config.toml") -> None:
    directory = Path(launch.env["HOME"]) / ".codex"
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)


def settings_of(made: Plan) -> dict[str, Any]:
    """What the -c flags say, the last of a key last."""
    found: dict[str, Any] = {}
    for flag, value in zip(made.argv, made.argv[1:], strict=False):
        if flag == "-c":
            key, _, text = value.partition("=")
            found[key] = tomllib.loads(f"x = {text}")["x"]
    return found


def test_a_plan_for_edits(launch: Launch) -> None:
    made = plan(launch)
    joined = " ".join(made.argv)
    assert made.argv[1] == "exec"
    assert made.argv[-1] == "-"
    assert "--sandbox workspace-write" in joined
    assert "--json --skip-git-repo-check" in joined
    assert "resume" not in made.argv
    assert "Do it." not in joined
    assert "secret" not in joined
    assert (made.stdin, made.stop_signal) == (b"Do it.", "INT")
    assert made.env["CODEX_HOME"] == launch.config_home
    # It reads OPENAI_API_KEY from no environment.
    assert made.env["CODEX_API_KEY"] == "secret"
    said = settings_of(made)
    assert said["approval_policy"] == "never"
    assert said["sandbox_workspace_write.exclude_slash_tmp"] is True
    assert said["features.unbounded_connection_retries"] is said["analytics.enabled"] is False
    assert said["features.plugins"] is said["features.apps"] is said["check_for_update_on_startup"] is False
    provider = said["model_providers.core-agent"]
    assert (provider["requires_openai_auth"], "base_url" in provider) == (True, False)
    assert (provider["request_max_retries"] + 1) * (provider["stream_max_retries"] + 1) <= 6


def test_a_plan_for_bypass_and_resume(launch: Launch) -> None:
    made = plan(launch, permissions="bypass", resume_session=THREAD)
    assert "--dangerously-bypass-approvals-and-sandbox" in made.argv
    assert "--sandbox" not in made.argv
    assert "approval_policy" not in settings_of(made)
    assert made.argv[-3:] == ["resume", THREAD, "-"]
    assert made.session_id == THREAD


@pytest.mark.parametrize(
    ("asked", "theirs", "model"),
    [("", "", "gpt-5.4"), ("", "gpt-6-sol", "gpt-6-sol"), ("gpt-5.3-codex-spark", "gpt-6-sol", "gpt-5.3-codex-spark")],
)
def test_whose_model_it_is(launch: Launch, asked: str, theirs: str, model: str) -> None:
    if theirs:
        own(launch, f'model = "{theirs}"\n')
    assert Codex().own_model(launch.env, launch.settings) == theirs
    made = plan(launch, model=asked)
    assert made.argv[made.argv.index("--model") + 1] == model
    # With the person's own home the CLI reads it by itself.
    bare = plan(launch, model=asked, config_home="")
    assert ("--model" in bare.argv) is (model != "gpt-6-sol")


def test_variants_have_pools_of_their_own() -> None:
    settings = config.load_text("version: 1\nconcurrency: {codex: 2, codex-spark: 1}\n")
    assert poolnames.pool_of("codex", "gpt-5.3-codex-spark", settings) == "codex-spark"
    assert poolnames.pool_of("codex", "gpt-5.4", settings) == poolnames.pool_of("codex", "", settings) == "codex"


def test_a_login_goes_before_a_key_that_may_be_there_for_something_else(launch: Launch) -> None:
    own(launch, '{"tokens": {"access_token": "t"}}', "auth.json")
    made = plan(launch)
    assert "CODEX_API_KEY" not in made.env
    assert made.copies == ((f"{launch.env['HOME']}/.codex/auth.json", f"{launch.config_home}/auth.json"),)
    assert plan(launch, env={**launch.env, "CODEX_API_KEY": "meant"}).env["CODEX_API_KEY"] == "meant"
    # But no login is for another endpoint.
    made = plan(launch, env={**launch.env, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    provider = settings_of(made)["model_providers.core-agent"]
    assert (provider["base_url"], provider["env_key"]) == ("http://127.0.0.1:1/v1", "CODEX_API_KEY")
    assert "requires_openai_auth" not in provider
    assert made.env["CODEX_API_KEY"] == "secret"


def test_a_provider_of_the_persons_own_is_taken_along_and_nothing_else(launch: Launch) -> None:
    own(launch, 'model_provider = "house"\nnotify = ["evil"]\n[mcp_servers.x]\ncommand = "y"\n[model_providers.house]\n'
        'base_url = "http://h"\nhttp_headers = {x = "ä\\u007f"}\nrequest_max_retries = 99\n'
        '[model_providers.other]\nbase_url = "http://o"\n')  # fmt: skip
    made = plan(launch)
    (target, text), (instructions, _) = made.files
    assert (target, instructions) == (f"{launch.config_home}/config.toml", f"{launch.config_home}/AGENTS.md")
    assert tomllib.loads(text.decode()) == {
        "model_provider": "house",
        "model_providers": {
            "house": {"base_url": "http://h", "http_headers": {"x": "ä\x7f"}, "request_max_retries": 1,
                      "stream_max_retries": 2},
        },
    }  # fmt: skip
    assert "model_provider" not in settings_of(made)
    # Nothing of it on the command line: its headers may hold a key.
    assert "http://h" not in " ".join(made.argv)
    assert settings_of(plan(launch, config_home=""))["model_providers.house.request_max_retries"] == 1


def test_what_is_ours_in_its_home_is_put_right_before_each_turn(launch: Launch) -> None:
    (Path(launch.workspace_dir) / "AGENTS.md").write_text("rules\n")
    own(launch, '{"OPENAI_API_KEY": "new"}', "auth.json")
    home = Path(launch.config_home)
    home.symlink_to(launch.repo_dir)
    lay_out(plan(launch), launch.workspace_dir)
    assert not home.is_symlink()
    assert not (Path(launch.repo_dir) / "config.toml").exists()
    (home / "config.toml").write_text('notify = ["evil"]')
    (home / "AGENTS.md").unlink()
    (home / "AGENTS.md").mkdir()
    (home / "AGENTS.md" / "x").write_text("x")
    (home / "auth.json").write_text("{}")
    os.utime(home / "auth.json", (4_000_000_000, 4_000_000_000))
    home.chmod(0o500)
    lay_out(plan(launch), launch.workspace_dir)
    assert "evil" not in (home / "config.toml").read_text()
    assert (home / "AGENTS.md").read_text() == "rules\n"
    assert json.loads((home / "auth.json").read_text()) == {"OPENAI_API_KEY": "new"}
    assert home.stat().st_mode & 0o777 == 0o700
    # A login that the CLI itself refreshed stays.
    (home / "auth.json").write_text('{"refreshed": 1}')
    lay_out(plan(launch), launch.workspace_dir)
    assert json.loads((home / "auth.json").read_text()) == {"refreshed": 1}


@pytest.mark.parametrize(
    "args",
    [
        ["--json"], ["-s", "danger-full-access"], ["--sandbox=danger-full-access"], ["--yolo"], ["-C", "/"],
        ["-c", 'sandbox_mode="danger-full-access"'], ["--config=approval_policy=on-request"], ["-c", "features={}"],
        ["--enable", "plugins"], ["--disable=plugins", "--enable", "unbounded_connection_retries"],
        ["-c", "analytics.enabled=true"], ["-c", "model_providers.x.stream_max_retries=100"],
        ["-c", 'model="x"'], ["-c", ' "sandbox_mode" = "x"'], ["-c", "projects.x.trust_level=trusted"], ["-c"],
        ["-csandbox_mode=x"], ["--", "x"], ["do something else"], ["--search", "resume"], ["-c", "a=1", "review"],
        ["-m", "x"], ["--dangerously-bypass-hook-trust"], ["-c", "model_providers.core-agent.base_url=x"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["settings", "args"])
def test_the_protocol_cannot_be_overridden(launch: Launch, args: list[str], where: str) -> None:
    changes: dict[str, Any] = {"args": args} if where == "args" else {"settings": NoSettings(args=args)}
    with pytest.raises(CoreAgentError) as error:
        plan(launch, **changes)
    assert error.value.slug == "blocked_flag"


@pytest.mark.parametrize(
    "args",
    [
        ["-c", "sandbox_workspace_write.network_access=true"], ["-c", 'mcp_servers.x.command="y"'], ["--add-dir", "/x"],
        ["-c", 'notify=["x"]'], ["-c", 'model_provider="x"'], ["--enable", "memories"], ["-p", "mine"], ["-o", "/x"],
    ],
)  # fmt: skip
def test_only_settings_may_widen(launch: Launch, args: list[str]) -> None:
    with pytest.raises(CoreAgentError) as error:
        plan(launch, args=args)
    assert (error.value.slug, "agents.yaml" in error.value.hint) == ("blocked_flag", True)
    assert args[1] in plan(launch, settings=NoSettings(args=args)).argv
    assert args[1] in plan(launch, args=args, permissions="bypass").argv
    assert plan(launch, args=["-c", "model_reasoning_effort=high", "-i", "x.png"])


def test_a_provider_named_in_the_settings_gets_our_limits_unless_it_is_built_in(launch: Launch) -> None:
    given = ["-c", 'model_provider="x"', "-c", 'model_providers.x={base_url="http://x"}']
    said = settings_of(plan(launch, settings=NoSettings(args=given)))
    assert (said["model_provider"], said["model_providers.x.request_max_retries"]) == ("x", 1)
    said = settings_of(plan(launch, settings=NoSettings(args=["-c", "model_provider='openai'"])))
    assert said["model_provider"] == "openai"
    assert not any(key.startswith("model_providers") for key in said)


@pytest.mark.parametrize("value", ["--dangerously-bypass", "-x", "a b", "../up", "a\0b"])
@pytest.mark.parametrize("where", ["model", "resume_session", "session_id"])
def test_names_are_no_options(launch: Launch, where: str, value: str) -> None:
    with pytest.raises(CoreAgentError) as error:
        plan(launch, **{where: value})
    assert error.value.slug == "blocked_flag"


def test_a_persons_own_home_is_left_alone_and_still_gets_the_instructions(launch: Launch) -> None:
    (Path(launch.workspace_dir) / "AGENTS.md").write_text('say "yes"\n')
    made = plan(launch, config_home="", env={**launch.env, "CODEX_HOME": "/elsewhere"})
    assert (made.env["CODEX_HOME"], made.copies, made.files) == ("/elsewhere", (), ())
    assert settings_of(made)["developer_instructions"] == 'say "yes"'


def test_interactive(launch: Launch) -> None:
    made = Codex().interactive(replace(launch, resume_session=THREAD))
    assert made.argv[1:3] == ["resume", THREAD]
    assert "on-request" in made.argv
    assert "--json" not in made.argv
    assert made.stdin is None


# ---- finding it and its login ---------------------------------------------------------------------------------------


def test_the_native_program_goes_before_nodes_wrapper(tmp_path: Path) -> None:
    machine = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}[os.uname().machine]
    system = "darwin" if os.uname().sysname == "Darwin" else "linux"
    package = tmp_path / "node_modules" / "@openai"
    (package / "codex" / "bin").mkdir(parents=True)
    (package / "codex" / "bin" / "codex.js").write_text("#!/bin/sh\nexit 9\n")
    (package / "codex" / "bin" / "codex.js").chmod(0o755)
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "codex"
    wrapper.symlink_to(package / "codex" / "bin" / "codex.js")
    assert native(str(wrapper)) == ""
    real = package / f"codex-{system}-{machine}" / "vendor" / "some-triple" / "bin" / "codex"
    real.parent.mkdir(parents=True)
    real.write_text("#!/bin/sh\necho codex-cli 0.169.0\n")
    real.chmod(0o755)
    assert native(str(wrapper)) == str(real)
    found = Codex().find({"PATH": str(tmp_path / "bin")}, NoSettings()).require()
    assert (found.path, found.version) == (str(real), "0.169.0")
    assert native(str(real)) == ""


@pytest.mark.parametrize(
    ("env", "files", "state"),
    [
        ({}, {}, "no"),
        ({"CODEX_API_KEY": "k"}, {}, "yes"),
        ({"OPENAI_API_KEY": "k"}, {}, "yes"),
        ({"OPENAI_API_KEY": ""}, {}, "no"),
        ({}, {"auth.json": '{"tokens": {"access_token": "t"}}'}, "yes"),
        ({}, {"auth.json": '{"OPENAI_API_KEY": "k"}'}, "yes"),
        ({}, {"auth.json": "{}"}, "no"),
        ({}, {"auth.json": "{"}, "unknown"),
        ({"OPENAI_BASE_URL": "http://x"}, {"auth.json": '{"tokens": {"access_token": "t"}}'}, "unknown"),
        ({"OPENAI_BASE_URL": "http://x", "OPENAI_API_KEY": "k"}, {}, "yes"),
        ({"CODEX_ACCESS_TOKEN": "t"}, {}, "unknown"),
        ({}, {"config.toml": 'model_provider = "h"\n[model_providers.h]\nenv_key = "H"\n'}, "no"),
        ({"H": "k"}, {"config.toml": 'model_provider = "h"\n[model_providers.h]\nenv_key = "H"\n'}, "yes"),
        ({}, {"config.toml": 'model_provider = "ollama"\n'}, "unknown"),
    ],
)
def test_login(env: dict[str, str], files: dict[str, str], state: str, tmp_path: Path) -> None:
    (tmp_path / ".codex").mkdir()
    for name, text in files.items():
        (tmp_path / ".codex" / name).write_text(text)
    login = Codex().login({"HOME": str(tmp_path), **env}, NoSettings())
    assert login.state == state, login
    assert login.how or login.hint


def test_a_login_in_the_keyring_is_the_persons_own_homes(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('cli_auth_credentials_store = "keyring"\n')
    env = {"CODEX_HOME": str(tmp_path)}
    private = Codex().login(env, NoSettings())
    assert (private.state, "home: user" in private.hint) == ("no", True)
    assert Codex().login(env, NoSettings(home="user")).state == "unknown"


def test_nothing_that_lies_in_the_place_of_its_config_holds_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    assert read_own({"CODEX_HOME": str(tmp_path)}).model == ""
    assert read_own({}).model == ""


@pytest.mark.parametrize("text", ["", "model = 7", "model_providers = 3", "[", "\udcff", 'model_provider = ["x"]'])
def test_a_broken_config_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = read_own({"CODEX_HOME": str(tmp_path)})
    assert (found.model, found.provider, dict(found.providers)) == ("", "", {})


_PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(_PLAIN)
def test_what_is_written_as_toml_is_read_again(value: Any) -> None:
    def clean(raw: Any) -> Any:
        if isinstance(raw, str):
            return raw.encode("utf-8", "replace").decode()
        if isinstance(raw, list):
            return [clean(one) for one in raw]
        return {clean(key): clean(one) for key, one in raw.items()} if isinstance(raw, dict) else raw

    assert tomllib.loads(f"x = {toml(value)}\n")["x"] == clean(value)
