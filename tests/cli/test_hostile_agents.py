"""Agents that do their worst, through the installed command and a real daemon.

After each: the state is true, no process is left, and every file of the user's work tree and `.git` that existed
before is byte-identical; new are only `agent/*` refs, their reflogs and objects.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.support.home import Home
from tests.support.world import World, shims_of


@dataclass(frozen=True)
class Case:
    """A shell script and what must be seen of it."""

    script: str
    state: str = "completed"
    reason: str | None = None
    stage: str = "harvested"
    harvest: str = ""
    idle_s: float = 60
    timeout_s: float = 60
    stop: str = ""


EDIT = "echo changed > file.txt; "
PWNED = "$HOME/pwned"
CASES = {
    "does nothing and says 0": Case("exit 0", reason="no_changes", stage=""),
    "ignores TERM": Case(
        EDIT + "trap '' TERM INT HUP; while :; do sleep 0.1; done", "cancelled", "cancelled", stop="cancel"
    ),
    "double-forks and daemonises": Case(EDIT + "(setsid sh -c 'trap \"\" TERM; sleep 600' >/dev/null 2>&1 &) & exit 0"),
    "leaves a child on its pipe": Case(EDIT + "sleep 600 & exit 0"),
    "hangs in silence": Case(EDIT + "sleep 600", "failed", "idle_timeout", idle_s=1),
    "talks for ever": Case(EDIT + "while :; do echo x; sleep 0.05; done", "failed", "timeout", timeout_s=1),
    "prints a gigabyte": Case(EDIT + "yes a line of some length | head -c 1000000000"),
    "prints one line of 100 MB": Case(EDIT + "head -c 100000000 /dev/zero | tr '\\0' 'a'; echo; echo done"),
    "prints invalid UTF-8 and half an object": Case(EDIT + 'printf \'\\377\\376\\200\\n{"type": "resu\''),
    "prints terminal escapes and bidi": Case(
        EDIT + "printf '\\033]0;owned\\007\\033[2J\\033[31mred \\342\\200\\256evil\\342\\200\\254 \\302\\233 end\\n'"
    ),
    "deletes .git": Case(EDIT + "rm -rf .git"),
    "makes .git a link to the user's": Case(EDIT + "rm -rf .git; ln -s $USER_REPO/.git .git"),
    "makes .git a pointer to the user's": Case(EDIT + "rm -rf .git; echo gitdir: $USER_REPO/.git > .git"),
    "replaces the checkout by the user's": Case(
        "cd ..; mv repo gone; ln -s $USER_REPO repo", stage="harvest_rejected", harvest="workspace_replaced"
    ),
    "links out of the tree": Case("ln -s /etc/passwd secret", stage="harvest_rejected", harvest="symlink_escape"),
    "writes hooks and configuration": Case(
        EDIT + f"for h in pre-commit post-commit post-checkout reference-transaction post-index-change; do "
        f"printf '#!/bin/sh\\ntouch {PWNED}\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done; "
        f"git config core.fsmonitor 'touch {PWNED}; false'; git config core.sshCommand 'touch {PWNED}'; "
        f"git config core.hooksPath .git/hooks; git config filter.x.clean 'touch {PWNED}; cat'; "
        f"git config diff.external 'touch {PWNED}'; git config core.pager 'touch {PWNED}'; "
        "echo '* filter=x diff=x' > .gitattributes; git config uploadpack.packObjectsHook 'touch %s'; "
        "git config gc.auto 1" % PWNED,
    ),
    "commits by itself, twice, on another branch": Case(
        "git checkout -q -b mine; echo one > file.txt; git add -A; git commit -qm one; echo two > file.txt; "
        "git commit -qam two"
    ),
    "leaves a lock": Case(EDIT + "touch .git/index.lock .git/HEAD.lock"),
    "hides a change from git": Case(EDIT + "git update-index --assume-unchanged file.txt"),
    "makes a repository inside": Case(
        "mkdir inner; cd inner; git init -q; echo x > y; git add -A; git -c user.name=x -c user.email=x@y commit -qm z",
        stage="harvest_rejected",
        harvest="embedded_repository",
    ),
    "takes away all rights": Case(EDIT + "mkdir d; echo x > d/y; chmod 000 d file.txt; chmod 555 ."),
    "asks a question": Case("echo 'which colour?' > BLOCKED.md", "blocked", "blocked", stage=""),
    "asks by a link": Case("ln -s /etc/passwd BLOCKED.md", reason="no_changes", stage=""),
    "asks by a directory": Case(EDIT + "mkdir BLOCKED.md; echo x > BLOCKED.md/y"),
    "asks by a pipe": Case("mkfifo BLOCKED.md", reason="no_changes", stage=""),
    "ends with an error and changes": Case(EDIT + "echo it broke >&2; exit 3", "failed", "error"),
    "kills itself": Case(EDIT + "kill -9 $$", "failed", "died"),
    "kills its shim": Case(EDIT + "kill -9 $PPID; sleep 600", "failed", "died"),
    "answers its own shim": Case(EDIT + "rm -rf $CORE_HOME_DIR/run/*.sock"),
    "makes names that look like options": Case(EDIT + "mkdir 'a b'; echo x > 'a b/-rf'; echo x > --force"),
    "makes names with control characters": Case(
        "printf x > \"$(printf 'new\\nline')\"", stage="harvest_rejected", harvest="bad_path"
    ),
}


def files_of(top: Path) -> dict[str, bytes]:
    found = {}
    for directory, names, files in os.walk(top):
        for name in files + [n for n in names if (Path(directory) / n).is_symlink()]:
            path = Path(directory) / name
            found[str(path.relative_to(top))] = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
    return found


def allowed(name: str) -> bool:
    return name.startswith((".git/refs/heads/agent/", ".git/logs/refs/heads/agent/", ".git/objects/"))


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_agent(home: Home, name: str) -> None:
    case = CASES[name]
    env = {"USER_REPO": str(home.user / "repo"), "CORE_HOME_DIR": str(home.core)}
    commands = {"commands": {"bad": {"argv": ["/bin/sh", "-c", case.script], "env": env}}}
    world = World(home)
    settings = home.core / "agents.yaml"
    settings.write_text(yaml.safe_dump({**yaml.safe_load(settings.read_text()), **commands}))
    (world.repo / "file.txt").write_text("one\n")
    home.git("add", "-A", cwd=world.repo)
    home.git("commit", "-qm", "two", cwd=world.repo)
    before = files_of(world.repo)
    reply = world.dispatch(
        "be bad", "--agent", "command:bad", "--idle-timeout", f"{case.idle_s}s", "--timeout", f"{case.timeout_s}s"
    )
    assert reply is not None
    if case.stop:
        while world.rows()[reply["dispatch_id"]]["state"] != "running":
            home.run("watch", "--timeout", "1", "--json", code=None)
        home.run(case.stop, reply["workspace"])
    row = world.settle()[reply["dispatch_id"]]
    assert (row["state"], row["reason"]) == (case.state, case.reason), row
    assert (row["stage"], row["harvest_reason"]) == (case.stage, case.harvest), row
    for command in ("status", "why", "logs", "diff"):
        shown = home.run(command, reply["workspace"], code=None)
        assert not [c for c in shown.out + shown.err if c in "\x1b\x07\x9b\u202e"], f"{command} shows raw control codes"
    after = files_of(world.repo)
    assert {n: after.get(n) for n in before} == before, "a file of the user's changed"
    assert [n for n in after if n not in before and not allowed(n)] == []
    assert not (home.user / "pwned").exists(), "something the agent configured was executed"
    if case.stage == "harvested" and "file.txt" in case.script:
        assert world.file_at(row["branch"], "file.txt") != "one\n"
    elif case.stage == "harvest_rejected":
        kept = home.json("rescue", "list")
        # Of a checkout that is not ours any more nothing is taken: then nothing is said to be kept.
        assert [k["workspace"] for k in kept] == ([] if case.harvest == "workspace_replaced" else [reply["workspace"]])
    others = home.strangers()
    assert not others, f"processes are left: {others}"
    assert list((home.core / "attempts").glob("*")) == []


def test_a_replaced_checkout_is_not_entered_again(home: Home) -> None:
    """The next turn would run in the user's own work tree."""
    world = World(home)
    body = yaml.safe_load((home.core / "agents.yaml").read_text())
    swap = f"pwd -P >> {home.dir}/where; cd ..; [ -L repo ] || {{ mv repo gone; ln -s {world.repo} repo; }}"
    body["commands"]["bad"] = {"argv": ["/bin/sh", "-c", swap]}
    (home.core / "agents.yaml").write_text(yaml.safe_dump(body))
    reply = world.dispatch("be bad", "--agent", "command:bad")
    assert reply is not None
    world.settle()
    home.run("resume", reply["workspace"], code=None)
    row = world.settle()[reply["dispatch_id"]]
    assert row["state"] in ("failed", "completed")
    assert str(world.repo.resolve()) not in (home.dir / "where").read_text().split()


