"""Notices and settings that change, through the installed command and a daemon that nobody asks anything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home
from tests.support.world import World

from coreagent import process
from coreagent.daemon import house


def until(true: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} does not come")
        time.sleep(0.02)
    return found


def notices(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def telling(said: Path) -> str:
    return f"notify: {{command: [/bin/sh, -c, 'cat >> {said}']}}\n"


def test_a_notice_of_each_end_and_none_lost_over_restarts(home: Home) -> None:
    said = home.dir / "said"
    world = World(home, seconds=1.0, settings=telling(said))
    made = []
    for how in (home.kill_daemon, home.stop):
        reply = world.dispatch("a task")
        assert reply is not None
        made.append(reply["dispatch_id"])
        until(lambda: len(world.executions()) == len(made), "the agent")
        how()  # the agent ends while nobody is there
        home.run("daemon", "start")
    world.settle()
    found = until(lambda: [n for n in notices(said) if n["dispatch_id"] == made[1]] and notices(said), "the notice")
    assert [n["dispatch_id"] for n in found] == made
    assert {n["event"] for n in found} == {"needs_review"}
    assert found[0]["next"].startswith("core-agent diff ")


@pytest.mark.parametrize(("agent", "code"), [("command:work", 0), ("command:bad", 10)])
def test_a_wait_brings_the_next_daemon_and_leaves_with_the_tasks_own_code(home: Home, agent: str, code: int) -> None:
    said = home.dir / "begun"
    world = World(home, settings="")
    settings = home.core / "agents.yaml"
    settings.write_text(
        "version: 1\ncommands:\n"
        f"  work: {{argv: [/bin/sh, -c, 'touch {said}; sleep 2; echo done > made.txt']}}\n"
        f"  bad: {{argv: [/bin/sh, -c, 'touch {said}; sleep 2; exit 3']}}\n"
    )
    with home.start("dispatch", "x", "-a", agent, "-n", "one", "--wait", cwd=world.repo) as waiting:
        until(said.exists, "the agent")
        first = home.daemon_pid
        home.kill_daemon()  # nobody but the waiting client starts another one
        out, err = waiting.communicate(timeout=60)
        assert waiting.returncode == code, (out, err, home.log()[-3000:])
    assert home.daemon_pid not in (0, first)


def test_the_test_command(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    refused = home.run("notify", "test", code=1)
    assert "E7003" in refused.err and "hint:" in refused.err
    (home.core / "agents.yaml").write_text("version: 1\n" + telling(home.dir / "said"))
    assert home.json("notify", "test") == [{"channel": "command", "arrived": True, "problem": ""}]
    assert notices(home.dir / "said")[0]["event"] == "test"
    (home.core / "agents.yaml").write_text("version: 1\nnotify: {desktop: true, command: [/bin/false]}\n")
    done = home.run("notify", "test", code=1)
    assert "✗ command" in done.out and "exit code 1" in done.out
    assert "✗ desktop" in done.out


def test_a_secret_of_a_notice_reaches_the_daemon_that_is_started_with_it(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    webhook = "notify: {webhook: {url: 'http://127.0.0.1:9/', headers: {Authorization: HOOK_TOKEN}}}\n"
    (home.core / "agents.yaml").write_text("version: 1\n" + webhook)
    told = home.json("notify", "test", code=1)[0]["problem"]
    assert "HOOK_TOKEN is not set" in told and "daemon restart" in told
    home.run("daemon", "restart", env={"HOOK_TOKEN": "s3cret"})
    told = home.json("notify", "test", code=1)[0]["problem"]
    assert "could not be asked" in told and "s3cret" not in told
    assert process.environ_of(home.daemon_pid)["HOOK_TOKEN"] == "s3cret"


def test_a_secret_of_a_notice_reaches_the_first_daemon_of_a_home(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    webhook = "notify: {webhook: {url: 'http://127.0.0.1:9/', headers: {Authorization: HOOK_TOKEN}}}\n"
    (home.core / "agents.yaml").write_text("version: 1\n" + webhook)
    home.run("status", env={"HOOK_TOKEN": "s3cret", "OTHER_TOKEN": "x"})
    started = process.environ_of(home.daemon_pid)
    assert started["HOOK_TOKEN"] == "s3cret" and "OTHER_TOKEN" not in started
    # Over settings that have become bad, the names of the good ones hold.
    (home.core / "agents.yaml").write_text("version: 1\nheaders: nonsense\n")
    home.run("daemon", "restart", env={"HOOK_TOKEN": "s3cret"})
    assert process.environ_of(home.daemon_pid)["HOOK_TOKEN"] == "s3cret"


# -- settings that change --


def reloads(home: Home) -> list[dict[str, Any]]:
    lines = home.run("watch", "--since", "-1", "--once", "--timeout", "100ms", "--json", code=None).out.splitlines()
    events = [event for line in lines for event in json.loads(line).get("events", [json.loads(line)])]
    return [event["data"] for event in events if event.get("name") == "SettingsReloaded"]


def save(path: Path, text: str) -> None:
    """As editors do: a new file in the old one's place."""
    fresh = path.with_name(".agents.yaml.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_a_saved_file_is_in_force_for_what_waits_already(home: Home) -> None:
    world = World(home, seconds=600, limit=1)
    settings = home.core / "agents.yaml"
    for _ in range(2):
        world.dispatch("a task")
    until(world.executions, "the first")
    time.sleep(2.5)  # the watch begins two seconds after the daemon; nobody asks it anything from here on
    assert len(world.executions()) == 1
    save(settings, settings.read_text().replace("command: 1", "command: 2"))
    until(lambda: len(world.executions()) == 2, "the second", 10)
    assert [told["Ok"] for told in reloads(home)] == [True]
    save(settings, "version: 1\nconcurrency: {command: many}\n")
    until(lambda: "agents.yaml was read again: " in home.log(), "the word of it", 10)
    assert [told["Ok"] for told in reloads(home)] == [True, False]
    assert any("last good settings" in warning for warning in home.json("status")["warnings"])
    checks = {check["name"]: check for check in home.json("doctor", code=1)["checks"]}
    assert checks["settings"]["state"] == "fail"
    assert "the last good settings are in force" in checks["settings"]["message"]
    home.run("daemon", "stop", "--now")


def test_a_link_to_the_settings_is_followed(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    real = home.user / "dotfiles" / "core.yaml"
    real.parent.mkdir()
    real.write_text("version: 1\n")
    (home.core / "agents.yaml").symlink_to(real)
    home.run("daemon", "start")
    time.sleep(2.5)
    save(real, "version: 1\nconcurrency: {claude: 7}\n")
    until(lambda: "agents.yaml was read again" in home.log(), "the word of it", 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time is read from /proc")
def test_the_watch_costs_nothing_while_nothing_happens(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    (home.core / "agents.yaml").write_text("version: 1\n")
    home.run("daemon", "start")
    pid = house.holder(str(home.core))
    until(lambda: "watchfiles" in Path(f"/proc/{pid}/maps").read_text(), "the library", 10)
    ticks, began = _ticks(pid), time.monotonic()
    time.sleep(4)
    share = (_ticks(pid) - ticks) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)
    assert share <= 0.01, f"{share:.2%} of a processor"  # a tick is 10 ms; `bench idle` measures finer


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
