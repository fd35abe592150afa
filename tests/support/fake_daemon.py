"""The real daemon around a small Core and a small app: `python fake_daemon.py --home H [...]`.

For tests of the terminal alone, where the engine would only be in the way.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from coreagent import paths
from coreagent.bus import Bus
from coreagent.capability import EVERYONE, Caller, capability
from coreagent.cli import run as cli_run
from coreagent.cli.session import session
from coreagent.cli.terminal import Terminal, terminal
from coreagent.daemon import launch
from coreagent.daemon import main as daemon_main
from coreagent.errors import CoreAgentError
from coreagent.models.report import DaemonStatus, StopReply

app = typer.Typer(add_completion=False)
noun = typer.Typer()
app.add_typer(noun, name="noun", help="A group.")


class FakeEngine:
    async def start(self) -> None:
        return

    async def stop(self, mode: str) -> None:
        return


class FakeStore:
    ephemeral = False

    def close(self) -> None:
        return


class FakeCore:
    def __init__(self, home: str) -> None:
        self.home = home
        self.engine = FakeEngine()
        self.store = FakeStore()
        self.bus = Bus()
        self.stop_requested = asyncio.Event()
        self.stop_mode = ""
        self.seen: list[str] = []

    def role_of(self, pid: int, uid: int) -> Caller:
        return Caller(role="person", pid=pid, uid=uid)


async def open_fake(home: str, env: dict[str, str]) -> FakeCore:
    return FakeCore(home)


def register() -> None:
    """Only in the daemon's own process: the registry of the tests' processes holds the product's capabilities."""

    @capability("daemon.stop")
    async def stop(core: Any, mode: str = "leave") -> StopReply:
        """Stop."""
        core.stop_mode = mode
        core.stop_requested.set()
        return StopReply(mode=mode, running=0)  # type: ignore[arg-type]

    @capability("daemon.status", roles=EVERYONE)
    async def daemon_status(core: Any) -> DaemonStatus:
        """Tell."""
        return DaemonStatus(
            pid=os.getpid(),
            version=paths.VERSION,
            home=core.home,
            socket=paths.daemon_socket(core.home),
            uptime_s=0,
            rss_bytes=0,
        )

    @capability("echo", roles=EVERYONE)
    async def echo(core: Any, caller: Caller, text: str, times: int = 1) -> dict[str, str]:
        """Say it back."""
        if text == "refuse":
            raise CoreAgentError("illegal_move", "no", hint="another way", cause="because")
        if text == "break":
            raise RuntimeError("broken")
        return {"text": text * times, "role": caller.role, "pid": str(caller.pid)}

    @capability("hang")
    async def hang(core: Any) -> None:
        """Never end, and say when it was cancelled."""
        core.seen.append("hangs")
        try:
            await asyncio.Event().wait()
        finally:
            core.seen.append("cancelled")

    @capability("seen")
    async def seen(core: Any) -> list[str]:
        """What happened so far."""
        return list(core.seen)


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """A table."""
    here = terminal()
    table = Table("directory", "width", "colour")
    table.add_row(here.cwd, str(here.width), str(here.colour))
    here.console().print(table)


@app.command()
def say(text: str, times: int = 1, to_err: bool = False) -> None:
    """Say it back."""
    answer = session().call("echo", text=text, times=times)
    (terminal().err if to_err else terminal().out).write(answer["text"] + "\n")


@app.command()
def wait() -> None:
    """Wait for ever; Ctrl-C detaches."""
    terminal().err.write("waiting\n")
    terminal().err.flush()
    try:
        session().call("hang")
    except KeyboardInterrupt:
        terminal().out.write("detached\n")
        raise typer.Exit(130) from None


@app.command()
def stubborn() -> None:
    """Pay no attention to Ctrl-C."""
    terminal().err.write("waiting\n")
    terminal().err.flush()
    while not session().cancelled.wait(30):
        continue


@app.command()
def flood(lines: int) -> None:
    """Write much."""
    for number in range(lines):
        terminal().out.write(f"line {number} of a long text that fills pipes\n")


@app.command()
def cat() -> None:
    """Copy standard input."""
    for line in terminal().stdin:
        terminal().out.write(line)


@app.command()
def crash() -> None:
    """Fail as only a fault does."""
    raise RuntimeError("a fault\x1b[31m")


@app.command()
def own() -> None:
    """Need the person's own process."""
    session().own_process()
    terminal().out.write(f"in {os.getpid()}\n")


@app.command()
def size() -> None:
    """Tell the window's size when it changes."""
    before = terminal().width
    terminal().err.write(f"{before}\n")
    terminal().err.flush()
    while terminal().width == before and not session().cancelled.wait(0.01):
        continue
    terminal().out.write(f"{terminal().width}\n")


@noun.command("do")
def noun_do(what: str, how: Annotated[int, typer.Option(help="How much.")] = 3) -> None:
    """Do something."""
    terminal().out.write(f"{what} {how}\n")


def run(argv: list[str], on: Terminal, with_session: Any) -> int:
    return cli_run.run(argv, on, with_session, app)


async def no_mcp(core: Any, caller: Caller, receive: Any, send: Any) -> None:
    """A protocol of one answer, in place of the real one."""
    rest = b""
    while piece := await receive():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "id" in message and message["method"] != "hang":
                told = {"method": message["method"], "role": caller.role, "pid": os.getpid()}
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": told}
                await send(json.dumps(answer).encode() + b"\n")


def command(home: str, python: str = "") -> list[str]:
    return [python or sys.executable, "-P", __file__, "--home", home]


if __name__ == "__main__":
    register()
    if "--run" in sys.argv:  # the same app in a process of its own
        cli_run.load(app)
        cli_run.importlib.import_module = lambda name: sys.modules["__main__"]  # type: ignore[attr-defined]
        sys.exit(cli_run.in_process(sys.argv[sys.argv.index("--run") + 1 :]))
    launch.command = command
    options = daemon_main._options().parse_args()
    parts = daemon_main.Parts(open_fake, run, no_mcp)
    sys.exit(daemon_main.run(options.home, ready=options.ready_fd, inherited=options.inherit, parts=parts))
