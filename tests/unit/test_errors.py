"""The errors: their tree, their facts, and that they survive a process boundary.

Knows the tree as the documentation draws it. Does not know who raises what.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

import trunkline
from trunkline import Request, Response, TransportError, _errors

TREE = """
TransportError
  InvalidRequest
  TransportClosed
  UnsupportedOption
    BackendUnavailable
  EgressDenied
  PoolFull
  TransportTimeout
    PoolTimeout
    ConnectTimeout
    WriteTimeout
    HeadersTimeout
    ReadTimeout
    DeadlineExceeded
  ConnectionFailed
    DNSError
    ConnectError
    ProxyError
    TLSError
      CertificateError
  NetworkError
    WriteError
    RemoteDisconnected
    BodyTruncated
    ReadError
  RemoteProtocolError
    LimitExceeded
    StreamReset
    StreamRefused
    GoAway
  DecodeError
    DecompressionLimit
  HTTPStatusError
"""

FACTS = {
    "phase": "tls",
    "request_sent": None,
    "bytes_sent": 321,
    "response_started": True,
    "connection_reused": True,
    "replay": "if_idempotent",
    "host": "api.example.com",
    "port": 443,
    "backend": "aiohttp",
    "http_version": "HTTP/1.1",
    "attempts": 2,
    "elapsed": 0.25,
}


def parents_in_the_tree() -> dict[str, str]:
    """Each class of `TREE` with the one it is drawn under."""
    above: list[str] = []
    parents: dict[str, str] = {}
    for line in TREE.strip().splitlines():
        name = line.strip()
        depth = (len(line) - len(name)) // 2
        del above[depth:]
        parents[name] = above[-1] if above else "Exception"
        above.append(name)
    return parents


def descendants(error: type[TransportError]) -> Iterator[type[TransportError]]:
    yield error
    for child in error.__subclasses__():
        yield from descendants(child)


PARENTS = parents_in_the_tree()
ERRORS: list[type[TransportError]] = [getattr(trunkline, name) for name in PARENTS]
every_error = pytest.mark.parametrize("error", ERRORS, ids=list(PARENTS))


def with_facts(error: type[TransportError]) -> TransportError:
    made = error("it failed")
    vars(made).update(FACTS)
    return made


def facts_of(error: TransportError) -> dict[str, object]:
    return {name: getattr(error, name) for name in FACTS}


# --- the tree


@every_error
def test_each_error_has_the_parent_it_is_drawn_under(error: type[TransportError]) -> None:
    assert error.__mro__[1].__name__ == PARENTS[error.__name__]


def test_there_are_no_other_errors() -> None:
    ours = {
        error.__name__
        for error in descendants(TransportError)
        if error.__module__.partition(".")[0] == "trunkline"
    }

    assert ours == set(PARENTS)


def test_the_module_draws_the_tree_that_it_defines() -> None:
    drawing = (_errors.__doc__ or "").partition("TransportError\n")[2].partition("\n\n")[0]

    drawn = [line.lstrip("│├└─ ").split()[0] for line in drawing.splitlines()]

    assert ["TransportError", *drawn] == list(PARENTS)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (trunkline.UnsupportedOption, ValueError),
        (trunkline.BackendUnavailable, ImportError),
        (trunkline.TransportTimeout, TimeoutError),
    ],
)
def test_some_are_builtin_errors_too(error: type[TransportError], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)
    with pytest.raises(builtin, match="it failed"):
        raise error("it failed")


@every_error
def test_only_timeouts_are_caught_as_the_builtin_timeout(error: type[TransportError]) -> None:
    assert issubclass(error, TimeoutError) is issubclass(error, trunkline.TransportTimeout)
    assert issubclass(error, OSError) is issubclass(error, trunkline.TransportTimeout)


# --- the facts


@every_error
def test_a_new_error_knows_only_that_nothing_was_sent(error: type[TransportError]) -> None:
    made = error("it failed")

    assert facts_of(made) == {
        "phase": error.phase,
        "request_sent": False,
        "bytes_sent": 0,
        "response_started": False,
        "connection_reused": False,
        "replay": "safe",
        "host": None,
        "port": None,
        "backend": None,
        "http_version": None,
        "attempts": 0,
        "elapsed": None,
    }


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("InvalidRequest", "request"),
        ("PoolFull", "pool"),
        ("PoolTimeout", "pool"),
        ("DNSError", "dns"),
        ("ConnectError", "connect"),
        ("ConnectTimeout", "connect"),
        ("ProxyError", "proxy"),
        ("TLSError", "tls"),
        ("CertificateError", "tls"),
        ("WriteTimeout", "write"),
        ("WriteError", "write"),
        ("HeadersTimeout", "headers"),
        ("RemoteDisconnected", "headers"),
        ("ReadTimeout", "body"),
        ("BodyTruncated", "body"),
        ("ReadError", "body"),
        ("DecodeError", "body"),
        ("TransportClosed", None),
        ("DeadlineExceeded", None),
    ],
)
def test_an_error_of_one_phase_names_it(name: str, phase: str | None) -> None:
    assert getattr(trunkline, name)("it failed").phase == phase


def test_a_phase_that_is_given_replaces_the_usual_one() -> None:
    in_handshake = trunkline.ConnectTimeout("it failed", phase="tls")

    assert (in_handshake.phase, trunkline.ConnectTimeout("it failed").phase) == ("tls", "connect")


@every_error
def test_facts_of_one_error_are_not_those_of_the_next(error: type[TransportError]) -> None:
    with_facts(error)

    assert error("another").host is None
    assert error("another").bytes_sent == 0


# --- pickle and copy


@every_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_class_message_and_facts(error: type[TransportError], protocol: int) -> None:
    made = with_facts(error)

    found = pickle.loads(pickle.dumps(made, protocol))

    assert type(found) is error
    assert (str(found), found.args, facts_of(found)) == (str(made), made.args, FACTS)


@every_error
def test_copies_keep_class_message_and_facts(error: type[TransportError]) -> None:
    made = with_facts(error)
    for found in (copy.copy(made), copy.deepcopy(made)):
        assert type(found) is error
        assert found is not made
        assert (str(found), facts_of(found)) == (str(made), FACTS)


def test_pickle_keeps_notes_and_what_a_class_adds() -> None:
    reset = trunkline.StreamReset("it failed")
    reset.code = 8
    reset.add_note("while testing")

    found = pickle.loads(pickle.dumps(reset))

    assert found.code == 8
    assert found.__notes__ == ["while testing"]


def test_a_status_error_is_pickled_without_its_response() -> None:
    request = Request("GET", "https://api.example.com/v1?key=secret")
    response = Response(503, request=request)
    with pytest.raises(trunkline.HTTPStatusError) as caught:
        response.raise_for_status()

    found = pickle.loads(pickle.dumps(caught.value))

    assert caught.value.response is response
    assert (found.status_code, found.response) == (503, None)
    assert (found.host, found.port, found.replay) == ("api.example.com", 443, "unsafe")


@given(
    message=st.text(max_size=40),
    sent=st.sampled_from([True, False, None]),
    count=st.integers(0, 2**63),
    started=st.booleans(),
)
def test_whatever_is_given_comes_back_from_pickle(
    message: str, sent: bool | None, count: int, started: bool
) -> None:
    made = trunkline.ReadError(
        message, request_sent=sent, bytes_sent=count, response_started=started
    )

    found = pickle.loads(pickle.dumps(made))

    assert (str(found), found.request_sent, found.bytes_sent, found.response_started) == (
        message,
        sent,
        count,
        started,
    )


# --- text


@every_error
def test_the_message_is_the_text_whatever_the_facts(error: type[TransportError]) -> None:
    made = with_facts(error)

    assert str(made) == "it failed"
    assert repr(made) == f"{error.__name__}('it failed')"


@every_error
def test_an_error_needs_no_message(error: type[TransportError]) -> None:
    assert str(error()) == ""
