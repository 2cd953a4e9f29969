"""Event streams and lines: WHATWG HTML section 9.2.6, in whole chunks and in any others."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings, strategies as st

from trunkline._errors import LimitExceeded
from trunkline._sse import LineDecoder, ServerSentEvent, SSEDecoder


def events(*chunks: bytes, max_event_size: int = 1 << 20) -> list[ServerSentEvent]:
    decoder = SSEDecoder(max_event_size=max_event_size)
    found = [event for chunk in chunks for event in decoder.feed(chunk)]
    decoder.finish()
    return found


def data_of(*chunks: bytes) -> list[str]:
    return [event.data for event in events(*chunks)]


def by_the_standard(stream: bytes) -> list[tuple[str, str, str, int | None]]:
    """The standard's prose, read aloud over the whole stream: the reference for the fast code."""
    text = stream.decode("utf-8", "replace").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    found: list[tuple[str, str, str, int | None]] = []
    event_type, data, last_id, retry = "", "", "", None
    for line in lines:
        if line == "":
            if data:
                found.append((event_type or "message", data[:-1], last_id, retry))
            event_type, data, retry = "", "", None
            continue
        field, _, value = line.partition(":")
        value = value[1:] if value[:1] == " " else value
        match field:
            case "event":
                event_type = value
            case "data":
                data += value + "\n"
            case "id" if "\0" not in value:
                last_id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= 18:
                retry = int(value)
            case _:
                pass
    return found


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


# --- the standard's own examples


