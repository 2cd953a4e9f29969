"""Through a proxy to an origin: HTTP CONNECT and SOCKS5.

This module knows what is said to a proxy. It does not know which proxy, if any, an origin needs.
"""

from __future__ import annotations

from http import HTTPStatus
from importlib.util import find_spec

import h11

from trunkline import Origin, ProxyError
from trunkline.net import Stream
from trunkline.proxy import Proxy

HAS_SOCKS = find_spec("socksio") is not None
SOCKS_REMEDY = "a SOCKS proxy needs socksio: pip install 'trunkline[socks]'"
_MAX_HEAD = 64 * 1024


async def open_tunnel(stream: Stream, proxy: Proxy, origin: Origin) -> None:
    """Have an HTTP proxy connect `stream` to `origin` (RFC 9110 section 9.3.6).

    Raises:
        ProxyError: it refuses, with the status in the message, or what it says is not HTTP.
        OSError: the connection to it failed.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    authority = f"{host}:{origin.port}"
    headers = [("Host", authority)]
    if proxy.authorization is not None:
        headers.append(("Proxy-Authorization", proxy.authorization))
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    try:
        request = h11.Request(method="CONNECT", target=authority, headers=headers)
        await stream.send(http.send(request) or b"")
        response = await _receive_response(http, stream)
    except h11.ProtocolError as error:
        raise ProxyError("the proxy's answer to CONNECT is not valid HTTP") from error
    if not 200 <= response.status_code <= 299:
        raise ProxyError(f"the proxy answered CONNECT with {_name(response.status_code)}")
    if http.trailing_data[0]:
        raise ProxyError("the proxy sent bytes after its answer to CONNECT")


async def _receive_response(http: h11.Connection, stream: Stream) -> h11.Response:
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive()
            if not data:
                raise ProxyError("the proxy ended the connection instead of answering CONNECT")
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            return event


def _name(status_code: int) -> str:
    try:
        return f"{status_code} {HTTPStatus(status_code).phrase}"
    except ValueError:
        return str(status_code)


async def open_socks(stream: Stream, proxy: Proxy, host: str, port: int) -> None:
    """Have a SOCKS5 proxy connect `stream` (RFC 1928; credentials by RFC 1929).

    Raises:
        ProxyError: it refuses, or what it says is not SOCKS5.
        OSError: the connection to it failed.
    """
    from socksio.exceptions import SOCKSError

    try:
        await _authenticate(stream, proxy)
        await _command(stream, host, port)
    except SOCKSError as error:
        raise ProxyError("the proxy's answer is not valid SOCKS5") from error
    except OverflowError as error:
        raise ProxyError("SOCKS5 takes no name or credentials over 255 bytes") from error


async def _authenticate(stream: Stream, proxy: Proxy) -> None:
    from socksio import socks5

    methods = socks5.SOCKS5AuthMethod
    method = methods.NO_AUTH_REQUIRED if proxy.username is None else methods.USERNAME_PASSWORD
    await stream.send(socks5.SOCKS5AuthMethodsRequest([method]).dumps())
    offer = socks5.SOCKS5AuthReply.loads(_of_version_5(await _receive_exactly(stream, 2)))
    if offer.method != method:
        raise ProxyError("the SOCKS5 proxy wants another way to authenticate")
    if proxy.username is None:
        return
    username, password = proxy.username.encode(), (proxy.password or "").encode()
    await stream.send(socks5.SOCKS5UsernamePasswordRequest(username, password).dumps())
    verdict = socks5.SOCKS5UsernamePasswordReply.loads(await _receive_exactly(stream, 2))
    if not verdict.success:
        raise ProxyError("the SOCKS5 proxy does not accept the credentials")


async def _command(stream: Stream, host: str, port: int) -> None:
    from socksio import socks5

    connect = socks5.SOCKS5Command.CONNECT
    await stream.send(socks5.SOCKS5CommandRequest.from_address(connect, (host, port)).dumps())
    reply = socks5.SOCKS5Reply.loads(await _receive_reply(stream))
    if reply.reply_code != socks5.SOCKS5ReplyCode.SUCCEEDED:
        why = reply.reply_code.name.replace("_", " ").lower()
        raise ProxyError(f"the SOCKS5 proxy does not connect: {why}")


async def _receive_reply(stream: Stream) -> bytes:
    """A reply to a command, whose length depends on the type of address in it (RFC 1928)."""
    start = _of_version_5(await _receive_exactly(stream, 5))
    rest = {1: 3 + 2, 3: start[4] + 2, 4: 15 + 2}.get(start[3])
    if rest is None:
        raise ProxyError("the proxy's answer is not valid SOCKS5")
    return start + await _receive_exactly(stream, rest)


def _of_version_5(reply: bytes) -> bytes:
    if reply[0] != 5:
        raise ProxyError("the proxy's answer is not valid SOCKS5")
    return reply


async def _receive_exactly(stream: Stream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = await stream.receive(size - len(received))
        if not data:
            raise ProxyError("the SOCKS5 proxy ended the connection")
        received += data
    return received
