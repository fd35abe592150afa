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
