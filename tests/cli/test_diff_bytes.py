"""What `diff` prints into a pipe is a patch: the bytes of git, from which git makes the agent's tree again."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.support.home import Home

FILES = {
    "Makefile": b"all:\n\techo hi\t\x1b[31m\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "latin.txt": b"caf\xe9\x0cnext\x85\xe2\x80\xa8\n",
    "bare.txt": b"no line feed at the end",
    "a name with é.txt": b"x\n",
    "image.bin": bytes(range(256)) * 40,
}
WRITE = f"import pathlib\nfor n, b in {FILES!r}.items(): pathlib.Path(n).write_bytes(b)\n"
AGENT = (
    "python3 ../write.py; git mv README.md READ.md; echo there > ../wrote; while [ ! -e ../go ]; do sleep 0.05; done"
)


def patch(home: Home, *argv: str) -> bytes:
    with home.start("diff", "one", *argv) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"local/repo/one: " in err
    return out


def applied(home: Home, repo: Path, name: str, change: bytes) -> str:
    """The tree that git makes of the patch on main."""
    fresh = home.user / name
    home.git("clone", "-q", "--no-local", str(repo), str(fresh), cwd=home.user)
    subprocess.run(["git", "apply", "--index", "-"], input=change, cwd=fresh, env=home.env, check=True)
    return home.git("write-tree", cwd=fresh)


def test_a_piped_diff_is_what_git_applies(home: Home) -> None:
    repo = home.repo()
    home.core.mkdir(mode=0o700)
    (home.core / "agents.yaml").write_text(
        f"version: 1\ncommands: {{work: {{argv: [/bin/sh, -c, {json.dumps(AGENT)}]}}}}\n"
    )
    home.run("workspace", "prep", "x", "--name", "one", "--agent", "command:work", cwd=repo)
    place = home.core / "workspace" / "local" / "repo" / "one"
    (place / "write.py").write_text(WRITE)
    working = home.start("resume", "one", "--wait")
    ends = time.monotonic() + 30
    while not (place / "wrote").exists():
        assert time.monotonic() < ends, home.log()
        time.sleep(0.02)
    while_running = patch(home)
    (place / "go").touch()
    assert working.communicate(timeout=60) and working.returncode == 0
    at_rest = patch(home)
    wanted = home.git("rev-parse", "agent/one^{tree}", cwd=repo)
    assert applied(home, repo, "first", while_running) == wanted
    assert applied(home, repo, "second", at_rest) == wanted
    told = ("diff", "--binary", "--full-index", "--no-color", "-M", "main", "agent/one")
    assert at_rest == subprocess.run(["git", *told], cwd=repo, env=home.env, capture_output=True, check=True).stdout
    # As a table of numbers, as JSON and in colours it is for eyes and programs, not for git apply.
    assert b"GIT binary patch" not in patch(home, "--stat")
    assert "GIT binary patch" not in home.json("diff", "one")["text"]
    assert "␛[31m" in home.run("diff", "one", env={"FORCE_COLOR": "1"}).out
