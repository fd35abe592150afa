"""Whatever is sent, cut at any byte, arrives as it was; whatever is not a frame is refused and nothing else happens."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from coreagent import wire

kinds = st.sampled_from([bytes([kind]) for kind in sorted(wire.FROM_CLIENT)])
messages = st.lists(st.tuples(kinds, st.binary(max_size=200)), max_size=8)
# What argv, environment and paths can hold: anything but NUL, undecodable bytes included.
words = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
names = words.map(lambda word: word.replace("=", "")).filter(bool)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@given(messages, st.lists(st.integers(min_value=0), max_size=12))
def test_cut_anywhere_the_frames_are_the_same(sent: list[tuple[bytes, bytes]], places: list[int]) -> None:
    decoder = wire.Decoder(wire.FROM_CLIENT)
    data = b"".join(wire.frame(kind, payload) for kind, payload in sent)
    assert [frame for piece in cut(data, places) for frame in decoder.feed(piece)] == sent
    assert not decoder.pending


@given(messages)
def test_byte_by_byte(sent: list[tuple[bytes, bytes]]) -> None:
    decoder = wire.Decoder(wire.FROM_CLIENT)
    data = b"".join(wire.frame(kind, payload) for kind, payload in sent)
    assert [frame for at in range(len(data)) for frame in decoder.feed(data[at : at + 1])] == sent


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_is_a_frame(data: bytes) -> None:
    decoder = wire.Decoder(wire.FROM_CLIENT)
    try:
        frames = decoder.feed(data)
    except wire.BadFrame:
        return
    consumed = sum(wire.HEAD + len(payload) for _, payload in frames)
    assert b"".join(wire.frame(kind, payload) for kind, payload in frames) == data[:consumed]


@given(
    st.lists(words, max_size=5),
    words,
    st.integers(0, 10000),
    st.booleans(),
    st.text("01-", min_size=3, max_size=3),
    st.dictionaries(names, words, max_size=5),
)
def test_an_opening_arrives_as_it_was(
    argv: list[str], cwd: str, columns: int, colour: bool, ttys: str, env: dict[str, str]
) -> None:
    sent = wire.Opening(argv, cwd=cwd, columns=columns, colour=colour, ttys=ttys, env=env, version="1.2")
    assert vars(wire.Opening.unpack(sent.pack())) == vars(sent)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_opening_harms(data: bytes) -> None:
    try:
        wire.Opening.unpack(data)
    except wire.BadFrame:
        return