@pytest.mark.parametrize(
    "words",
    [
        "dispatch more",
        "accept {name}",
        "daemon stop",
        "reject {name}",
        "queue freeze",
        "repo trust --yes",
        "demo --yes --dir {made}",
        "init --force",
        "completion bash --install",
        "doctor --repair",
    ],
)
def test_an_agent_may_not_steer(home: Home, words: str) -> None:
    """An agent that runs core-agent itself is refused, by what the kernel says of it."""
    world = World(home)
    command = " ".join(["core-agent", *words.format(name="be-bad", made=home.dir / "made").split()])
    for how in (":", f"setsid sh -c '{command} > out.txt 2>&1; echo $? > code.txt'"):
        script = f"{how}; [ -e code.txt ] || {{ {command} > out.txt 2>&1; echo $? > code.txt; }}"
        body = yaml.safe_load((home.core / "agents.yaml").read_text())
        body["commands"]["bad"] = {"argv": ["/bin/sh", "-c", script], "env": {"CORE_HOME": str(home.core)}}
        (home.core / "agents.yaml").write_text(yaml.safe_dump(body))
        reply = world.dispatch("be bad", "--agent", "command:bad")
        assert reply is not None
        row = world.settle()[reply["dispatch_id"]]
        assert row["state"] == "completed", row
        said = world.file_at(row["branch"], "out.txt")
        assert "E8001" in said, said
        assert world.file_at(row["branch"], "code.txt") == "1\n"
        assert not (home.dir / "made").exists()
        assert not (home.user / ".local").exists()
        assert not (home.core / "agents.yaml.before").exists()
        assert len(world.rows()) == 1
        home.run("reject", reply["workspace"])


