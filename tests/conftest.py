"""Fixtures for every room of tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.home import Home

# What the person who runs the tests told their own git is no part of a test.
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

# A shell without job control starts what it sends to the background deaf to Ctrl-C, and deafness is inherited: the
# commands that the tests start and interrupt must not be.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
