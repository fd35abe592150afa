"""Every verb through the installed command, with `--json`: its shape, its second time, and what it must not do."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
from pathlib import Path
from typing import Any

from tests.support.home import COMMAND, Home
from tests.support.world import World

COUNTS = {"queued", "preparing", "running", "paused", "blocked", "completed", "failed", "cancelled"}


def until(world: World, dispatch_id: str, *states: str) -> dict[str, Any]:
    for _ in range(200):
        row = world.rows()[dispatch_id]
        if row["state"] in states:
            return row
        world.home.run("watch", "--once", "--timeout", "200ms", "--json", code=None)
    raise AssertionError(f"never {states}: {row}")


def slug(home: Home, *argv: str, code: int = 1, **options: Any) -> str:
    """The error that a command ends with; it must say something, and the text must say the same as the JSON."""
    body = home.json(*argv, code=code, **options)["error"]
    assert body["message"]
    text = home.run(*argv, code=code, **options).err
    assert text.startswith(f"error[{body['code']}]:"), text
    return str(body["slug"])


def test_reading_verbs(home: Home) -> None:
    world = World(home)
    first = world.dispatch("make a file", "--name", "one")
    assert first is not None
    assert {"dispatch_id", "workspace", "state", "branch", "base_sha", "agent", "pool", "notes"} <= set(first)
    assert (first["workspace"], first["branch"]) == ("local/repo/one", "agent/one")
    world.settle()
    report = home.json("status")
    assert set(report["counts"]) == COUNTS
    assert report["counts"]["completed"] == 1
    (row,) = report["workspaces"]
    assert {"workspace", "state", "reason", "stage", "waiting_until", "needs_me", "bypass", "cost"} <= set(row)
    assert {"pool", "running", "limit", "queued", "frozen", "parked_until"} <= set(report["pools"][0])
    daemon = home.json("daemon", "status")
    assert {"pid", "version", "home", "socket", "uptime_s", "rss_bytes"} <= set(daemon)
    assert (daemon["pid"], daemon["home"]) == (home.daemon_pid, str(home.core))
    for name in ("one", "repo/one", "local/repo/one", first["dispatch_id"], first["dispatch_id"][:10]):
        assert home.json("why", name)["workspace"] == "local/repo/one"
    assert home.json("status", "one")["workspaces"][0]["dispatch_id"] == first["dispatch_id"]
    assert home.json("diff", "one")["files"] == 1
    assert "made-" in home.json("diff", "one", "--stat")["text"]
    assert slug(home, "logs", "one", "--attempt", "99", code=2) == "invalid_argument"
    assert slug(home, "logs", "one", "--tail", "-3", code=2) == "invalid_argument"
    for wrong in (["--nope"], ["a", "b"]):
        assert "E1001" in home.run("mcp", *wrong, code=2).err
    assert slug(home, "queue", "freeze", "comand") == "pool_not_found"
    assert "did you mean command?" in home.run("queue", "start", "comand", code=1).err
    entries = home.json("logs", "one")["entries"]
    assert any("working" in json.dumps(e) for e in entries)
    event = json.loads(home.run("watch", "one", "--since", "1", "--once", "--json").out.splitlines()[0])
    assert event["seq"] > 0
    since_first = home.run("watch", "one", "--since", "0", "--once", "--json").out.splitlines()
    assert json.loads(since_first[0])["seq"] < event["seq"]
    assert [h["workspace"] for h in home.json("history")] == ["local/repo/one"]
    assert home.json("rescue", "list") == []
    assert home.json("queue", "list")["rows"] == []
    assert [w["workspace"] for w in home.json("workspace", "list")] == ["local/repo/one"]
    show = home.json("workspace", "show", "one")
    assert show["exists"] is True
    assert "make a file" in show["prompt"]
    assert [a["n"] for a in show["attempts"]] == [1]
    agents = {a["name"]: a for a in home.json("agents")}
    assert {"claude", "scripted"} <= set(agents)
    assert agents["scripted"]["found"] is True
    names = {(t["kind"], t["name"]) for t in home.json("template", "list")}
    assert {("template", "coding"), ("persona", "reviewer"), ("plan", "bug-fix")} <= names
    assert home.json("template", "show", "coding")["variables"] == ["scope"]
    assert home.json("version")["version"] == daemon["version"]
    assert home.json("attach", "one", code=None)
    assert slug(home, "why", "nothing-like-it") == "workspace_not_found"


def test_the_second_time(home: Home) -> None:
    """What may be said twice, and what says that it was done already."""
    world = World(home)
    added = home.json("repo", "add", str(world.repo), "--org", "acme", "--name", "app")
    assert home.json("repo", "add", str(world.repo), "--org", "acme", "--name", "app") == added
    assert len(home.json("repo", "list")) == 1
    other = home.repo("other")
    assert slug(home, "repo", "add", str(other), "--org", "acme", "--name", "app") == "repo_exists"

    home.run("queue", "freeze")
    assert home.json("queue", "freeze")["frozen"] is True
    waiting = world.dispatch("waits", "--name", "waits")
    dropped = world.dispatch("dropped", "--name", "dropped")
    assert waiting and dropped
    assert home.json("queue", "list")["rows"][0]["waiting_for"] == "frozen"
    assert home.json("queue", "drop", "dropped")["state"] == "cancelled"
    assert home.json("queue", "drop", "dropped")["note"] == "it was cancelled already"
    assert home.json("pause", "waits")["state"] == "paused"
    again = home.json("pause", "waits")
    assert (again["state"], again["reason"], again["note"]) == ("paused", "paused", "it was paused already")
    assert home.json("queue", "list")["rows"] == []
    home.run("resume", "waits")
    assert [r["workspace"] for r in home.json("queue", "poke")["rows"]] == ["acme/app/waits"]
    assert home.json("queue", "start")["frozen"] is False
    assert home.json("queue", "start")["frozen"] is False
    world.settle()

    running = world.dispatch("runs", "--agent", "command:long", "--name", "runs")
    assert running is not None
    until(world, running["dispatch_id"], "running")
    for verb in ("accept", "reject", "resume"):
        assert slug(home, verb, "runs") == "workspace_busy"
    assert home.json("diff", "runs")["live"] is True
    assert home.json("pause", "runs")["state"] == "paused"
    assert home.json("pause", "runs")["note"] == "it was paused already"
    assert home.json("cancel", "runs")["state"] == "cancelled"
    assert home.json("cancel", "runs")["note"] == "it was cancelled already"
    assert slug(home, "pause", "runs") == "not_running"
    assert slug(home, "accept", "runs") == "nothing_to_accept"

    taken = home.json("accept", "waits", cwd=world.repo)
    assert (taken["onto"], taken["strategy"], taken["files"]) == ("main", "fast-forward", 1)
    (gone,) = home.json("status", "waits")["workspaces"]
    assert (gone["fate"], gone["needs_me"]) == ("accepted", False)
    assert "accepted" in home.run("status", "waits").out
    assert slug(home, "accept", "waits") == "workspace_gone"
    assert "accepted" in home.run("accept", "waits", code=1).err
    assert slug(home, "reject", "waits") == "workspace_gone"
    assert slug(home, "resume", "waits") == "workspace_gone"
    assert home.json("reject", "runs")["state"] == "cancelled"
    assert "rejected" in home.run("reject", "runs", code=1).err
    assert list(home.json("workspace", "clean")["kept"]) == ["acme/app/dropped"]


def test_priority_and_a_limit_of_one(home: Home) -> None:
    world = World(home, limit=1)
    home.run("queue", "freeze")
    given = {}
    for name, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 9)):
        reply = world.dispatch(name, "--name", name, "--priority", str(priority))
        assert reply is not None
        given[reply["dispatch_id"]] = name
    assert [r["workspace"].split("/")[-1] for r in home.json("queue", "list")["rows"]] == [
        "high", "first", "second", "low",
    ]  # fmt: skip
    home.run("queue", "start")
    world.settle()
    assert [given[d] for d, _ in world.executions()] == ["high", "first", "second", "low"]


def test_where_a_task_starts(home: Home) -> None:
    world = World(home)
    git = world.repo
    home.git("tag", "v1", cwd=git)
    home.git("branch", "side", cwd=git)
    (git / "README.md").write_text("second\n")
    home.git("commit", "-qam", "second", cwd=git)
    home.git("update-ref", "refs/pull/7/head", "v1", cwd=git)
    (git / ".gitignore").write_text(".env\nbuild/\n")
    (git / ".worktreeinclude").write_text(".env\n")
    home.git("add", "-A", cwd=git)
    home.git("commit", "-qm", "third", cwd=git)
    (git / ".env").write_text("SECRET=1\n")
    (git / "build").mkdir()
    (git / "build" / "big").write_text("x")
    (git / "README.md").write_text("dirty\n")
    (git / "new.txt").write_text("untracked\n")
    head, first = home.git("rev-parse", "HEAD", "v1", cwd=git).split()
    plain = world.dispatch("plain", "--name", "plain")
    carried = world.dispatch("carried", "--name", "carried", "--with-changes")
    side = world.dispatch("side", "--branch", "side", "--name", "side")
    tag = world.dispatch("tag", "--tag", "v1", "--name", "tag")
    pull = world.dispatch("pull", "--pr", "7")
    issue = world.dispatch("issue", "--issue", "12")
    assert plain and carried and side and tag and pull and issue
    assert (plain["base_sha"], plain["left_out"]) == (head, 2)
    assert "2 changed or untracked files of your work tree are left out" in plain["notes"][0]
    assert (carried["base_sha"], carried["left_out"]) == (head, 0)
    assert (side["base_ref"], side["base_sha"]) == ("side", first)
    assert (tag["base_sha"], pull["base_sha"]) == (first, first)
    assert [pull["workspace"], issue["workspace"]] == ["local/repo/pr-7", "local/repo/task-12"]
    rows = world.settle()
    checkout = {n: home.core / "workspace/local/repo" / n / "repo" for n in ("plain", "carried", "side", "tag")}
    assert (checkout["plain"] / ".env").read_text() == "SECRET=1\n"
    assert not (checkout["plain"] / "build").exists()
    assert (checkout["plain"] / "README.md").read_text() == "second\n"
    assert not (checkout["plain"] / "new.txt").exists()
    assert (checkout["carried"] / "README.md").read_text() == "dirty\n"
    assert (checkout["carried"] / "new.txt").read_text() == "untracked\n"
    assert (checkout["side"] / "README.md").read_text() == "hello\n"
    # What was carried along is the start, not the agent's work; an included file is nobody's change.
    diff = home.json("diff", "carried")
    assert diff["files"] == 1
    assert ".env" not in home.git("ls-tree", "--name-only", "agent/plain", cwd=git)
    # Nothing comes back from a tag; the work is kept.
    assert (rows[tag["dispatch_id"]]["stage"], rows[tag["dispatch_id"]]["harvest_reason"]) == (
        "harvest_rejected",
        "immutable",
    )
    assert "agent/tag" not in world.branches()
    (kept,) = home.json("rescue", "list")
    assert (kept["workspace"], kept["reason"]) == ("local/repo/tag", "immutable")
    told = home.json("rescue", "apply", "tag", "--branch", "from-tag")
    assert "from-tag" in told["note"]
    assert world.file_at("from-tag", f"made-{tag['dispatch_id']}.txt") == "tag\n"
    assert slug(home, "rescue", "apply", "tag", "--branch", "side") == "branch_moved"
    assert slug(home, "rescue", "apply", "plain") == "rescue_not_found"
    assert slug(home, "accept", "tag") == "nothing_to_accept"


def test_what_a_task_is_told(home: Home) -> None:
    world = World(home)
    shown = world.dispatch("look", "--dry-run", "--persona", "reviewer", "--plan", "bug-fix", "--var", "scope=ONE FILE")
    assert shown is not None
    assert shown["dry_run"] is True
    assert "Change ONE FILE." in shown["prompt"]
    assert "look" in shown["prompt"]
    assert shown["argv"][0] == "/bin/sh"
    assert home.json("status", "--all")["workspaces"] == []
    assert world.branches() == {"main"}
    own = home.core / "templates"
    own.mkdir()
    (own / "mine.md").write_text("---\nsummary: Speak\nvariables: {language: null}\n---\nSpeak {{language}}.\n")
    assert "Speak Latin." in str(world.dispatch("x", "--dry-run", "--template", "mine", "--var", "language=Latin"))
    assert slug(home, "dispatch", "x", "--template", "mine", cwd=world.repo, code=2) == "missing_variable"
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text() + "  idle: {argv: [/bin/true]}\n")
    home.run("queue", "poke")
    idle = world.dispatch("nothing", "--agent", "command:idle", "--name", "a")
    expected = world.dispatch("nothing", "--agent", "command:idle", "--expect", "none", "--name", "b")
    assert idle and expected
    rows = world.settle()
    for reply, looked_at in ((idle, True), (expected, False)):
        row = rows[reply["dispatch_id"]]
        assert (row["state"], row["reason"], row["needs_me"]) == ("completed", "no_changes", looked_at)
    wanted = "No change to files is expected"
    assert [wanted in home.json("workspace", "show", name)["prompt"] for name in ("a", "b")] == [False, True]


def test_workspace_prep_and_open(home: Home) -> None:
    world = World(home)
    made = home.json("workspace", "prep", "later", "--name", "later", cwd=world.repo)
    assert made["state"] == "paused"
    path = home.core / "workspace/local/repo/later/repo"
    assert home.json("open", "later")["path"] == str(path)
    assert (path / "README.md").is_file()
    editor = home.dir / "editor"
    editor.write_text(f'#!/bin/sh\necho "$1" > {home.dir}/opened\necho by hand >> "$1/README.md"\n')
    editor.chmod(0o755)
    assert str(path) in home.run("open", "later", env={"EDITOR": str(editor)}, code=1).err
    assert not (home.dir / "opened").exists()
    home.run("open", "later", "--editor", str(editor))
    assert (home.dir / "opened").read_text().strip() == str(path)
    assert world.executions() == []
    home.run("resume", "later")
    (row,) = world.settle().values()
    assert (row["state"], row["files"]) == ("completed", 2)
    assert world.file_at("agent/later", "README.md") == "hello\nby hand\n"
    assert "E1005" in home.run("open", "later", env={"PATH": str(COMMAND.parent)}, code=1).err


def test_a_checkout_that_was_deleted_by_hand(home: Home) -> None:
    """What is suggested works, and what would be refused is not suggested."""
    world = World(home)
    world.dispatch("make a file", "--name", "lost")
    world.settle()
    checkout = home.core / "workspace/local/repo/lost/repo"
    shutil.rmtree(checkout)
    why = home.json("why", "lost")
    assert why["facts"][-1] == f"its checkout is gone: {checkout}"
    assert [step.split()[1] for step in why["next"]] == ["diff", "accept", "reject"]
    error = home.json("resume", "lost", "more", code=1)["error"]
    assert (error["slug"], error["cause"]) == ("workspace_gone", str(checkout))
    assert home.json("accept", "lost", cwd=world.repo)["files"] == 1


# -- consent and trust -----------------------------------------------------------------------------------------------


def on_terminal(home: Home, typed: str, *argv: str, cwd: Path) -> tuple[int, str]:
    """Run the installed command on a terminal of its own, where a person types."""
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execve(str(COMMAND), [str(COMMAND), *argv], home.env)
    said, pending = b"", typed.encode()
    while True:
        ready, _, _ = select.select([descriptor], [], [], 60)
        assert ready, said
        try:
            piece = os.read(descriptor, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
        if pending and b"[y/N]" in said:
            os.write(descriptor, pending)
            pending = b""
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode(errors="replace")


def test_consent_for_bypass(home: Home) -> None:
    """Refused without a terminal; asked once with one; remembered; shown; and it trusts nothing else."""
    world = World(home)
    fake = home.dir / "claude"
    fake.write_text('#!/bin/sh\necho "2.1.328 (Claude Code)"\n')
    fake.chmod(0o755)
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text() + f"runners:\n  claude: {{path: {fake}}}\n")
    (world.repo / ".core").mkdir()
    (world.repo / ".core" / "agents.yaml").write_text("hooks: {setup: {run: 'touch pwned'}}\n")
    home.git("add", "-A", cwd=world.repo)
    home.git("commit", "-qm", "settings", cwd=world.repo)
    home.env["ANTHROPIC_API_KEY"] = "sk-test"
    words = ("dispatch", "x", "--agent", "claude", "--permissions", "bypass", "--dry-run")
    assert slug(home, *words, cwd=world.repo) == "consent_needed"
    assert "core-agent repo trust --bypass" in home.run(*words, cwd=world.repo, code=1).err
    assert slug(home, "repo", "trust", "--bypass", cwd=world.repo) == "consent_needed"
    assert slug(home, *words, cwd=world.repo) == "consent_needed"
    code, said = on_terminal(home, "n\n", *words, cwd=world.repo)
    assert (code, "Agree? [y/N]" in said) == (1, True), said
    assert slug(home, *words, cwd=world.repo) == "consent_needed"
    code, said = on_terminal(home, "y\n", *words, cwd=world.repo)
    assert code == 0, said
    (repo,) = home.json("repo", "list")
    assert (repo["bypass_consent"], repo["trusted"]) == (True, False)
    code, said = on_terminal(home, "", *words, cwd=world.repo)
    assert (code, "Agree?" in said) == (0, False), said
    home.run("queue", "freeze")
    reply = home.json("dispatch", "x", "--agent", "claude", "--permissions", "bypass", cwd=world.repo)
    assert any("without a sandbox" in note for note in reply["notes"])
    assert home.json("status")["workspaces"][0]["bypass"] is True
    assert "bypass" in home.run("status").out
    home.run("queue", "drop", reply["workspace"])


def test_setup_hooks_run_when_trusted(home: Home) -> None:
    world = World(home)
    settings = home.core / "agents.yaml"
    plain = settings.read_text()
    settings.write_text(plain + "hooks: {setup: {run: 'echo of the user > setup.txt; echo logged'}}\n")
    own = world.repo / ".core" / "agents.yaml"
    own.parent.mkdir()

    def offer(text: str) -> None:
        own.write_text(f"hooks: {{setup: {{run: 'echo {text} > setup.txt'}}}}\n")
        home.git("add", "-A", cwd=world.repo)
        home.git("commit", "-qm", text, cwd=world.repo)

    def ran(name: str) -> str:
        assert world.dispatch(name, "--name", name)
        world.settle()
        return (home.core / "workspace/local/repo" / name / "repo/setup.txt").read_text().strip()

    offer("of the repository")
    assert ran("untrusted") == "of the user"
    assert (home.core / "workspace/local/repo/untrusted/.meta/setup.log").read_text().startswith("logged\n")
    shown = home.json("repo", "trust", cwd=world.repo)
    assert (shown["applied"], list(shown["settings"])) == (False, [".core/agents.yaml"])
    assert ran("shown") == "of the user"
    assert home.json("repo", "trust", "--yes", cwd=world.repo)["applied"] is True
    assert ran("trusted") == "of the repository"
    offer("changed since")
    assert home.json("repo", "list")[0]["trust_stale"] is True
    assert ran("changed") == "of the user"

    settings.write_text(plain + "hooks: {setup: {run: 'echo begins; sleep 600', timeout_s: 1}}\n")
    home.run("queue", "poke")
    late = world.dispatch("late", "--name", "late")
    assert late is not None
    row = world.settle()[late["dispatch_id"]]
    assert (row["state"], row["reason"]) == ("failed", "setup_failed"), row
    assert "was stopped after 1 s" in row["detail"]
    assert "setup hook" in home.run("why", "late").out
    settings.write_text(plain + "hooks: {setup: {run: 'echo no such tool; exit 3'}}\n")
    home.run("queue", "poke")
    broken = world.dispatch("broken", "--name", "broken")
    assert broken is not None
    row = world.settle()[broken["dispatch_id"]]
    assert "exit code 3" in row["detail"]
    assert len(world.executions()) == 4  # neither came to an agent
    others = home.strangers()
    assert not others
