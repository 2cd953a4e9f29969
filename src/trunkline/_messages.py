"""What is sent and what comes back: `Request`, `Response`, and the small records they carry.

This module knows HTTP's rules for a message (RFC 9110, RFC 9112) and refuses a request that breaks
them before anything is sent. It does not know connections, pools or backends: a response reads its
body from whatever `BodyStream` it was given.
"""

from __future__ import annotations

import json as jsonlib
import re
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from multidict import CIMultiDict, CIMultiDictProxy, istr

from trunkline._bodies import (
    BodyStream,
    BytesStream,
    IterableStream,
    LocalStream,
    Pieces,
    TextDecoder,
    find_charset,
)
from trunkline._errors import HTTPStatusError, InvalidRequest, TransportError
from trunkline._fields import TOKEN, Fields, HeaderTypes
from trunkline._urls import Origin, Target, check_target, parse_url

if TYPE_CHECKING:
    import ssl

    from yarl import URL

    from trunkline._config import Timeouts
    from trunkline._sse import ServerSentEvent
    from trunkline.decode import Decoder

Content: TypeAlias = bytes | bytearray | memoryview | str | AsyncIterable[bytes] | None
T = TypeVar("T")

_CONTENT_ENCODING = istr("Content-Encoding")  # found at once, where a str is folded first
_ALL = object()  # the reader of a body that was read whole

_BAD_IN_HOST = re.compile(r"[\s/?#@,]")
_LENGTH = re.compile(r"[0-9]{1,18}\Z")
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 9.2.2
_METHODS = _IDEMPOTENT | {"POST", "PATCH"}


