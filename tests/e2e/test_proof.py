"""What a person with real CLIs, and without a key, can try: `doctor --offline`, and the demo with one of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support import codex, real
from tests.support.claude import KEY
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


def put(home: Home, *names: str) -> Home:
    """The home with these CLIs on its PATH."""
    home.env["PATH"] = os.pathsep.join([*(str(Path(real.require(name)).parent) for name in names), home.env["PATH"]])
    return home


@pytest.fixture
def home_with_claude(home: Home) -> Home:
    return put(home, "claude")


def test_doctor_proves_every_real_cli_without_a_key_and_leaves_nothing(home: Home) -> None:
    put(home, *real.PACKAGES)
    # What a person's shell has is no part of it.
    home.env |= {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "XDG_DATA_HOME": "/dev/null"}
    report = home.json("doctor", "--offline", timeout=110)
    assert report["ok"] is True, report
    proofs = {proof["agent"]: proof for proof in report["proofs"]}
    assert proofs.keys() == real.PACKAGES.keys()
    for name, proof in proofs.items():
        assert (proof["state"], proof["version"]) == ("proved", real.pinned_version(name))
        # Two answers for each task, and one that its key is refused, which some ask again.
        assert proof["tokens"] >= 4 * 1050 and proof["requests"] >= 5
        assert 0 < proof["error_s"] < 60
    assert all("not logged in" in check["message"] for check in report["checks"] if check["name"] == "claude")
    # Neither a daemon of the person's own, nor a place of the proof's, nor anything of a CLI's in their home.
    assert list(home.user.iterdir()) == []
    assert home.processes() == {}


def test_one_over_the_agent_client_protocol(home: Home) -> None:
    put(home, "opencode")
    report = home.json("doctor", "--offline", "--agent", "acp:opencode", timeout=110)
    assert [(proof["agent"], proof["state"]) for proof in report["proofs"]] == [("acp:opencode", "proved")]


def test_the_demo_with_claude_says_what_is_missing_and_leaves_nothing(home_with_claude: Home) -> None:
    home = home_with_claude
    refused = home.run("demo", "--agent", "claude", code=None)
    assert refused.code != 0
    assert "claude is not logged in" in refused.err
    assert "ANTHROPIC_API_KEY" in refused.err
    assert list(home.tmp.iterdir()) == []
    told = " ".join(home.run("demo", "--clean").out.split())  # the lines are wrapped
    assert "because no agent CLI is logged in (claude" in told


def test_the_demo_with_claude_goes_the_whole_way(home_with_claude: Home) -> None:
    home = home_with_claude
    with ModelServer([MENDS]) as server:
        home.env |= {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": KEY}
        told = home.json("demo", "--agent", "claude", "--yes")
    assert (told["agent"], told["state"], told["files"]) == ("claude", "completed", 1)
    assert (told["test_before"], told["test_after"], told["accepted"]) == (False, True, True)
    assert _FIX in (Path(told["repository"]) / "basket.py").read_text()


def test_the_demo_with_codex_which_is_ready_and_so_works_without_being_asked_for(home: Home) -> None:
    put(home, "codex")
    command = "sed -i 's/sum(price/sum(quantity * price/' basket.py"
    mends = Script("test_basket.py", [Step("I mend.", [codex.shell(command)]), Step("Done.")])
    with ModelServer([mends]) as server:
        home.env |= codex.environment(server)
        told = home.json("demo", "--yes", "--clean")
    assert (told["agent"], told["state"], told["files"]) == ("codex", "completed", 1)
    assert (told["test_before"], told["test_after"], told["accepted"]) == (False, True, True)
