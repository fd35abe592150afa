"""Run one command line on one terminal: the same function in a thread of the daemon and in the person's own process.

The terminal client and the daemon come in. The one place where errors become exit codes and three lines (or JSON) for
the command line. It knows typer, and no command.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.text import Text

from coreagent import paths, wire
from coreagent.arguments import wrong_option
from coreagent.capability import Caller
from coreagent.cli import completion
from coreagent.cli import session as sessions
from coreagent.cli import terminal as terminals
from coreagent.cli.session import Outside, Session
from coreagent.cli.terminal import CannotWrite, Terminal, clean, terminal
from coreagent.errors import EXIT_INTERRUPTED, CoreAgentError, told

PROGRAM = "core-agent"
EXIT_PIPE = 141
"""What a shell sees of a program that SIGPIPE ended."""
EXIT_CANNOT_WRITE = 1
HELP_WIDTH = 100
TELLS_ITSELF = ("status", "dispatch", "daemon")
"""Commands that say by themselves what is wrong with the store."""

_LOADING = threading.Lock()
_COMMANDS: dict[int, Any] = {}


def load(app: typer.Typer | None = None) -> Any:
    """Build the command tree once; helps and errors of it go to the terminal of whoever asks."""
    with _LOADING:
        if app is None:
            app = importlib.import_module("coreagent.cli.app").app
        if id(app) not in _COMMANDS:
            command = typer.main.get_command(app)
            _adopt(command)
            _COMMANDS[id(app)] = (command, app)  # the app too, so that its id stays taken
        return _COMMANDS[id(app)][0]


def _adopt(command: Any) -> None:
    """Typer's own help and rich panels write to the process's streams: here they must go to the caller's."""
    command.rich_markup_mode = None
    option = command.get_help_option(typer.Context(command))
    if option is not None:
        option.callback = _show_help
    for parameter in command.params:
        if parameter is not option and parameter.callback is None:
            parameter.callback = _said_something
    for child in getattr(command, "commands", {}).values():
        _adopt(child)


def _show_help(context: typer.Context, _: Any, value: bool) -> None:
    if value and not context.resilient_parsing:
        write_help(context.get_help())
        raise typer.Exit


def _said_something(context: typer.Context, parameter: Any, value: Any) -> Any:
    """Refuse a word that is empty: it would be taken for one that was left out, as `"$NAME"` of a script often is."""
    given = context.get_parameter_source(parameter.name)
    if value == "" and given is not None and given.name == "COMMANDLINE" and not context.resilient_parsing:
        raise typer.BadParameter("it is empty", ctx=context, param=parameter)
    return value


def write_help(text: str) -> None:
    """Print a help text, its headings and options coloured where colours are wanted."""
    here = terminal()
    if here.colour:
        styled = Text(text)
        styled.highlight_regex(r"(?m)^\w[\w ]*:", "bold yellow")
        styled.highlight_regex(r"(?m)(?<![\w-])--?[a-zA-Z][\w-]*", "cyan")
        here.console().print(styled, soft_wrap=True)
    else:
        here.out.write(text + "\n")


def in_process(argv: list[str]) -> int:
    """Run a command line on the terminal of this process."""
    home = paths.home()
    seen = wire.describe(argv, os.environ, [])
    seen.env = dict(os.environ)
    own = terminals.own_terminal(
        cwd=seen.cwd, columns=seen.columns, lines=seen.lines, colour=seen.colour, ttys=seen.ttys, env=seen.env
    )
    names = sys.modules["coreagent.__main__"].extra_names(home) if "coreagent.__main__" in sys.modules else []
    caller = Caller(
        pid=os.getpid(),
        uid=os.getuid(),
        env=wire.passed(os.environ, names),
        cwd=seen.cwd,
        interactive=own.interactive,
    )
    code = run(argv, own, Outside(home, caller))
    try:
        terminals.flush_std()
    except CannotWrite as error:
        return _cannot_write(error, own)
    return code


def _cannot_write(error: CannotWrite, on: Terminal) -> int:
    on.err.write(f"error: {error}\n")
    on.err.flush()
    return EXIT_CANNOT_WRITE


def run(argv: list[str], on: Terminal, session: Session, app: typer.Typer | None = None) -> int:
    """Run a command line and return its exit code; everything that it has to say is on the terminal by then.

    Raises: OwnProcess when, in the daemon, the command turns out to need the person's own process.
    """
    with terminals.using(on), sessions.using(session):
        try:
            code = _run(argv, on, session, app)
            _say_what_is_missing(argv, on, session)
            on.flush()
        except BrokenPipeError:
            return EXIT_PIPE
        except CannotWrite as error:
            return _cannot_write(error, on)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        return code