def test_the_stock_ticker_example() -> None:
    assert events(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [ServerSentEvent(data="YHOO\n+2\n10")]


def test_the_example_with_comment_ids_and_an_incomplete_last_event() -> None:
    stream = (
        b": test stream\n\n"
        b"data: first event\nid: 1\n\n"
        b"data:second event\nid\n\n"
        b"data:  third event\n"
    )
    assert events(stream) == [
        ServerSentEvent(data="first event", id="1"),
        ServerSentEvent(data="second event", id=""),
    ]
    assert events(stream + b"\n")[2].data == " third event"


def test_the_example_of_empty_data() -> None:
    assert data_of(b"data\n\ndata\ndata\n\ndata:") == ["", "\n"]


def test_the_example_of_one_optional_space() -> None:
    assert data_of(b"data:test\n\ndata: test\n\n") == ["test", "test"]


# --- fields


def test_the_event_type_is_message_unless_named_and_never_carries_over() -> None:
    stream = b"event: add\ndata: 1\n\ndata: 2\n\nevent: lost\n\ndata: 3\n\nevent\ndata: 4\n\n"
    assert [event.event for event in events(stream)] == ["add", "message", "message", "message"]


def test_a_block_without_data_is_no_event() -> None:
    assert events(b"event: ping\n\nid: 7\n\n\n\n: comment\n\nretry: 5\n\n") == []


def test_the_last_id_persists_until_changed_also_from_a_block_without_data() -> None:
    stream = b"data: a\n\nid: 1\n\ndata: b\n\ndata: c\nid: 2\n\ndata: d\n\n"
    assert [event.id for event in events(stream)] == ["", "1", "2", "2"]


def test_an_id_with_nul_is_ignored() -> None:
    assert events(b"id: 1\nid: a\0b\ndata: x\n\n")[0].id == "1"


@pytest.mark.parametrize(
    ("value", "retry"),
    [
        (b"3000", 3000),
        (b"007", 7),
        (b"", None),
        (b"+1", None),
        (b"1.5", None),
        (b"1s", None),
        (b" 1", None),
        ("\N{ARABIC-INDIC DIGIT FIVE}".encode(), None),
        (b"9" * 5000, None),
    ],
)
def test_retry_takes_ascii_digits_only(value: bytes, retry: int | None) -> None:
    assert events(b"retry: " + value + b"\ndata: x\n\n")[0].retry == retry


def test_retry_belongs_to_the_block_that_carried_it() -> None:
    stream = b"retry: 5\ndata: a\n\ndata: b\n\nretry: 6\n\ndata: c\n\n"
    assert [event.retry for event in events(stream)] == [5, None, None]


def test_unknown_fields_comments_and_other_cases_are_ignored() -> None:
    assert data_of(b":data: no\nDATA: no\n data: no\ndata : no\nfoo: bar\ndata: yes\n\n") == ["yes"]


def test_a_colon_in_the_data_stays() -> None:
    assert data_of(b'data: {"a": ": b"}\n\ndata:::\n\n') == ['{"a": ": b"}', "::"]


# --- line ends, encoding, chunks


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_makes_the_same_events(end: bytes) -> None:
    stream = end.join([b"event: e", b"data: 1", b"data: 2", b"", b"data: 3", b"", b""])
    expected = [ServerSentEvent("e", "1\n2"), ServerSentEvent(data="3")]
    assert events(stream) == expected
    assert events(*(bytes([byte]) for byte in stream)) == expected


def test_a_crlf_cut_between_two_chunks_is_one_line_end() -> None:
    chunks = [b"data: 1\r", b"\ndata: 2\r", b"", b"\ndata: 3\r\n\r", b"\n"]
    assert data_of(*chunks) == ["1\n2\n3"]


def test_an_event_is_given_out_as_soon_as_its_blank_line_is_there() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: 1\r\n\r") == [ServerSentEvent(data="1")]
    assert decoder.feed(b"\ndata: 2\n") == []
    assert decoder.feed(b"\n") == [ServerSentEvent(data="2")]


@pytest.mark.parametrize("places", [[], [1], [2], [3], [1, 2], [1, 2, 3, 4]])
def test_one_leading_bom_is_dropped_and_only_one(places: list[int]) -> None:
    bom = b"\xef\xbb\xbf"
    assert data_of(*cut(bom + b"data: 1\n\n", places)) == ["1"]
    assert data_of(*cut(bom + bom + b"data: 1\n\ndata: 2\n\n", places)) == ["2"]
    assert data_of(*cut(b"\n" + bom + b"data: 1\n\ndata: 2\n\n", places)) == ["2"]


def test_a_character_cut_between_chunks_is_whole() -> None:
    stream = "data: \N{SNOWMAN}\N{PILE OF POO}\n\n".encode()
    for place in range(len(stream)):
        assert data_of(stream[:place], stream[place:]) == ["\N{SNOWMAN}\N{PILE OF POO}"]


def test_invalid_utf8_becomes_the_replacement_character_and_eats_no_line_end() -> None:
    assert data_of(b"data: a\xffb\xe2\x98\n\ndata: \xc3\ndata: ok\n\n") == [
        "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}\nok",
    ]


def test_only_the_standards_line_ends_end_a_line() -> None:
    odd = "data: a\x0bb\x0cc\x1cd\x85e\u2028f\n\n"
    assert data_of(odd.encode()) == [odd[6:-2]]


@pytest.mark.parametrize(
    "chunk",
    [
        b"data: a\nid: 3\n\n",
        b"data: a\ndata: b\n\n",
        b"data: a\n\ndata: b\n\n",
        b"data: a\n\n\n\n",
        b"data: a\rid: 3\n\n",
    ],
)
def test_a_chunk_that_begins_and_ends_as_one_line_of_data_may_hold_more(chunk: bytes) -> None:
    before = b"data: 1\n\n"
    found = events(before, chunk)
    assert [(e.event, e.data, e.id, e.retry) for e in found] == by_the_standard(before + chunk)


names = st.sampled_from([b"data", b"event", b"id", b"retry", b"x"])
marks = st.sampled_from([b":", b": ", b" ", b"\n", b"\r", b"\r\n", b"\n\n"])
values = st.sampled_from(
    [b"data: {}\n\n", b"data: 1\n", b"\0", b"42", b"\xff\xe2", "\ufeff\u2603".encode()]
)
streams = st.lists(names | marks | values | st.binary(max_size=4), max_size=40).map(b"".join)


@settings(max_examples=600, deadline=None)
@given(stream=streams, places=st.lists(st.integers(0, 400), max_size=12))
def test_any_stream_in_any_chunks_gives_the_events_of_the_standard(
    stream: bytes, places: list[int]
) -> None:
    found = events(*cut(stream, places))
    assert [(e.event, e.data, e.id, e.retry) for e in found] == by_the_standard(stream)


# --- limits


def test_a_line_above_the_limit_is_refused_in_whichever_chunks_it_comes() -> None:
    line = b"data: " + b"x" * 94
    assert len(events(line + b"\n\n", max_event_size=100)) == 1
    whole = [line + b"y\n\n"], [b"\n" + line + b"y\n\n"], [b": " + line + b"\n"]
    for chunks in (*whole, [line, b"y\n\n"], [line, b"y"]):
        with pytest.raises(LimitExceeded, match="exceeds 100 bytes"):
            events(*chunks, max_event_size=100)


def test_an_endless_line_is_refused_when_the_limit_is_reached() -> None:
    decoder = SSEDecoder(max_event_size=1000)
    for _ in range(100):
        assert decoder.feed(b"0123456789") == []
    with pytest.raises(LimitExceeded):
        decoder.feed(b"0")


def test_data_lines_add_up_to_the_limit_with_the_line_ends_between_them() -> None:
    assert len(events(b"data: 123\ndata: 1234\n\n" * 9, max_event_size=10)) == 9
    for data in (b"data: 1234\ndata: 12345\ndata:\n\n", b"data: 1\n" * 6):
        with pytest.raises(LimitExceeded):
            events(data, max_event_size=10)


def test_comments_and_whole_events_do_not_add_up() -> None:
    decoder = SSEDecoder(max_event_size=20)
    for _ in range(100):
        assert decoder.feed(b": ping\n") == []
        assert len(decoder.feed(b"data: 0123456789\n\n")) == 1


def test_finish_discards_the_incomplete_event() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"event: e\nretry: 1\ndata: lost\ndata: lo") == []
    decoder.finish()
    assert decoder.feed(b"data: kept\n\n") == [ServerSentEvent(data="kept")]


