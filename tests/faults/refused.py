"""Requests that must not be sent: what could split a request, or contradicts its own framing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from tests.faults._lab import Ask, Client, Fails, Fault, Group, Reply, Stage, scripted

from trunkline import InvalidRequest
from trunkline.testing._script import drain, expect_head

_REFUSED = Fails(error=InvalidRequest, phase="request", replay="safe", sent=False, started=False,
                 attempts=0)  # fmt: skip
_NAMES = {"CR": "\r", "LF": "\n", "CRLF": "\r\n", "NUL": "\x00", "a space": " "}
_SPLIT = "\r\nX-Injected: 1"


def _refused(name: str, **ask: object) -> Fault:
    return Fault(name=name, stage=scripted(), expect=_REFUSED, ask=Ask(**ask))  # type: ignore[arg-type]


def _elsewhere(name: str, origin: str) -> Fault:
    async def act(client: Client, stage: Stage, ask: Ask) -> Reply:
        return await client.fetch(origin, ask)

    return Fault(name=name, stage=scripted(), expect=_REFUSED, act=act)


async def _four() -> AsyncIterator[bytes]:
    yield b"four"


INJECTION = Group(
    is_parsing=True,
    title="Requests that could split",
    faults=(
        *(
            _refused(f"{name} in a header name", headers=((f"X{text}A", "1"),))
            for name, text in _NAMES.items()
        ),
        *(
            _refused(f"{name} in a header value", headers=(("X-A", f"1{text}2"),))
            for name, text in _NAMES.items()
            if text != " "
        ),
        _refused("a field in a header value", headers=(("X-A", "1" + _SPLIT),)),
        _refused("an empty header name", headers=(("", "1"),)),
        _refused("a colon in a header name", headers=(("X:A", "1"),)),
        _refused("a header name that is not ASCII", headers=(("X-\u00e4", "1"),)),
        *(
            _refused(f"{name} in the method", method=f"PO{text}ST")
            for name, text in _NAMES.items()
        ),
        _refused("a request in the method", method="GET / HTTP/1.1\r\nX: "),
        _refused("an empty method", method=""),
        *(
            _refused(f"{name} in the path", path=f"/a{text}b")
            for name, text in _NAMES.items()
            if text != " "
        ),
        _refused("a request in the path", path="/ HTTP/1.1\r\nHost: x\r\n\r\nGET /"),
        *(
            _elsewhere(f"{name} in the host", f"http://127.0.0.1{text}X")
            for name, text in _NAMES.items()
        ),
        _elsewhere("a path in the host", "http://127.0.0.1\r\nX: 1/"),
        _elsewhere("userinfo in the URL", "http://user:secret@127.0.0.1"),
        _elsewhere("another scheme", "ftp://127.0.0.1"),
        _elsewhere("no host", "http://"),
        _elsewhere("a port of letters", "http://127.0.0.1:http"),
        _elsewhere("port 65536", "http://127.0.0.1:65536"),
        _refused("CRLF in the Host header", headers=(("Host", "a\r\nX: 1"),)),
        _refused("a space in the Host header", headers=(("Host", "a b"),)),
        _refused("two Host headers", headers=(("Host", "a"), ("Host", "b"))),
    ),
)  # fmt: skip

_PARTLY = Fails(error=InvalidRequest, phase="request", replay=None, sent="partly", started=False)


def _contradicts(name: str, length: str, content: Callable[[], AsyncIterator[bytes]]) -> Fault:
    ask = Ask(headers=(("Content-Length", length),), content=content)
    stage = scripted([expect_head(), drain()])
    return Fault(name=name, stage=stage, expect=_PARTLY, ask=ask)


FRAMING = Group(
    is_parsing=True,
    title="Requests that contradict themselves",
    faults=(
        _refused("a Transfer-Encoding of the caller's", headers=(("Transfer-Encoding", "x"),)),
        _refused("a Transfer-Encoding: chunked of the caller's",
                 headers=(("Transfer-Encoding", "chunked"),)),
        _refused("a length that is not the content's", headers=(("Content-Length", "3"),)),
        _refused("two lengths", headers=(("Content-Length", "5"), ("Content-Length", "5"))),
        _refused("a length of the caller's that is no number",
                 headers=(("Content-Length", "five"),)),
        _refused("a negative length of the caller's", headers=(("Content-Length", "-5"),)),
        _refused("a length without content", headers=(("Content-Length", "5"),), content=None),
        _contradicts("an iterable that produces less than its length", "9", _four),
        _contradicts("an iterable that produces more than its length", "3", _four),
    ),
)  # fmt: skip

GROUPS = (INJECTION, FRAMING)
