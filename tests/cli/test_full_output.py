"""A standard output that cannot be written is an error that is told, in the daemon's commands and in our own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.home import COMMAND, Home

LINE = "error: cannot write to standard output: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["status", "status --json", "--help", "status --help", "version", "version --json"])
def test_a_full_disk_is_told(home: Home, words: str) -> None:
    with open("/dev/full", "wb") as full:
        client = home.start(*words.split(), stdout=full)
        _, err = client.communicate(timeout=60)
    assert (client.returncode, err.decode()) == (1, LINE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_others_printed_is_told_too(home: Home) -> None:
    code = (
        "import sys; from coreagent.cli import run; print('behind our back');"
        "run.run = lambda *_: 0; sys.exit(run.in_process(['version']))"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], env=home.env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, LINE)


@pytest.mark.parametrize("words", ["status", "version"])
def test_a_closed_output_is_nobodys_business(home: Home, words: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" {words} >&-', os.fspath(COMMAND)],
        env=home.env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
