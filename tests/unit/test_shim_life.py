"""A shim and its agent as real processes: what it writes, what it survives, and that nothing is left below it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coreagent import attempts, process, shim
from coreagent.attempts import Shim, ShimExit, adopt, read_exit, read_started, spawn

LINUX = sys.platform.startswith("linux")
pytestmark = pytest.mark.skipif(not LINUX, reason="needs /proc and a subreaper")


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory: socket paths are limited. Fails when a process of any attempt in it is left."""
    with tempfile.TemporaryDirectory(prefix="ca") as folder:
        yield Path(folder)
        left = [pid for attempt in Path(folder).iterdir() for pid in process.by_marker(attempt.name)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left


def prepare(base: Path, argv: list[str], **changes: Any) -> Path:
    folder = base / f"A{os.getpid()}x{len(list(base.iterdir()))}x{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    spec = {
        "v": 1,
        "attempt": folder.name,
        "argv": argv,
        "cwd": str(base),
        "env": {"PATH": os.environ["PATH"], "SECRET": "s3cret"},
        "stdin": None,
        "idle_s": 60,
        "wall_s": 60,
        "out_max": 1 << 20,
        "stop_signal": "TERM",
        "grace_s": 5,
        "socket": str(folder / "s"),
        "nice": 0,
    }
    spec.update(changes)
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def py(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


async def output_holds(running: Shim, text: bytes) -> None:
    """Wait, by the shim's notices, until the spool holds `text`."""
    there = asyncio.Event()

    def look(size: int, _: int) -> None:
        if size and text in Path(running.dir, "out").read_bytes():
            there.set()

    running.on_output(look)
    async with asyncio.timeout(20):
        await there.wait()


async def ended(folder: Path) -> ShimExit:
    async with asyncio.timeout(30):
        return await spawn(folder).wait()


def run(folder: Path) -> ShimExit:
    return asyncio.run(ended(folder))


def out(folder: Path) -> bytes:
    return (folder / "out").read_bytes()


def test_an_attempt_leaves_its_files_and_no_secret(base: Path) -> None:
    (base / "prompt").write_bytes(b"from a file")
    folder = prepare(base, sh("cat; echo; echo oops >&2; exit 3"), stdin=str(base / "prompt"))
    end = run(folder)
    assert (end.code, end.signal, end.stopped_by, end.died, end.executed) == (3, None, "", False, True)
    assert out(folder) == b"from a file\n"
    assert (folder / "err").read_bytes() == b"oops\n"
    assert end.usage.max_rss_bytes > 0 and end.at > 0 and end == read_exit(folder)
    started = read_started(folder)
    assert started and started.pid > 0 and not started.void
    assert {path.name for path in folder.iterdir()} == {
        "lock",
        "started",
        "out",
        "err",
        "records",
        "exit",
        "shim.log",
    }
    assert (folder / "shim.log").read_bytes() == b""
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_the_agent_gets_a_clean_process(base: Path) -> None:
    folder = prepare(base, ["/bin/sh", "-c", "cat /proc/self/status | grep -E '^Sig(Blk|Ign)'; ls /proc/self/fd; env"])
    assert run(folder).code == 0
    text = out(folder).decode()
    masks = {line[:6]: int(line.split()[1], 16) for line in text.splitlines() if line.startswith("Sig")}
    own_of_libc = 0b11 << 31  # signals 32 and 33 belong to the C library and cannot be set
    assert masks["SigBlk"] == 0 and masks["SigIgn"] & ~own_of_libc == 0
    assert f"CORE_AGENT_ATTEMPT={folder.name}" in text and "HOME=" not in text
    assert [line for line in text.splitlines() if line.isdigit()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"argv": ["/nonexistent/agent"]}, "execute /nonexistent/agent: No such file"),
        ({"argv": ["no-such-command-anywhere"]}, "execute no-such-command-anywhere: No such file"),
        ({"argv": ["/etc/passwd"]}, "Permission denied"),
        ({"cwd": "/nonexistent"}, "working directory"),
        ({"stdin": "/nonexistent"}, "stdin"),
    ],
)
def test_what_cannot_be_executed_says_why(base: Path, changes: dict[str, Any], says: str) -> None:
    end = run(prepare(base, **{"argv": ["true"], **changes}))
    assert says in end.spawn_error and end.code is None and not end.executed


def test_a_signal_is_told_from_a_code(base: Path) -> None:
    end = run(prepare(base, sh("kill -SEGV $$")))
    assert (end.code, end.signal) == (None, int(signal.SIGSEGV))


