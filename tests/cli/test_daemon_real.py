"""The daemon as it is installed: started by the first command that needs it, whoever that is."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.home import Home


def test_the_first_command_starts_it_once(home: Home) -> None:
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lambda _: home.json("status"), range(6)))
    assert all(report["counts"]["running"] == 0 for report in reports)
    assert home.log().count(" serves ") == 1
    status = home.json("daemon", "status")
    assert status["pid"] == home.daemon_pid
    home.run("daemon", "restart")
    assert home.daemon_pid not in (0, status["pid"])
    home.run("daemon", "stop")
    assert home.daemon_pid == 0


def test_an_agent_is_known_by_what_it_runs_below(home: Home) -> None:
    home.run("status")
    marked = {"CORE_AGENT_ATTEMPT": "01J0000000000000000000000X"}
    refused = home.json("daemon", "stop", env=marked, code=1)
    assert refused["error"]["slug"] == "role_forbidden"
    # The kernel says who asks: what a child sets for itself does not wash its parent's mark off.
    done = subprocess.run(
        ["sh", "-c", "env -u CORE_AGENT_ATTEMPT core-agent daemon stop --json; exit $?"],
        env={**home.env, **marked},
        cwd=home.user,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["error"]["slug"] == "role_forbidden"
    assert home.daemon_pid


def test_every_command_has_a_place_to_run(home: Home) -> None:
    # Every word of the command line answers to --help without a daemon, and none of that starts one.
    listing = home.run("--help").out
    commands = [line.split()[0] for line in listing.partition("Commands:")[2].splitlines() if line[2:3].strip()]
    assert "status" in commands
    for command in ("status", "daemon", "mcp"):
        assert "Usage: core-agent " + command in home.run(command, "--help").out
    assert home.run("version").out.startswith("core-agent ")
    for more in ([], ["--json"], ["--help"], ["--nope"]):
        one, other = (home.run(word, *more, code=None) for word in ("version", "--version"))
        assert (one.code, one.out, one.err) == (other.code, other.out, other.err)
    assert home.daemon_pid == 0
    assert not Path(home.core, "run").exists()


def test_names_added_in_the_settings_travel_from_the_next_command_on(home: Home) -> None:
    home.run("status")
    names = home.core / "run" / "env.allow"
    assert names.read_text() == ""
    (home.core / "agents.yaml").write_text("env:\n  allow: [MY_TOKEN]\n")
    home.run("status")
    assert names.read_text() == "MY_TOKEN\n"


def test_a_daemon_whose_files_were_removed_is_found_again(home: Home) -> None:
    """Any process of the same user can remove them; the daemon stays the same one and goes on."""
    home.run("status")
    first = home.daemon_pid
    socket = home.core / "run" / "daemon.sock"
    socket.unlink()
    assert home.json("daemon", "status")["pid"] == first
    socket.unlink()
    with ThreadPoolExecutor(4) as pool:
        assert all(r["counts"]["running"] == 0 for r in pool.map(lambda _: home.json("status"), range(4)))
    socket.unlink()
    socket.write_text("something else")
    home.run("status")
    (home.core / "run" / "daemon.lock").unlink()
    socket.unlink()
    home.run("status")
    assert home.daemon_pid == first
    shutil.rmtree(home.core / "run")
    home.run("status")
    assert home.daemon_pid == first
    socket.unlink()
    assert home.json("daemon", "stop")["mode"] == "leave"
    assert home.daemon_pid == 0


def test_the_last_word_of_the_log_is_that_it_stopped(home: Home) -> None:
    home.run("history")
    home.run("daemon", "stop")
    assert home.log().endswith("stopped (leave)\n")
