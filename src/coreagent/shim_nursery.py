"""The process that shims are born from: a Python with everything of a shim imported, which forks when it is asked to.

Ground floor, standard library only; shim.py comes in, for the daemon (nursery.py). An own start of Python costs a task
more than all that its shim does afterwards. It holds nothing: when it is killed, shims are started one by one again.
It must not know what an attempt is; a newborn leaves its session and what else it inherited, as any shim does.
"""

from __future__ import annotations

import _socket
import gc
import os
import select

import coreagent.shim_acp  # noqa: F401 - what a newborn may need, of the same version as the rest
from coreagent.procfs import look
from coreagent.shim_agent import PR_SET_NAME, prctl

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without its enums: 3 ms

IDLE_S = 60.0
"""After this time without a birth it goes; the next burst of tasks brings another one."""


def nurse(fd: int) -> str:
    """Serve requests on a socket, a directory and a descriptor each. Returns in each child with its directory, and in
    this process with "" when nobody asks any more."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    os.setsid()  # a terminal's Ctrl-C is for the daemon
    os.chdir("/")
    prctl(PR_SET_NAME, b"core-nursery")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them; the daemon watches each by itself
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    gc.freeze()  # else the first collection in a newborn would copy every page of ours
    while poll.poll(IDLE_S * 1000):
        text, ancillary, _flags, _address = link.recvmsg(4096, _socket.CMSG_SPACE(4))
        if not text or not ancillary:
            break
        born = int.from_bytes(ancillary[0][2], "little")
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _newborn(os.fsdecode(text), link, born)
        os.close(born)
        proc = look(pid)
        link.send(b"%d %d\n" % (pid, proc.start if proc else 0))
    return ""


def _newborn(directory: str, link: _socket.socket, born: int) -> str:
    """Give the three standard descriptors the meaning that they have in a shim started alone."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(born, 1)
    os.dup2(os.open(f"{directory}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    link.detach()
    return directory
