"""The SSE reader: the same events, however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference.upstreams.sse import SseReader, SseTooLongError


def read(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    reader = SseReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.finish()


STREAM = (
    '\ufeff: hello\n\ndata: {"a":"é–🙂\u2028\u0085"}\n\n'
    "event: x\ndata:one\ndata: two\nid: 7\nretry: 1\n\n\n\ndata: last"
)
EVENTS = [(b"", '{"a":"é–🙂\u2028\u0085"}'.encode()), (b"x", b"one\ntwo"), (b"", b"last")]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        pytest.param(STREAM.encode(), EVENTS, id="comments, names, several data lines and a missing end"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")], id="CRLF line ends"),
        pytest.param(b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")], id="CR line ends"),
        pytest.param(b"data: a\r\n\ndata: b\n\r\n", [(b"", b"a"), (b"", b"b")], id="mixed line ends"),
        pytest.param(b"data:  two spaces\n\n", [(b"", b" two spaces")], id="only one space is stripped"),
        pytest.param(b"data: [DONE]  \n\n", [(b"", b"[DONE]  ")], id="trailing spaces stay for the dialect"),
        pytest.param(b"event: x\n\n", [], id="an event without data is none"),
        pytest.param(b"data\n\n", [(b"", b"")], id="a field without a colon has no value"),
        pytest.param(b": OPENROUTER PROCESSING\n\n: ping\n\n", [], id="comments alone say nothing"),
        pytest.param(
            b"data: a\n\ndata: b\nx\n\ndata: \n\n", [(b"", b"a"), (b"", b"b"), (b"", b"")], id="lines without meaning"
        ),
        pytest.param(b"event: a\ndata: 1\n\nevent: b\n\n", [(b"a", b"1")], id="a name is not carried over"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_every_cut_gives_the_same_events(data: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert read(data) == events
    assert read(*(data[at : at + 1] for at in range(len(data)))) == events
    for at in range(len(data)):
        assert read(data[:at], data[at:]) == events


@given(
    st.lists(
        st.sampled_from([b"data: x\n\n", b"data: y\r\n\r\n", b"\r", b"\n", b": c\n", b"data:z\r\r", b"data: ", b"x"])
    ),
    st.data(),
)
def test_any_stream_reads_alike_whole_and_in_pieces(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*pieces) == read(stream)


def test_a_line_of_16_mib_is_one_event() -> None:
    data = b"x" * (16 * 1024 * 1024)
    pieces = [b"data: ", *(data[at : at + 65536] for at in range(0, len(data), 65536)), b"\n\n"]
    assert read(*pieces) == [(b"", data)]


def test_an_endless_line_is_refused() -> None:
    reader = SseReader()
    for _ in range(32):
        reader.feed(b"x" * (1024 * 1024))
    with pytest.raises(SseTooLongError):
        reader.feed(b"x")
