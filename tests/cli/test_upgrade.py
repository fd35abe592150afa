"""`core-agent upgrade` with real builds of this package, in an environment of its own and without a network."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home
from tests.support.world import World

from coreagent import installation, paths
from coreagent.cli.upgrade import requirement
from coreagent.daemon import launch
from coreagent.errors import CoreAgentError

pytestmark = pytest.mark.timeout(600)  # environments are made, and packages built and installed

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = site.getsitepackages()[0]
BROKEN = {
    # passes every scene but one: the queue is turned around by a restart
    "scene": ("cli/selfcheck.py", "        self.go.touch()\n", "        raise Failed('the queue was turned around')\n"),
    # works alone, and does not come up where a daemon of before leaves to it
    "handover": (
        "daemon/main.py",
        "    lock, listener = (int",
        "    raise OSError('cannot take over')\n    lock, listener = (int",
    ),
    "import": ("paths.py", "import os\n", "import os\nimport does_not_exist\n"),
}


def build(folder: Path, version: str, broken: str = "") -> Path:
    """A wheel of this package, as it is here, that says it is another version."""
    source = folder / f"source-{version}"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "scripts", source / "scripts")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    told = source / "src" / "coreagent" / "paths.py"
    told.write_text(told.read_text().replace(f'VERSION = "{paths.VERSION}"', f'VERSION = "{version}"'))
    if broken:
        file, old, new = BROKEN[broken]
        target = source / "src" / "coreagent" / file
        assert old in target.read_text()
        target.write_text(target.read_text().replace(old, new, 1))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    shutil.rmtree(source)
    return folder / f"core_agent-{version}-py3-none-any.whl"


class Installed:
    """A person's environment with a build in it; the libraries that it needs are lent to it."""

    def __init__(self, home: Home, wheel: Path) -> None:
        self.home = home
        self.venv = home.user / "env"
        self.versions = home.user / "env.versions"
        self.program = self.venv / "bin" / "core-agent"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True, timeout=60)
        home.env |= {
            "PYTHONPATH": LIBRARIES,
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        home.env["PATH"] = f"{self.program.parent}:{home.env['PATH']}"
        pip = [sys.executable, "-m", "pip", "--python", str(self.venv / "bin/python"), "install", "-q", str(wheel)]
        subprocess.run(pip, check=True, env={**os.environ, **home.env}, timeout=120)

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(self.program), *words], env=self.home.env, cwd=self.home.user, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr, self.home.log()[-2000:])
        return done.stdout if code == 0 else done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    @property
    def version(self) -> str:
        return self.run("version").split()[1]

    def daemon(self) -> tuple[int, str]:
        status = self.json("daemon", "status")
        return status["pid"], status["version"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("wheels")
    made = {"9.0.1": build(folder, "9.0.1"), "9.0.2": build(folder, "9.0.2")}
    made |= {name: build(folder, f"9.1.{n}", name) for n, name in enumerate(BROKEN)}
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def test_forward_and_back_while_an_agent_works(home: Home, wheels: dict[str, Path]) -> None:
    mine = Installed(home, wheels["9.0.1"])
    world = World(home, seconds=600)
    mine.run("daemon", "start")
    pid, version = mine.daemon()
    assert version == mine.version == "9.0.1"
    subprocess.run(
        [str(mine.program), "dispatch", "a task", "--agent", "command:long"],
        cwd=world.repo, env=home.env, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    while not world.executions():
        time.sleep(0.05)
    watcher = subprocess.Popen(
        [str(mine.program), "watch", "--json"], env=home.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    report = mine.json("upgrade", "--from", str(wheels["9.0.2"]))
    assert (report["before"], report["after"], report["daemon"]) == ("9.0.1", "9.0.2", "handed over")
    assert report["scenes"] == ["store", "dispatch", "status", "restart", "clean"]
    assert mine.version == "9.0.2" and mine.program.is_symlink()
    assert mine.daemon() == (pid, "9.0.2"), "the daemon became it in place"
    row = mine.json("status")["workspaces"][0]
    assert row["state"] == "running" and len(world.executions()) == 1
    assert watcher.poll() is None, watcher.stderr.read() if watcher.stderr else ""

    (mine.versions / "0009" / "bin").mkdir(parents=True)  # of an upgrade that was killed
    (mine.versions / "store.duckdb").touch()
    back = mine.json("upgrade", "--rollback")
    assert not (mine.versions / "0009").exists() and not (mine.versions / "store.duckdb").exists()
    assert (back["before"], back["after"], back["kept"]) == ("9.0.2", "9.0.1", "9.0.2")
    assert mine.version == "9.0.1" and mine.daemon() == (pid, "9.0.1")
    again = mine.json("upgrade", "--rollback")
    assert again["after"] == "9.0.2" and mine.daemon() == (pid, "9.0.2")

    # From the new environment on, a third time: what nobody needs any more goes.
    third = mine.json("upgrade", "--from", str(wheels["9.0.1"]))
    assert third["after"] == "9.0.1" and mine.version == "9.0.1"
    assert sorted(p.name for p in mine.versions.iterdir() if p.name.isdigit()) == ["0001", "0002"]
    watcher.terminate()
    watcher.communicate(timeout=30)
    mine.run("cancel", row["workspace"])
    assert mine.json("status", "--all")["workspaces"][0]["runs"] == 1
    assert len(world.executions()) == 1
    mine.run("daemon", "stop")
    # Without a daemon the store's file is copied as it lies there.
    assert mine.json("upgrade", "--rollback")["daemon"] == "not running"


@pytest.mark.parametrize(
    ("broken", "said"), [("scene", "the queue was turned around"), ("handover", "did not become"), ("import", "")]
)
def test_a_release_that_does_not_work_changes_nothing(
    home: Home, wheels: dict[str, Path], broken: str, said: str
) -> None:
    mine = Installed(home, wheels["9.0.1"])
    World(home)
    mine.run("daemon", "start")
    told = mine.run("upgrade", "--from", str(wheels[broken]), code=1)
    assert "E6014" in told and said in told and "hint:" in told
    assert mine.version == "9.0.1"
    assert mine.daemon()[1] == "9.0.1"
    assert [p.name for p in mine.versions.iterdir() if p.name.isdigit()] == []
    assert not mine.program.is_symlink() or mine.program.resolve() == mine.versions / "first" / "core-agent"
    assert "E6015" in mine.run("upgrade", "--rollback", code=1)
    assert not list(mine.versions.glob("store*"))


def test_what_cannot_be_installed_and_what_cannot_be_gone_back_to(home: Home, wheels: dict[str, Path]) -> None:
    mine = Installed(home, wheels["9.0.1"])
    World(home)
    assert "E6015" in mine.run("upgrade", "--rollback", code=1)
    assert "E6014" in mine.run("upgrade", "--from", "9.9.9", code=1)  # no index here that could have it
    assert "E1002" in mine.run("upgrade", "--from", "no such thing", code=2)
    assert "E1006" in mine.run("upgrade", "--from", "9.9.9", "--rollback", code=2)
    home.env["CORE_AGENT_ATTEMPT"] = "01J"
    assert "E8001" in mine.run("upgrade", code=1)
    del home.env["CORE_AGENT_ATTEMPT"]
    assert mine.version == "9.0.1" and not mine.program.is_symlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked to tie them")
def test_what_an_upgrade_started_ends_with_it(home: Home) -> None:
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import subprocess, sys; from coreagent.cli.upgrade import Upgrade; "
        "Upgrade.versions = '/'; up = Upgrade.__new__(Upgrade); up.env = {}; "
        "subprocess.PIPE = None; "  # what it says is for us
        f"up._execute([sys.executable, '-c', {inner!r}], 600)"
    )
    upgrade = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert upgrade.stdout is not None
    child = int(upgrade.stdout.readline())
    upgrade.kill()
    assert launch.ended(child, 20)
    upgrade.communicate()


@pytest.mark.parametrize(
    ("mark", "words"),
    [("pipx_metadata.json", "pipx upgrade core-agent"), ("uv-receipt.toml", "uv tool upgrade core-agent")],
)
def test_what_others_keep_is_left_to_them(home: Home, wheels: dict[str, Path], mark: str, words: str) -> None:
    mine = Installed(home, wheels["9.0.1"])
    (mine.venv / mark).write_text("{}")
    told = mine.run("upgrade", code=1)
    assert "E6013" in told and words in told and not mine.versions.exists()


def test_a_checkout_is_left_to_git(home: Home) -> None:
    refused = home.run("upgrade", code=1)
    assert "E6013" in refused.err and "git -C" in refused.err and "daemon restart" in refused.err
    assert installation.here().kind == "checkout"


@pytest.mark.parametrize(("source", "wanted"), [("", "core-agent"), ("1.2.0rc1", "core-agent==1.2.0rc1"), ("/", "/")])
def test_what_pip_is_asked_for(source: str, wanted: str) -> None:
    assert requirement(source) == wanted
    with pytest.raises(CoreAgentError):
        requirement("--index-url=http://evil.example")
