"""The table of errors: whoever meets one is told what to do, in words for people."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import coreagent
from coreagent.errors import CODES, HINTS, CoreAgentError, told

SOURCES = Path(coreagent.__file__).parent


def raised() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "CoreAgentError":
                yield f"{path.relative_to(SOURCES)}:{node.lineno}", node


def slugs(node: ast.expr) -> list[str]:
    """The slugs that an argument can be; [] when only a run would tell."""
    match node:
        case ast.Constant(value=str(slug)):
            return [slug]
        case ast.IfExp(body=one, orelse=other):
            return [*slugs(one), *slugs(other)]
    return []


def test_every_error_has_a_hint() -> None:
    lacking = []
    for where, call in raised():
        given = next((k.value for k in call.keywords if k.arg == "hint"), None)
        if given is None or (isinstance(given, ast.Constant) and not given.value):
            lacking += [f"{where} {slug}" for slug in slugs(call.args[0]) if slug not in HINTS and slug != "usage"]
    assert not lacking
    assert HINTS.keys() <= CODES.keys()
    assert CoreAgentError("no_home", "m").lines()[1].startswith("hint: ")
    assert CoreAgentError("no_home", "m", hint="this one").hint == "this one"


def test_no_cause_is_the_bare_text_of_an_error() -> None:
    bare = [
        where
        for where, call in raised()
        for k in call.keywords
        if k.arg == "cause" and isinstance(k.value, ast.Call) and ast.unparse(k.value) == "str(error)"
    ]
    assert not bare


def test_errors_of_the_system_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(OSError) as gone:
        (tmp_path / "none").open()
    assert told(gone.value) == f"No such file or directory: {tmp_path / 'none'}"
    assert told(OSError(28, "No space left on device")) == "No space left on device"
    assert told(KeyError("x")) == "KeyError: 'x'"
