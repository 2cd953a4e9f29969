"""Faults of proxies: HTTP ones, which forward or CONNECT, and SOCKS5."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults._lab import GOOD, Answers, Expect, Fails, Fault, Group, Stage, count_calls
from tests.faults._shorthand import BAD_HEAD, CUT_BODY, GONE, LATER, PAGE

from trunkline import (
    ConnectError,
    ConnectTimeout,
    ProxyError,
    RemoteDisconnected,
    Tls,
    TLSError,
    WriteError,
)
from trunkline.testing import Certificates
from trunkline.testing._conformance._helpers import closed_port
from trunkline.testing._script import (
    await_bytes,
    close,
    drip,
    expect_bytes,
    expect_head,
    expect_request,
    fin,
    flood,
    hold,
    response,
    rst,
    send,
    socks5,
    tunnel,
)
from trunkline.testing._servers import ScriptedServer, Step

_REFUSED = Fails(error=ProxyError, phase="proxy", replay="safe", sent=False, started=False,
                 attempts=0)  # fmt: skip
_SLOW = replace(_REFUSED, error=ConnectTimeout)
_ESTABLISHED = response(200, framing="none")


def _proxied(name: str, *steps: Step, expect: Expect = _REFUSED, scheme: str = "http",
             secure: bool = True, bounded_by: str | None = None) -> Fault:  # fmt: skip
    """A proxy that takes `steps` on its first connection, and does its work on all others."""
    works = [tunnel()] if scheme == "http" else [socks5()]

    @contextmanager
    def stage(certificates: Certificates) -> Generator[Stage]:
        tls = certificates.server_context() if secure else None
        with ScriptedServer(GOOD, tls=tls) as origin, ScriptedServer(
            steps, works if secure or scheme != "http" else GOOD
        ) as proxy:  # fmt: skip
            yield Stage(
                origin=origin.url,
                options={
                    "proxy": f"{scheme}://127.0.0.1:{proxy.port}",
                    "tls": Tls(ca_file=Path(certificates.ca_file)),
                },
                servers=(origin, proxy),
                seen=count_calls(origin, proxy),
            )

    needs = ("socks",) if scheme.startswith("socks") else ("proxy",)
    return Fault(name=name, stage=stage, expect=expect, needs=needs, bounded_by=bounded_by)


@contextmanager
def _nobody(certificates: Certificates) -> Generator[Stage]:
    with ScriptedServer(GOOD) as server:
        yield Stage(
            origin=server.url,
            options={"proxy": f"http://127.0.0.1:{closed_port()}"},
            servers=(server,),
        )


def _connect(name: str, *steps: Step, expect: Expect = _REFUSED, bounded_by: str | None = None
             ) -> Fault:  # fmt: skip
    """The proxy has read CONNECT."""
    return _proxied(f"CONNECT: {name}", expect_head(), *steps, expect=expect,
                    bounded_by=bounded_by)  # fmt: skip


CONNECT = Group(
    "An HTTP proxy, for https",
    (
        _connect("407", send(response(407, b"", ("Proxy-Authenticate", "Basic")))),
        _connect("407 with a body, then FIN", send(response(407, b"who are you")), fin()),
        _connect("403", send(response(403, b"no"))),
        _connect("502", send(response(502, b"bad gateway"))),
        _connect("503 without a length", send(response(503, framing="close")), fin()),
        _connect("302", send(response(302, b"", ("Location", "http://elsewhere.invalid/")))),
        _connect("a status of letters", send(b"HTTP/1.1 abc OK\r\n\r\n")),
        _connect("garbage", send(b"garbage\r\n\r\n")),
        _connect("binary garbage", send(bytes(range(128, 256)) + b"\r\n\r\n")),
        _connect("a megabyte of head", send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20)),
        _connect("a head without end", send(b"HTTP/1.1 200 OK\r\nX: "), flood(b"x" * 65536)),
        _connect("1xx without end", flood(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
                 expect=(_REFUSED, _SLOW), bounded_by="connect"),
        _connect("FIN", fin()),
        _connect("close", close()),
        _connect("RST", rst()),
        _connect("FIN inside the answer", send(b"HTTP/1.1 200 Co"), fin()),
        _connect("RST inside the answer", send(b"HTTP/1.1 200 Co"), LATER, rst()),
        _connect("silence", hold(), expect=_SLOW, bounded_by="connect"),
        _connect("silence inside the answer", send(b"HTTP/1.1 200 Co"), hold(), expect=_SLOW,
                 bounded_by="connect"),
        _connect("an answer that drips", drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 4000, 0.02),
                 expect=_SLOW, bounded_by="connect"),
        _connect("bytes after the answer", send(_ESTABLISHED + b"surplus"), hold(),
                 expect=(_REFUSED, replace(_SLOW, phase="tls")), bounded_by="connect"),
        _connect("FIN after the answer", send(_ESTABLISHED), fin(),
                 expect=replace(_REFUSED, error=(TLSError, ConnectError, ProxyError), phase=None)),
        _connect("RST after the answer", send(_ESTABLISHED), LATER, rst(),
                 expect=replace(_REFUSED, error=(TLSError, ConnectError, ProxyError), phase=None)),
        _connect("silence after the answer", send(_ESTABLISHED), hold(),
                 expect=replace(_SLOW, phase="tls"), bounded_by="connect"),
        _connect("plain HTTP after the answer", send(_ESTABLISHED), await_bytes(), send(PAGE),
                 expect=replace(_REFUSED, error=TLSError, phase="tls")),
        _proxied("FIN at accept (proxy)", close()),
        Fault(name="nobody listens where the proxy should", stage=_nobody, needs=("proxy",),
              expect=_REFUSED, recovers=False),
    ),
)  # fmt: skip


def _forward(name: str, *steps: Step, expect: Expect) -> Fault:
    """The proxy has read the request."""
    return _proxied(f"forwarding: {name}", expect_request(), *steps, expect=expect, secure=False)


FORWARD = Group(
    "An HTTP proxy, for http",
    (
        _forward(
            "407", send(response(407, b"who")), *GOOD, expect=Answers(status=407, body=b"who")
        ),
        _forward(
            "502", send(response(502, b"bad")), *GOOD, expect=Answers(status=502, body=b"bad")
        ),
        _forward("FIN", fin(), expect=GONE),
        _forward("garbage", send(b"garbage\r\n\r\n"), expect=BAD_HEAD),
        _forward("FIN inside the body", send(PAGE[:-1]), fin(), expect=CUT_BODY),
    ),
)


def _socks(name: str, *steps: Step, expect: Expect = _REFUSED, bounded_by: str | None = None
           ) -> Fault:  # fmt: skip
    return _proxied(f"SOCKS5: {name}", *steps, expect=expect, scheme="socks5", secure=False,
                    bounded_by=bounded_by)  # fmt: skip


_HELLO = expect_bytes(3)  # version 5, one method: RFC 1928
_ACCEPT = b"\x05\x00"
_COMMAND = 10  # bytes of a CONNECT to an IPv4 address
_REPLIES = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
    99: "a code that does not exist",
}


def _answered(name: str, reply: bytes, *steps: Step, expect: Expect = _REFUSED) -> Fault:
    """The reply to the command."""
    return _socks(name, _HELLO, send(_ACCEPT), expect_bytes(_COMMAND), send(reply), *steps,
                  expect=expect)  # fmt: skip


SOCKS = Group(
    "A SOCKS5 proxy",
    (
        _socks("no method is acceptable", _HELLO, send(b"\x05\xff")),
        _socks("a method that was not offered", _HELLO, send(b"\x05\x01")),
        _socks("version 4", _HELLO, send(b"\x04\x00")),
        _socks("HTTP", await_bytes(), send(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        _socks("FIN at accept", close()),
        _socks("FIN after the hello", _HELLO, fin()),
        _socks("RST after the hello", _HELLO, rst()),
        _socks("FIN inside the answer", _HELLO, send(b"\x05"), fin()),
        _socks("silence", hold(), expect=_SLOW, bounded_by="connect"),
        _socks("silence after the command", _HELLO, send(_ACCEPT), expect_bytes(_COMMAND), hold(),
               expect=_SLOW, bounded_by="connect"),
        *(
            _answered(f"it says: {text}", b"\x05" + bytes([code]) + b"\x00\x01" + bytes(6))
            for code, text in _REPLIES.items()
        ),
        _answered("an address of an unknown type", b"\x05\x00\x00\x09" + bytes(6)),
        _answered("FIN inside the reply", b"\x05\x00\x00\x01", fin()),
        _answered("FIN after the reply", b"\x05\x00\x00\x01" + bytes(6), fin(),
                  expect=replace(GONE, error=(RemoteDisconnected, WriteError), sent=None)),
    ),
)  # fmt: skip

GROUPS = (CONNECT, FORWARD, SOCKS)
