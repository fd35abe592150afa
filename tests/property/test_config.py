"""Whatever stands in a settings file: it is either taken or refused with a place that exists in it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coreagent.config import Settings, load_repo, load_text, resolve_agent
from coreagent.errors import CoreAgentError
from coreagent.poolnames import pool_of

PIECES = st.sampled_from(
    [
        "dispatch", "concurrency", "claude", "agents", "runner", "env", "allow", "timeout_s", "version", ":", ": ",
        "\n", "\n  ", "\n    ", "- ", "[", "]", "{", "}", ",", "1", "-1", "x", "&a", "*a", "!!str", "'", '"', "#",
        "|", ">", "\t", "? ", "<<", "~", "\x00", "é", "\ud800", "---", "...", "%",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=60)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_text_is_taken_or_refused_with_a_place(text: str) -> None:
    for load in (load_text, load_repo):
        try:
            load(text)
        except CoreAgentError as error:
            assert error.slug == "settings_invalid"
            assert 1 <= error.data["line"] <= len(text.splitlines()) + 2
            assert error.data["column"] >= 1


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_agent_string_has_an_answer(text: str, model: str) -> None:
    for asked in (text, f"claude:{model}", f"{text}:{model}"):
        try:
            chosen = resolve_agent(asked, Settings())
        except CoreAgentError as error:
            assert error.slug == "unknown_agent"
        else:
            assert chosen.runner and pool_of(chosen.runner, chosen.model, Settings())
