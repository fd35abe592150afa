"""What a person with the real claude CLI, and without a key, can try: `doctor --offline`, and the demo with claude."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.claude import KEY, require_claude
from tests.support.home import Home

from coreagent.cli.demo import _BUG, _FIX
from coreagent.modelserver import ModelServer, Script, Step, Tool

pytestmark = pytest.mark.real_cli

FILE = {"file_path": "{cwd}/basket.py"}
MENDS = Script(
    "test_basket.py",
    [
        Step("I read.", [Tool("Read", FILE)]),
        Step("I mend.", [Tool("Edit", {**FILE, "old_string": _BUG, "new_string": _FIX})]),
        Step("Done."),
    ],
)


@pytest.fixture
def home_with_claude(home: Home) -> Home:
    home.env["PATH"] = f"{Path(require_claude()).parent}:{home.env['PATH']}"
    return home


def test_doctor_proves_the_real_cli_without_a_key_and_leaves_nothing(home_with_claude: Home) -> None:
    home = home_with_claude
    report = home.json("doctor", "--offline", timeout=120)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["ok"] is True
    assert "not logged in" in checks["claude"]["message"]
    proof = [check["message"] for check in report["checks"] if check["name"] == "offline"]
    assert proof == [
        "claude worked in a workspace of its own, 2100 tokens",
        "its change was harvested, checked and accepted",
    ]
    assert checks["model"] == {"name": "model", "state": "ok", "message": "2 requests answered here", "hint": ""}
    # Neither a daemon of the person's own, nor a place of the proof's.
    assert not home.core.exists()
    assert home.processes() == {}


def test_the_demo_with_claude_says_what_is_missing_and_leaves_nothing(home_with_claude: Home) -> None:
    home = home_with_claude
    refused = home.run("demo", "--agent", "claude", code=None)
    assert refused.code != 0
    assert "claude is not logged in" in refused.err
    assert "ANTHROPIC_API_KEY" in refused.err
    assert list(home.tmp.iterdir()) == []
    assert "because no agent CLI is logged in" in home.run("demo", "--clean").out


def test_the_demo_with_claude_goes_the_whole_way(home_with_claude: Home) -> None:
    home = home_with_claude
    with ModelServer([MENDS]) as server:
        home.env |= {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": KEY}
        told = home.json("demo", "--agent", "claude", "--yes")
    assert (told["agent"], told["state"], told["files"]) == ("claude", "completed", 1)
    assert (told["test_before"], told["test_after"], told["accepted"]) == (False, True, True)
    assert _FIX in (Path(told["repository"]) / "basket.py").read_text()
