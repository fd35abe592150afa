"""The bench itself: turns are taken, ratios are of pairs, fixtures are the same bytes every time, no time fails it."""

from __future__ import annotations

import json

import pytest
from bench import __main__ as bench
from bench import fixture, measure
from bench.measure import Pairs, Row


def test_turns_are_taken_and_who_begins_changes():
    said = []

    def take(name, seconds):
        said.append(name)
        return seconds

    pairs = measure.interleave(
        3, lambda: take("ours", 2.0), lambda: take("floor", 1.0), between=lambda: said.append("|")
    )

    assert said == ["ours", "floor", "|", "floor", "ours", "|", "ours", "floor", "|"]
    assert pairs == Pairs([2.0] * 3, [1.0] * 3)


def test_ratio_is_the_median_of_the_pairs_ratios():
    # The machine was busy during the third pair: both sides took ten times as long.
    pairs = Pairs([1.2, 1.3, 11.0], [1.0, 1.0, 10.0])

    assert pairs.ratio == pytest.approx(1.2)
    assert pairs.spread[0] <= pairs.ratio <= pairs.spread[1]


def test_table_says_what_is_over_its_aim():
    pairs = Pairs([0.2] * 9, [0.1] * 9)
    rows = [Row.of_ratio("twice", 2.0, "a floor", pairs), Row.of_ratio("too slow", 1.5, "a floor", pairs)]

    head, good, bad = measure.lines(rows)

    assert "aim" in head
    assert "over" not in good
    assert "over" in bad
    assert "200.0 ms / 100.0 ms = 2.00  a floor" in bad


def test_figures_are_written_as_json(tmp_path):
    target = tmp_path / "new" / "figures.json"

    measure.write(target, [Row("idle", 0.01, "% CPU", 0.05)], {"version": "1"})

    body = json.loads(target.read_text())
    assert body["version"] == "1"
    assert body["rows"][0] | {"name": "idle", "value": 0.01, "met": True} == body["rows"][0]


def test_fixture_is_the_same_commit_everywhere(tmp_path):
    commits = set()
    for name in ("one", "two"):
        fixture.make(tmp_path / name, 30)
        commits.add(fixture.git("rev-parse", "HEAD", cwd=tmp_path / name))
        assert fixture.git("status", "--porcelain", cwd=tmp_path / name) == ""

    assert len(commits) == 1


def test_slow_row_fails_nothing_and_broken_one_does(tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("no such thing")

    slow = Row("slow", 99.0, "x", 1.0)
    monkeypatch.setattr(bench, "rows", lambda pairs, quick: {"slow": lambda: slow, "broken": broken})
    figures = str(tmp_path / "figures.json")

    assert bench.main(["--only", "slow", "--json", figures]) == 0
    assert bench.main(["--json", figures]) == 1
    assert json.loads((tmp_path / "figures.json").read_text())["failed"] == ["broken"]
    assert bench.main(["--only", "nothing"]) == 2
    assert "slow, broken" in capsys.readouterr().err


def test_nine_pairs_at_least():
    assert measure.PAIRS_MIN >= 9
    assert set(bench.rows(measure.PAIRS_MIN, quick=False)) == set(bench.rows(3, quick=True))
