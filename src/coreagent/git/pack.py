"""Objects carried from one repository into another, as a pack through a pipe.

The cache, the snapshot, the harvest and the landing come in here. Objects are always copied and always checked on
arrival; nothing else is written: no FETCH_HEAD, no ref, no config. `git fetch` would run a second git in the source
repository under that repository's own config, and costs three processes more.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from coreagent.errors import CoreAgentError
from coreagent.git.run import TIMEOUT_S, Done, environment, failure, git, kill, start, timed_out

# Below this many objects they arrive loose, as with git's own fetch.unpackLimit: a pack per small harvest would slow
# every later lookup down.
_UNPACK_LIMIT = 100


def quoted(path: Path) -> str:
    """A path as one entry of an alternates list, where `:` and newlines separate."""
    text = str(path)
    if not any(char in text for char in ':"\n\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def carry(
    source: Path,
    target: Path,
    want: Iterable[str],
    have: Iterable[str] = (),
    *,
    source_objects: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Copy the commits `want` with all they reach, less what `have` reaches, from one git directory to another.

    `source_objects` adds an object directory to the source (an agent's), read under the source's own config.

    Raises: git_failed when an object is missing, damaged or fails fsck; git_timeout, no_space.
    """
    revisions = "".join(f"{sha}\n" for sha in want) + "".join(f"^{sha}\n" for sha in have)
    extra = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": quoted(source_objects)} if source_objects else None
    packing = ("pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "--window=0", "-q")
    said: list[bytes] = []
    with start(*packing, cwd=source, env=environment(git_dir=source, extra=extra)) as packer:
        assert packer.stdin and packer.stdout and packer.stderr
        reader = threading.Thread(target=_drain, args=(packer.stderr, said), daemon=True)
        reader.start()
        # The first read below has no time limit of its own: an agent may have put a FIFO among its objects.
        alarm = threading.Timer(timeout_s, kill, (packer,))
        alarm.start()
        try:
            _feed(packer.stdin, revisions.encode())
            header = _exactly(packer.stdout.fileno(), 12)
            arrived = Done(0, b"", b"")
            if len(header) == 12 and (count := int.from_bytes(header[8:12], "big")):
                arrived = _receive(target, packer.stdout, count, timeout_s)
            else:
                packer.stdout.read()  # an empty pack has an end too: closed before it, the packer dies of SIGPIPE
            packer.stdout.close()  # a receiver that gave up must not leave the packer waiting on a full pipe
            packer.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise timed_out(packing, timeout_s) from None
        finally:
            alarm.cancel()
        reader.join(5)
    sent = Done(packer.returncode, b"", b"".join(said))
    if sent.code != 0 and (sent.code > 0 or arrived.code == 0):
        raise _explained(failure(packing, sent), sent)
    if arrived.code != 0:
        raise failure(["index-pack"], arrived)


def _receive(target: Path, pipe: IO[bytes], count: int, timeout_s: float) -> Done:
    """Write the pack whose header was already read; `--strict` is fsck plus a check that every link has an end."""
    header = f"--pack_header=2,{count}"
    if count < _UNPACK_LIMIT:
        args = ["unpack-objects", "-q", "--strict", header]
    else:
        args = ["index-pack", "--stdin", "--fix-thin", "--strict", header]
    with start(*args, cwd=target, env=environment(git_dir=target), stdin=pipe.fileno()) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise timed_out(args, timeout_s) from None
    return Done(process.returncode, out, err)


def _exactly(descriptor: int, size: int) -> bytes:
    """Read past no byte that belongs to the receiver: a buffered read would."""
    data = b""
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


def _feed(pipe: IO[bytes], data: bytes) -> None:
    try:
        pipe.write(data)
        pipe.close()
    except BrokenPipeError:
        pass  # the packer died; its exit code and last words tell why


def _drain(pipe: IO[bytes], said: list[bytes]) -> None:
    said.append(pipe.read())


def _explained(error: CoreAgentError, sent: Done) -> CoreAgentError:
    text = os.fsdecode(sent.err)
    if "promisor" in text or "lazy" in text or "transport" in text:
        error.hint = "this is a partial clone; complete it first: git fetch --refetch --no-filter"
    return error


def present(git_dir: Path, shas: Iterable[str], extra: Mapping[str, str] | None = None) -> list[str]:
    """Those of the shas that are commits in a repository."""
    asked = list(dict.fromkeys(shas))
    if not asked:
        return []
    done = git(
        "cat-file",
        "--batch-check",
        cwd=git_dir,
        env=environment(git_dir=git_dir, extra=extra),
        stdin="".join(f"{sha}\n" for sha in asked).encode(),
    )
    return [line.split()[0] for line in done.text.splitlines() if line.split()[1:2] == ["commit"]]
