"""agents.yaml: the contract's file loads as it is, and every mistake is named where it stands."""

from __future__ import annotations

import os
import re
from datetime import time
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from coreagent import config, poolnames, runners
from coreagent.config import Chosen, Settings, load_repo, load_text
from coreagent.errors import CoreAgentError

EXAMPLE = Path(__file__).resolve().parents[2] / "agents.yaml.example"

# Section 10 of the contract, to the letter.
CONTRACT = """\
version: 1
dispatch:
  default_agent: claude
  default_template: coding
  workspace_root: .core/workspace

# Per-pool concurrency (0 = unlimited)
concurrency:
  claude:
    total: 3
    opus: 1
    sonnet: 2
    haiku: 3
  gemini: 1
  codex: 2

# Rate limiting per pool
rates:
  claude:
    daily_limit: 50
    min_delay: 30
    sustained_delay: 60
    burst_window: 5
    burst_delay: 300
  codex:
    daily_limit: 0
    min_delay: 0
  codex-spark:
    min_delay: 10
    sustained_delay: 30

# Named agent identities
agents:
  cladius:
    host: local
    runner: claude
    roles: [dispatch, review, plan]
  charon:
    host: remote
    runner: claude
    roles: [worker, review]
"""


def refused(text: str) -> CoreAgentError:
    with pytest.raises(CoreAgentError) as caught:
        load_text(text)
    assert caught.value.slug == "settings_invalid"
    return caught.value


def test_the_contracts_file_loads_as_it_is() -> None:
    settings = load_text(CONTRACT)
    assert settings.concurrency["claude"].total == 3
    assert settings.concurrency["claude"].models == {"opus": 1, "sonnet": 2, "haiku": 3}
    assert poolnames.limit_of("gemini", settings) == 1
    assert settings.rates["claude"].burst_delay == 300
    assert settings.agents["charon"].host == "remote"


