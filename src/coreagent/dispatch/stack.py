"""What a repository is written in, and which commands build and test it, told from the files at its top.

Prompt assembly comes in. Only names of files and the presence of known words count; no text of the repository gets
into the answer, so that nobody can write a command line into a prompt by way of a build file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_READ_MAX = 256 * 1024
_READ = frozenset(
    {
        "Makefile",
        "Taskfile.yaml",
        "Taskfile.yml",
        "composer.json",
        "justfile",
        "package.json",
        "pyproject.toml",
        "setup.cfg",
    }
)

Files = Mapping[str, str]
"""Name at the top of the repository -> text, "" for a directory or a file whose text does not matter."""


@dataclass(frozen=True)
class Stack:
    """Empty strings where nothing was found: no test runner found is told, never taken for success."""

    languages: tuple[str, ...] = ()
    build: str = ""
    test: str = ""


def look(repo_dir: Path) -> dict[str, str]:
    """Return the names at the top of a checkout, with the text of the few files that matter; links are not followed."""
    files: dict[str, str] = {}
    with os.scandir(repo_dir) as entries:
        for entry in entries:
            files[entry.name] = ""
            if entry.name in _READ and entry.is_file(follow_symlinks=False):
                with Path(entry.path).open("rb") as file:
                    files[entry.name] = file.read(_READ_MAX).decode("utf-8", "replace")
    return files


def detect(files: Files) -> Stack:
    """Tell the stack; the first finder that knows a command wins, all of them name their languages."""
    found = [stack for finder in _FINDERS if (stack := finder(files)) is not None]
    return Stack(
        languages=tuple(dict.fromkeys(language for stack in found for language in stack.languages)),
        build=next((stack.build for stack in found if stack.build), ""),
        test=next((stack.test for stack in found if stack.test), ""),
    )


def _task_runner(files: Files) -> Stack | None:
    for names, program, pattern in (
        (("Taskfile.yaml", "Taskfile.yml"), "task", r"^  %s:"),
        (("justfile",), "just", r"^%s\b[^=\n]*:(?!=)"),
        (("Makefile",), "make", r"^%s\s*:(?!=)"),
    ):
        for name in names:
            text = files.get(name, "")
            build, test = (
                f"{program} {target}" if re.search(pattern % target, text, re.MULTILINE) else ""
                for target in ("build", "test")
            )
            if test:
                return Stack(build=build, test=test)
    return None


def _python(files: Files) -> Stack | None:
    if not files.keys() & {"pyproject.toml", "setup.py", "setup.cfg", "requirements.txt", "tox.ini", "pytest.ini"}:
        tests = [name for name in files if re.fullmatch(r"test_\w+\.py|\w+_test\.py", name)]
        return (
            Stack(("Python",), test="python3 -m pytest" if "conftest.py" in files else "python3 -m unittest")
            if (tests)
            else None
        )
    words = files.get("pyproject.toml", "") + files.get("setup.cfg", "")
    before = "uv run " if "uv.lock" in files else "poetry run " if "poetry.lock" in files else "python3 -m "
    if "pytest" in words or files.keys() & {"pytest.ini", "conftest.py"}:
        return Stack(("Python",), test=before + "pytest")
    if "tox.ini" in files:
        return Stack(("Python",), test="tox")
    return Stack(("Python",), test="python3 -m unittest" if files.keys() & {"tests", "test"} else "")


def _javascript(files: Files) -> Stack | None:
    if "package.json" not in files:
        return None
    locks = {"pnpm-lock.yaml": "pnpm", "yarn.lock": "yarn", "bun.lock": "bun", "bun.lockb": "bun"}
    program = next((name for lock, name in locks.items() if lock in files), "npm")
    scripts = _scripts(files["package.json"])
    return Stack(
        ("TypeScript" if "tsconfig.json" in files else "JavaScript",),
        build=f"{program} run build" if "build" in scripts else "",
        test=f"{program} run test" if "test" in scripts else "",
    )


def _php(files: Files) -> Stack | None:
    if "composer.json" not in files:
        return None
    if "test" in _scripts(files["composer.json"]):
        return Stack(("PHP",), test="composer test")
    return Stack(("PHP",), test="vendor/bin/phpunit" if files.keys() & {"phpunit.xml", "phpunit.xml.dist"} else "")


def _scripts(text: str) -> set[str]:
    try:
        scripts = json.loads(text)["scripts"]
    except (ValueError, KeyError, TypeError):
        return set()
    return set(scripts) if isinstance(scripts, dict) else set()


def _by_file(names: set[str], stack: Stack) -> Callable[[Files], Stack | None]:
    return lambda files: stack if files.keys() & names else None


_FINDERS: tuple[Callable[[Files], Stack | None], ...] = (
    _task_runner,
    _python,
    _javascript,
    _php,
    _by_file({"go.mod"}, Stack(("Go",), "go build ./...", "go test ./...")),
    _by_file({"Cargo.toml"}, Stack(("Rust",), "cargo build", "cargo test")),
    _by_file({"pom.xml"}, Stack(("Java",), "mvn -q compile", "mvn -q test")),
    _by_file({"build.gradle", "build.gradle.kts"}, Stack(("Java or Kotlin",), "./gradlew assemble", "./gradlew test")),
    _by_file({".rspec"}, Stack(("Ruby",), "", "bundle exec rspec")),
    _by_file({"Gemfile"}, Stack(("Ruby",), "", "bundle exec rake test")),
    _by_file({"mix.exs"}, Stack(("Elixir",), "mix compile", "mix test")),
    _by_file({"Package.swift"}, Stack(("Swift",), "swift build", "swift test")),
    _by_file(
        {"CMakeLists.txt"}, Stack(("C or C++",), "cmake -B build && cmake --build build", "ctest --test-dir build")
    ),
)
