"""A repository's own settings: read from a commit, and what runs commands applied only as a person saw it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import make_user, sh, write
from tests.unit.test_claim import NOW

from coreagent.config import Settings
from coreagent.dispatch import trust
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Repo

OWN = """version: 1
dispatch: {default_template: review}
harvest: {max_files: 7}
hooks: {setup: {run: make deps}}
commands: {mine: {argv: [/bin/true]}}
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return make_user(tmp_path / "user")


def repo(top: Path, trusted: str = "") -> Repo:
    return Repo(org="o", name="n", path=str(top), trusted_hash=trusted, added_at=NOW)


def commit(top: Path, **files: str) -> str:
    for path, text in files.items():
        write(top, path, text)
    sh(top, "add", "-A")
    sh(top, "commit", "-q", "-m", "settings")
    return sh(top, "rev-parse", "HEAD")


def test_nothing_is_offered_where_there_is_nothing(top: Path) -> None:
    assert trust.offered(repo(top)) == trust.Offer("", {})
    user = Settings()
    applied = trust.apply(user, repo(top), "HEAD")
    assert (applied.settings, applied.trusted, applied.agent_settings) == (user, False, "")
    assert trust.apply(user, repo(top), "HEAD", at_head=True).settings is user


def test_without_trust_only_what_runs_nothing_is_applied(top: Path) -> None:
    sha = commit(top, **{trust.FILE: OWN, trust.AGENT_FILE: '{"hooks": {}}'})
    applied = trust.apply(Settings(), repo(top), sha)
    assert not applied.trusted
    assert applied.settings.dispatch.default_template == "review"
    assert applied.settings.harvest.max_files == 7
    assert not applied.settings.hooks.setup.run
    assert applied.settings.commands == {}
    assert applied.agent_settings == ""


def test_trust_is_of_exactly_the_text_of_the_commit(top: Path) -> None:
    first = commit(top, **{trust.FILE: OWN})
    trusted = repo(top, trust.offered(repo(top)).hash)
    applied = trust.apply(Settings(), trusted, first)
    assert applied.trusted
    assert applied.settings.hooks.setup.run == "make deps"
    assert list(applied.settings.commands) == ["mine"]
    # What lies in the work tree, or on a later commit, is another text.
    write(top, trust.FILE, OWN.replace("make deps", "make evil"))
    assert trust.apply(Settings(), trusted, first).settings.hooks.setup.run == "make deps"
    later = commit(top, **{trust.FILE: OWN.replace("make deps", "make evil")})
    assert not trust.apply(Settings(), trusted, later).settings.hooks.setup.run
    assert trust.apply(Settings(), trusted, first).trusted


def test_the_agents_own_settings_are_part_of_what_is_trusted(top: Path) -> None:
    commit(top, **{trust.FILE: OWN})
    before = trust.offered(repo(top))
    sha = commit(top, **{trust.AGENT_FILE: '{"env": {"A": "b"}}'})
    after = trust.offered(repo(top))
    assert before.hash != after.hash
    assert trust.apply(Settings(), repo(top, before.hash), sha).agent_settings == ""
    assert trust.apply(Settings(), repo(top, after.hash), sha).agent_settings == '{"env": {"A": "b"}}'


def test_the_users_commands_stay_beside_the_repositorys(top: Path) -> None:
    sha = commit(top, **{trust.FILE: OWN})
    user = Settings.model_validate({"version": 1, "commands": {"own": {"argv": ["/bin/sh"]}}})
    applied = trust.apply(user, repo(top, trust.offered(repo(top)).hash), sha)
    assert set(applied.settings.commands) == {"own", "mine"}
    assert set(user.commands) == {"own"}