# --- the event


def test_json_parses_the_data() -> None:
    assert events(b'data: {"choices":\ndata: [1]}\n\n')[0].json() == {"choices": [1]}
    with pytest.raises(json.JSONDecodeError):
        ServerSentEvent(data="[DONE]").json()


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ServerSentEvent().data = "x"  # type: ignore[misc]


def test_repr_shows_no_data_and_no_id() -> None:
    event = ServerSentEvent("delta", "secret", "secret", 5)
    assert repr(event) == "ServerSentEvent(event='delta', data=<6 characters>)"


# --- lines


def lines(chunks: Sequence[str]) -> list[str]:
    decoder = LineDecoder()
    found = [line for chunk in chunks for line in decoder.feed(chunk)]
    return found + decoder.finish()


def test_lines_end_at_lf_crlf_and_cr() -> None:
    assert lines(["a\nb\r\nc\rd\n\ne\r\r\nf"]) == ["a", "b", "c", "d", "", "e", "", "f"]


def test_a_last_line_end_makes_no_empty_line() -> None:
    for end in ("\n", "\r\n", "\r"):
        assert lines([f"a{end}"]) == ["a"]
    assert lines([]) == lines([""]) == []


def test_lines_end_nowhere_else() -> None:
    text = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"
    assert lines([text]) == [text]


def test_a_line_is_given_out_as_soon_as_its_line_end_is_there() -> None:
    decoder = LineDecoder()
    assert decoder.feed("a\r") == ["a"]
    assert decoder.feed("\n") == []
    assert decoder.feed("\n") == [""]
    assert decoder.finish() == []


def test_a_long_line_in_many_chunks_is_joined_once() -> None:
    class Chunk(str):
        joined = 0

        def __radd__(self, other: str) -> str:
            Chunk.joined += 1
            return other + str(self)

    assert lines([Chunk("x") for _ in range(1000)]) == ["x" * 1000]
    assert Chunk.joined == 0


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\n\r\u2028\x0b"), max_size=40),
    places=st.lists(st.integers(0, 40), max_size=8),
)
def test_any_text_in_any_chunks_gives_the_same_lines(text: str, places: list[int]) -> None:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(edges)]
    expected = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines(chunks) == (expected if expected[-1] else expected[:-1])
