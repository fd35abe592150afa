"""`--rounds N`: how often the random kills strike; 60 in CI, more by `task crash -- --rounds 1000`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=60, help="rounds of random kill -9")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds"))
