"""The process that owns one attempt of an agent, and outlives the daemon that started it.

Who comes in: the daemon (attempts.py) with a directory that holds `spec.json`, and later over the control socket.
It must not know: runners, the store, what the agent's lines mean.

Files in the attempt directory: `spec.json` (secrets; removed when the attempt has ended), `lock` (flock while alive),
`started` (exclusive, before the exec), `out`, `err`, `records`, `exit` (last of all, when nothing below is left).
Without /proc and a subreaper (macOS) only the agent's process group can be killed, and no peer is told apart by pid.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time

from coreagent.plainjson import dumps, loads
from coreagent.procfs import Proc, below, brood, groupkill, look, marked, slurp, strike
from coreagent.shim_agent import PR_SET_CHILD_SUBREAPER, PR_SET_NAME, become_agent, detach, prctl, say_started
from coreagent.shim_control import REQUEST_MAX, Control
from coreagent.spool import Spool, claim, remove, reserve, sync_dir

TYPE_CHECKING = False  # `typing` would cost more than all of the above
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from coreagent.shim_acp import Acp
else:
    import _signal as signal  # without its enums: 3 ms

LINUX = sys.platform.startswith("linux")
OUT_TAIL, OUT_LINE = 1 << 20, 32 << 20
ERR_HEAD = ERR_TAIL = ERR_LINE = 1 << 20
READ = 1 << 18
NOTICE_S = 0.05
PATIENCE_S = 30.0
"""How long to wait for what SIGKILL does not end: uninterruptible sleep, or a process of another user."""
KILLED_MAX = 50
ASKED_FIRST = 0.6
"""The share of a stop's grace in which an agent that has a protocol may answer, before the signal."""
WIND_DOWN_S = 2.0
ALREADY = 3
"""Exit code of a shim that did nothing, because the attempt belongs to somebody else or was voided."""

# Both limits run on CLOCK_MONOTONIC, which stands still while a laptop sleeps and does not jump with the date. For
# silence there is no other right answer; the wall limit follows it because it bounds what an attempt may use up, and
# an agent that slept for a night used nothing.
clock = time.monotonic


