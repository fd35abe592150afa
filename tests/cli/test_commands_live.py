"""The commands against a real daemon: the demo's whole way, a day's verbs, and the doctor."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.support.home import Home

EDIT = 'steps:\n- write: {path: b.txt, content: "hello\\n"}\n- usage: {input: 1200, output: 34, cost_usd: 0.12}\n'
ASK = 'turns:\n- steps: [{block: "Which port?"}]\n- steps: [{write: {path: port, content: "8080"}}]\n'
SLOW = "steps:\n- say: working\n- wait: 600\n"


def test_the_demo_goes_the_whole_way_twice(home: Home) -> None:
    for directory in ([], ["--dir", "mine"]):
        told = home.json("demo", "--yes", *directory)
        assert (told["test_before"], told["test_after"], told["accepted"]) == (False, True, True)
        assert told["state"] == "completed"
        repo = Path(told["repository"])
        assert "quantity * price" in (repo / "basket.py").read_text()
        assert home.git("status", "--porcelain", cwd=repo) == ""
    again = home.json("demo", "--dir", "mine", code=2)
    assert "not empty" in again["error"]["message"]


def test_the_demo_says_what_it_does_and_leaves_the_choice(home: Home) -> None:
    done = home.run("demo")
    assert "built-in scripted runner, because no agent CLI" in done.out
    assert "FAILED (failures=2)" in done.out
    assert "+    cents = sum(quantity * price" in done.out
    assert "take it:  core-agent accept local/demo/fix-basket" in done.out
    assert "\x1b" not in done.out
    assert [row["name"] for row in home.json("repo", "list")] == ["demo"]


def test_a_clean_demo_leaves_nothing_behind(home: Home) -> None:
    for more, what in ((["--yes"], "accepted"), ([], "not taken")):
        done = home.run("demo", "--clean", *more)
        assert what in done.out
        assert "removed " in done.out
        assert list(home.tmp.iterdir()) == []
        assert home.json("repo", "list") == []
        assert home.json("status", "--all")["workspaces"] == []
        # What was not taken is kept all the same.
        assert len(home.json("rescue", "list")) == (0 if more else 1)
        assert (home.core / "repos" / "local" / "demo.git").exists() is not bool(more)
    assert [row["fate"] for row in home.json("history")] == ["rejected", "accepted"]
    assert home.json("demo", "--clean", "--yes")["forgotten"] is True


def test_a_days_verbs(home: Home) -> None:
    repo = home.repo()
    home.git("config", "user.name", "Person", cwd=repo)
    home.git("config", "user.email", "person@example.org", cwd=repo)
    done = home.run(
        "dispatch", "-a", "scripted", "-n", "edit", "--script", "-", "--wait", "make it", stdin=EDIT, cwd=repo
    )
    assert "✓ local/repo/edit completed" in done.out
    assert "1.2k tokens" in done.out
    assert "ready to accept: agent/edit" in home.run("status").out
    assert "Write b.txt" in home.run("logs", "edit").out
    assert home.json("logs", "edit")["entries"][0]["event"]["kind"] == "started"
    assert home.run("diff", "edit").out.endswith("+hello\n")
    assert home.run("open", "edit", "--path").out.strip().endswith("/edit/repo")
    assert home.json("accept", "edit", "--squash", cwd=repo)["strategy"] == "squash"
    assert (repo / "b.txt").read_text() == "hello\n"

    blocked = ("dispatch", "-a", "scripted", "-n", "ask", "--script", "-", "--wait", "ask me")
    assert "asks: Which port?" in home.run(*blocked, stdin=ASK, cwd=repo, code=11).out
    assert home.json("status")["counts"]["blocked"] == 1
    lines = home.run("resume", "ask", "--answer", "8080", "--wait", "--json").out.splitlines()
    assert json.loads(lines[-1])["state"] == "completed"
    assert "rejected" in home.run("reject", "ask").out

    home.run("queue", "freeze")
    home.run("dispatch", "-a", "scripted", "-n", "later", "--script", "-", "wait", stdin=SLOW, cwd=repo)
    assert home.json("queue", "list")["rows"][0]["waiting_for"] == "frozen"
    home.run("queue", "start")
    home.run("watch", "later", "--once", "--timeout", "20s", "--since", "1")
    assert home.json("cancel", "later")["state"] == "cancelled"
    assert [row["workspace"].rsplit("/")[-1] for row in home.json("history")] == ["later", "ask", "edit"]
    assert home.json("workspace", "show", "later")["row"]["state"] == "cancelled"
    assert "cancelled" in home.run("why", "later").out


def test_the_daemons_own_verbs(home: Home) -> None:
    assert home.json("daemon", "status", code=69)["error"]["slug"] == "daemon_unreachable"
    first = home.json("daemon", "start")
    assert {"pid", "version", "home", "socket", "uptime_s", "rss_bytes"} <= set(first)
    assert home.json("daemon", "start")["pid"] == first["pid"]
    assert home.json("daemon", "restart")["pid"] != first["pid"]
    assert "serves" in home.run("daemon", "logs").out
    assert "serves" in json.loads(home.run("daemon", "logs", "--json", "-n", "1").out)["line"]
    assert home.json("daemon", "stop")["mode"] == "leave"
    for how in ("leave", "drain", "now"):
        told = home.json("daemon", "stop", *([f"--{how}"] if how != "leave" else []))
        assert told == {"mode": how, "running": 0, "strangers": 0, "note": "it was not running"}


def test_a_stop_without_a_daemon_tells_of_the_agents_that_go_on(home: Home) -> None:
    home.run("dispatch", "-a", "scripted", "-n", "on", "--script", "-", "goes on", stdin=SLOW, cwd=home.repo())
    while home.json("status")["counts"]["running"] == 0:
        home.run("watch", "on", "--once", "--timeout", "20s")
    home.run("daemon", "stop")
    told = home.json("daemon", "stop", "--now")
    assert (told["mode"], told["running"]) == ("now", 1)
    assert "1 agent goes on without it" in told["note"]
    home.run("daemon", "start")
    home.run("daemon", "stop", "--now")
    assert home.json("daemon", "stop", "--now")["running"] == 0


def test_init_writes_once(home: Home) -> None:
    told = home.json("init")
    assert (told["written"], told["default_agent"]) == (True, "claude")
    settings = Path(told["settings"])
    assert settings.stat().st_mode & 0o077 == 0
    settings.write_text(settings.read_text() + "# mine\n")
    assert home.json("init")["written"] is False
    assert "# mine" in settings.read_text()
    home.run("init", "--force", "--agent", "claude")
    assert "# mine" in settings.with_name("agents.yaml.before").read_text()
    again = home.json("init", "--force")
    assert again["kept"] == str(settings.with_name("agents.yaml.before.2"))
    assert "# mine" in settings.with_name("agents.yaml.before").read_text()
    assert "# mine" not in settings.with_name("agents.yaml.before.2").read_text()
    assert settings.with_name("agents.yaml.before.2").stat().st_mode & 0o077 == 0
    text = settings.read_text()
    for unknown in ("claud", "x: [", "claude,nope", "command:mine"):
        error = home.json("init", "--force", "--agent", unknown, code=1)["error"]
        assert (error["code"], settings.read_text()) == ("E4001", text)
    assert "did you mean claude" in home.run("init", "--force", "--agent", "claud", code=1).err
    assert home.json("doctor")["ok"] is True


def test_doctor_finds_what_is_wrong(home: Home) -> None:
    report = home.json("doctor")
    assert report["ok"] is True
    assert {c["name"] for c in report["checks"]} >= {"python", "git", "socket", "home", "settings", "disk", "claude"}
    home.run("daemon", "start")
    assert "held by the daemon" in home.run("doctor").out
    home.run("daemon", "stop")
    assert "is whole" in home.run("doctor").out
    (home.core / "agents.yaml").write_text("dispach: {}\n")
    home.core.chmod(0o777)
    report = home.json("doctor", code=1)
    assert {c["name"] for c in report["checks"] if c["state"] == "fail"} == {"home", "settings"}
    home.core.chmod(0o700)


def test_doctor_repairs_only_when_asked(home: Home) -> None:
    assert "nothing is stored yet" in home.run("doctor", "--repair").out
    home.run("daemon", "start")
    assert home.json("doctor", "--repair", code=1)["checks"][0]["name"] == "store_locked"
    home.run("daemon", "stop")
    assert "nothing was touched" in home.run("doctor", "--repair").out
    database = home.core / "db.duckdb"
    database.write_bytes(b"\0" * 4096 + database.read_bytes()[4096:])
    failed = [c for c in home.json("doctor", code=1)["checks"] if c["state"] == "fail"]
    assert [c["name"] for c in failed] == ["store"]
    assert "--repair" in failed[0]["hint"]
    assert "the damaged files are kept" in home.run("doctor", "--repair").out
    assert home.json("doctor")["ok"] is True


def test_doctor_proves_an_installation_without_a_key(home: Home) -> None:
    report = home.json("doctor", "--offline", timeout=120)
    proof = [c for c in report["checks"] if c["name"] == "offline"]
    assert [c["state"] for c in proof] == ["ok", "warn"]
    assert "accepted" in proof[0]["message"]
    assert proof[1]["message"] == "not installed, so not proved: claude, codex, gemini, opencode"
    assert [p["agent"] for p in report["proofs"] if p["state"] == "proved"] == ["scripted"]


def test_completion_knows_commands_and_workspaces(home: Home) -> None:
    repo = home.repo()
    home.run("dispatch", "-a", "scripted", "-n", "edit", "--script", "-", "--wait", "x", stdin=EDIT, cwd=repo)

    def offered(line: str, env: dict[str, str] | None = None) -> list[str]:
        words = line.split(" ")
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_CORE_AGENT_COMPLETE": "bash", **(env or {})}
        return home.run(env=asked).out.split()

    assert offered("core-agent dis") == ["dispatch"]
    assert offered("core-agent why ed") == ["edit"]
    assert offered("core-agent why local/") == ["local/repo/edit"]
    assert "scripted" in offered("core-agent dispatch --agent s")
    assert offered("core-agent template show cod") == ["code-review", "coding"]
    settings = home.core / "agents.yaml"
    settings.write_text("commands: {tidy: {argv: [/bin/true]}, tiny: {argv: [/bin/true]}}\n")
    for line in ("core-agent dispatch --agent command:ti", "core-agent dispatch --agent=command:ti"):
        assert offered("", {"COMP_LINE": line, "COMP_WORDBREAKS": " =:"}) == ["tidy", "tiny"]
        assert offered("", {"COMP_LINE": line, "COMP_WORDBREAKS": " "}) == ["command:tidy", "command:tiny"]
    assert offered("", {"COMP_LINE": "core-agent why "}) == ["edit"]
    fish = {
        "_CORE_AGENT_COMPLETE": "fish",
        "COMP_WORDS": "core-agent\ndispatch\n--agent=command:tid",
        "COMP_CWORD": "2",
    }
    assert offered("", fish) == ["--agent=command:tidy", "command"]
    for shell in ("bash", "zsh", "fish"):
        if shutil.which(shell):
            script = home.dir / f"completion.{shell}"
            script.write_text(home.run("completion", shell).out)
            subprocess.run([shell, "-n", script], check=True, env=home.env)
    place = home.json("completion", "bash", "--install")
    assert Path(place["path"]).read_text() == home.run("completion", "bash").out
    subprocess.run(["bash", "-n", place["path"]], check=True)
