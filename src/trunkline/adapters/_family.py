"""httpx and httpx2, which have the same names: their messages and errors, and ours.

This module knows what a request and a response are made of on both sides. It does not know who
sends them, nor in which thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from functools import lru_cache
from typing import Any, TypeAlias

import trunkline
from trunkline import (
    ConnectionInfo,
    Origin,
    Request,
    Response,
    Timeouts,
    Transport,
    TransportConfig,
)
from trunkline._fields import Fields, lower_name
from trunkline._urls import Target, parse_url
from trunkline.adapters._errors import class_for

Given: TypeAlias = TransportConfig | Transport | None

_REFUSED = {
    "sni_hostname": "put the name into the URL",
    "trace": "use `observe` of the trunkline transport",
}
_AT_ONCE = 1e-6  # our deadlines are longer than nothing


class Family:
    """One of the two libraries.

    Args:
        library: the module, `httpx` or `httpx2`.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self._not_read = library.RequestNotRead
        self._bound_stream = _bound_stream(library)
        self._parse_url = lru_cache(maxsize=256)(library.URL)  # its URLs do not change

    def translate_error(self, error: trunkline.TransportError, request: Any) -> Exception:
        """The library's exception for ours, which is to be its `__cause__`."""
        message = str(error) or type(error).__name__
        translated: Exception = class_for(error, self.library)(message, request=request)
        return translated

    def translate_request(
        self, request: Any, content: bytes | AsyncIterable[bytes] | None, head_limit: float | None
    ) -> Request:
        """Our request for the library's.

        Args:
            content: its body.
            head_limit: seconds that the transport's config gives a response head.

        Raises:
            InvalidRequest: it breaks HTTP's rules.
            UnsupportedOption: it has an extension that cannot be honoured.
        """
        extensions = request.extensions
        for name, remedy in _REFUSED.items():
            if name in extensions:
                raise trunkline.UnsupportedOption(f"extensions: {name} is not supported; {remedy}")
        timeout = extensions.get("timeout")
        return Request(
            request.method,
            _target(request.url, extensions.get("target")),
            headers=_fields(request.headers.raw),
            content=content,
            timeouts=_timeouts(tuple(timeout.items()), head_limit) if timeout else None,
        )

    def content(self, request: Any) -> tuple[bytes | None, Any]:
        """The body of the library's request, as bytes or as its stream; or neither."""
        try:
            return request.content or None, None
        except self._not_read:
            stream = request.stream
        if isinstance(stream, self.library.ByteStream):  # of the request that was redirected
            return b"".join(stream) or None, None
        return None, stream

    def translate_response(self, response: Response, stream: Any, made: Any) -> Any:
        """The library's response for ours, of the class `made`, with `stream` as its body."""
        version = response.http_version
        extensions: dict[str, Any] = {
            "http_version": version.encode("ascii"),
            "network_stream": NetworkStream(response.connection),
        }
        if version != "HTTP/2":  # which has none: then the library says the usual one
            extensions["reason_phrase"] = response.reason_phrase.encode("ascii", "ignore")
        return made(
            response.status_code,
            headers=response.raw_headers,
            stream=stream,
            extensions=extensions,
        )

    def url(self, url: Any) -> Any:
        """The library's URL for what a caller gave."""
        return self._parse_url(url) if type(url) is str else url

    def is_direct(self, response: Any, body: Any) -> bool:
        """Whether a response gives its body just as it is: not coded, and nobody's to change.

        The library's client puts a stream around it that takes the time.
        """
        stream = response.stream
        if type(stream) is self._bound_stream:
            stream = stream._stream
        return stream is body and "content-encoding" not in response.headers


def _bound_stream(library: Any) -> Any:
    """The class of the streams in which the library's client puts a transport's.

    None where the library is not as we know it below its public surface; then a body is read in the
    library's own way.
    """
    known = "_content", "_num_bytes_downloaded", "is_stream_consumed"
    response = library.Response(200, content=b"")
    if all(hasattr(response, name) for name in known):
        return getattr(library._client, "BoundAsyncStream", None)
    return None


def open_or_take(given: Given) -> tuple[Transport, bool]:
    """The transport, and whether it was made here, so that it is closed here too.

    Raises:
        UnsupportedOption: it is neither a config nor a transport; and as `open_transport`.
    """
    if given is None or isinstance(given, TransportConfig):
        return trunkline.open_transport(given), True
    if not isinstance(given, Transport):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise trunkline.UnsupportedOption(
            f"config_or_transport: a {type(given).__name__} is neither; give a TransportConfig, "
            "such as TransportConfig(backend='httpx'), or a transport of trunkline"
        )
    return given, False


def head_limit(transport: Transport) -> float | None:
    """Seconds that the transport's config gives a response head."""
    config = getattr(transport, "config", None)
    return config.timeouts.headers if isinstance(config, TransportConfig) else None


def _target(url: Any, given: bytes | None) -> Target:
    path = url.raw_path if given is None else given
    return Target(_origin(url.raw_scheme, url.raw_host, url.port), path.decode("latin-1"))


@lru_cache(maxsize=1024)
def _origin(scheme: bytes, host: bytes, port: int | None) -> Origin:
    if scheme not in (b"http", b"https"):
        raise trunkline.UnsupportedOption("url: it must start with http:// or https://")
    name = host.decode("ascii")
    authority = f"[{name}]" if ":" in name else name
    if port is not None:
        authority += f":{port}"
    return parse_url(f"{scheme.decode('ascii')}://{authority}").origin


def _fields(raw: list[tuple[bytes, bytes]]) -> Fields:
    pairs = [
        (name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in raw
    ]
    fields = Fields(tuple(pairs))
    codings = fields.controls.get("transfer-encoding")
    if codings is None or [one.lower() for one in codings] != ["chunked"]:
        return fields
    # The library says how the body will be framed, and goes on saying it when the body has been
    # read since. The transport frames it, and says so itself.
    return Fields(tuple([one for one in fields.pairs if lower_name(one[0]) != "transfer-encoding"]))


@lru_cache(maxsize=256)
def _timeouts(given: tuple[tuple[str, float | None], ...], head_limit: float | None) -> Timeouts:
    seconds = {
        name: None if value is None or value == float("inf") else max(value, _AT_ONCE)
        for name, value in given
    }
    # A read time-out of the library is also how long the response head may be awaited.
    read = seconds.get("read")
    if read is not None:
        seconds["headers"] = read if head_limit is None else min(read, head_limit)
    return Timeouts(**seconds)


class NetworkStream:
    """The response extension `network_stream`: facts about the connection.

    It has no `read` and no `write`: the connection is the pool's, and carries HTTP only.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: ConnectionInfo | None) -> None:
        self._connection = connection

    def get_extra_info(self, info: str) -> Any:
        """The peer's host and port for "server_addr", the `ssl.SSLObject` for "ssl_object".

        None for anything else, and for what is not known.
        """
        connection = self._connection
        if connection is None:
            return None
        if info == "ssl_object":
            return connection.ssl_object
        return _address(connection.peer) if info == "server_addr" else None


def _address(peer: str | None) -> tuple[str, int] | str | None:
    host, _, port = (peer or "").rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() else peer
