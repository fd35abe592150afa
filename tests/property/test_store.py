"""Whatever is committed in whatever groups, the file holds exactly what a dictionary would."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from coreagent.models.agent import Reason
from coreagent.models.dispatch import Dispatch, Event, Options, State
from coreagent.store.change import Change, SaveDispatch, SaveEvent, SetControl
from coreagent.store.store import Store

WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(st.booleans() | st.integers(-(2**40), 2**40) | WORDS, lambda kids: st.lists(kids, max_size=3))
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))

DISPATCHES = st.builds(
    Dispatch,
    id=st.sampled_from([f"01J{i:023d}" for i in range(9)]),
    org=st.just("o"), repo=st.just("r"), name=WORDS, repo_path=WORDS, task=WORDS, agent=WORDS, runner=WORDS, pool=WORDS,
    state=st.sampled_from(State), reason=st.none() | st.sampled_from(Reason), priority=st.integers(-(2**62), 2**62),
    detail=WORDS, question=WORDS, waiting_until=st.none() | TIMES, denied_tools=st.lists(WORDS, max_size=3),
    options=st.builds(Options, variables=st.dictionaries(WORDS, WORDS, max_size=3),
                      issue=st.none() | st.integers(0, 9)),
    created_at=TIMES, queued_at=TIMES, changed_at=TIMES,
)  # fmt: skip
CHANGES = st.one_of(
    st.builds(SaveDispatch, DISPATCHES),
    st.builds(SetControl, st.sampled_from("abc"), st.none() | JSON),
    st.builds(SaveEvent, st.builds(Event, at=TIMES, name=WORDS, data=st.dictionaries(WORDS, JSON, max_size=2))),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.lists(CHANGES, max_size=6), max_size=6), max_size=3))
def test_the_file_is_a_dictionary(waves: list[list[list[Change]]]) -> None:
    dispatches: dict[str, Dispatch] = {}
    controls: dict[str, object] = {}
    events: list[Event] = []
    for change in (change for wave in waves for batch in wave for change in batch):
        match change:
            case SaveDispatch(dispatch):
                dispatches[dispatch.id] = dispatch
            case SetControl(key, value):
                controls[key] = value
            case SaveEvent(event):
                events.append(event.model_copy(update={"seq": len(events) + 1}))

    async def write(store: Store) -> None:
        for wave in waves:
            await asyncio.gather(*(store.commit(*batch) for batch in wave))

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "db.duckdb")
        store = Store.open(path, copy_every_s=0)
        asyncio.run(write(store))
        store.close()
        store = Store.open(path, copy_every_s=0)
        try:
            snapshot = store.load()
            assert {d.id: d for d in snapshot.dispatches} == dispatches
            assert len(snapshot.dispatches) == len(dispatches) and not snapshot.problems
            assert snapshot.controls == {key: value for key, value in controls.items() if value is not None}
            assert asyncio.run(store.events(limit=10_000)) == events
        finally:
            store.close()