class Request:
    """One HTTP request. It is not changed by being sent, and may be sent again if its body may.

    Args:
        method: e.g. "POST"; sent as given.
        url: absolute, http or https, no userinfo. A `Target` is for who has taken the URL apart:
            its path goes on the wire as it is.
        headers: a mapping or pairs; order and duplicates are kept. `Host` and the framing headers
            are added on the wire.
        content: bytes, text (sent as UTF-8), or an async iterable of bytes, which is sent as it is
            produced, chunked unless a `Content-Length` header is given.
        timeouts: the fields set on it replace the transport's for this request.
        idempotent: True says that sending it twice equals once. None: decided by the method, and
            an `Idempotency-Key` header.
        priority: of those who wait for a connection a higher one goes first; equal ones in order.

    Raises:
        InvalidRequest: naming the field that is wrong. Nothing was sent.
    """

    __slots__ = ("_headers", "content", "fields", "idempotent", "method", "origin",
                 "path", "priority", "timeouts", "url")  # fmt: skip

    def __init__(
        self,
        method: str,
        url: str | URL | Target,
        *,
        headers: HeaderTypes | Fields = None,
        content: Content = None,
        timeouts: Timeouts | None = None,
        idempotent: bool | None = None,
        priority: int = 0,
    ) -> None:
        self.method = method if method in _METHODS else _check_method(method)
        if isinstance(url, Target):
            target, url = check_target(url), f"{url.origin}{url.path}"
        else:
            url = str(url)
            target = parse_url(url)
        self.url = url
        self.origin: Origin = target.origin
        self.path: str = target.path
        """Path and query as they go on the wire; never in a log or an error."""
        self.fields = headers if type(headers) is Fields else Fields(headers)  # type: ignore[arg-type]
        """The header fields as they were given."""
        self._headers: CIMultiDictProxy[str] | None = None
        self.content = content if type(content) is bytes else _check_content(content)
        self.timeouts = timeouts
        self.idempotent = idempotent
        self.priority = priority
        if self.fields.controls:
            self._check_framing(self.fields.controls)

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        if self._headers is None:
            self._headers = CIMultiDictProxy(CIMultiDict(self.fields.pairs))
        return self._headers

    @property
    def is_idempotent(self) -> bool:
        """Whether sending it twice equals sending it once, as far as the caller has said."""
        if self.idempotent is not None:
            return self.idempotent
        return self.method in _IDEMPOTENT or "idempotency-key" in self.fields.controls

    @property
    def expects_continue(self) -> bool:
        """Whether the body waits for a 100 (RFC 9110 section 10.1.1)."""
        expected = self.fields.controls.get("expect")
        return expected is not None and expected[0].lower() == "100-continue"

    @property
    def is_rewindable(self) -> bool:
        """Whether the body can be sent a second time: it is bytes, or there is none."""
        return self.content is None or isinstance(self.content, bytes)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, piece by piece; nothing where there is none."""
        if isinstance(self.content, bytes):
            yield self.content
        elif self.content is not None:
            async for piece in self.content:
                yield piece

    def wire_headers(self) -> list[tuple[str, str]]:
        """The header fields in the order they are sent: `Host` first, framing last."""
        fields, framing = self.unframed_headers(), self.framing()
        if framing is not None:
            name, value = framing
            fields.append((name.decode(), value.decode()))
        return fields

    def unframed_headers(self) -> list[tuple[str, str]]:
        """`wire_headers` without what `framing` says."""
        fields = [] if "host" in self.fields.controls else [("Host", self.origin.authority)]
        fields += self.fields.pairs
        return fields

    def framing(self) -> tuple[bytes, bytes] | None:
        """The field that says where the body ends, unless it was given or there is no body."""
        content = self.content
        if "content-length" in self.fields.controls:
            return None
        if type(content) is bytes:
            return b"Content-Length", b"%d" % len(content)
        if content is not None:
            return b"Transfer-Encoding", b"chunked"
        if self.method in ("POST", "PUT", "PATCH"):  # RFC 9110 section 8.6
            return b"Content-Length", b"0"
        return None

    def _check_framing(self, controls: Mapping[str, list[str]]) -> None:
        if "transfer-encoding" in controls:
            raise InvalidRequest("headers: Transfer-Encoding is set by the transport; remove it")
        hosts = controls.get("host")
        if hosts is not None and (len(hosts) > 1 or _BAD_IN_HOST.search(hosts[0])):
            raise InvalidRequest("headers: Host must be one host, with a port or without")
        lengths = controls.get("content-length")
        if not lengths:
            return
        if len(lengths) > 1 or not _LENGTH.match(lengths[0]):
            raise InvalidRequest("headers: Content-Length must be one decimal number")
        if self.is_rewindable and int(lengths[0]) != len(self.content or b""):  # type: ignore[arg-type]
            raise InvalidRequest("headers: Content-Length contradicts the length of the content")

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.origin}>"


def make_headers(headers: HeaderTypes) -> CIMultiDict[str]:
    """A checked, case-insensitive copy. Raises as `Fields`."""
    return CIMultiDict(Fields(headers).pairs)


def _check_method(method: str) -> str:
    if not TOKEN.match(method):
        raise InvalidRequest("method: it must be a token such as GET (RFC 9110 section 9)")
    return method


def _check_content(content: Content) -> bytes | AsyncIterable[bytes] | None:
    if content is None or isinstance(content, bytes):
        return content
    if isinstance(content, str):
        try:
            return content.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("content: it contains a lone surrogate") from error
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    if hasattr(content, "__aiter__"):
        return content
    raise InvalidRequest("content: give bytes, str or an async iterable of bytes")


@dataclass(slots=True)
class Timings:
    """Where the time of one exchange went, in seconds; None where the step did not happen.

    `dns`, `connect` and `tls` are None on a reused connection; `receive` and `total` until the body
    has been read.
    """

    queue: float | None = None
    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    send: float | None = None
    wait: float | None = None
    receive: float | None = None
    total: float | None = None


@dataclass(slots=True)
class ConnectionInfo:
    """The connection an exchange ran on.

    `age` is in seconds at the time the exchange began, `requests` counts the exchanges it has
    carried, this one included; `peer` is the address, e.g. "127.0.0.1:443". `ssl_object` has the
    TLS version, cipher and certificate; it is None without TLS, and where a backend keeps none.
    """

    id: int
    reused: bool
    age: float
    http_version: str
    peer: str | None
    requests: int
    ssl_object: ssl.SSLObject | None = field(default=None, repr=False, compare=False)


class Response:
    """One HTTP response: the head is here, the body is read on demand.

    Until the body has been read to its end or `aclose` was called it holds a connection; use
    `async with`, `aread`, or an iterator to the end. One whose last reference is dropped while it
    is still open emits a `ResourceWarning` and gives the connection back.

    Args:
        status_code: 100 to 599; a 500 is a response like any other.
        headers: header fields.
        content: bytes, or an async iterable of bytes, as they would be on the wire.
        stream: instead of `content`, where a transport reads the body from.
        reason_phrase: None for the standard one of the status.
        request: what it answers.
    """

    __slots__ = (
        "__weakref__",
        "_content",
        "_reader",
        "_stream",
        "connection",
        "headers",
        "http_version",
        "is_closed",
        "raw_headers",
        "reason_phrase",
        "request",
        "status_code",
        "timings",
    )

    _content: bytes | None
    _reader: object
    is_closed: bool

    def __init__(
        self,
        status_code: int,
        *,
        headers: HeaderTypes = None,
        content: Content = b"",
        stream: BodyStream | None = None,
        reason_phrase: str | None = None,
        http_version: str = "HTTP/1.1",
        raw_headers: tuple[tuple[bytes, bytes], ...] | None = None,
        request: Request | None = None,
        timings: Timings | None = None,
        connection: ConnectionInfo | None = None,
    ) -> None:
        self.status_code = status_code
        self.headers: CIMultiDictProxy[str] = (
            headers
            if isinstance(headers, CIMultiDictProxy)
            else CIMultiDictProxy(make_headers(headers))
        )
        self.raw_headers = raw_headers or tuple(
            (name.encode(), value.encode("utf-8", "surrogateescape"))
            for name, value in (self.headers.items() if raw_headers is None else ())
        )
        self.reason_phrase = _reason(status_code) if reason_phrase is None else reason_phrase
        self.http_version = http_version
        self.request = request
        self.timings = timings or Timings()
        self.connection = connection
        self._content = None
        self._reader = None
        self._stream = _make_stream(content) if stream is None else stream
        self.is_closed = False

    # -- the body ------------------------------------------------------------------------------

    async def aread(self) -> bytes:
        """Read the whole body, decoded, and close. A second call returns the same bytes.

        Raises:
            ReadTimeout, DeadlineExceeded, BodyTruncated, ReadError, RemoteProtocolError:
                the body did not arrive whole.
            DecodeError: it does not decode as its Content-Encoding says.
        """
        if self._content is None:
            is_plain = self._reader is None and _CONTENT_ENCODING not in self.headers
            if self.is_closed or not is_plain:
                pieces = [piece async for piece in self.aiter_bytes()]
                self._content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                return self._content
            stream, self._reader = self._stream, _ALL
            try:
                take_rest = getattr(stream, "take_rest", None)
                content: bytes | None = None if take_rest is None else take_rest()
                if content is None:
                    content = await stream.read()
                    if not getattr(stream, "is_over", False):
                        content = await _read_on(stream, content)
            except BaseException:
                self.close()
                raise
            if getattr(stream, "is_over", False):
                self.is_closed = True
            else:
                self.close()
            self._content = content
        return self._content

    def aiter_raw(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it arrives, not decoded. Raises as `aread`."""
        return Pieces(self)

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it arrives, decoded. Raises as `aread`."""
        source, decoders = self._source()
        return Pieces(source, *decoders)

    def _source(self) -> tuple[Response, tuple[Decoder, ...]]:
        """Where to read from, and what to decode it with: a body that was read is kept decoded."""
        if self._content is not None:
            return Response(self.status_code, content=self._content), ()
        encoding = self.headers.get(_CONTENT_ENCODING)
        if encoding is None:
            return self, ()
        from trunkline.decode import make_decoder

        try:
            decoder = make_decoder(encoding)
        except TransportError as error:
            self._fail(error)
            raise
        return self, () if decoder is None else (decoder,)

    def aiter_text(self) -> AsyncIterator[str]:
        """The decoded body as text, in the charset of Content-Type, else UTF-8."""
        source, decoders = self._source()
        return Pieces(source, *decoders, TextDecoder(self.encoding))

    def aiter_lines(self) -> AsyncIterator[str]:
        """The text line by line, without the line ends (LF, CRLF or CR)."""
        from trunkline._sse import LineDecoder

        source, decoders = self._source()
        return Pieces(source, *decoders, TextDecoder(self.encoding), LineDecoder())

    def aiter_sse(self) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events by the rules of the WHATWG (HTML standard, section 9.2.6)."""
        from trunkline._sse import SSEDecoder

        source, decoders = self._source()
        return Pieces(source, *decoders, SSEDecoder())

    async def aclose(self) -> None:
        """Give the connection back; a body not read to its end is aborted."""
        if not self.is_closed:
            self.is_closed = True
            aclose: Any = getattr(self._stream, "aclose", None)
            if aclose is None:
                self._stream.close()
            else:
                await aclose()

    def close(self) -> None:
        """What `aclose` does; synchronous, idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self._stream.close()

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, TransportError):
            self._stream.annotate(error)
        self.close()

    @property
    def content(self) -> bytes:
        """The decoded body, once `aread` was called.

        Raises:
            RuntimeError: it was not.
        """
        if self._content is None:
            raise RuntimeError("the body has not been read: call `await response.aread()` first")
        return self._content

    @property
    def encoding(self) -> str:
        """The charset of Content-Type where Python knows it, else "utf-8"."""
        return find_charset(self.headers.get("Content-Type", ""))

    @property
    def text(self) -> str:
        """`content` as text; bytes that are not of the charset become U+FFFD."""
        return self.content.decode(self.encoding, "replace")

    def json(self) -> Any:
        """`content` as JSON.

        Raises:
            ValueError: it is not; a `json.JSONDecodeError`, or a `UnicodeDecodeError`.
        """
        return jsonlib.loads(self.content)

    # -- the status ----------------------------------------------------------------------------

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code <= 299

    @property
    def is_error(self) -> bool:
        return 400 <= self.status_code <= 599

    def raise_for_status(self) -> Self:
        """Return the response itself unless the status is 4xx or 5xx.

        Raises:
            HTTPStatusError: with `status_code` and `response`.
        """
        if not self.is_error:
            return self
        where = f"from {self.request.origin}" if self.request is not None else ""
        error = HTTPStatusError(
            " ".join(filter(None, (str(self.status_code), self.reason_phrase, where))),
            request_sent=True,
            response_started=True,
        )
        error.status_code = self.status_code
        error.response = self
        error.replay = "unsafe"
        error.http_version = self.http_version
        if self.request is not None:
            error.host, error.port = self.request.origin.host, self.request.origin.port
        raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Response [{self.status_code} {self.reason_phrase}]>"

    def __del__(self) -> None:
        if getattr(self, "is_closed", True) or isinstance(self._stream, LocalStream):
            return
        self.is_closed = True
        self._stream.abandon()
        warnings.warn(f"unclosed response {self!r}", ResourceWarning, source=self, stacklevel=2)


async def _read_on(stream: BodyStream, piece: bytes) -> bytes:
    """`piece`, and all that comes behind it: most bodies come in one."""
    pieces = [piece]
    while piece:
        piece = await stream.read()
        pieces.append(piece)
    return b"".join(pieces)


def _make_stream(content: Content) -> BodyStream:
    body = _check_content(content)
    return (
        BytesStream(body or b"")
        if body is None or isinstance(body, bytes)
        else (IterableStream(body))
    )


def _reason(status_code: int) -> str:
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return ""
