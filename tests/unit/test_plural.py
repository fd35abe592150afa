"""Counts in words: one helper, and nothing that says `1 files`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from coreagent.cli.views.text import used
from coreagent.plural import plural

SOURCE = Path(__file__).resolve().parents[2] / "src" / "coreagent"
NOUNS = (
    "agents|attempts|bytes|characters|checks|commands|commits|events|files|lines|messages|repositories|requests|rows|"
    "slots|tasks|tokens|transactions|turns|warnings|watches|workspaces"
)
BOUND = re.compile(r"[A-Z_]{3,}|limit|most_|^size$|^length$")
"""A bound, and what is beyond it, is never one."""


def test_counts() -> None:
    assert [plural(n, "file") for n in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
    assert [plural(n, "file waits", "files wait") for n in (1, 2)] == ["1 file waits", "2 files wait"]
    assert [used(n) for n in (0, 1, 12_345)] == ["", "1 token", "12.3k tokens"]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_whoever_counts_comes_to_the_helper(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, after in zip(node.values, node.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                continue
            if not re.match(rf" (?:(?!has)[a-z]+ )?(?:{NOUNS})\b", str(after.value)):
                continue
            counted = ast.unparse(value.value)
            if not BOUND.search(counted):
                found.append(f"line {node.lineno}: {counted}{after.value}")
    assert found == []
