"""The terminal that commands see, and the guards that keep them from looking past it."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.table import Table

from coreagent.cli import terminal as terminals
from coreagent.cli.completion import SCRIPTS
from coreagent.cli.terminal import Terminal, channel, clean, terminal

CLI = Path(terminals.__file__).parent
# Where the line between a command and the process is drawn, these are the ones that may cross it.
# `selfcheck` is no command: it is a program of its own that a new release is tried with.
EDGE = {"run.py", "selfcheck.py", "session.py", "terminal.py"}
# Commands that only ever run in the person's own process (wire.OWN_PROCESS) may replace it.
FORBIDDEN = {
    "sys.stdin": "terminal().stdin",
    "sys.stdout": "terminal().out",
    "sys.stderr": "terminal().err",
    "os.environ": "terminal().env",
    "os.getenv": "terminal().env",
    "os.getcwd": "terminal().cwd",
    "os.chdir": "terminal().path",
    "os.get_terminal_size": "terminal().width",
    "shutil.get_terminal_size": "terminal().width",
    "Path.cwd": "terminal().cwd",
    "Path.home": "terminal().env",
    "os.path.expanduser": "terminal().path",
    "typer.prompt": "terminal().stdin in the own process",
    "typer.confirm": "terminal().stdin in the own process",
    "typer.echo": "terminal().out",
    "typer.secho": "terminal().out",
    "typer.get_app_dir": "coreagent.paths",
    "typer.launch": "a command of the own process",
    "typer.edit": "a command of the own process",
}
FORBIDDEN_NAMES = {"print", "input", "breakpoint"}
FORBIDDEN_OPTIONS = {"envvar", "exists", "file_okay", "dir_okay", "readable", "writable", "resolve_path", "prompt"}


def command_files() -> list[Path]:
    found = sorted(path for path in CLI.rglob("*.py") if path.name not in EDGE or path.parent != CLI)
    assert found
    return found


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems_of(source: str, name: str) -> list[str]:
    found = []
    tree = ast.parse(source)
    # A class of our own may have the same name.
    live = "Live" in source and any(
        isinstance(node, ast.ImportFrom) and node.module == "rich.live" for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        at = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and dotted(node) in FORBIDDEN:
            found.append(f"{at}: {dotted(node)}; use {FORBIDDEN[dotted(node)]}")
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in FORBIDDEN:
                    found.append(f"{at}: {full}; use {FORBIDDEN[full]}")
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if called in FORBIDDEN_NAMES:
            found.append(f"{at}: {called}()")
        if called.rpartition(".")[2] in ("Option", "Argument"):
            found += [f"{at}: {called}({option}=)" for option in FORBIDDEN_OPTIONS & given.keys()]
        if live and called.rpartition(".")[2] == "Live":
            for redirection in ("redirect_stdout", "redirect_stderr"):
                value = given.get(redirection)
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(f"{at}: Live() without {redirection}=False")
        if called.rpartition(".")[2] == "Console":
            found.append(f"{at}: Console(); use terminal().console()")
    return found


def test_commands_see_only_their_terminal() -> None:
    assert not [p for path in command_files() for p in problems_of(path.read_text(), str(path.relative_to(CLI)))]


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.stdout.write('x')",
        "import os\nos.environ['X']",
        "from os import getcwd",
        "print('x')",
        "typer.Option(envvar='X')",
        "typer.Argument(exists=True)",
        "from rich.live import Live\nLive(table)",
        "from rich.live import Live\nLive(table, redirect_stdout=False)",
        "Console()",
        "typer.echo('x')",
        "Path.cwd()",
    ],
)
def test_the_guard_sees(source: str) -> None:
    assert problems_of(source, "x")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a\nb\tc"),
        ("a\r\nb", "a\nb"),
        ("over\rwritten", "over\u240dwritten"),
        ("\x1b[31mred\x1b]0;title\x07", "\u241b[31mred\u241b]0;title\u2407"),
        ("\x9b31m", "<U+009B>31m"),
        ("a\u202eb\u2066c", "a<U+202E>b<U+2066>c"),
        ("zero\u200bwidth\ufeff", "zero<U+200B>width<U+FEFF>"),
        ("\U000e0041", "<U+E0041>"),
        ("\udcff", "<U+DCFF>"),
        ("del\x7f", "del\u2421"),
        ("ça va, 日本語, 👩‍💻", "ça va, 日本語, 👩‍💻"),
    ],
)
def test_text_of_an_agent_cannot_act_on_a_terminal(raw: str, shown: str) -> None:
    assert clean(raw) == shown
    assert clean(shown) == shown


def made(width: int = 60, colour: bool = False, **fields: object) -> tuple[Terminal, bytearray]:
    out = bytearray()
    given = {"interactive": False, "cwd": "/somewhere", "env": {"HOME": "/people/me"}, **fields}
    sink = channel(out.extend, False)
    return Terminal(sink, sink, io.StringIO(), width, 24, colour, **given), out  # type: ignore[arg-type]


def test_a_console_asks_nothing_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "20", "NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    for colour in (True, False):
        on, out = made(width=50, colour=colour)
        table = Table("a", expand=True)
        table.add_row("[bold]x[/bold]")
        on.console().print(table)
        on.flush()
        assert (b"\x1b[" in out) is colour
        assert max(len(line) for line in _plain(out.decode()).splitlines()) == 50


def _plain(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_paths_are_the_persons() -> None:
    on, _ = made()
    assert on.path("x/../y") == "/somewhere/y"
    assert on.path("/abs/") == "/abs"
    assert on.path("~") == "/people/me"
    assert on.path("~/x") == "/people/me/x"
    assert on.path("~other/x") == "/somewhere/~other/x"


def test_each_thread_has_its_own() -> None:
    seen: dict[int, int] = {}
    meet = threading.Barrier(4)

    def work(width: int) -> None:
        on, _ = made(width=width)
        with terminals.using(on):
            meet.wait(10)
            seen[width] = terminal().width

    threads = [threading.Thread(target=work, args=(width,)) for width in (40, 50, 60, 70)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {40: 40, 50: 50, 60: 60, 70: 70}
    with pytest.raises(LookupError):
        terminal()


def test_what_cannot_be_encoded_is_shown() -> None:
    on, out = made()
    on.out.write("bad \udc80\n")
    on.flush()
    assert bytes(out) == b"bad \\udc80\n"


@pytest.mark.parametrize("shell", [name for name in SCRIPTS if Path(f"/bin/{name}").exists()])
def test_completion_scripts_parse(shell: str) -> None:
    subprocess.run([shell, "-n"], input=SCRIPTS[shell], text=True, check=True)


def test_a_closed_output_is_no_fault() -> None:
    code = "from coreagent.cli import run; from coreagent.cli.terminal import own_terminal as t; import typer\n"
    code += "app = typer.Typer(add_completion=False)\n@app.command()\ndef x():\n    run.terminal().out.write('x')\n"
    code += "on = t(cwd='/', columns=0, lines=0, colour=False, ttys='---', env={})\n"
    code += "import os; os.close(1); os._exit(run.run([], on, run.Outside('', run.Caller()), app))"
    assert subprocess.run([sys.executable, "-c", code], env={"PATH": os.defpath}).returncode == 0
