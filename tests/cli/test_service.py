"""`daemon install|uninstall` with a service manager that does what the unit says, and systemd's own look at it."""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.home import COMMAND, Home
from tests.support.world import World

from coreagent.daemon.service import Service, _quoted
from coreagent.errors import CoreAgentError

MANAGER = f"""#!{sys.executable}
import os, shlex, signal, subprocess, sys
from pathlib import Path
state = Path({{state!r}})
words = sys.argv[1:]
with open(state / "calls", "a") as calls:
    calls.write(" ".join(words) + "\\n")
name, unit, active = words[-1], Path({{units!r}}, words[-1]), state / "active"
def start():
    lines = unit.read_text().splitlines()
    told = [line.partition("=")[2] for line in lines if line.startswith("Environment=")]
    env = dict(shlex.split(line)[0].split("=", 1) for line in told)
    argv = shlex.split(next(line for line in lines if line.startswith("ExecStart=")).partition("=")[2])
    log = next(line for line in lines if line.startswith("StandardError=")).partition("append:")[2]
    child = subprocess.Popen(argv, env=dict(env, HOME=os.environ["HOME"]), start_new_session=True,
                             stdin=subprocess.DEVNULL, stdout=open(log, "a"), stderr=subprocess.STDOUT)
    active.write_text(str(child.pid))
def stop():
    pid = int(active.read_text())
    active.unlink()
    os.kill(pid, signal.SIGTERM)
    while os.path.exists(f"/proc/{{{{pid}}}}"):
        pass
if "is-active" in words:
    sys.exit(0 if active.exists() else 3)
if "restart" in words:
    stop(); start()
if "enable" in words and not active.exists():
    start()
if "disable" in words and active.exists():
    stop()
"""


class Manager:
    """A systemctl and a loginctl of our own on the PATH of a home."""

    def __init__(self, home: Home, lingers: str = "no") -> None:
        self.dir = home.dir / "m"
        self.dir.mkdir()
        self.units = home.user / ".config" / "systemd" / "user"
        self.unit = self.units / "core-agent.service"
        self._write("systemctl", MANAGER.format(state=str(self.dir), units=str(self.units)))
        self._write("loginctl", f"#!/bin/sh\necho Linger={lingers}\n")
        home.env["PATH"] = f"{self.dir}:{home.env['PATH']}"

    def _write(self, name: str, text: str) -> None:
        (self.dir / name).write_text(text)
        (self.dir / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return (self.dir / "calls").read_text().splitlines()


def test_from_a_loose_daemon_to_a_service_and_back_while_an_agent_works(home: Home) -> None:
    world, manager = World(home, seconds=600), Manager(home)
    world.dispatch("a task", "--agent", "command:long")
    while not world.executions():
        home.run("watch", "--once", "--timeout", "200ms", code=None)
    loose = home.daemon_pid
    report = home.json("daemon", "install")
    assert report["installed"] and report["changed"] and report["file"] == str(manager.unit)
    assert report["pid"] == home.daemon_pid != loose
    assert any("loginctl enable-linger" in hint for hint in report["hints"])
    assert home.json("status")["counts"]["running"] == 1
    # Again: nothing is written, nothing is restarted.
    again = home.json("daemon", "install")
    assert (again["changed"], again["installed"], again["pid"]) == (False, True, report["pid"])
    assert "--user restart core-agent.service" not in manager.calls
    # Another PATH is another unit: the daemon is restarted with it.
    changed = home.json("daemon", "install", env={"PATH": home.env["PATH"] + ":/opt/bin"})
    assert changed["changed"] and changed["pid"] != report["pid"]
    assert home.json("status")["counts"]["running"] == 1
    gone = home.json("daemon", "uninstall")
    assert gone["changed"] and not gone["installed"] and not manager.unit.exists()
    assert home.json("daemon", "uninstall")["changed"] is False
    assert home.json("status")["counts"]["running"] == 1
    assert len(world.executions()) == 1


def test_a_daemon_of_the_service_that_is_killed_is_no_loss(home: Home) -> None:
    Manager(home, lingers="yes")
    report = home.json("daemon", "install")
    assert report["hints"] == []
    home.kill_daemon()
    assert home.json("daemon", "start")["pid"] != report["pid"]


def test_only_shown(home: Home) -> None:
    text = home.run("daemon", "install", "--print").out
    assert "\nKillMode=process\n" in text and "\nRestart=on-failure\n" in text and "\nOOMPolicy=continue\n" in text
    assert f'ExecStart="{COMMAND}" "daemon" "run"' in text
    assert f'Environment="CORE_HOME={home.core}"' in text
    assert not (home.user / ".config").exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
def test_systemd_takes_the_unit(home: Home) -> None:
    odd = home.user / 'a 100% "odd" $HOME place'
    env = {"CORE_HOME": str(odd)}
    shown = home.json("daemon", "install", "--print", env=env)
    file = home.dir / shown["name"]
    file.write_text(shown["text"])
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(file)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(home.tmp)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, shown["name"] in done.stderr + done.stdout) == (0, False), done
    with pytest.raises(CoreAgentError) as refused:
        Service(str(odd), {**os.environ, "HOME": str(home.user)})._verify(shown["text"].replace('"daemon"', '"\\z'))
    assert refused.value.slug == "service_failed"


def test_words_are_quoted_as_systemd_reads_them() -> None:
    assert _quoted('a "b" \\ 100% $x', "$") == '"a \\"b\\" \\\\ 100%% $$x"'
    assert shlex.split(_quoted("a b")) == ["a b"]


def test_homes_have_units_of_their_own() -> None:
    env = {"HOME": "/home/me"}
    assert Service("/home/me/.core", env).name == "core-agent.service"
    one, two = Service("/srv/one", env).name, Service("/srv/two", env).name
    assert one != two and one.startswith("core-agent-") and one.endswith(".service")
    assert str(Service("/home/me/.core", {**env, "XDG_CONFIG_HOME": "/c"}).file).startswith("/c/systemd/user/")


def test_on_macos_agents_are_left_alone_too() -> None:
    service = Service("/Users/me/.core", {"HOME": "/Users/me", "PATH": "/bin"}, platform="darwin")
    body = plistlib.loads(service.text().encode())
    assert body["AbandonProcessGroup"] is True and body["KeepAlive"] == {"SuccessfulExit": False}
    assert body["ProgramArguments"][-2:] == ["daemon", "run"] and body["EnvironmentVariables"]["PATH"] == "/bin"
    assert str(service.file) == "/Users/me/Library/LaunchAgents/org.core-agent.daemon.plist"


def test_without_a_manager_nothing_is_written(home: Home) -> None:
    refused = home.run("daemon", "install", code=69, env={"PATH": str(COMMAND.parent)})
    assert "E6011" in refused.err and "--print" in refused.err
    manager = Manager(home)
    manager._write("systemctl", "#!/bin/sh\necho 'Failed to connect to bus'; exit 1\n")
    refused = home.run("daemon", "install", code=69)
    assert "caused by: Failed to connect to bus" in refused.err
    assert not (home.user / ".config").exists()


def test_a_path_that_no_file_can_hold(home: Home) -> None:
    refused = home.run("daemon", "install", "--print", code=69, env={"PATH": f"{COMMAND.parent}:/a\nb"})
    assert "E6012" in refused.err


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_an_agent_may_not(home: Home, verb: str) -> None:
    Manager(home)
    refused = home.run("daemon", verb, code=1, env={"CORE_AGENT_ATTEMPT": "01J"})
    assert "E8001" in refused.err
    assert not Path(home.user, ".config").exists()