STOPS_SHIM = EDIT + "kill -STOP $PPID; exec sleep 600"
STOPS_AGAIN = EDIT + "trap '' TERM; while :; do kill -STOP $PPID; done"


def stopping(home: Home, script: str, *limits: str) -> tuple[World, str, str]:
    """An agent that has stopped its shim; the world, its dispatch and its workspace."""
    world = World(home)
    body = yaml.safe_load((home.core / "agents.yaml").read_text())
    body["commands"]["bad"] = {"argv": ["/bin/sh", "-c", script]}
    (home.core / "agents.yaml").write_text(yaml.safe_dump(body))
    (world.repo / "file.txt").write_text("one\n")
    home.git("add", "-A", cwd=world.repo)
    home.git("commit", "-qm", "two", cwd=world.repo)
    reply = world.dispatch("be bad", "--agent", "command:bad", *limits)
    assert reply is not None
    deadline = time.monotonic() + 30
    while not any(_is_stopped(pid) for pid in shims_of(home.core)):
        assert time.monotonic() < deadline, world.rows()
        time.sleep(0.01)
    return world, reply["dispatch_id"], reply["workspace"]


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def ended_so(home: Home, world: World, dispatch: str, state: str, reason: str) -> None:
    row = world.settle(timeout=40)[dispatch]
    assert (row["state"], row["reason"], row["stage"]) == (state, reason, "harvested"), row
    assert world.file_at(row["branch"], "file.txt") == "changed\n"
    world.check_nothing_left(world.rows())


@pytest.mark.parametrize("script", [STOPS_SHIM, STOPS_AGAIN], ids=["once", "again"])
@pytest.mark.parametrize(
    ("limits", "reason"),
    [(("--timeout", "1s"), "timeout"), (("--idle-timeout", "1s", "--timeout", "10m"), "idle_timeout")],
)
def test_a_limit_is_held_when_an_agent_stops_its_shim(
    home: Home, script: str, limits: tuple[str, ...], reason: str
) -> None:
    world, dispatch, _ = stopping(home, script, *limits)
    ended_so(home, world, dispatch, "failed", reason)


@pytest.mark.parametrize("script", [STOPS_SHIM, STOPS_AGAIN], ids=["once", "again"])
@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_person_is_heeded_when_an_agent_stops_its_shim(home: Home, script: str, verb: str, state: str) -> None:
    world, dispatch, workspace = stopping(home, script)
    said = home.run(verb, workspace, timeout=25)
    assert state in said.out
    ended_so(home, world, dispatch, state, state)


@pytest.mark.parametrize("script", [STOPS_SHIM, STOPS_AGAIN], ids=["once", "again"])
def test_the_daemon_stops_when_an_agent_stops_its_shim(home: Home, script: str) -> None:
    world, dispatch, _ = stopping(home, script)
    home.run("daemon", "stop", "--now", timeout=30)
    assert home.strangers() == {}
    ended_so(home, world, dispatch, "paused", "paused")


def test_a_daemon_that_comes_later_holds_the_limit_of_a_stopped_shim(home: Home) -> None:
    world, dispatch, _ = stopping(home, STOPS_AGAIN, "--timeout", "4s")
    home.run("daemon", "restart")
    ended_so(home, world, dispatch, "failed", "timeout")


def test_a_stopped_nursery_does_not_hold_up_starts(home: Home) -> None:
    """An agent stops the process that shims are forked from."""
    world = World(home)
    world.dispatch("first")
    world.settle()
    nursery = next(pid for pid, what in home.processes().items() if " --nursery " in what)
    os.kill(nursery, signal.SIGSTOP)
    for task in ("second", "third", "fourth"):
        world.dispatch(task)
    assert {row["state"] for row in world.settle(timeout=20).values()} == {"completed"}
    world.check_nothing_left(world.rows())
