"""agents.yaml through the installed command: a bad one stops nothing that runs and starts nothing on a guess."""

from __future__ import annotations

import duckdb
from tests.support.home import Home
from tests.support.world import World


def test_a_bad_first_file(home: Home) -> None:
    world = World(home)
    settings = home.core / "agents.yaml"
    good = settings.read_text()
    settings.write_text(good + "dispach: {}\n")
    report = home.json("status")
    assert any("dispach" in warning for warning in report["warnings"]), report
    refused = home.run("dispatch", "task", "--json", cwd=world.repo, code=2).json()["error"]
    assert refused["slug"] == "settings_invalid"
    assert "dispatch" in refused["hint"]
    assert ":" in refused["message"] + refused["cause"]
    assert world.rows() == {}
    settings.write_text(good)
    assert world.dispatch("task") is not None
    assert [row["state"] for row in world.settle().values()] == ["completed"]


def test_a_first_file_that_is_bad_is_told_before_what_hangs_on_it(home: Home) -> None:
    repo = home.repo()
    home.run("daemon", "start")  # over a home without settings: its defaults are nobody's wish
    text = "version: 1\ncommands: {ok: {argv: [/bin/true]}}\nrunner: {claude: {permissions: bypass, model: opus}}\n"
    (home.core / "agents.yaml").write_text(text)
    refused = home.run("dispatch", "x", "-a", "command:ok", cwd=repo, code=2)
    assert f"error[E7001]: {home.core}/agents.yaml:3:1: runner" in refused.err
    assert "did you mean `runners`?" in refused.err
    shown = home.run("status", env={"COLUMNS": "60"}).out
    assert "…" not in shown
    assert "no such key; did you mean `runners`?" in " ".join(shown.split())
    (home.core / "agents.yaml").write_text(text.replace("runner:", "runners:"))
    home.run("dispatch", "x", "-a", "command:ok", cwd=repo)


def test_a_file_that_turns_bad_leaves_the_last_good_one_in_force(home: Home) -> None:
    world = World(home, limit=2)
    assert world.dispatch("one") is not None
    world.settle()
    settings = home.core / "agents.yaml"
    settings.write_text("version: 1\nconcurrency: {command: many}\n")
    for _ in range(2):
        reply = world.dispatch("two")
        assert reply is not None
        assert any("last good settings" in note for note in reply["notes"]), reply
        row = world.settle()[reply["dispatch_id"]]
        assert row["state"] == "completed"
        home.kill_daemon()
    assert {p["pool"]: p["limit"] for p in home.json("status")["pools"]} == {"command": 2}


def test_the_contract_s_groups_stand_in_the_file(home: Home) -> None:
    world = World(home, limit=1)
    home.run("queue", "freeze")
    reply = world.dispatch("one")
    assert reply is not None
    home.stop()
    with duckdb.connect(str(home.core / "db.duckdb"), read_only=True) as store:
        assert store.execute("SELECT key FROM queue").fetchall() == [(f"local/repo/{reply['branch']}",)]
        assert store.execute('SELECT key, running, "limit" FROM concurrency').fetchall() == [("command", 0, 1)]
        assert store.execute("SELECT key, status FROM registry").fetchall() == [(reply["workspace"], "queued")]
    assert home.json("queue", "list")["frozen"] is True
