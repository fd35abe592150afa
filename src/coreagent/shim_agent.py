"""Leaving a parent behind: the shim its starter, and the shim's child the shim, from the fork to the exec.

Ground floor, standard library only; shim.py comes in. It must not know what happens to the agent afterwards.
"""

from __future__ import annotations

import os
import sys

from coreagent.procfs import MARKER

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn
else:
    import _signal as signal  # without its enums: 3 ms

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36


def prctl(option: int, value: int | bytes) -> bool:
    """Ask the Linux kernel; False elsewhere, and where this Python has no way to ask."""
    if not sys.platform.startswith("linux"):
        return False
    for way in (_prctl_quickly, _prctl_by_ctypes):
        try:
            return way(option, value)
        except (ImportError, AttributeError, TypeError, ValueError, OSError):
            continue  # what is private to Python may go, or change its shape
    return False


def _prctl_quickly(option: int, value: int | bytes) -> bool:
    import _ctypes  # `ctypes` itself costs 1.3 ms

    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None: this program, with the C library in it
    address = _ctypes.dlsym(program, "prctl")
    return bool(_ctypes.call_function(address, (option, value, 0, 0, 0)) == 0)


def _prctl_by_ctypes(option: int, value: int | bytes) -> bool:
    import ctypes

    given = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    nothing = ctypes.c_ulong(0)
    return bool(ctypes.CDLL(None).prctl(option, given, nothing, nothing, nothing) == 0)


def detach() -> None:
    """Leave the starter's session, descriptors and directory."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    try:
        os.setsid()
    except OSError:
        pass  # the starter did it for us
    os.chdir("/")


def say_started() -> None:
    """Tell whoever spawned us, on our standard output, that the claim stands; then let go of it."""
    try:
        os.write(1, b"s")
    except OSError:
        pass  # the daemon is gone; the file `started` tells the next one
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def become_agent(
    spec: dict[str, Any], umask: int, parent: int, gate_r: int, fail_w: int, out_w: int, err_w: int, in_r: int = -1
) -> NoReturn:
    """In the child: wait for the claim, undo everything that is the shim's, execute."""
    step = "prepare"
    try:
        signal.set_wakeup_fd(-1)
        # A group of its own, not a session: a session leader would get the first terminal it opens, and its hangup.
        os.setpgid(0, 0)
        if os.read(gate_r, 1) != b"g":
            os._exit(0)
        # Nobody would watch the agent, cap its output or enforce its limits once the shim was killed.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "stdin"
        stdin = in_r if in_r >= 0 else os.open(spec.get("stdin") or os.devnull, os.O_RDONLY)
        for fd, target in ((stdin, 0), (out_w, 1), (err_w, 2)):
            os.dup2(fd, target)
        step = "working directory"
        os.chdir(spec["cwd"])
        os.umask(umask)
        os.nice(int(spec.get("nice") or 0))
        step = f"execute {spec['argv'][0]}"[:500]
        execute(spec)
    except BaseException as error:  # whatever it was, the child must not go on as a second shim
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else repr(error)
        os.write(fail_w, f"{step}: {cause}".encode()[:4096])
    finally:
        os._exit(127)


def execute(spec: dict[str, Any]) -> None:
    argv = [str(word) for word in spec["argv"]]
    env = {str(name): str(value) for name, value in spec["env"].items()}
    env[MARKER] = str(spec["attempt"])
    places = [""] if "/" in argv[0] else [f"{place or '.'}/" for place in env.get("PATH", os.defpath).split(":")]
    first: OSError | None = None
    for place in places:
        try:
            os.execve(place + argv[0], argv, env)
        except OSError as error:
            # A later directory may still have it; what stood in the way of a found file says more than "not found".
            if first is None or isinstance(first, FileNotFoundError):
                first = error
    raise first or FileNotFoundError(2, "not found")
