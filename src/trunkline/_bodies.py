"""Where a response's body comes from, and the iterators over what is made of it.

This module knows pieces: of bytes, text, lines or events. It does not know HTTP, connections or
what a response looks like beyond its stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from trunkline._errors import TransportError

if TYPE_CHECKING:
    from trunkline._messages import Response

T = TypeVar("T")


class BodyStream(Protocol):
    """Where a response reads its body from.

    It may have an attribute `is_over`: nothing more comes, that is known without a read; a method
    `take_rest`: what is left, if all of it is here, else None; and a coroutine method `aclose`, to
    close it for who may wait.
    """

    async def read(self) -> bytes:
        """The next piece as it came off the wire; b"" at the end."""
        ...

    def close(self) -> None:
        """Give back what is held. Synchronous and idempotent; before the end it aborts."""
        ...

    def abandon(self) -> None:
        """Have `close` called soon: a finalizer calls this, in whichever thread it runs."""
        ...

    def annotate(self, error: TransportError) -> None:
        """Write the facts of the exchange into an error that arose above the stream."""
        ...


class LocalStream:
    """A body that no connection is held for."""

    is_over = False

    def close(self) -> None:
        """There is nothing to give back."""

    def abandon(self) -> None:
        """There is nothing to give back."""

    def annotate(self, error: TransportError) -> None:
        error.request_sent = error.response_started = True
        error.replay = "unsafe"


class BytesStream(LocalStream):
    """A body that is already here."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self) -> bytes:
        content, self._content = self._content, b""
        return content


class IterableStream(LocalStream):
    """A body that somebody's async iterable produces."""

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self._iterator = content.__aiter__()

    async def read(self) -> bytes:
        async for piece in self._iterator:
            if piece:
                return piece
        return b""

    async def aclose(self) -> None:
        """End an async generator in good order; any other iterator has nothing to end."""
        close: Any = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


# Their decoders know no replacement character.
_STRICT_ONLY = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})


@lru_cache(maxsize=64)
def find_charset(content_type: str) -> str:
    import codecs
    from email.message import Message

    message = Message()
    message["Content-Type"] = content_type
    charset = message.get_content_charset("utf-8")
    try:
        b"a".decode(charset, "replace")  # refuses what is no text encoding, such as "hex"
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        return "utf-8"
    return "utf-8" if name in _STRICT_ONLY else charset


# -- iterators ---------------------------------------------------------------------------------
# Classes, not async generators: one that is dropped half-way leaves nothing to finalize, which an
# async generator does on asyncio (a task) and trio (a ResourceWarning).


S_contra = TypeVar("S_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


class _Stage(Protocol[S_contra, T_co]):
    """A sans-IO step of decoding: what comes out for what goes in, and at the end."""

    def feed(self, data: S_contra, /) -> Iterable[T_co]: ...

    def finish(self) -> Iterable[T_co] | None: ...


class Pieces(AsyncIterator[T]):
    """What a chain of stages makes of the pieces of a response's stream; without any, the pieces.

    Closes the response at the end and on an error.
    """

    __slots__ = ("_at_end", "_feed", "_is_finished", "_key", "_ready", "_response", "_stages")

    def __init__(self, response: Response, *stages: _Stage[Any, Any]) -> None:
        self._response = response
        self._key = object()  # not self: a response that is dropped must not be part of a cycle
        self._stages = stages
        self._feed = stages[0].feed if len(stages) == 1 else _feeder(stages)
        self._ready: Iterator[T] = iter(())
        self._at_end = self._is_finished = False
        self._check()

    def _check(self) -> None:
        response = self._response
        if response._reader not in (None, self._key):  # pyright: ignore[reportPrivateUsage]
            raise RuntimeError("the body has been read already; it is read once")
        if response.is_closed:
            raise RuntimeError("the response is closed; read the body before")

    async def __anext__(self) -> T:
        try:
            while True:
                for item in self._ready:
                    return item
                if self._at_end:
                    self._finish()
                    continue
                response = self._response
                if response._reader is not self._key or response.is_closed:  # pyright: ignore[reportPrivateUsage]
                    self._check()
                    response._reader = self._key  # pyright: ignore[reportPrivateUsage]
                stream = response._stream  # pyright: ignore[reportPrivateUsage]
                piece = await stream.read()
                if not piece or getattr(stream, "is_over", False):
                    self._at_end = True
                    response.close()
                if piece:
                    self._ready = iter(self._feed(piece))
        except TransportError as error:
            self._response._fail(error)  # pyright: ignore[reportPrivateUsage]
            raise
        except BaseException:
            if self._response._reader is self._key:  # pyright: ignore[reportPrivateUsage]
                self._response.close()
            raise

    def _finish(self) -> None:
        if self._is_finished:
            raise StopAsyncIteration
        self._is_finished = True
        self._ready = _finish(self._stages)


def _feeder(stages: tuple[_Stage[Any, Any], ...]) -> Callable[[bytes], Iterable[Any]]:
    return lambda piece: _through(stages, (piece,))


def _through(stages: tuple[_Stage[Any, Any], ...], items: Iterable[Any]) -> Iterator[Any]:
    for stage in stages:
        items = _fed(stage, items)
    return iter(items)


def _fed(stage: _Stage[Any, Any], items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        yield from stage.feed(item)


def _finish(stages: tuple[_Stage[Any, Any], ...]) -> Iterator[Any]:
    for position, stage in enumerate(stages):
        yield from _through(stages[position + 1 :], stage.finish() or ())


class TextDecoder:
    def __init__(self, encoding: str) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        name = codecs.lookup(encoding).name  # "utf_16" is one of them too
        self._mark = {"utf-16": codecs.BOM_UTF16, "utf-32": codecs.BOM_UTF32}.get(name, b"")
        self._held = b""

    def feed(self, data: bytes) -> tuple[str, ...]:
        return self._decode(data, is_last=False)

    def finish(self) -> tuple[str, ...]:
        return self._decode(b"", is_last=True)

    def _decode(self, data: bytes, *, is_last: bool) -> tuple[str, ...]:
        if self._mark:
            data = self._held = self._held + data
            if len(data) < len(self._mark) and not is_last:
                return ()
            # As `bytes.decode` does. This decoder by itself asks for a byte order mark.
            if not data.startswith((self._mark, self._mark[::-1])):
                data = self._mark + data
            self._mark = b""
        text = self._decoder.decode(data, is_last)
        return (text,) if text else ()