HOSTILE = {
    "background": "sleep 900 & exit 0",
    "setsid": "setsid sleep 900 & exit 0",
    "double fork": "(setsid sh -c 'sleep 900 & exit 0' &) ; exit 0",
    "clean environment": "env -i /bin/sh -c 'sleep 900 & exec sleep 901' & exit 0",
    "holds stdout, ignores TERM": "sh -c 'trap \"\" TERM HUP INT; while :; do sleep 900; done' & exit 0",
    "restarts its child": "sh -c 'while :; do setsid sleep 900; done' & exit 0",
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_an_agent_leaves_behind_is_gone_before_exit_is_written(base: Path, how: str) -> None:
    folder = prepare(base, sh(HOSTILE[how]))
    end = run(folder)
    assert end.code == 0 and not end.left
    assert not processes_in(base)


def processes_in(cwd: Path) -> list[int]:
    """Living processes whose working directory is `cwd`: what an agent started, even with a clean environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/cwd") == str(cwd):
                    found.append(int(name))
            except OSError:
                pass
    return found


def test_forking_while_being_killed_does_not_help(base: Path) -> None:
    bomb = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
for hop in range(4000):
    if os.fork():
        os._exit(0)
    if hop % 3 == 0:
        os.setsid()
    if hop < 40 and os.fork() == 0:
        signal.pause()
signal.pause()
"""
    folder = prepare(base, py(bomb))
    end = run(folder)
    assert end.code == 0 and not end.left
    assert not processes_in(base)


def test_a_main_thread_that_ended_does_not_hide_the_others(base: Path) -> None:
    script = """
import ctypes, os, threading, time
if os.fork():
    os._exit(0)
os.setsid()
threading.Thread(target=time.sleep, args=(900,)).start()
print("up", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""
    end = run(prepare(base, [sys.executable, "-c", script]))
    assert end.code == 0 and not end.left
    assert not processes_in(base)


def test_cancel_asks_first_and_then_kills_all(base: Path) -> None:
    async def scenario() -> None:
        polite = prepare(base, sh("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"))
        running = spawn(polite)
        await output_holds(running, b"up")
        assert (await running.status())["state"] == "running"
        assert await running.cancel("pause", 20)
        end = await running.wait()
        assert (end.code, end.stopped_by) == (7, "pause") and out(polite) == b"up\nbye\n"
        assert not await running.cancel("cancel", 1)
        deaf = prepare(base, sh("trap '' TERM; echo up; setsid sleep 900 & while :; do sleep 900; done"))
        running = spawn(deaf)
        await output_holds(running, b"up")
        assert await running.cancel("shutdown", 0.05)
        end = await running.wait()
        assert (end.signal, end.stopped_by) == (int(signal.SIGKILL), "shutdown")
        assert any("sleep" in name for name in end.killed)
        assert '"what": "cancel"' in (deaf / "records").read_text()

    asyncio.run(scenario())
    assert not processes_in(base)


def test_without_the_socket_a_signal_and_a_note_cancel(base: Path) -> None:
    async def scenario() -> ShimExit:
        running = spawn(prepare(base, sh("echo up; sleep 900")))
        await output_holds(running, b"up")
        Path(running.dir, "s").unlink()
        assert await running.cancel("attach", 0)
        return await running.wait()

    assert asyncio.run(scenario()).stopped_by == "attach"


@pytest.mark.parametrize(("limit", "reason"), [("idle_s", "idle_timeout"), ("wall_s", "timeout")])
def test_limits_hold_without_a_daemon(base: Path, limit: str, reason: str) -> None:
    folder = prepare(base, sh("echo up; exec sleep 900"), **{limit: 0.1, "grace_s": 0.5})
    end = run(folder)
    assert end.stopped_by == reason and end.signal == signal.SIGTERM
    assert f'"which": "{reason}"' in (folder / "records").read_text()


def test_closing_stdout_early_is_not_an_end(base: Path) -> None:
    folder = prepare(base, sh("echo a; exec >&-; sleep 0.1; exit 5"))
    assert run(folder).code == 5
    assert out(folder) == b"a\n"


def test_a_flood_and_an_endless_line_never_block_the_agent(base: Path) -> None:
    script = """
import os
for n in range(100): os.write(1, b"x" * (1 << 20))
os.write(1, b'\\nlast \\xff\\x00\\n{"half"')
"""
    folder = prepare(base, py(script), out_max=1000)
    end = run(folder)
    assert end.code == 0 and end.dropped_bytes == (100 << 20) + 1
    kept = out(folder)
    assert len(kept) < 2000 and b"dropped" in kept.splitlines()[0]
    assert kept.endswith(b'last \xff\x00\n{"half"\n')


def test_a_full_disk_still_gets_an_exit(base: Path) -> None:
    folder = prepare(base, sh("yes | head -c 3000000; echo the end"), out_max=1 << 24, socket="s")
    mounted = base / "m"
    mounted.mkdir()
    script = (
        f"mount -t tmpfs -o size=1m,mode=700 tmpfs {mounted} && cp {folder}/spec.json {mounted} && "
        f"{sys.executable} -I -S {shim.__file__} {mounted}; cp {mounted}/exit {mounted}/out {folder}"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr or "must be superuser" in done.stderr:
        pytest.skip("no mount namespace here")
    end = read_exit(folder)
    assert end is not None, done.stderr
    assert end.code == 0 and "No space" in end.problem and end.dropped_bytes > 0
    assert out(folder).endswith(b"y\nthe end\n")


@pytest.mark.parametrize("name", ["exit.tmp", "exit", "cancel", "records", "lock"])
def test_a_pipe_in_place_of_its_record_holds_nobody(base: Path, name: str) -> None:
    """The agent replaces a file of its own attempt, and ends."""
    folder = prepare(base, ["true"])
    spec = json.loads((folder / "spec.json").read_text())
    spec["argv"] = sh(f"rm -f {folder}/{name}; mkfifo {folder}/{name}; exit 3")
    (folder / "spec.json").write_text(json.dumps(spec))

    async def scenario() -> ShimExit:
        async with asyncio.timeout(20):
            return await spawn(folder).wait()

    done = asyncio.run(scenario())
    assert (done.code, done.died) == (3, False) or (done.died and done.executed), done


def test_an_agent_that_removes_its_claim_at_once_was_started_all_the_same(base: Path) -> None:
    folder = prepare(base, ["true"])
    spec = json.loads((folder / "spec.json").read_text())
    spec["argv"] = sh(f"rm -f {folder}/started")
    (folder / "spec.json").write_text(json.dumps(spec))

    async def scenario() -> None:
        shim_ = spawn(folder)
        await shim_.wait()  # so slow a daemon: the agent has ended
        assert read_started(folder) is None
        found = await shim_.started()
        assert found is not None
        assert (found.shim_pid, found.void) == (shim_.pid, False)

    asyncio.run(scenario())


def test_signals_of_terminals_and_logouts_do_not_reach_the_agent(base: Path) -> None:
    async def scenario() -> ShimExit:
        running = spawn(prepare(base, sh("echo up; sleep 900")))
        await output_holds(running, b"up")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1):
            os.kill(running.pid, number)
        assert (await running.status())["state"] == "running"
        assert os.getsid(running.pid) == running.pid
        os.kill(running.pid, signal.SIGTERM)
        return await running.wait()

    assert asyncio.run(scenario()).stopped_by == "shutdown"


def test_a_killed_shim_takes_its_agent_along_and_is_reported(base: Path) -> None:
    async def scenario() -> ShimExit:
        running = spawn(prepare(base, sh("setsid sleep 900 & echo up; sleep 900")))
        await output_holds(running, b"up")
        os.kill(running.pid, signal.SIGKILL)
        end = await running.wait()
        assert not Path(running.dir, "spec.json").exists()
        return end

    end = asyncio.run(scenario())
    assert end.died and end.executed and end.code is None and not end.stopped_by
    assert not processes_in(base)


def test_two_shims_on_one_attempt_execute_once(base: Path) -> None:
    async def scenario() -> list[ShimExit]:
        folder = prepare(base, sh("echo ran >> ran; echo up; sleep 0.3"))
        return await asyncio.gather(*[spawn(folder).wait() for _ in range(3)])

    ends = asyncio.run(scenario())
    assert (base / "ran").read_text() == "ran\n"
    assert [end.code for end in ends if end.executed] and not any(end.died for end in ends if end.executed)


def test_a_voided_attempt_is_never_executed(base: Path) -> None:
    folder = prepare(base, sh("touch ran"))
    spec = (folder / "spec.json").read_bytes()
    assert attempts.void(folder) and not attempts.void(folder)
    assert not (folder / "spec.json").exists()
    (folder / "spec.json").write_bytes(spec)
    end = run(folder)
    assert not end.executed and not (base / "ran").exists()


def test_a_second_process_adopts_what_the_first_left(base: Path) -> None:
    folder = prepare(base, sh("echo up; while [ ! -e go ]; do sleep 0.02; done; echo done; exit 4"))
    first = (
        "import sys; from coreagent import attempts; s = attempts.spawn(sys.argv[1]); print(s.pid, s.start, flush=True)"
    )
    said = subprocess.run([sys.executable, "-c", first, str(folder)], capture_output=True, text=True, check=True).stdout
    pid, start = map(int, said.split())

    async def scenario() -> ShimExit:
        assert adopt(folder, pid, start + 1) is None
        running = adopt(folder, pid, start)
        assert running is not None
        await output_holds(running, b"up")
        by_lock = adopt(folder)
        assert by_lock is not None and (by_lock.pid, by_lock.start) == (pid, start)
        by_lock.close()
        (base / "go").touch()
        return await running.wait()

    assert asyncio.run(scenario()).code == 4
    assert out(folder) == b"up\ndone\n"
    assert adopt(folder, pid, start) is None and adopt(folder) is None


def test_without_pidfds_the_end_is_seen_as_well(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")

    async def scenario() -> None:
        child = spawn(prepare(base, sh("echo up; sleep 900")))
        await output_holds(child, b"up")
        adopted = adopt(child.dir)
        assert adopted is not None
        waiting = asyncio.create_task(adopted.wait())
        assert await child.cancel("cancel", 1)
        assert (await child.wait()).stopped_by == (await waiting).stopped_by == "cancel"

    asyncio.run(scenario())


def test_a_hostile_client_ends_only_its_own_connection(base: Path) -> None:
    async def scenario() -> ShimExit:
        running = spawn(prepare(base, sh("echo up; sleep 900")))
        await output_holds(running, b"up")
        path = str(Path(running.dir, "s"))
        assert os.stat(path).st_mode & 0o777 == 0o600
        await asyncio.to_thread(harass, path)
        assert (await running.status())["state"] == "running"
        await running.cancel("cancel", 1)
        return await running.wait()

    assert asyncio.run(scenario()).stopped_by == "cancel"


def test_a_waiting_shim_uses_no_processor(base: Path) -> None:
    async def scenario() -> None:
        running = spawn(prepare(base, sh("echo up; exec sleep 900")))
        await output_holds(running, b"up")
        before = switches(running.pid)
        assert (await running.status())["state"] == "running"
        assert (await running.status())["out"] == 3
        assert switches(running.pid) - before <= 8  # two questions, and nothing beside them
        assert process.rss_bytes(running.pid) < 12 << 20 or "coverage" in sys.modules
        await running.cancel("cancel", 1)
        await running.wait()

    asyncio.run(scenario())


def switches(pid: int) -> int:
    """How often the process went to sleep by itself so far."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])


def harass(path: str) -> None:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(path)
        return sock

    with connect() as sock:
        for bad in (b"\x00\xff\n", b"[]\n", b"{}\n", b'{"op": "cancel"}\n', b'{"op": "cancel", "why": "because"}\n'):
            sock.sendall(bad)
            assert b"bad_request" in sock.recv(4096)
        sock.sendall(b'{"op": "inject", "data": "x"}\n')
        assert b"unsupported" in sock.recv(4096)
    for flood in (b"x" * 65536, b'{"op": "status"}\n' * 4096):  # a line without end; a client that never reads
        with connect() as sock, pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(flood)
    silent = [connect() for _ in range(40)]
    for sock in silent:
        sock.close()


def test_the_agent_may_not_steer_its_own_attempt(base: Path) -> None:
    script = """
import os, socket, sys
def ask(path):
    s = socket.socket(socket.AF_UNIX); s.connect(path)
    try: s.sendall(b'{"op": "cancel", "why": "pause"}\\n')
    except OSError: pass
    try: return s.recv(999).decode()
    except OSError: return "closed"
print(ask(sys.argv[1]), flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(ask(sys.argv[1]), flush=True)
    os._exit(0)
os.wait()
"""
    folder = prepare(base, [])
    spec = json.loads((folder / "spec.json").read_text())
    spec["argv"] = [sys.executable, "-c", script + "import time; time.sleep(0.2)", spec["socket"]]
    (folder / "spec.json").write_text(json.dumps(spec))
    end = run(folder)
    assert (end.code, end.stopped_by) == (0, "")
    assert out(folder).count(b"forbidden") == 2 and b"ok" not in out(folder)
