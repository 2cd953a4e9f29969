"""Faults of TCP and TLS connections on their way up, and of TLS under an exchange."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from tests.faults._lab import (
    GOOD,
    Answers,
    Ask,
    Client,
    Expect,
    Fails,
    Fault,
    Group,
    Reply,
    Stage,
    call,
    count_calls,
    echo,
    secure,
)
from tests.faults._shorthand import (
    BAD_BODY,
    CUT_BODY,
    GONE,
    HEAD_CHUNKED,
    HEAD_TO_EOF,
    LATER,
    PAGE,
    RIGHT,
)

from trunkline import (
    BodyTruncated,
    CertificateError,
    ConnectError,
    ConnectTimeout,
    HeadersTimeout,
    ReadError,
    ReadTimeout,
    RemoteDisconnected,
    Tls,
    TLSError,
    WriteError,
    WriteTimeout,
)
from trunkline.testing import Certificates
from trunkline.testing._certificates import Certificate
from trunkline.testing._conformance._helpers import closed_port, unanswering_port
from trunkline.testing._script import (
    answer,
    await_bytes,
    chunk,
    close,
    close_notify,
    expect_bytes,
    expect_head,
    expect_request,
    fin,
    hold,
    response,
    rst,
    send,
    send_beneath,
    small_buffers,
    start_tls,
)
from trunkline.testing._servers import Script, ScriptedServer, Step

_REFUSED = Fails(error=ConnectError, phase="connect", replay="safe", sent=False, started=False,
                 attempts=0)  # fmt: skip
_NO_TLS = Fails(error=TLSError, phase="tls", replay="safe", sent=False, started=False,
                attempts=0)  # fmt: skip
_BAD_CERTIFICATE = Fails(error=CertificateError, phase="tls", replay="safe", sent=False,
                         started=False, attempts=0)  # fmt: skip
_CUT_OFF = Fails(error=(TLSError, ConnectError), phase=("tls", "connect"), replay="safe",
                 sent=False, started=False, attempts=0)  # fmt: skip
_SLOW_TLS = Fails(error=ConnectTimeout, phase="tls", replay="safe", sent=False, started=False,
                  attempts=0)  # fmt: skip


# -- TCP -------------------------------------------------------------------------------------------


@contextmanager
def _nobody(certificates: Certificates) -> Generator[Stage]:
    with ScriptedServer(GOOD) as server:
        yield Stage(origin=f"http://127.0.0.1:{closed_port()}", good=server.url, servers=(server,))


@contextmanager
def _silence(certificates: Certificates) -> Generator[Stage]:
    with ScriptedServer(GOOD) as server, unanswering_port() as port:
        yield Stage(origin=f"http://127.0.0.1:{port}", good=server.url, servers=(server,))


TCP = Group(
    "Connecting",
    (
        Fault(name="nobody listens", stage=_nobody, expect=_REFUSED),
        Fault(
            name="no answer to the SYN",
            stage=_silence,
            expect=Fails(error=ConnectTimeout, phase="connect", replay="safe", sent=False,
                         started=False, attempts=0),
            bounded_by="connect",
        ),
    ),
)  # fmt: skip


# -- the handshake ---------------------------------------------------------------------------------


def _handshake(name: str, *steps: Step, expect: Fails, bounded_by: str | None = None) -> Fault:
    """What happens where a handshake should."""
    stage = secure(lambda certificates: steps)
    return Fault(name=name, stage=stage, expect=expect, bounded_by=bounded_by)


def _certificate(name: str, which: Callable[[Certificates], Certificate]) -> Fault:
    def script(certificates: Certificates) -> Script:
        return [start_tls(certificates.server_context(which(certificates)))]

    return Fault(name=name, stage=secure(script), expect=_BAD_CERTIFICATE)


def _old(certificates: Certificates) -> Script:
    context = certificates.server_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return [start_tls(context)]


def _strict(certificates: Certificates) -> Script:
    context = certificates.server_context(require_client_certificate=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return [start_tls(context)]


def _strict_13(certificates: Certificates) -> Script:
    return [start_tls(certificates.server_context(require_client_certificate=True))]


@contextmanager
def _stranger(certificates: Certificates) -> Generator[Stage]:
    """Signed by an authority that the client does not know."""
    with Certificates() as others:
        bad = [start_tls(others.server_context())]
        with ScriptedServer(bad, [start_tls(certificates.server_context()), *GOOD]) as server:
            yield Stage(
                origin=f"https://127.0.0.1:{server.port}",
                options={"tls": Tls(ca_file=Path(certificates.ca_file))},
                servers=(server,),
                seen=count_calls(server),
            )


_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # fatal, handshake_failure (RFC 8446 section 6)

HANDSHAKES = Group(
    "The TLS handshake",
    (
        _handshake("silence instead of a handshake", hold(), expect=_SLOW_TLS,
                   bounded_by="connect"),
        _handshake("half a handshake, then silence", await_bytes(), send(b"\x16\x03\x03\x00\x7a"),
                   hold(), expect=_SLOW_TLS, bounded_by="connect"),
        _handshake("FIN instead of a handshake", await_bytes(), fin(), expect=_CUT_OFF),
        _handshake("close instead of a handshake", expect_bytes(50), close(), expect=_CUT_OFF),
        _handshake("RST instead of a handshake", await_bytes(), rst(), expect=_CUT_OFF),
        _handshake("RST at accept, before a handshake", rst(), expect=_CUT_OFF),
        _handshake("RST inside the handshake", expect_bytes(50), send(b"\x16\x03\x03\x00\x7a"),
                   LATER, rst(), expect=_CUT_OFF),
        _handshake("a plain answer instead of a handshake", await_bytes(), send(PAGE),
                   expect=_NO_TLS),
        _handshake("garbage instead of a handshake", await_bytes(), send(bytes(range(256))),
                   expect=_NO_TLS),
        _handshake("an alert instead of a handshake", await_bytes(), send(_ALERT),
                   expect=_NO_TLS),
        Fault(name="TLS 1.0 and 1.1 only", stage=secure(_old), expect=_NO_TLS),
        _certificate("a certificate of another host", Certificates.wrong_host),
        _certificate("a certificate that has expired", Certificates.expired),
        _certificate("a certificate that signs itself", Certificates.self_signed),
        Fault(name="a certificate of an unknown authority", stage=_stranger,
              expect=_BAD_CERTIFICATE),
        Fault(name="a client certificate is wanted (TLS 1.2)", stage=secure(_strict),
              expect=_NO_TLS),
    ),
)  # fmt: skip


# -- under an exchange -----------------------------------------------------------------------------


def _under(name: str, *steps: Step, expect: Expect, **more: Any) -> Fault:
    """`steps` after a good handshake and a request that was read."""
    return _after(name, expect_request(), *steps, expect=expect, **more)


def _after(name: str, *steps: Step, expect: Expect, **more: Any) -> Fault:
    """`steps` after a good handshake, and after `before` good exchanges."""

    def script(certificates: Certificates) -> Script:
        rest = GOOD if isinstance(expect, Answers) and not more.get("before") else ()
        shake = start_tls(certificates.server_context())
        return [shake, *[answer(echo)] * more.get("before", 0), *steps, *rest]

    return Fault(name=f"TLS: {name}", stage=secure(script), expect=expect, **more)


async def _rest(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call, once what the server does to the idle connection has arrived."""
    await anyio.sleep(0.1)
    return await call(client, stage.origin, ask)


