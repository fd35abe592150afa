"""One frame in, one frame out: the words of the daemon's socket.

Whoever sits at either end comes in: the terminal client, the daemon, the tests. It must stay as light as the client
(`sys` and `os` only) and knows nothing of what the payloads mean.

A frame is one byte of kind, four bytes of big-endian length, and at most `MAX` bytes of payload. A payload of exactly
`MAX` bytes goes on in the next frame of the same kind, so a message of any size is a run of frames closed by a shorter
one; for streams the cut means nothing.
"""

import os
import sys

VERSION = 1
"""Raised when old and new can no longer talk. The first three fields of OPEN keep their place for ever."""

MAX = 1 << 20
MESSAGE_MAX = 16 << 20
HEAD = 5

# client -> daemon
OPEN = b"O"
CALL = b"J"
MCP = b"M"
INPUT = b"I"
END = b"E"
INTERRUPT = b"C"
WINDOW = b"W"
STOP = b"S"
# daemon -> client
OUT = b"1"
ERR = b"2"
EXIT = b"X"
REPLY = b"R"
LOCAL = b"L"
NOTICE = b"V"
WANT = b"N"
"""The command reads its standard input: the client answers with one INPUT or END. Only now does it touch its own (a
shell loop's `while read` stays whole), and never does it send more than was asked for (nothing piles up)."""

RESUME = b"A"
"""What to say to the next daemon should this one go away (NUL-joined words): safe to say at any time. Where a command
follows something it says this again whenever it got further."""

FROM_CLIENT = frozenset(OPEN + CALL + MCP + INPUT + END + INTERRUPT + WINDOW + STOP)
FROM_DAEMON = frozenset(OUT + ERR + EXIT + REPLY + LOCAL + NOTICE + WANT + RESUME)

ALIVE = ERR + bytes(4)
"""An empty piece of standard error: a daemon that has nothing to say yet shows that it has heard."""
ALIVE_S = 1.0
"""After so long a daemon that has not answered says `ALIVE`."""
PATIENCE_S = 30.0
"""How long a daemon may be silent before nobody waits for it any more; `CORE_TIMEOUT` says another number."""

# What a notice says, before its text.
AGAIN = b"again"
REFUSED = b"refused"
STOPPED = b"stopped"
"""The daemon was told to stop: it comes back when somebody asks something of it."""


# Typed words that never go to the daemon: they need none, or need the person's own terminal.
OWN_PROCESS = frozenset(
    ("attach", "completion", "daemon", "demo", "doctor", "init", "open", "shell", "upgrade", "version")
)

# What a client tells of its environment. The daemon's socket is the person's own (mode 0600), but the less travels the
# less can end up in an agent by accident; `env.allow` in agents.yaml adds names.
_NAMES = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TERM COLORTERM NO_COLOR FORCE_COLOR COLUMNS LINES EDITOR VISUAL "
    "PAGER BROWSER SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS HTTP_PROXY "
    "HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL "
    "GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL EMAIL API_TIMEOUT_MS MAX_THINKING_TOKENS BASH_DEFAULT_TIMEOUT_MS "
    "BASH_MAX_TIMEOUT_MS CLOUD_SHELL CODE_ASSIST_ENDPOINT SSH_AUTH_SOCK"
)
_PREFIXES = (
    "LC_ XDG_ CORE_ COMP_ ANTHROPIC_ CLAUDE_ OPENAI_ CODEX_ GEMINI_ GOOGLE_ OPENCODE_ COPILOT_ OPENROUTER_ OLLAMA_ "
    "AWS_ AZURE_ CEREBRAS_ CLOUDFLARE_ DEEPSEEK_ FIREWORKS_ GROQ_ MISTRAL_ MOONSHOT_ TOGETHER_ VERTEX_ XAI_ ZAI_ ZHIPU_"
)
PASSED = frozenset(_NAMES.split())
PASSED_PREFIXES = (*_PREFIXES.split(), "_CORE_AGENT_")


