"""What the commands share: option types, how an answer is printed, how a person is asked.

Commands come in. It knows the terminal and the session of the moment, and no single verb.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pydantic_core
import typer

from coreagent.cli.commands import suggest
from coreagent.cli.terminal import Terminal, terminal
from coreagent.cli.views.text import Paint
from coreagent.errors import CoreAgentError, told

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print JSON: one document, or with -f, --watch, --wait one per line.")
]
Workspace = Annotated[
    str,
    typer.Argument(
        metavar="WORKSPACE",
        help="org/repo/name, repo/name, a unique name, or an id.",
        autocompletion=suggest.workspaces,
    ),
]
MaybeWorkspace = Annotated[
    str,
    typer.Argument(
        metavar="WORKSPACE",
        help="org/repo/name, repo/name, a unique name, or an id.",
        autocompletion=suggest.workspaces,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def group(help_text: str) -> typer.Typer:
    """A group of commands, plain of look: help must have equal bytes in the daemon and outside."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )


def seconds(text: str, option: str = "--timeout") -> float:
    """Read `90s`, `10m`, `2h`, `1h30m`, or bare seconds. Raises: invalid_argument that names option and text."""
    matches = list(_DURATION.finditer(text.strip()))
    if not matches or "".join(match.group(0) for match in matches) != text.strip():
        raise _no_time(option, "must be a duration", text)
    total = sum(float(match.group(1)) * _UNITS[match.group(2)] for match in matches)
    if total <= 0:
        raise _no_time(option, "must be more than 0", text)
    return total


def _no_time(option: str, what: str, text: str) -> CoreAgentError:
    return CoreAgentError(
        "invalid_argument", f"`{option}` {what}", cause=f"it is {text!r}", hint="write 90s, 10m, 2h or 1h30m"
    )


def variables(pairs: Iterable[str]) -> dict[str, str]:
    """Read `--var NAME=VALUE` options. Raises: a usage error that names the pair."""
    told: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--var")
        told[name.strip()] = value
    return told


def paint() -> Paint:
    return Paint(terminal().colour)


def now() -> datetime:
    """The time beside which a view says `ago`."""
    return datetime.now(UTC)


def to_json(result: Any, *, line: bool = False) -> str:
    """A result as the JSON that programs read; one line of it in follow modes."""
    return pydantic_core.to_json(result, indent=None if line else 2).decode()


def say(lines: Iterable[str], *, err: bool = False) -> None:
    stream = terminal().err if err else terminal().out
    stream.write("".join(line + "\n" for line in lines))


def answer(result: Any, as_json: bool, view: Callable[[Terminal], list[str]]) -> None:
    """Print a result once: as one JSON document, or as its view."""
    say([to_json(result)] if as_json else view(terminal()))


def stdin_text() -> str:
    """All of standard input. Raises: conflicting use on a terminal is left to the person (they end it with Ctrl-D)."""
    return terminal().stdin.read()


def text_of(words: list[str] | None) -> str:
    """The task as typed: words joined, or standard input for a lone `-`."""
    if words == ["-"]:
        text = stdin_text().strip()
        if not text:
            raise CoreAgentError(
                "invalid_argument", "standard input held no text", hint="`-` reads all of it, as in `... - < task.md`"
            )
        return text
    return " ".join(words or []).strip()


def ask(question: str) -> bool:
    """Ask a person yes or no; no is the answer of an empty line and of the end of input."""
    here = terminal()
    here.out.write(f"{question} [y/N] ")
    here.out.flush()
    reply = here.stdin.readline()
    if not reply.endswith("\n"):
        here.out.write("\n")
    return reply.strip().lower() in ("y", "yes")


def read_file(path: str, what: str) -> str:
    """A text file that a person named. Raises: invalid_argument with the reason."""
    full = terminal().path(path)
    try:
        return Path(full).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CoreAgentError("invalid_argument", f"cannot read the {what} {path}", cause=told(error)) from None


def repo_of(given: str) -> str:
    """A path as the person means it, made absolute; a registered name as it is."""
    if not given:
        return ""
    path = terminal().path(given)
    looks_like_path = given.startswith((".", "/", "~")) or Path(path).is_dir()
    return path if looks_like_path else given
