"""A repository's own settings, as the person sees them: refused when they are wrong, told when they are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.home import Home

BROKEN = {
    "version: 1\nhooks: {setup: [make, deps]}\n": (":2:", "hooks.setup"),
    "version: [1\n": (":2:", ""),
    "version: 1\nhooks: {setop: {run: make}}\n": (":2:9:", "hooks.setop"),
}
HOOK = "version: 1\nhooks: {setup: {run: 'touch made-by-hook'}}\ncommands: {own: {argv: [/bin/true]}}\n"
SETTINGS = "version: 1\ndispatch: {default_agent: 'command:work'}\ncommands: {work: {argv: [/bin/true]}}\n"


def with_settings(home: Home, text: str) -> Path:
    home.core.mkdir(mode=0o700)
    (home.core / "agents.yaml").write_text(SETTINGS)
    return home.repo(files={".core/agents.yaml": text, "a": "a\n"})


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_wrong_is_neither_trusted_nor_passed_over(home: Home, text: str) -> None:
    place, key = BROKEN[text]
    repo = with_settings(home, text)
    for argv in (["repo", "trust", "--yes"], ["repo", "trust"], ["dispatch", "x"], ["dispatch", "x", "--dry-run"]):
        done = home.run(*argv, cwd=repo, code=None)
        assert done.code == 2, done
        assert f"error[E7001]: {repo}/.core/agents.yaml{place}" in done.err
        assert key in done.err
    looked = home.run("doctor", cwd=repo, code=1).out
    assert "✗ repository" in looked
    assert home.json("status")["workspaces"] == []
    assert home.json("repo", "list") == []
    if "setop" in text:
        assert "did you mean `setup`?" in done.err


def test_what_is_left_out_is_told_until_a_person_trusts_it(home: Home) -> None:
    repo = with_settings(home, HOOK)
    assert "are valid" in home.run("doctor", cwd=repo, code=None).out
    told = home.json("dispatch", "x", "-n", "one", "--expect", "none", cwd=repo)
    (note,) = told["notes"]
    assert "setup hook and command own" in note
    assert "core-agent repo trust local/repo" in note
    home.run("watch", "one", "--once", "--timeout", "20s", code=None)
    assert note in home.json("why", "one")["facts"]
    (warning,) = home.json("status", "--all")["warnings"]
    assert warning.startswith("one was prepared without the setup hook and command own of local/repo")
    refused = home.run("dispatch", "x", "-a", "command:own", cwd=repo, code=None)
    assert "E8002" in refused.err
    assert "core-agent repo trust" in refused.err
    trusted = home.run("repo", "trust", "local/repo", "--yes").out
    assert "✓ trusted as they are now (" in trusted
    assert home.json("dispatch", "x", "-n", "two", "-a", "command:own", cwd=repo)["notes"] == []


def test_where_nothing_is_brought_nothing_is_trusted(home: Home) -> None:
    repo = home.repo()
    done = home.run("repo", "trust", "--yes", cwd=repo).out
    assert "nothing to trust" in done
    assert "✓" not in done
