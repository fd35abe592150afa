"""Which model and pool an agent is of, and pools that nobody is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreagent import config
from coreagent.config import load_text
from coreagent.errors import CoreAgentError
from coreagent.poolnames import model_of, pool_of

SETTINGS = load_text(
    "runners: {claude: {model: opus}, gemini: {model: flash}}\n"
    "acp: {mine: {argv: [x], model: big}, gemini2: {argv: [y]}}\n"
    "concurrency: {codex-gpt-5.4: 1, claude-opus: 1}\n"
)


@pytest.mark.parametrize(
    ("runner", "asked", "own", "model", "pool"),
    [
        ("claude", "", "", "opus", "claude-opus"),
        ("claude", "haiku", "sonnet", "haiku", "claude"),
        ("claude", "", "sonnet", "opus", "claude-opus"),
        ("codex", "", "", "gpt-5.4", "codex-gpt-5.4"),
        ("codex", "", "gpt-6", "gpt-6", "codex"),
        ("gemini", "", "", "flash", "gemini"),
        ("opencode", "", "zen/x", "zen/x", "opencode"),
        ("command", "tidy", "", "tidy", "command"),
        ("scripted", "", "", "", "scripted"),
        ("acp", "mine", "", "mine:big", "acp-mine"),
        ("acp", "mine:small", "", "mine:small", "acp-mine"),
        ("acp", "gemini", "", "gemini:flash", "acp-gemini"),
        ("acp", "gemini2", "", "gemini2", "acp-gemini2"),
        ("acp", "codex", "", "codex", "acp-codex"),
    ],
)
def test_what_is_counted_is_what_runs(runner: str, asked: str, own: str, model: str, pool: str) -> None:
    assert model_of(runner, asked, SETTINGS, own) == model
    assert pool_of(runner, model, SETTINGS) == pool


def test_gemini_is_never_left_to_choose_its_model() -> None:
    assert model_of("gemini", "", load_text("")) == "pro"
    assert model_of("acp", "gemini", load_text("")) == "gemini:pro"


@pytest.mark.parametrize("key", ["totl", "Total", "totals", "toal", "ttoal"])
def test_a_typo_of_total_is_no_cap_of_a_model(key: str) -> None:
    with pytest.raises(CoreAgentError) as caught:
        load_text(f"concurrency:\n  scripted: {{{key}: 3, opus: 1}}\n")
    assert "did you mean `total`?" in caught.value.hint
    assert (caught.value.data["line"], caught.value.data["key"]) == (2, f"concurrency.scripted.{key}")


def doubts(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "agents.yaml").write_text(text)
    loaded = config.load(str(tmp_path))
    assert loaded.problems == []
    return loaded.doubts


def test_a_pool_that_nobody_is_in_is_doubted(tmp_path: Path) -> None:
    said = doubts(tmp_path, "concurrency: {nosuchpool: 3, cladue: 1}\nrates: {acp-gemni: {}}\n")
    assert [line.partition(": ")[2].partition(": ")[0] for line in said] == [
        "concurrency.nosuchpool", "concurrency.cladue", "rates.acp-gemni",
    ]  # fmt: skip
    assert "did you mean claude?" in said[1] and "did you mean acp-gemini?" in said[2]


def test_a_pool_that_somebody_may_be_in_is_not(tmp_path: Path) -> None:
    names = "claude codex-spark codex-sprak gemini-3-pro command command-anything acp acp-mine acp-gemini opus sonnet"
    names += " spark gpt-5.4 scripted-opus opencode fast-one"
    pools = ", ".join(f"{name}: 1" for name in names.split())
    more = "acp: {mine: {argv: [x]}}\nagents: {quick: {runner: codex, model: gpt-5.3-codex-spark}}\n"
    more += "runners: {opencode: {model: zen/fast-one}}\n"
    assert doubts(tmp_path, f"concurrency: {{{pools}}}\n{more}") == []
