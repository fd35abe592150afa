"""A command of a person's, run in a clean checkout of a result: the tests of `compare`.

What runs there is code that an agent wrote, with the person's rights and without a sandbox. It gets next to nothing
of anybody's environment, a home of its own, a time limit, and the mark of an agent, so that the daemon takes what it
asks for as asked by one. What it leaves is removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from coreagent import attempts, umask
from coreagent.dispatch import cleanup
from coreagent.errors import told
from coreagent.git.checkout import fill
from coreagent.models.batch import TrialResult

PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM")
TAIL_LINES = 8
TAIL_BYTES = 4000
LOOK_S = 0.2


def environment(own: Mapping[str, str], home: Path, marker: str) -> dict[str, str]:
    """What the command is told of the world: how to find programs, a home and a directory for what is temporary."""
    env = {name: own[name] for name in PASSED_ON if name in own}
    places = {"HOME": str(home / "home"), "TMPDIR": str(home / "tmp"), "XDG_CACHE_HOME": str(home / "home/.cache")}
    return {"PATH": os.defpath, **env, **places, "CI": "1", "CORE_AGENT_ATTEMPT": marker}


def run(
    cache: Path,
    sha: str,
    command: str,
    own: Mapping[str, str],
    marker: str,
    timeout_s: float,
    unwanted: Callable[[], bool],
    root: Path,
) -> TrialResult:
    """Run a command in a clean checkout of a commit below `root`, and tell how it ended. Blocking.

    `unwanted` is asked while it runs. Raises: git_failed, no_space.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{marker}.", dir=root))
    try:
        tree = place / "repo"
        for directory in (tree, place / "home", place / "tmp"):
            directory.mkdir(mode=0o700)
        fill(cache, sha, tree, place / "index")
        return _run(tree, command, environment(own, place, marker), place / "said", timeout_s, unwanted)
    finally:
        attempts.sweep(marker)
        cleanup.remove_tree(place)


def _run(
    tree: Path, command: str, env: dict[str, str], said: Path, timeout_s: float, unwanted: Callable[[], bool]
) -> TrialResult:
    began = time.monotonic()
    with said.open("wb") as out:
        try:
            child = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=tree,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=umask.usual(),
            )
        except (OSError, ValueError) as error:
            return TrialResult(verdict="error", tail=[told(error)])
        late = _ended(child, began + timeout_s, unwanted)
        if late:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    took = round(time.monotonic() - began, 3)
    if late:
        return TrialResult(verdict="timeout", seconds=took, tail=_tail(said))
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    verdict = "passed" if code == 0 else "error" if code in (126, 127) else "failed"
    return TrialResult.model_validate({"verdict": verdict, "exit_code": code, "seconds": took, "tail": _tail(said)})


def _ended(child: subprocess.Popen[bytes], deadline: float, unwanted: Callable[[], bool]) -> bool:
    """Wait for the end; True when the time ran out, or nobody wants to know any more."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or unwanted():
            return True
        with suppress(subprocess.TimeoutExpired):
            child.wait(min(left, LOOK_S))
            return False


def _tail(said: Path) -> list[str]:
    with said.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def clear(root: Path) -> None:
    """End and remove what a daemon left that died while a command ran. Blocking."""
    for place in root.iterdir() if root.is_dir() else ():
        attempts.sweep(place.name.partition(".")[0])
        shutil.rmtree(place, ignore_errors=True)
