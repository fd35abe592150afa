"""The transcripts beside this file: documentation that is run.

A line `$ ...` is typed in a fresh home, in a repository with one commit; what follows is what must be seen. `<id>`,
`<sha>`, `<time>`, `<n>` and `<path>` stand for what differs each time, and `(exit N)` for an exit code that is not 0.
`CORE_AGENT_WRITE_TRANSCRIPTS=1` writes down what is seen instead, for a person to read and commit.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.support.home import Home

FOLDER = Path(__file__).with_name("transcripts")
PLACEHOLDERS = {
    "id": r"(?:[0-9A-HJKMNP-TV-Z]{26}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
    "sha": r"[0-9a-f]{7,40}",
    "time": r"(?:\d+(?:\.\d+)?(?:ms|s|m)|\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?)",
    "n": r"\d+(?:\.\d+)?",
    "path": r"\S+",
}


def turns(text: str) -> list[tuple[str, list[str]]]:
    """(command, what is seen) for each; the first has no command and holds the introduction."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> ") and len(found[-1][1]) == 0:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        else:
            found[-1][1].append(line)
    return found


def pattern(line: str) -> str:
    """What a written line stands for; how far the columns of a table lie apart depends on what is in them."""
    parts = re.split(r"<(id|sha|time|n|path)>", " ".join(line.split()))
    return "".join(re.escape(part) if at % 2 == 0 else PLACEHOLDERS[part] for at, part in enumerate(parts))


def placed(line: str) -> str:
    """A line as it is written down, with a placeholder for what is different the next time."""
    line = re.sub(PLACEHOLDERS["id"], "<id>", line)
    line = re.sub(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?", "<time>", line)
    line = re.sub(r"\bshim \d+", "shim <n>", line)
    line = re.sub(r"\b\d+(?:\.\d+)?s\b", "<time>", line)
    return re.sub(r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b", "<sha>", line)


def seen(home: Home, command: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env={**home.env, "COLUMNS": "100", "PS1": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    lines = [line.rstrip() for line in done.stdout.replace(str(home.user), "~").splitlines()]
    return lines + ([f"(exit {done.returncode})"] if done.returncode else [])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.txt")))
def test_transcript(home: Home, name: str) -> None:
    writing = "CORE_AGENT_WRITE_TRANSCRIPTS" in os.environ
    file = FOLDER / f"{name}.txt"
    repo = home.repo("app", {"greet.py": 'print("helo")\n'})
    home.git("config", "user.name", "Person", cwd=repo)
    home.git("config", "user.email", "person@example.org", cwd=repo)
    script = turns(file.read_text())
    written = script[0][1]
    for command, expected in script[1:]:
        wanted = expected[: max((i + 1 for i, line in enumerate(expected) if line.strip()), default=0)]
        after_blank = (i for i in range(1, len(wanted)) if wanted[i].startswith("# ") and not wanted[i - 1].strip())
        prose = next(after_blank, len(wanted))
        told, wanted = wanted[prose:], wanted[:prose]
        while wanted and not wanted[-1].strip():
            wanted.pop()
        got = seen(home, command, repo)
        written += ["$ " + command.replace("\n", "\n> "), *map(placed, got), "", *told]
        if writing:
            continue
        same = len(got) == len(wanted) and all(
            re.fullmatch(pattern(want), " ".join(line.split())) for want, line in zip(wanted, got, strict=True)
        )
        assert same, "\n".join([f"$ {command}", *got, "--- but this was written down:", *wanted, home.log()[-500:]])
    if writing:
        file.write_text("\n".join(written).rstrip() + "\n")
