"""Fixtures for every room of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.home import Home


@pytest.fixture
def home() -> Iterator[Home]:
    """A hermetic home that must be left as clean as it was found."""
    made = Home()
    try:
        yield made
    finally:
        made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly which agents' CLIs were missing: a skip that nobody sees looks like a proof."""
    told = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []) if report.longrepr}
    for line in sorted(line.removeprefix("Skipped: ") for line in told if "CLI is missing" in line):
        terminalreporter.write_line(f"NOT TESTED: {line}", red=True, bold=True)