class BadFrame(Exception):
    """The other end does not speak this protocol, or sends more than it may."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One message as the bytes to send; a long one becomes several frames."""
    if len(payload) < MAX:
        return kind + len(payload).to_bytes(4, "big") + payload
    parts = []
    for at in range(0, len(payload) + 1, MAX):
        piece = payload[at : at + MAX]
        parts.append(kind + len(piece).to_bytes(4, "big") + piece)
    return b"".join(parts)


class Decoder:
    """Turn bytes, cut anywhere, into frames."""

    def __init__(self, kinds: "frozenset[int]") -> None:
        self._kinds = kinds
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "list[tuple[bytes, bytes]]":
        """Take what arrived and return the frames that it completes.

        Raises: BadFrame as soon as a head is wrong, before a byte of its payload is awaited.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= 1:
            if buffer[start] not in self._kinds:
                raise BadFrame("unknown kind of frame: " + ascii(chr(buffer[start])))
            if len(buffer) - start < HEAD:
                break
            length = int.from_bytes(buffer[start + 1 : start + HEAD], "big")
            if length > MAX:
                raise BadFrame(f"a frame of {length} bytes is longer than {MAX}")
            if len(buffer) - start - HEAD < length:
                break
            frames.append((bytes(buffer[start : start + 1]), bytes(buffer[start + HEAD : start + HEAD + length])))
            start += HEAD + length
        del buffer[:start]
        return frames

    @property
    def pending(self) -> bool:
        """Whether the bytes so far end within a frame."""
        return bool(self._buffer)


class Joiner:
    """Put the frames of one long message together again."""

    def __init__(self, limit: int = MESSAGE_MAX) -> None:
        self._limit = limit
        self._kind = b""
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, kind: bytes, payload: bytes) -> "bytes | None":
        """Return the whole message when this frame closes it, else None.

        Raises: BadFrame when another kind of frame comes between, or when it grows over the limit.
        """
        if self._parts and kind != self._kind:
            raise BadFrame("a message was cut by another")
        self._size += len(payload)
        if self._size > self._limit:
            raise BadFrame(f"a message is longer than {self._limit} bytes")
        self._kind = kind
        self._parts.append(payload)
        if len(payload) == MAX:
            return None
        whole = b"".join(self._parts)
        self._parts = []
        self._size = 0
        return whole


class Opening:
    """What a client says about itself: OPEN's payload for a terminal, the same with an empty argv for CALL and MCP."""

    def __init__(
        self,
        argv: "list[str]",
        *,
        cwd: str = "",
        columns: int = 0,
        lines: int = 0,
        colour: bool = False,
        ttys: str = "000",
        env: "dict[str, str] | None" = None,
        version: str = "",
        executable: str = "",
        wire: int = VERSION,
    ) -> None:
        self.argv = argv
        self.cwd = cwd
        self.columns = columns
        """0 when nobody knows."""
        self.lines = lines
        self.colour = colour
        self.ttys = ttys
        """One flag for each of stdin, stdout, stderr: "1" a terminal, "0" not, "-" closed."""
        self.env = env or {}
        self.version = version
        self.executable = executable
        """The client's interpreter: a newer client's is the one that the daemon becomes."""
        self.wire = wire

    def pack(self) -> bytes:
        fields = [
            str(self.wire),
            self.version,
            self.executable,
            self.cwd,
            str(self.columns),
            str(self.lines),
            "1" if self.colour else "0",
            self.ttys,
            str(len(self.argv)),
            *self.argv,
            *(name + "=" + value for name, value in self.env.items()),
        ]
        return b"\0".join([os.fsencode(field) for field in fields])

    @classmethod
    def unpack(cls, payload: bytes) -> "Opening":
        """Read what `pack` wrote. Of another wire version only the first three fields are read.

        Raises: BadFrame.
        """
        fields = [os.fsdecode(field) for field in payload.split(b"\0")]
        try:
            wire = int(fields[0])
            if wire != VERSION:
                return cls([], version=fields[1], executable=fields[2], wire=wire)
            count = int(fields[8])
            argv = fields[9 : 9 + count]
            if count < 0 or len(argv) != count or len(fields[7]) != 3:
                raise ValueError
            pairs = [field.partition("=") for field in fields[9 + count :]]
            return cls(
                argv,
                cwd=fields[3],
                columns=max(0, int(fields[4])),
                lines=max(0, int(fields[5])),
                colour=fields[6] == "1",
                ttys=fields[7],
                env={name: value for name, equals, value in pairs if name and equals},
                version=fields[1],
                executable=fields[2],
            )
        except (ValueError, IndexError):
            raise BadFrame("this is not an opening") from None


