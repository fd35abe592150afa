"""The documentation says what the code says, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLI = (ROOT / "docs" / "cli.md").read_text("utf-8")


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate-docs", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_lead_to_files() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_every_command_that_prints_json_has_its_shape_told() -> None:
    page = (ROOT / "docs" / "json.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.partition("## Shapes")[0].splitlines() if line.startswith("| `")]
    told = {row[0].strip("| `"): row[2] for row in rows}
    commands = re.findall(r"^## `core-agent ([a-z ]+)`\n(.*?)(?=^## |\Z)", CLI, re.MULTILINE | re.DOTALL)
    assert [name for name, text in commands if "`--json`" in text and name not in told] == []
    shapes = {shape for row in told.values() for shape in re.findall(r"`(?:list\[)?([A-Z]\w+)", row)}
    assert len(shapes) > 20
    assert [shape for shape in sorted(shapes) if f"### {shape}\n" not in page] == []


def test_commands_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    day = readme.partition("## The ten commands of a day")[2].split("```")[1]
    used = set(re.findall(r"^core-agent ([a-z]+)", day, re.MULTILINE))
    assert len(used) == 10
    assert not [name for name in sorted(used) if f"## `core-agent {name}`" not in CLI]


def test_the_readme_opens_with_the_two_lines_that_ci_knows() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.index("scripts/setup demo") < readme.index("scripts/setup test") < readme.index("## ")
    assert "python3 scripts/setup test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_map_names_every_room() -> None:
    source = ROOT / "src" / "coreagent"
    rooms = [path.name + "/" for path in source.iterdir() if any(path.glob("[a-z]*.py")) or any(path.glob("*/[a-z]*"))]
    rooms += [path.stem for path in source.glob("*.py") if path.name != "__init__.py"]
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert not [room for room in sorted(rooms) if f"`{room}`" not in text and room != "__pycache__/"]


def test_the_tests_that_pages_name_exist() -> None:
    missing = []
    for page in PAGES:
        file = ""
        for named, test in re.findall(r"`((?:tests/[\w/]+/)?(?:test_\w+\.py)?)(?:::(\w+))?`", page.read_text("utf-8")):
            if not named and not test:
                continue
            file = named or file
            path = ROOT / file if "/" in file else ROOT / "tests" / "cli" / file
            if not path.is_file() or (test and f"def {test}(" not in path.read_text("utf-8")):
                missing.append(f"{page.name}: {file}::{test}")
    assert not missing
