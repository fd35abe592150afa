"""An idle daemon gives back what its start and its last work took, once, and nothing that is only in memory."""

from __future__ import annotations

import asyncio
import ctypes
import sys

import pytest

from coreagent import process
from coreagent.daemon import thrift

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are counted in /proc")


@linux
def test_code_that_only_the_start_needed_is_given_back_and_still_works() -> None:
    import duckdb

    duckdb.connect(":memory:").execute("SELECT sum(i) FROM range(1000) t(i)").fetchall()
    before = process.rss_bytes()
    thrift.give_back()
    assert process.rss_bytes() < before - (10 << 20)
    assert duckdb.connect(":memory:").execute("SELECT sum(i) FROM range(10) t(i)").fetchall() == [(45,)]


@linux
def test_only_code_without_a_changed_page_is_forgotten() -> None:
    found = list(thrift.clean_code())
    assert found
    data = ctypes.addressof(ctypes.create_string_buffer(64))
    assert not any(start <= data < start + length for start, length in found)
    perms = {}
    with open("/proc/self/maps") as file:
        for line in file:
            span, mode, *_ = line.split()
            perms[int(span.partition("-")[0], 16)] = mode
    assert {perms[start] for start, _ in found} == {"r-xp"}


def test_many_commands_in_a_row_are_followed_by_one_giving_back(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[None] = []
    monkeypatch.setattr(thrift.gc, "freeze", lambda: None)

    async def stir() -> None:
        given = asyncio.Event()
        loop = asyncio.get_running_loop()

        def give() -> None:
            times.append(None)
            loop.call_soon_threadsafe(given.set)

        monkeypatch.setattr(thrift, "give_back", give)
        spare = thrift.Thrift(quiet_s=0.05)
        for _ in range(20):
            spare.stirred()
        async with asyncio.timeout(5):
            await given.wait()
        spare.stirred()
        spare.close()

    asyncio.run(stir())
    assert len(times) == 1