def passed(env: "os._Environ[str] | dict[str, str]", extra: "list[str]") -> "dict[str, str]":
    """What of an environment a client sends: the runners' variables, the terminal's, and the names in extra, where a
    trailing `*` stands for any ending.
    """
    prefixes = PASSED_PREFIXES + tuple([name[:-1] for name in extra if name.endswith("*")])
    return {k: v for k, v in env.items() if k in PASSED or k.startswith(prefixes) or k in extra}


def describe(argv: "list[str]", env: "os._Environ[str] | dict[str, str]", extra: "list[str]") -> Opening:
    """Say where this process stands: directory, terminal, colours, environment."""
    ttys = "".join([_tty(fd) for fd in (0, 1, 2)])
    columns = lines = 0
    if "1" in ttys:
        columns, lines = window(ttys)
    if env.get("COLUMNS", "").isdigit():
        columns = int(env["COLUMNS"])
    if env.get("FORCE_COLOR"):
        colour = True
    else:
        colour = ttys[1] == "1" and not env.get("NO_COLOR") and env.get("TERM", "") not in ("", "dumb")
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = ""  # the directory was removed under us; commands that need one say so
    return Opening(argv, cwd=cwd, columns=columns, lines=lines, colour=colour, ttys=ttys, env=passed(env, extra))


def patience(env: "os._Environ[str] | dict[str, str]") -> float:
    """Seconds that a client waits for the first word of a daemon."""
    try:
        seconds = float(env.get("CORE_TIMEOUT", ""))
    except ValueError:
        return PATIENCE_S
    return seconds if 0 < seconds < 1e6 else PATIENCE_S


def window(ttys: str) -> "tuple[int, int]":
    """Columns and lines of the first of stdout, stderr, stdin that is a terminal, or zeros."""
    for fd in (1, 2, 0):
        if ttys[fd] == "1":
            try:
                size = os.get_terminal_size(fd)
            except OSError:
                continue
            return size.columns, size.lines
    return 0, 0


def _tty(fd: int) -> str:
    try:
        os.fstat(fd)
    except OSError:
        return "-"
    return "1" if os.isatty(fd) else "0"


def runs_here(argv: "list[str]") -> bool:
    """Whether a command line is for the client's own process: help, no words at all, or one of `OWN_PROCESS`."""
    for word in argv:
        if word == "--":
            break
        if word == "--help":
            return True
    for word in argv:
        if not word.startswith("-"):
            return word.partition("/")[0] in OWN_PROCESS  # `daemon/stop` is `daemon stop`
    return True


def peer(sock: "object") -> "tuple[int, int]":
    """Pid and uid at the other end of a connected Unix socket, as the kernel tells; (0, -1) when it does not."""
    ask = sock.getsockopt  # type: ignore[attr-defined]
    try:
        if os.uname().sysname == "Linux":
            raw = ask(1, 17, 12)  # SOL_SOCKET, SO_PEERCRED: pid, uid, gid
            return int.from_bytes(raw[:4], sys.byteorder), int.from_bytes(raw[4:8], sys.byteorder)
        raw = ask(0, 1, 76)  # SOL_LOCAL, LOCAL_PEERCRED: version, uid, groups
        uid = int.from_bytes(raw[4:8], sys.byteorder)
        return int.from_bytes(ask(0, 2, 4), sys.byteorder), uid  # LOCAL_PEERPID
    except OSError:
        return 0, -1


def newer(one: str, other: str) -> bool:
    """Whether release `one` comes after `other`; what cannot be read as a release is older than everything."""
    return _release(one) > _release(other)


def _release(text: str) -> "list[int]":
    numbers = []
    for part in text.split("."):
        digits = ""
        for letter in part:
            if letter not in "0123456789":
                break
            digits += letter
        if not digits:
            break
        numbers.append(int(digits))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