@pytest.mark.parametrize("text", ["hooks: [", "version: 9\n", "no_such_key: 1\n", "\x00"])
def test_what_cannot_be_read_is_not_trusted_and_harms_nobody(top: Path, text: str) -> None:
    sha = commit(top, **{trust.FILE: text})
    user = Settings()
    offer = trust.offered(repo(top))
    applied = trust.apply(user, repo(top, offer.hash), sha)
    assert (applied.settings, applied.trusted) == (user, False)
    # It was trusted, or could hold what runs commands: to go on without it is not for us to decide.
    assert applied.problem is not None
    assert (applied.problem.slug, f"{top}/{trust.FILE}:" in applied.problem.message) == ("settings_invalid", True)
    with pytest.raises(CoreAgentError, match=r"agents\.yaml:\d"):
        trust.check(offer, repo(top))


def test_a_mistake_in_what_runs_nothing_is_told_and_passed_over(top: Path) -> None:
    sha = commit(top, **{trust.FILE: "version: 1\nharvest: {max_filez: 7}\n"})
    applied = trust.apply(Settings(), repo(top), sha)
    assert applied.problem is None
    assert "agents.yaml:2:11: harvest.max_filez" in applied.skipped
    # What was trusted once and is wrong now is another matter.
    again = trust.apply(Settings(), repo(top, "abc"), sha).problem
    assert again is not None
    assert (again.hint, sha[:10] in again.cause) == ("did you mean `max_files`?", True)


def test_what_is_left_out_for_want_of_trust_is_told(top: Path) -> None:
    sha = commit(top, **{trust.FILE: OWN})
    applied = trust.apply(Settings(), repo(top), sha)
    assert applied.skipped.startswith("without the setup hook and command mine of o/n: its settings are not trusted; ")
    assert "core-agent repo trust o/n" in applied.skipped
    assert applied.commands_skipped == {"mine"}
    assert "changed since" in trust.apply(Settings(), repo(top, "abc"), sha).skipped
    assert not trust.apply(Settings(), repo(top, trust.offered(repo(top)).hash), sha).skipped


def test_the_agents_settings_must_be_json_to_be_trusted(top: Path) -> None:
    commit(top, **{trust.AGENT_FILE: "{,}"})
    with pytest.raises(CoreAgentError) as caught:
        trust.check(trust.offered(repo(top)), repo(top))
    assert f"{trust.AGENT_FILE}: " in caught.value.message


def test_a_repository_that_is_gone_or_has_no_such_commit(top: Path, tmp_path: Path) -> None:
    user = Settings()
    assert trust.apply(user, repo(top), "0" * 40).settings == user
    top.rename(tmp_path / "away")
    assert trust.apply(user, repo(top), "HEAD").settings == user
    with pytest.raises(CoreAgentError) as caught:
        trust.offered(repo(top))
    assert caught.value.slug == "repo_not_found"


def test_an_applied_is_good_until_the_settings_or_the_trust_change(top: Path) -> None:
    user = Settings()
    made = trust.apply(user, repo(top), "HEAD").made_from
    assert made == trust.depends_on(user, repo(top))
    assert made != trust.depends_on(user, repo(top, "abc"))
    assert made != trust.depends_on(Settings(), repo(top))


def test_only_what_was_shown_is_trusted_and_every_reply_says_whether_it_is_that(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        commit(room.repo, **{trust.FILE: OWN})
        shown = await room.ask("repo.trust")
        commit(room.repo, **{trust.FILE: OWN.replace("make deps", "make worse")})
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("repo.trust", apply=True, bypass=True, hash=shown.hash)
        assert (refused.value.slug, refused.value.hint) == (
            "settings_changed", "core-agent repo trust shows them as they are now",
        )  # fmt: skip
        assert await room.ask("repo.list") == []
        now = await room.ask("repo.trust")
        agreed = await room.ask("repo.trust", apply=True, hash=now.hash)
        assert (agreed.repo.trusted, agreed.repo.trust_stale) == (True, False)
        commit(room.repo, **{trust.FILE: OWN})
        told = [*await room.ask("repo.list"), await room.ask("repo.add"), (await room.ask("repo.trust")).repo]
        assert [(row.trusted, row.trust_stale) for row in told] == [(True, True)] * 3
        room.repo.rename(tmp_path / "moved")
        assert [row.trust_stale for row in await room.ask("repo.list")] == [False]
        assert (await room.ask("repo.remove", repo="local/project")).repo.trusted

    in_room(tmp_path, body)
