"""The rules of the house that a tool can check (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coreagent.errors import CODES, EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "coreagent"
LINES_MAX = 500
# library -> the only rooms that may import it
HOMES = {
    "duckdb": ("store",),
    "typer": ("cli",),
    "click": ("cli",),
    "rich": ("cli",),
    "mcp": ("mcp",),
    "mcp_types": ("mcp",),
}
# What a family's `__init__` may hold beside its table: the function that resolves a name of it.
FAMILY_FUNCTIONS = {"runners": {"load", "names"}, "wires": {"load"}}


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository; those on disk when this is not a clone."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", *patterns],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        found = [ROOT / name for name in listed if name]
    else:
        found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_longer_than_500_lines() -> None:
    files = tracked("*.py", "scripts/*", ".ci/*", "**/Taskfile.yaml", "Taskfile.yaml")
    long = {name_of(path): count for path in files if (count := len(path.read_text().splitlines())) > LINES_MAX}
    assert not long


def test_every_module_says_what_room_it_is() -> None:
    silent = [
        name_of(path)
        for path in modules()
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_init_files_hold_nothing_but_family_tables() -> None:
    for path in SOURCE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                assert node.name in FAMILY_FUNCTIONS.get(path.parent.name, set()), name_of(path)
            else:
                typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
                allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
                assert typing_only or isinstance(node, allowed), f"{name_of(path)}:{node.lineno}"


def test_every_library_has_one_home() -> None:
    strays = [
        f"{name_of(path)} imports {library}"
        for path in modules()
        for library in imported(path) & HOMES.keys()
        if path.relative_to(SOURCE).parts[0] not in HOMES[library]
    ]
    assert not strays


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_imports_go_only_downwards() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_error_is_raised_somewhere_and_has_a_known_kind() -> None:
    text = "\n".join(path.read_text() for path in modules() if path.name != "errors.py")
    unused = [slug for slug in CODES if f'"{slug}"' not in text]
    assert not unused
    assert {row.kind for row in CODES.values()} <= set(EXIT_CODES)


def test_no_path_of_one_machine_is_tracked() -> None:
    home = re.compile(r"/(?:home|Users)/[a-z]+/|(?<![\w.])/root/")
    for path in tracked("src", "docs", "scripts", ".ci", "*.md", "*.yaml", "*.toml", "tests", "bench"):
        text = path.read_bytes().decode("utf-8", "replace")
        assert f"{ROOT}/" not in text, name_of(path)
        if not path.is_relative_to(ROOT / "tests"):
            assert not home.search(text), name_of(path)


def test_only_the_far_end_is_replaced_outside_the_unit_tests() -> None:
    words = re.compile(r"mock\.patch|monkeypatch\.setattr")
    folders = [f"tests/{name}/" for name in ("cli", "contract", "crash", "e2e", "pipeline", "property")]
    patched = [name_of(path) for path in tracked(*folders) if path.suffix == ".py" and words.search(path.read_text())]
    assert not patched


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME"])
def test_nothing_is_left_for_later(word: str) -> None:
    assert not [name_of(path) for path in modules() if word in path.read_text()]
