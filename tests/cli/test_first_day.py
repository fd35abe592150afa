"""A first day on a machine without any agent's CLI: what `init` chooses, and what the README's commands say then."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.home import Home


def stub(home: Home, name: str, version: str) -> Path:
    program = home.dir / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    home.env["PATH"] = f"{program.parent}:{home.env['PATH']}"
    return program


THREAD = "01a1fcbd-872f-7443-b15c-d1d5eeb2c778"
MENDS = f"""\
#!/bin/sh
[ "$1" = --version ] && {{ echo "codex-cli 0.169.0"; exit; }}
cat > /dev/null
echo '{{"type":"thread.started","thread_id":"{THREAD}"}}'
[ -e basket.py ] && sed -i.old 's/sum(price/sum(quantity * price/' basket.py && rm basket.py.old || echo x > other.txt
echo '{{"type":"turn.completed","usage":{{"input_tokens":10,"output_tokens":1}}}}'
"""


def fake_codex(home: Home, script: str = MENDS) -> Path:
    """A codex that mends the demo's basket, without a model."""
    program = stub(home, "codex", "")
    program.write_text(script)
    return program


def test_a_demo_whose_test_still_fails_takes_nothing(home: Home) -> None:
    fake_codex(home, MENDS.replace("sum(quantity * price/", "sum(price + quantity/"))
    env = {"OPENAI_API_KEY": "k", "CODEX_API_KEY": "k"}
    words = ("demo", "--agent", "codex", "--yes", "--clean")
    told = home.json(*words, env=env, code=1)
    assert (told["state"], told["test_after"], told["accepted"], told["forgotten"]) == ("completed", False, False, True)
    done = home.run(*words, env=env, code=1)
    assert "Its test still fails, so it is not taken" in done.out
    assert "whole way" not in done.out


@pytest.mark.parametrize("script", ["exit 0", "rm test_basket.py"])
def test_a_demo_that_changed_nothing_or_lost_its_test_did_not_end_well(home: Home, script: str) -> None:
    home.core.mkdir(mode=0o700, exist_ok=True)
    (home.core / "agents.yaml").write_text(f"commands: {{idle: {{argv: [/bin/sh, -c, {script!r}]}}}}\n")
    told = home.json("demo", "--agent", "command:idle", "--yes", "--clean", code=1)
    assert (told["test_after"] is not True, told["accepted"]) == (True, False)


def test_without_an_agent_the_first_dispatch_says_what_to_install(home: Home) -> None:
    made = home.run("init")
    assert "no agent's CLI was found" in made.out
    assert "scripted" not in (home.core / "agents.yaml").read_text()
    repo = home.repo()
    refused = home.run("dispatch", "--name", "parser", "Accept ISO weeks in dates", cwd=repo, code=69).err
    assert "error[E4002]: the default agent is claude, and claude is not on the PATH" in refused
    assert "none of claude, " in refused
    assert "npm install -g @anthropic-ai/claude-code" in refused
    for words in (["status"], ["history"]):
        home.run(*words, cwd=repo)
    for verb in ("why", "logs", "diff", "resume", "accept", "reject"):
        done = home.run(verb, "parser", cwd=repo, code=None)
        assert "there is no workspace 'parser'" in done.err, done


def test_an_agent_that_is_ready_is_chosen_and_named(home: Home) -> None:
    stub(home, "claude", "2.1.328")
    stub(home, "codex", "codex-cli 9.0.0")
    env = {"OPENAI_API_KEY": "k", "CODEX_API_KEY": "k"}
    assert home.json("init", env=env)["default_agent"] == "codex"
    (home.core / "agents.yaml").write_text("version: 1\ndispatch: {default_agent: claude}\n")
    (home.dir / "bin" / "claude").unlink()
    refused = home.run("dispatch", "x", cwd=home.repo(), env=env, code=69).err
    assert "ready here: codex" in refused
    assert "--agent codex" in refused


def test_the_demo_is_played_by_the_first_agent_that_is_ready_and_says_so(home: Home) -> None:
    fake_codex(home)
    refused = home.run("demo", "--agent", "codex", code=None).err
    assert "codex is not logged in" in refused and "codex login" in refused
    assert "because no agent CLI is logged in (codex)" in home.run("demo", "--clean").out
    home.env["CODEX_API_KEY"] = "k"
    done = home.run("demo", "--clean", "--yes")
    assert "codex works, the first agent that is ready here (0.169.0)" in done.out
    told = home.json("demo", "--agent", "codex", "--yes", "--clean")
    assert (told["agent"], told["test_before"], told["test_after"], told["accepted"]) == ("codex", False, True, True)
    assert home.json("demo", "--agent", "scripted", "--yes", "--clean")["agent"] == "scripted"


def test_a_proof_names_who_is_not_there_and_who_does_not_what_it_should(home: Home) -> None:
    missing = home.json("doctor", "--offline", "--agent", "codex", code=1)
    assert [(proof["agent"], proof["state"]) for proof in missing["proofs"]] == [("codex", "not_installed")]
    assert "npm install" in missing["proofs"][0]["hint"]
    stub(home, "codex", "codex-cli 0.9.0")
    old = home.json("doctor", "--offline", "--agent", "codex", code=1)
    assert [proof["state"] for proof in old["proofs"]] == ["too_old"]
    stub(home, "copilot", "1.0")
    assert home.json("doctor", "--offline", "-a", "acp:copilot", code=1)["proofs"][0]["state"] == "unknown_way"
    fake_codex(home)
    failed = home.json("doctor", "--offline", "--agent", "codex", code=1)["proofs"][0]
    # It changes something, but asks no model, and so nothing of its session was seen.
    assert (failed["state"], failed["requests"]) == ("failed", 0)
    assert "codex 0.169.0" in failed["message"]
    unknown = home.run("doctor", "--offline", "--agent", "codx", code=1).out
    assert "'codx' cannot be proved" in unknown
    assert "goes with --offline" in home.run("doctor", "--agent", "codex", code=2).err
    assert home.processes() == {}