_BROKEN = Fails(error=(ReadError, BodyTruncated), phase="body")
_BROKEN_HEAD = Fails(error=(ReadError, RemoteDisconnected, TLSError), phase=None, replay=None,
                     started=None)  # fmt: skip
# asyncio gives up what came with a broken record, so the head may be lost with it.
_BROKEN_ALL = (_BROKEN, _BROKEN_HEAD)
_SILENT = Fails(error=ReadTimeout, phase="body")
_RECORD = b"\x17\x03\x03\x00\x40"  # the head of a record of 64 bytes
_AGAIN = Answers(body=b"/call")
_LARGE = Ask(content=bytes(16 * 2**20))
_IDLE: dict[str, Any] = {"before": 1, "act": _rest, "expect": _AGAIN}

UNDER = Group(
    "TLS under an exchange",
    (
        _under("FIN before the head", fin(), expect=GONE),
        _under("close_notify before the head", close_notify(), expect=GONE),
        _under("FIN inside a body with a length", send(PAGE[:-1]), fin(), expect=CUT_BODY),
        _under("close_notify inside a body with a length", send(PAGE[:-1]), close_notify(),
               expect=CUT_BODY),
        _under("close_notify instead of the last chunk", send(HEAD_CHUNKED + chunk(b"page")),
               close_notify(), expect=CUT_BODY),
        _under("RST inside a body", send(PAGE[:-1]), LATER, rst(), expect=_BROKEN),
        _under("close_notify at the end of a body that ends with the connection",
               send(HEAD_TO_EOF + b"page"), close_notify(), expect=RIGHT),
        _under("FIN without close_notify in a body that ends with the connection",
               send(HEAD_TO_EOF + b"page"), fin(), expect=CUT_BODY),
        _under("the same, in a later packet", send(HEAD_TO_EOF), LATER, send(b"page"), LATER,
               fin(), expect=CUT_BODY),
        _under("RST in a body that ends with the connection", send(HEAD_TO_EOF + b"page"), LATER,
               rst(), expect=_BROKEN),
        _under("FIN without close_notify after a whole answer", send(PAGE), fin(), expect=RIGHT),
        _under("garbage instead of records, before the head", send_beneath(bytes(200)),
               expect=_BROKEN_HEAD),
        _under("garbage instead of records, inside the body", send(PAGE[:-1]), LATER,
               send_beneath(bytes(200)), expect=_BROKEN_ALL),
        _under("a record that was tampered with", send(PAGE[:-1]), LATER,
               send_beneath(_RECORD + bytes(64)), expect=_BROKEN_ALL),
        _under("an alert in plain, inside the body", send(PAGE[:-1]), LATER,
               send_beneath(_ALERT), expect=_BROKEN_ALL),
        _under("half a record, then silence", send(PAGE[:-1]), send_beneath(_RECORD), hold(),
               expect=_SILENT, bounded_by="read"),
        _under("half a record, then FIN", send(PAGE[:-1]), send_beneath(_RECORD), fin(),
               expect=CUT_BODY),
        _under("silence before the head", hold(), bounded_by="headers",
               expect=Fails(error=HeadersTimeout, phase="headers", replay="if_idempotent",
                            started=False)),
        _under("a bad chunk size in a later packet", send(HEAD_CHUNKED + chunk(b"page")), LATER,
               send(b"xyz\r\n"), expect=BAD_BODY),
        _under("an answer glued to the answer", send(PAGE + response(200, b"another caller's")),
               expect=RIGHT),
        _after("FIN on an idle connection", fin(), **_IDLE),
        _after("close_notify on an idle connection", close_notify(), **_IDLE),
        _after("RST on an idle connection", rst(), **_IDLE),
        _after("an answer on an idle connection", send(response(200, b"another caller's")),
               **_IDLE),
        _after("FIN when it has the POST", expect_request(), fin(), before=1,
               expect=replace(GONE, reused=True)),
        _after("nothing of a large request is read", small_buffers(), expect_head(), hold(),
               ask=_LARGE, bounded_by="write", memory=96 * 2**20,
               expect=Fails(error=WriteTimeout, phase="write", replay="if_idempotent",
                            sent="partly", started=False)),
        _after("413 at once to a large request, then close_notify", expect_head(),
               send(response(413, b"too large")), close_notify(), hold(), ask=_LARGE,
               memory=96 * 2**20, expect=Answers(status=413, body=b"too large")),
        Fault(name="TLS: a client certificate is wanted (TLS 1.3)", stage=secure(_strict_13),
              expect=Fails(error=(TLSError, ReadError, WriteError, RemoteDisconnected), phase=None,
                           replay=None, sent=None, started=None, attempts=None)),
    ),
)  # fmt: skip

GROUPS = (TCP, HANDSHAKES, UNDER)
