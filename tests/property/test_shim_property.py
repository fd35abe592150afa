"""Properties of the shim's ground: one winner per claim, lines never torn, JSON equal to the json package's."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coreagent import attempts, plainjson
from coreagent.spool import MARKS, Spool, claim, quoted, unquoted

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@QUICK
@given(json_values)
def test_plain_json_reads_and_writes_what_json_does(value: object) -> None:
    assert json.loads(plainjson.dumps(value)) == value
    assert plainjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@QUICK
@given(st.binary(max_size=40))
def test_garbage_is_a_value_or_a_value_error(raw: bytes) -> None:
    try:
        plainjson.loads(raw)
    except ValueError:
        pass


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=6))
def test_void_and_started_have_exactly_one_winner(voids: list[bool]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        won: list[bool] = []
        gate = threading.Barrier(len(voids))

        def compete(is_void: bool) -> None:
            gate.wait()
            done = attempts.void(folder) if is_void else claim(folder, {"pid": 1, "shim_pid": 2})
            if done:
                won.append(is_void)

        threads = [threading.Thread(target=compete, args=(each,)) for each in voids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        started = attempts.read_started(folder)
        assert started is not None and started.void is won[0]
        assert [path.name for path in Path(folder).iterdir()] == ["started"]


@QUICK
@given(
    st.lists(st.binary(min_size=0, max_size=100).map(lambda b: b.replace(b"\n", b" ")), max_size=40),
    st.lists(st.integers(1, 50), max_size=30),
    st.integers(0, 400),
)
def test_a_spool_keeps_a_head_and_a_tail_of_whole_lines(lines: list[bytes], cuts: list[int], head: int) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(f"{folder}/out", head, 64, 1000)
        at = 0
        for cut in cuts:
            spool.feed(stream[at : at + cut])
            at += cut
        spool.feed(stream[at:])
        spool.close()
        kept = Path(folder, "out").read_bytes()
    assert kept == b"" or kept.endswith(b"\n")
    stream = bytes(quoted(stream))
    if spool.dropped:
        before, marker, after = kept.partition(b'{"core_agent": "dropped", "bytes": %d}\n' % spool.dropped)
        assert marker and stream.startswith(before) and stream.endswith(after) and after
        assert len(before) <= head and len(before) + spool.dropped + len(after) == len(stream)
    else:
        assert kept == stream


@QUICK
@given(st.integers(0, 3), st.sampled_from([*MARKS, b'{"core_agent": "acp"', b"x"]), st.binary(max_size=20))
def test_no_line_of_the_stream_looks_like_one_of_the_spools(spaces: int, mark: bytes, rest: bytes) -> None:
    line = b" " * spaces + mark + rest.replace(b"\n", b" ")
    before, kept, after = bytes(quoted(b"a\n" + line + b"\nb")).split(b"\n")
    assert not kept.startswith(MARKS)
    assert [unquoted(before), unquoted(kept), unquoted(after)] == [b"a", line, b"b"]
