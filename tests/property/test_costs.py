"""The cost of several turns is right whatever their order: known parts add up, and what is not known is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent.dispatch.launch import add_cost
from coreagent.models.agent import Cost, Usage

Turn = tuple[Cost, Usage]
COSTS = st.one_of(
    st.just(Cost()),
    st.builds(Cost, usd=st.integers(0, 1000).map(float), source=st.sampled_from(["reported", "priced", "unknown"])),
)
TURNS = st.lists(st.tuples(COSTS, st.builds(Usage, input=st.integers(0, 3))), max_size=6)


def _sum(turns: list[Turn]) -> Cost:
    cost, spent = Cost(), Usage()
    for now, used in turns:
        cost, spent = add_cost(cost, spent, now, used), spent.plus(used)
    return cost


@given(TURNS)
def test_the_sum_of_turns_is_what_is_known_of_them(turns: list[Turn]) -> None:
    total = _sum(turns)
    told = [cost for cost, used in turns if used.total or cost.usd is not None]
    known = [cost.usd for cost in told if cost.usd is not None]
    assert total.usd == (sum(known) if known else None)
    sources = {cost.source for cost in told}
    if not told or "unknown" in sources:
        assert total.source == "unknown"
    else:
        assert total.source == ("priced" if "priced" in sources else "reported")


@given(TURNS, st.randoms(use_true_random=False))
def test_the_order_of_turns_does_not_matter(turns: list[Turn], random: object) -> None:
    mixed = list(turns)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert _sum(mixed) == _sum(turns)


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_turn_leaves_a_lower_bound(killed: int) -> None:
    turns = [(Cost(usd=1.0, source="reported"), Usage(input=100))] * 2
    turns.insert(killed, (Cost(), Usage(input=50)))
    assert _sum(turns) == Cost(usd=2.0, source="unknown")