def _say_what_is_missing(argv: list[str], on: Terminal, session: Session) -> None:
    """With a store in memory only, say so after every answer: it is of what this daemon has seen, not of all."""
    store = session.core.store if session.core is not None else None
    if store is None or not store.ephemeral or not argv or argv[0] in TELLS_ITSELF or completion.VARIABLE in on.env:
        return
    on.err.write(f"! the store cannot be used, so nothing of before is known: {store.why}\n")


def _run(argv: list[str], on: Terminal, session: Session, app: typer.Typer | None) -> int:
    try:
        command = load(app)
        if completion.VARIABLE in on.env:
            return completion.complete(command, PROGRAM, on)
        _invoke(command, argv, on)
    except typer.Exit as left:
        return left.exit_code
    except (KeyboardInterrupt, typer.Abort) as stopped:
        if on.err.isatty() and not isinstance(stopped, sessions.ClientGone):
            on.err.write("\n")  # the prompt must not stand behind the terminal's ^C
        return EXIT_INTERRUPTED
    except CoreAgentError as error:
        return report(error, argv)
    except typer.TyperException as error:
        return _usage(error, argv)
    except (BrokenPipeError, CannotWrite):
        raise
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except Exception as error:
        return report(_unexpected(error, argv, session.home), argv)
    return 0


def _invoke(command: Any, argv: list[str], on: Terminal) -> None:
    width = min(on.width, HELP_WIDTH)
    with command.make_context(
        PROGRAM, list(argv), terminal_width=width, max_content_width=width, color=on.colour
    ) as context:
        command.invoke(context)


def _usage(error: typer.TyperException, argv: list[str]) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        write_help(context.get_help())
        return 0 if not argv else error.exit_code
    if error.exit_code != CoreAgentError("usage", "").exit_code:
        return report(CoreAgentError("internal", error.format_message()), argv)
    return report(_refusal(error, context.command_path if context is not None else PROGRAM), argv)


def _refusal(error: typer.TyperException, path: str) -> CoreAgentError:
    """A mistake in the words: a value that is wrong has the code that it has on every face."""
    hint, parameter = f"{path} --help", getattr(error, "param", None)
    if not isinstance(error, typer.BadParameter) or type(error).__name__ == "MissingParameter":
        return CoreAgentError("usage", error.format_message(), hint=hint)
    if isinstance(error.__cause__, ValidationError) and parameter is not None:
        option = next((word for word in parameter.opts if word.startswith("--")), parameter.name)
        return wrong_option(path.partition(" ")[2] or path, option, error.__cause__, hint)
    return CoreAgentError("invalid_argument", error.format_message(), hint=hint)


def report(error: CoreAgentError, argv: list[str]) -> int:
    """Tell an error as the command line wants it told, and return its exit code."""
    here = terminal()
    here.out.flush()
    words = argv[: argv.index("--")] if "--" in argv else argv
    if "--json" in words:
        here.out.write(json.dumps(error.as_dict()) + "\n")
        return error.exit_code
    lines = [clean(line).replace("\n", "\n  ") for line in error.lines()]
    if here.colour and here.err.isatty():
        head, colon, rest = lines[0].partition(":")
        lines[0] = f"\x1b[1;31m{head}\x1b[0m{colon}{rest}"
    here.err.write("".join(line + "\n" for line in lines))
    return error.exit_code


def _unexpected(error: Exception, argv: list[str], home: str) -> CoreAgentError:
    """One line for the person; everything else goes to a file that they can send."""
    text = "\n".join(
        (
            f"{PROGRAM} {paths.VERSION}, Python {platform.python_version()}, {platform.platform()}",
            f"command: {argv[:1]}",  # the rest may hold a task's text, or a secret
            "".join(traceback.format_exception(error)),
        )
    )
    try:
        folder = Path(paths.reports_dir(home or "/dev/null"))
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{time.monotonic_ns()}.txt"
        file.write_text(text)
        path = str(file)
    except OSError:
        path = ""
    return CoreAgentError(
        "internal",
        told(error),
        hint=f"this is a fault of {PROGRAM}; what happened is in {path}" if path else f"this is a fault of {PROGRAM}",
        data={"report": path},
    )