class Shim:
    """One attempt, from the claim to `exit`."""

    def __init__(self, directory: str, spec: dict[str, Any]) -> None:
        self.dir, self.spec = directory, spec
        inherited, wished = os.umask(0o077), int(spec.get("umask", -1))
        self.umask = inherited if wished < 0 else wished
        """The agent's. Ours keeps everybody else out."""
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.pipes: dict[int, Spool | Acp] = {}
        self.acp: Acp | None = None
        self.control: Control | None = None
        self.grace_s = float(spec["grace_s"])
        self.pid = 0
        self.wait_status: int | None = None
        """Wait status of the agent once it was reaped."""
        self.childless = False
        self.stopped_by = self.spawn_error = self.problem = ""
        self.killed: dict[tuple[int, int], str] = {}
        self.cpu_s, self.max_rss = 0.0, 0
        self.began = self.last_out = clock()
        self.kill_at: float | None = None
        """When the grace of a stop ends."""
        self.signal_at: float | None = None
        """When an agent that was asked in its own protocol gets the signal all the same."""
        self.killing_since: float | None = None
        self.notice_at = self.strike_at = 0.0
        self.strikes = 0
        self.out = Spool(f"{directory}/out", int(spec["out_max"]), OUT_TAIL, OUT_LINE)
        self.err = Spool(f"{directory}/err", ERR_HEAD, ERR_TAIL, ERR_LINE)
        self.records = os.open(f"{directory}/records", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.wake_r, self.wake_w = os.pipe()
        self.fail_r = -1

    # -- start

    def begin(self) -> bool:
        """Claim the attempt and execute the agent; False when the claim was lost and nothing ran."""
        reserve(f"{self.dir}/reserve", 1 << 18)
        reserve(f"{self.dir}/exit.tmp", 1 << 14)
        self.catch_signals()
        try:
            self.control = Control(self, str(self.spec["socket"]))
        except OSError as error:  # run all the same: a signal can cancel it, and the files tell the rest
            self.record("no_socket", why=str(error))
        gate_r, gate_w = os.pipe()
        try:
            self.fork(gate_r, gate_w)
        except OSError as error:
            self.spawn_error = f"fork: {error.strerror}"
        os.close(gate_r)
        me = look(os.getpid())
        body = {
            "pid": self.pid,
            "shim_pid": os.getpid(),
            "shim_start": me.start if me else 0,
            "at": time.time(),
            "socket": str(self.spec["socket"]),
        }
        if not claim(self.dir, body):
            os.close(gate_w)  # the child reads the end of the gate and goes without executing
            self.clean()
            return False
        say_started()
        self.began = self.last_out = clock()
        try:
            os.write(gate_w, b"g")
        except OSError:
            pass  # the child was killed meanwhile; its status says so
        os.close(gate_w)
        if self.acp:
            self.acp.begin()
        return True

    def catch_signals(self) -> None:
        for fd in (self.wake_r, self.wake_w):
            os.set_blocking(fd, False)
        # A terminal's or a login session's end is not the agent's; a SIGTERM is how a machine goes down.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self.on(self.wake_r, self.woken)

    def fork(self, gate_r: int, gate_w: int) -> None:
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        self.fail_r, fail_w = os.pipe()
        in_r, in_w = os.pipe() if self.spec.get("acp") else (-1, -1)
        parent = os.getpid()
        # Until the child has its own handlers back, a signal to it has to wait, not to be swallowed by ours.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                os.close(gate_w)
                become_agent(self.spec, self.umask, parent, gate_r, fail_w, out_w, err_w, in_r)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for fd in (out_w, err_w, fail_w, in_r):
                if fd >= 0:
                    os.close(fd)
        try:
            os.setpgid(self.pid, self.pid)  # here and in the child: whoever comes first, it is done before a signal
        except OSError:
            pass
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(out_r, fcntl.F_SETPIPE_SZ, READ)
            except OSError:
                pass
        self.pipes = {out_r: self.out, err_r: self.err}
        if in_w >= 0:
            self.acp = self.pipes[out_r] = client_of(self, in_w, out_r)
        for fd, handler in ((out_r, self.pump), (err_r, self.pump), (self.fail_r, self.read_fail)):
            os.set_blocking(fd, False)
            self.on(fd, handler)

    # -- the loop

    def on(self, fd: int, handler: Callable[[int], None], events: int = select.POLLIN) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def mute(self, fd: int) -> bool:
        known = self.handlers.pop(fd, None) is not None
        if known:
            self.poll.unregister(fd)
        return known

    def off(self, fd: int) -> None:
        if self.mute(fd):
            os.close(fd)

    def want_write(self, fd: int, want: bool) -> None:
        self.poll.modify(fd, select.POLLIN | (select.POLLOUT if want else 0))

    def run(self) -> None:
        """Serve until the agent and everything below it is gone. Sleeps without a timer when nothing is due."""
        while True:
            self.reap()
            now = clock()
            if self.childless or (self.killing_since and now - self.killing_since > PATIENCE_S):
                return
            due = self.work(now)
            wait = None if due is None else max(0.0, due - clock()) * 1000 + 0.5
            for fd, _ in self.poll.poll(wait):
                if handler := self.handlers.get(fd):
                    handler(fd)

    def work(self, now: float) -> float | None:
        """Do what is due; return when the next thing is."""
        dues = []
        if self.kill_at is not None and now >= self.kill_at and self.killing_since is None:
            self.killing_since = now
        if self.signal_at is not None and now >= self.signal_at:
            self.signal()
        if self.killing_since is not None:
            if now >= self.strike_at:
                self.strike()
                self.strikes += 1
                self.strike_at = clock() + min(0.5, 0.005 * 2**self.strikes)
            dues.append(self.strike_at)
        elif self.kill_at is not None:
            dues += [self.kill_at] if self.signal_at is None else [self.kill_at, self.signal_at]
        else:
            if self.acp and (due := self.acp.due(now)) is not None:
                dues.append(due)
            if self.kill_at is not None:
                return now
            for name, since, limit in (
                ("timeout", self.began, self.spec.get("wall_s")),
                ("idle_timeout", self.last_out, self.spec.get("idle_s")),
            ):
                if limit and now >= since + limit:
                    self.record("limit", which=name, after_s=round(now - since, 3))
                    self.stop(name, self.grace_s)
                    return now
                if limit:
                    dues.append(since + limit)
        if self.control and self.control.behind():
            if now >= self.notice_at:
                self.control.notify()
                self.notice_at = now + NOTICE_S
            else:
                dues.append(self.notice_at)
        return min(dues, default=None)

    def woken(self, _: int) -> None:
        numbers = os.read(self.wake_r, 512)
        if signal.SIGTERM in numbers:
            self.told_to_stop()

    def told_to_stop(self) -> None:
        """A SIGTERM; a file `cancel` in the directory may say more (from a daemon that cannot reach the socket)."""
        try:
            said = loads(slurp(f"{self.dir}/cancel", REQUEST_MAX))
            why, grace = str(said["why"]), float(said["grace_s"])
        except (OSError, ValueError, KeyError, TypeError):
            why, grace = "shutdown", self.grace_s
        self.cancel(why, grace, 0)

    def pump(self, fd: int) -> None:
        """Take what is in the agent's stdout or stderr; always, so that it never waits for us."""
        spool = self.pipes[fd]
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.off(fd)
            return
        if spool is not self.err:
            self.last_out = clock()
        spool.feed(data)

    def read_fail(self, fd: int) -> None:
        """End of file: the exec worked (the pipe closes on exec). Text: why it did not."""
        try:
            self.spawn_error = self.spawn_error or os.read(fd, 4096).decode("utf-8", "replace")
        except BlockingIOError:
            return
        self.off(fd)

    # -- the end of processes

    def stop(self, why: str, grace_s: float) -> bool:
        """Ask the agent to end, and set when it will be made to; a later request can only shorten the grace."""
        if self.wait_status is not None:
            return False
        deadline = clock() + (min(grace_s, 3600.0) if grace_s >= 0 else 0.0)
        if self.stopped_by:
            self.kill_at = min(self.kill_at or deadline, deadline)
            return True
        self.stopped_by = why
        self.kill_at = min(self.kill_at or deadline, deadline)
        if self.acp and self.acp.cancel():
            self.signal_at = clock() + (self.kill_at - clock()) * ASKED_FIRST
        else:
            self.signal()
        return True

    def wind_down(self, after_s: float) -> None:
        """The agent has no more to do: the stop signal after so long, and the end a little later."""
        if self.wait_status is None and self.kill_at is None:
            self.signal_at = clock() + after_s
            self.kill_at = self.signal_at + WIND_DOWN_S

    def signal(self) -> None:
        self.signal_at = None
        if self.wait_status is not None:
            return
        number = getattr(signal, f"SIG{self.spec['stop_signal']}", signal.SIGTERM)
        for each in (number, signal.SIGCONT):  # a stopped process handles nothing before it goes on
            try:
                os.killpg(self.pid, each)
            except ProcessLookupError:
                os.kill(self.pid, each)  # it went to another group; not reaped yet, so the pid is still its own

    def reap(self) -> None:
        """Collect the dead. `childless`: the kernel says that nothing is left below (orphans become ours)."""
        while True:
            try:
                which = -1
                if hasattr(os, "waitid"):
                    seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if seen is None:
                        return
                    which = seen.si_pid
                    if which == self.pid:
                        self.strike()  # while it is still a zombie, its number names its group and nothing else
                        groupkill(self.pid, signal.SIGKILL)
                pid, status, usage = os.wait4(which, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if pid == 0:
                return
            self.cpu_s += usage.ru_utime + usage.ru_stime
            self.max_rss = max(self.max_rss, usage.ru_maxrss * (1024 if LINUX else 1))
            if pid == self.pid:
                self.wait_status = status
                self.killing_since = self.killing_since or clock()

    def strike(self) -> None:
        """One round of killing all below; the loop repeats it until there is nothing."""
        me = os.getpid()
        self.note_killed(strike(lambda: brood(me)))
        if not LINUX and self.wait_status is None:
            groupkill(self.pid, signal.SIGKILL)

    def note_killed(self, procs: list[Proc]) -> None:
        for proc in procs:
            if proc.pid != self.pid:
                self.killed[proc.pid, proc.start] = f"{proc.pid} {proc.name}"

    # -- what the control socket asks

    def sizes(self) -> tuple[int, int]:
        return self.out.size, self.err.size

    def status(self) -> dict[str, Any]:
        now = clock()
        return {
            "attempt": self.spec["attempt"],
            "pid": self.pid,
            "state": "ending" if self.killing_since else "stopping" if self.stopped_by else "running",
            "stopped_by": self.stopped_by,
            "out": self.out.size,
            "err": self.err.size,
            "silent_s": round(now - self.last_out, 3),
            "age_s": round(now - self.began, 3),
        }

    def cancel(self, why: str, grace_s: float | None, by: int) -> bool:
        """Stop the agent; False when it has ended already."""
        grace = self.grace_s if grace_s is None else grace_s
        self.record("cancel", why=why, grace_s=grace, by=by)
        return self.stop(why, grace)

    # -- the end

    def record(self, what: str, **more: Any) -> None:
        try:
            os.write(self.records, dumps({"v": 1, "at": time.time(), "what": what, **more}).encode() + b"\n")
        except OSError:
            pass

    def finish(self) -> None:
        """Leave nothing of the attempt but its files, `exit` last of all."""
        left = [f"{proc.pid} {proc.name}" for proc in below(os.getpid()) if not proc.dead] if not self.childless else []
        left += self.sweep()
        if self.acp and self.acp.paused:
            self.acp.listen()
        for fd in list(self.pipes):
            for _ in range(64):  # bounded: somebody out of our reach may hold the other end and write for ever
                if fd not in self.handlers:
                    break
                self.pump(fd)
        if self.fail_r in self.handlers:
            self.read_fail(self.fail_r)
        remove(f"{self.dir}/reserve")
        if self.acp:
            self.acp.close()
        self.out.close()
        self.err.close()
        ended = self.wait_status is not None and not self.spawn_error
        code = os.waitstatus_to_exitcode(self.wait_status) if ended and self.wait_status is not None else None
        body = {
            "v": 1,
            "code": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "stopped_by": self.stopped_by,
            "at": time.time(),
            "spawn_error": self.spawn_error,
            "killed": list(self.killed.values())[:KILLED_MAX],
            "left": left[:KILLED_MAX],
            "dropped_bytes": self.out.dropped + self.out.cut_total,
            "problem": self.problem or self.out.problem or self.err.problem,
            "usage": {"cpu_s": round(self.cpu_s, 3), "max_rss_bytes": self.max_rss},
        }
        # The agent may have put a pipe there: then no word is left, which tells as much.
        fd = os.open(f"{self.dir}/exit.tmp", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600)
        os.ftruncate(fd, os.write(fd, dumps(body).encode() + b"\n"))  # in place: its blocks were reserved
        os.fsync(fd)
        os.close(fd)
        self.clean()
        os.rename(f"{self.dir}/exit.tmp", f"{self.dir}/exit")
        sync_dir(self.dir)

    def sweep(self) -> list[str]:
        """Kill what carries our marker without being below us (an `at` job keeps it); return the survivors."""
        deadline = clock() + 2.0
        while found := marked(str(self.spec["attempt"])):
            if clock() > deadline:
                break
            self.note_killed(strike(lambda: marked(str(self.spec["attempt"]))))
            time.sleep(0.01)
        return [f"{proc.pid} {proc.name}" for proc in found]

    def clean(self) -> None:
        remove(f"{self.dir}/spec.json")
        remove(f"{self.dir}/reserve")
        remove(str(self.spec["socket"]))

    def give_up(self, error: BaseException) -> None:
        """Something in the loop is broken: end the attempt rather than leave it unwatched."""
        self.problem = f"shim: {error!r}"
        self.killing_since = clock()
        while not self.childless and clock() - self.killing_since < PATIENCE_S:
            self.strike()
            self.reap()
            time.sleep(0.01)


def client_of(host: Shim, agent_in: int, agent_out: int) -> Acp:
    from coreagent.shim_acp import Acp  # imported by main, before anything is executed

    return Acp(host, host.spec, agent_in, agent_out, clock())


def main(directory: str) -> int:
    directory = os.path.abspath(directory)
    detach()
    # From within, so that what an agent lays in the place of the directory leads nowhere.
    os.chdir(directory)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALREADY
    me = look(os.getpid())
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()} {me.start if me else 0}\n".encode())
    if os.path.exists("started"):
        return ALREADY  # before the spec is asked for: it is gone when the attempt has ended
    spec = loads(slurp("spec.json", 64 << 20))
    if spec.get("acp"):
        import coreagent.shim_acp  # noqa: F401 - now, or an upgrade could put another version in its place
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_NAME, b"core-shim")
    shim = Shim(".", spec)
    if not shim.begin():
        return ALREADY
    try:
        shim.run()
    except BaseException as error:
        shim.give_up(error)
    shim.finish()
    return 0
