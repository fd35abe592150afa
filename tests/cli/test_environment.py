"""The world of an agent, and its turns: the built-in runners through the installed command and a real daemon."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

from tests.support.home import Home

SECRET = "s3cret-of-the-person-0b7d"
KEEPS = "env | grep -v '^MY_SECRET=' | sort > ../seen; "
AGENT = (
    'test "$MY_SECRET" = "$(cat ../expected)" && echo yes > knows; ' + KEEPS + "echo run >> ../runs; cat > ../told; "
    "while [ ! -e ../go ]; do sleep 0.05; done; echo x >> made"
)
SETTINGS = f"""
version: 1
dispatch: {{default_agent: 'command:work'}}
env: {{allow: [MY_SECRET, 'MYAPP_*']}}
commands:
  work: {{argv: [/bin/sh, -c, {json.dumps(AGENT)}], env: {{OF_THE_COMMAND: 'yes'}}}}
  quiet: {{argv: [/bin/sh, -c, 'echo one; sleep 600']}}
  bare: {{argv: [/bin/sh, -c, 'echo $0 > made; exit 7']}}
"""
OUTER = {
    "CLAUDECODE": "1",
    "CLAUDE_CODE_ENTRYPOINT": "cli",
    "CLAUDE_CODE_SESSION_ID": "outer",
    "CORE_AGENT_ATTEMPT": "",
    "CORE_AGENT_DISPATCH": "outer",
    "ANTHROPIC_API_KEY": "of-another-runner",
    "NOT_ALLOWED": "no",
    "GIT_DIR": "/nowhere",
    "PYTHONPATH": "/nowhere",
}


def begin(home: Home) -> Path:
    home.core.mkdir(mode=0o700, exist_ok=True)
    (home.core / "agents.yaml").write_text(SETTINGS)
    return home.repo()


def row(home: Home, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = home.json("status", name, "--all")["workspaces"]
    return rows[0]


def place(home: Home, name: str) -> Path:
    return home.core / "workspace" / "local" / "repo" / name


def wait_for(path: Path) -> None:
    ends = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < ends, f"{path} does not come"
        time.sleep(0.02)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def holders(home: Home, text: str) -> list[str]:
    """Files of the home in which the text stands."""
    files = [path for path in home.core.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(str(path.relative_to(home.core)) for path in files if text.encode() in path.read_bytes())


def test_an_agent_sees_what_is_allowed_and_nothing_of_it_stays(home: Home) -> None:
    repo = begin(home)
    home.run("daemon", "start")  # it has nothing of the person's secrets: they travel with the task
    home.env["MY_SECRET"] = SECRET
    reply = home.json("dispatch", "do it", "-n", "env", cwd=repo, env=OUTER | {"MYAPP_KEY": "k"})
    workspace = place(home, "env")
    wait_for(workspace / "runs")

    pending = home.core / "pending" / f"{reply['dispatch_id']}.env"
    (spool,) = (home.core / "attempts").iterdir()
    assert (mode(pending), mode(spool), mode(spool / "spec.json")) == (0o600, 0o700, 0o600)
    in_use = [f"attempts/{spool.name}/spec.json", f"pending/{pending.name}"]
    assert holders(home, SECRET) == in_use

    # The daemon dies meanwhile, and another one finds it: the secret is in no more places then.
    home.kill_daemon()
    assert row(home, "env")["state"] == "running"
    assert holders(home, SECRET) == in_use

    seen = dict(line.split("=", 1) for line in (workspace / "seen").read_text().splitlines() if "=" in line)
    assert seen["CORE_AGENT_DISPATCH"] == reply["dispatch_id"]
    assert (seen["CORE_AGENT_TASK"], seen["CORE_AGENT_WORKSPACE"]) == ("do it", "local/repo/env")
    assert (seen["CORE_AGENT_ATTEMPT"], seen["MYAPP_KEY"]) == (spool.name, "k")
    assert (seen["PATH"], seen["HOME"], seen["LANG"]) == (home.env["PATH"], home.env["HOME"], "C.UTF-8")
    assert (seen["OF_THE_COMMAND"], seen["PWD"]) == ("yes", str(workspace / "repo"))
    assert seen["TMPDIR"] != home.env["TMPDIR"]
    assert Path(seen["TMPDIR"]).is_dir()
    assert workspace in Path(seen["TMPDIR"]).parents
    for name in OUTER.keys() - {"CORE_AGENT_ATTEMPT", "CORE_AGENT_DISPATCH"}:
        assert name not in seen
    assert "do it" in (workspace / "told").read_text()

    (workspace / "go").touch()
    settled(home, "env")
    assert row(home, "env")["state"] == "completed"
    assert holders(home, SECRET) == []
    assert not pending.exists()
    assert list((home.core / "attempts").iterdir()) == []
    home.stop()
    assert SECRET.encode() not in (home.core / "db.duckdb").read_bytes()


def test_an_allowed_variable_has_the_value_of_the_person_who_asks(home: Home) -> None:
    repo = begin(home)
    prepared = home.json("workspace", "prep", "do it", "-n", "env", cwd=repo, code=None)
    assert prepared["state"] == "paused", prepared
    workspace = place(home, "env")
    (workspace / "expected").write_text("of the second")
    (workspace / "go").touch()
    row_of_first = home.run("resume", "env", "--wait", env={"MY_SECRET": "of the second"})
    assert row_of_first.code == 0
    assert home.git("show", "agent/env:knows", cwd=repo) == "yes\n"


def test_a_command_is_run_again_from_the_beginning_and_counted(home: Home) -> None:
    repo = begin(home)
    home.run("dispatch", "do it", "-n", "twice", cwd=repo)
    workspace = place(home, "twice")
    wait_for(workspace / "runs")
    assert row(home, "twice")["runs"] == 1
    (workspace / "go").touch()
    settled(home, "twice")
    done = home.run("resume", "twice", "also this", "--wait", "--json")
    last = json.loads(done.out.splitlines()[-1])
    assert (last["state"], last["runs"]) == ("completed", 2)
    assert (workspace / "runs").read_text() == "run\nrun\n"
    told = (workspace / "told").read_text()
    assert "do it" in told
    assert told.endswith("also this")
    assert "An earlier session already worked here" in told
    assert home.git("show", "agent/twice:made", cwd=repo) == "x\nx\n"


def test_a_failing_command_keeps_its_work(home: Home) -> None:
    repo = begin(home)
    done = home.run("dispatch", "x", "-a", "command:bare", "-n", "bare", "--wait", "--json", cwd=repo, code=10)
    last = json.loads(done.out.splitlines()[-1])
    assert (last["state"], last["reason"], last["stage"]) == ("failed", "error", "harvested")
    assert "exit code 7" in last["detail"]


def test_silence_ends_both_built_in_runners(home: Home) -> None:
    repo = begin(home)
    script = home.user / "script.yaml"
    script.write_text("steps:\n- write: {path: a, content: x}\n- wait_for: {path: never, timeout_s: 600}\n")
    home.run("dispatch", "x", "-a", "command:quiet", "-n", "one", "--idle-timeout", "1s", cwd=repo)
    home.run("dispatch", "x", "-a", "scripted", "--script", str(script), "-n", "two", "--idle-timeout", "1s", cwd=repo)
    for name, stage in (("one", ""), ("two", "harvested")):
        settled(home, name)
        ended = row(home, name)
        assert (ended["state"], ended["reason"], ended["stage"]) == ("failed", "idle_timeout", stage)


def test_a_script_waits_and_goes_on_with_its_next_turn(home: Home) -> None:
    repo = begin(home)
    script = home.user / "script.yaml"
    script.write_text(
        "turns:\n"
        "- steps: [{usage: {input: 10, output: 1, cost_usd: 0.5}}, {wait_for: go}, {write: {path: a, content: x}}]\n"
        "- steps: [{usage: {input: 20, output: 2, cost_usd: 0.25}}, {write: {path: b, content: x}}]\n"
    )
    home.run("dispatch", "x", "-a", "scripted", "--script", str(script), "-n", "talk", cwd=repo)
    wait_for(place(home, "talk") / "repo" / "README.md")
    assert row(home, "talk")["state"] in ("preparing", "running")
    (place(home, "talk") / "repo" / "go").touch()
    settled(home, "talk")
    first = row(home, "talk")
    assert (first["state"], first["runs"], first["tokens"], first["cost"]["usd"]) == ("completed", 1, 11, 0.5)
    home.run("resume", "talk", "--wait")
    second = row(home, "talk")
    assert (second["state"], second["runs"], second["tokens"], second["cost"]["usd"]) == ("completed", 2, 33, 0.75)
    assert home.git("show", "agent/talk:b", cwd=repo) == "x"


def settled(home: Home, name: str) -> None:
    """Wait until it rests."""
    ends, seq = time.monotonic() + 30, 1
    while row(home, name)["state"] in ("queued", "preparing", "running"):
        assert time.monotonic() < ends, home.log()[-3000:]
        told = home.run("watch", name, "--since", str(seq), "--once", "--timeout", "1s", "--json", code=None).out
        seq = max([seq, *(json.loads(line)["seq"] for line in told.splitlines())])