def keys_of(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        waiting: list[Any] = [field.annotation]
        while waiting:
            kind = waiting.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= keys_of(kind)
            waiting += get_args(kind)
    return found


def test_the_example_loads_and_shows_every_key() -> None:
    text = EXAMPLE.read_text()
    settings = load_text(text)
    # `models` is how a pool's numbers per model are kept; in the file they are the models' own names.
    missing = {key for key in keys_of(Settings) - {"models"} if f"\n{key}:" not in text and f" {key}:" not in text}
    assert not missing
    plain = Settings()
    assert settings.dispatch == plain.dispatch and settings.harvest == plain.harvest
    assert settings.hooks == plain.hooks and settings.env == plain.env
    assert settings.runners["claude"] == config.RunnerSettings()


@pytest.mark.parametrize(
    ("text", "place", "key", "says"),
    [
        ("dispatch:\n  defualt_agent: x\n", (2, 3), "dispatch.defualt_agent", "did you mean `default_agent`"),
        ("dispach: {}\n", (1, 1), "dispach", "did you mean `dispatch`"),
        ("env:\n  zzz: 1\n", (2, 3), "env.zzz", "valid keys here: allow"),
        ("runners:\n  claude:\n    pth: x\n", (3, 5), "runners.claude.pth", "did you mean `path`"),
        ("hooks: {setup: {rnu: x}}\n", (1, 17), "hooks.setup.rnu", "did you mean `run`"),
        ("concurrency:\n  claude:\n    opus: many\n", (3, 5), "concurrency.claude.opus", "it is 'many'"),
        ("concurrency:\n  claude: -1\n", (2, 3), "concurrency.claude", "greater than or equal to 0"),
        ("concurrency: [1]\n", (1, 1), "concurrency", "valid dictionary"),
        ("dispatch:\n  timeout_s: soon\n", (2, 3), "dispatch.timeout_s", "valid number"),
        ("dispatch:\n  timeout_s: .inf\n", (2, 3), "dispatch.timeout_s", ""),
        ("rates:\n  a:\n    reset_utc: 24:00\n", (3, 5), "rates.a.reset_utc", "like 06:00"),
        ("agents:\n  a:\n    host: local\n", (2, 3), "agents.a.runner", "needed"),
        ("agents:\n  a: {runner: claude, host: moon}\n", (2, 23), "agents.a.host", "'local' or 'remote'"),
        ("commands:\n  x:\n    argv: []\n", (3, 5), "commands.x.argv", "at least 1"),
        ("commands:\n  x:\n    argv: [a, [b]]\n", (3, 15), "commands.x.argv.1", "valid string"),
        ("version: 2\n", (1, 1), "version", "must be 1"),
        ("version: 1\nversion: 1\n", (2, 1), "", "stands twice"),
        ("env:\n  allow: []\n  'allow': []\n", (3, 3), "", "first one is in line 2"),
        ("dispatch:\n\ttimeout_s: 1\n", (2, 1), "", "tab"),
        ("a: [1\n", (2, 1), "", ""),
        ("a: b: c\n", (1, 5), "", "not allowed"),
        ("- a\n", (1, 1), "", "mapping"),
        ("just text\n", (1, 1), "", "mapping"),
        ("version: 1\n---\nversion: 1\n", (2, 1), "", "second document"),
        ("version: !!python/object:os.system 1\n", (1, 10), "", "tag"),
        ("x: &a [*a]\n", (1, 8), "", "alias"),
        ("x: *nobody\n", (1, 4), "", "alias"),
        ("<<: {a: 1}\n", (1, 1), "", "merge keys"),
        ("? [a]\n: b\n", (1, 3), "", "plain text"),
        ("x: " + "[" * 50_000 + "\n", (1, 35), "", "deeper"),
        ("x: a\x07b\n", (1, 5), "", "control character"),
    ],
)
def test_a_mistake_is_named_where_it_stands(text: str, place: tuple[int, int], key: str, says: str) -> None:
    error = refused(text)
    assert (error.data["line"], error.data["column"]) == place, error.lines()
    assert error.data["key"] == key
    assert error.message.startswith(f"agents.yaml:{place[0]}:{place[1]}: ")
    assert says in " ".join(error.lines())
    assert error.hint


def test_the_first_mistake_of_several_is_told_and_the_others_are_there_for_programs() -> None:
    error = refused("harvest:\n  max_files: x\ndispatch:\n  keep_days: y\n")
    assert error.data["key"] == "harvest.max_files"
    assert "dispatch.keep_days" in error.data["others"][0]


def test_text_stays_the_text_that_was_written() -> None:
    settings = load_text(
        "commands:\n  x: {argv: [run, yes, 1.10, 012, 12:30, 2026-01-01], env: {A: no, B: null, C: ''}}\n"
        "rates: {p: {reset_utc: 12:30}}\n"
    )
    assert settings.commands["x"].argv == ["run", "yes", "1.10", "012", "12:30", "2026-01-01"]
    assert settings.commands["x"].env == {"A": "no", "C": ""}
    assert settings.rates["p"].reset_utc == "12:30"


def test_an_empty_section_means_its_defaults() -> None:
    assert load_text("dispatch:\nconcurrency:\n") == Settings() == load_text("") == load_text("# nothing\n")
    assert load_text("﻿version: 1\n".encode().decode()) == Settings()


def test_aliases_work_but_cannot_multiply() -> None:
    settings = load_text("runners:\n  a: &x {args: [q]}\n  b: *x\n")
    assert settings.runners["b"].args == ["q"]
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    assert "aliases counted" in refused(bomb).message


def home_with(tmp_path: Path, raw: bytes) -> str:
    home = tmp_path / ".core"
    home.mkdir()
    (home / "agents.yaml").write_bytes(raw)
    return str(home)


def test_no_file_means_defaults(tmp_path: Path) -> None:
    loaded = config.load(str(tmp_path))
    assert loaded.settings == Settings() and loaded.problems == []
    assert config.stamp(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("raw", "place", "says"),
    [
        (b"# \xc3\xa9\nversion: \xff1\n", (2, 10), "0xff is not UTF-8"),
        (b"#" * (1 << 20) + b"#", (1, 1), "larger"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, raw: bytes, place: tuple[int, int], says: str) -> None:
    home = home_with(tmp_path, raw)
    with pytest.raises(CoreAgentError) as caught:
        config.load(home)
    assert caught.value.slug == "settings_invalid"
    assert (caught.value.data["line"], caught.value.data["column"]) == place
    assert says in caught.value.message and f"{home}/agents.yaml" in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").mkdir()
    with pytest.raises(CoreAgentError) as caught:
        config.load(str(tmp_path))
    assert caught.value.slug == "settings_unreadable"


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    home = home_with(tmp_path, b"version: 1\n")
    first = config.stamp(home)
    assert first and first == config.stamp(home)
    other = tmp_path / "other"
    other.write_bytes(b"version: 1\n\n")
    os.replace(other, f"{home}/agents.yaml")
    assert config.stamp(home) not in (0, first)


def test_odd_but_not_wrong_is_a_problem_to_show(tmp_path: Path) -> None:
    home = home_with(tmp_path, b"dispatch: {default_agent: claud}\nagents: {x: {runner: nobody}}\n")
    first, second = config.load(home).problems
    assert "dispatch.default_agent" in first and "did you mean" in first and "agents.x.runner" in second


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("claude", Chosen("claude")),
        ("claude:opus", Chosen("claude", "opus")),
        ("opus", Chosen("claude", "opus")),
        ("haiku", Chosen("claude", "haiku")),
        ("openai", Chosen("codex")),
        ("openai:gpt-5.4", Chosen("codex", "gpt-5.4")),
        ("cladius", Chosen("claude", "", "cladius")),
        ("cladius:opus", Chosen("claude", "opus", "cladius")),
        ("fast", Chosen("claude", "haiku", "fast")),
        ("spark", Chosen("codex", "gpt-5.3-codex-spark", "spark")),
        ("claude-x", Chosen("codex", "", "claude-x")),
        ("command:tidy", Chosen("command", "tidy")),
        ("scripted", Chosen("scripted")),
        ("my.runners:Fancy", Chosen("my.runners:Fancy")),
    ],
)
def test_what_an_agent_string_means(text: str, chosen: Chosen) -> None:
    settings = load_text(
        CONTRACT
        + "  fast: {runner: claude, model: haiku}\n  spark: {runner: 'openai:gpt-5.3-codex-spark'}\n"
        + "  claude-x: {runner: codex}\ncommands: {tidy: {argv: [make]}}\n"
    )
    assert config.resolve_agent(text, settings) == chosen


@pytest.mark.parametrize(
    ("text", "slug", "hint"),
    [
        ("charon", "remote_identity", "fleet"),
        ("claud", "unknown_agent", "did you mean claude"),
        ("comand:tidy", "unknown_agent", "did you mean command:tidy?"),
        ("acpx:gemini", "unknown_agent", "did you mean acp:gemini"),
        ("cladus", "unknown_agent", "cladius"),
        ("", "unknown_agent", "cladius, claude, "),
        ("zzzzzz", "unknown_agent", "cladius, claude, "),
        ("nope", "unknown_agent", "cladius, claude, "),
        ("claud:opus", "unknown_agent", "claude?"),
        ("scriptd", "unknown_agent", "did you mean scripted?"),
        ("tidy", "unknown_agent", "did you mean command:tidy?"),
        ("command:tydy", "unknown_agent", "did you mean command:tidy?"),
        ("command:nope", "unknown_agent", "there is command:tidy"),
        ("command", "unknown_agent", "there is command:tidy"),
        ("--help", "unknown_agent", ""),
    ],
)
def test_agents_that_there_are_not(text: str, slug: str, hint: str) -> None:
    settings = load_text(CONTRACT + "commands: {tidy: {argv: [make]}}\n")
    with pytest.raises(CoreAgentError) as caught:
        config.resolve_agent(text, settings)
    assert caught.value.slug == slug and hint in caught.value.hint
    named = re.split(r" or |, ", caught.value.hint.removeprefix("did you mean ").removeprefix("there is ").rstrip("?"))
    if slug == "unknown_agent":  # whatever a hint names would be taken
        assert all(config.resolve_agent(name, settings).runner in runners.FAMILY for name in named)


def test_a_command_that_nobody_named() -> None:
    with pytest.raises(CoreAgentError) as caught:
        config.resolve_agent("command:x", load_text("version: 1\n"))
    assert "under `commands`" in caught.value.hint


def test_the_runners_that_can_be_asked_are_those_built_in() -> None:
    assert set(config.RUNNERS) == set(runners.FAMILY)


@pytest.mark.parametrize(
    ("runner", "model", "pool"),
    [
        ("codex", "gpt-5.3-codex-spark", "codex-spark"),
        ("codex", "gpt-5.4", "codex"),
        ("codex", "", "codex"),
        ("claude", "opus", "claude"),
        ("scripted", "", "scripted"),
        ("opencode", "codex-like", "codex"),
    ],
)
def test_pools(runner: str, model: str, pool: str) -> None:
    settings = load_text(CONTRACT)
    assert poolnames.pool_of(runner, model, settings) == pool


def test_limits() -> None:
    settings = load_text(CONTRACT)
    assert [poolnames.limit_of(pool, settings) for pool in ("claude", "codex", "codex-spark", "x")] == [3, 2, 0, 0]


@pytest.mark.parametrize(
    ("root", "home", "absolute"),
    [
        (".core/workspace", "/home/a/.core", "/home/a/.core/workspace"),
        (".core/workspace", "/srv/agents", "/srv/agents/workspace"),
        ("./.core/x/../y", "/srv/agents", "/srv/agents/y"),
        ("work", "/home/a/.core", "/home/a/work"),
        ("/data/work", "/home/a/.core", "/data/work"),
        ("../b", "/home/a/.core", "/home/b"),
    ],
)
def test_where_workspaces_are(root: str, home: str, absolute: str) -> None:
    assert config.workspace_root(load_text(f"dispatch: {{workspace_root: '{root}'}}"), home) == absolute


def test_a_tilde_is_the_callers_home(tmp_path: Path) -> None:
    home = home_with(tmp_path, b"dispatch: {workspace_root: ~/work}\n")
    assert config.workspace_root(config.load(home, {"HOME": "/home/a"}).settings, home) == "/home/a/work"


def test_reset_times() -> None:
    assert [config.parse_reset_utc(text) for text in ("06:00", "6:00", "23:59")] == [time(6), time(6), time(23, 59)]
    for bad in ("", "6", "24:00", "06:60", "06:00:00", "06:00 "):
        with pytest.raises(ValueError, match="like 06:00"):
            config.parse_reset_utc(bad)


def test_a_repository_sets_what_it_may() -> None:
    found = load_repo(
        "dispatch: {default_agent: opus}\nharvest: {max_files: 3}\nhooks: {setup: {run: make}}\n"
        "commands: {x: {argv: [y]}}\n"
    )
    assert found.runs_commands and found.hooks.setup.run == "make" and found.commands["x"].argv == ["y"]
    harmless = found.harmless()
    assert not harmless.runs_commands and harmless.dispatch.default_agent == "opus"
    assert harmless.harvest and harmless.harvest.max_files == 3
    assert load_repo("").hooks.setup.run == ""


def test_a_repository_cannot_set_what_is_the_persons() -> None:
    with pytest.raises(CoreAgentError) as caught:
        load_repo("version: 1\nrunners: {claude: {permissions: bypass}}\n")
    assert "your own agents.yaml" in caught.value.hint and caught.value.data["line"] == 2
    with pytest.raises(CoreAgentError) as caught:
        load_repo("dispatch: {workspace_root: /}\n")
    assert "your own agents.yaml" in caught.value.hint
