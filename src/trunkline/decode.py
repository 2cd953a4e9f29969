"""Content decoding: a body's own bytes back from what `Content-Encoding` made of them.

This module knows the content codings (RFC 9110 section 8.4.1, RFC 7932, RFC 8878) and how far a
body may inflate. It does not know responses, connections, or who reads; it does no I/O.
"""

from __future__ import annotations

import importlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

from trunkline._errors import DecodeError, DecompressionLimit

ACCEPT_ENCODING = "gzip, deflate, br, zstd"
"""The `Accept-Encoding` sent unless the caller gives one: what browsers send, in their order."""

# Asked of every library. brotli 1.2 gives up to twice as much (google/brotli issue 1396), which is
# still below 1 MiB.
_PIECE = 256 * 1024
# The libraries copy the input they have not used yet at each call, so they get it in small parts.
_SLICE = 64 * 1024
# RFC 9659: an encoder may not need a larger window, so a larger one is only a way to take memory.
_ZSTD_WINDOW_LOG = 23
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """How far a body may inflate before it counts as a decompression bomb.

    A body is refused when it has grown beyond `ratio_floor` *and* beyond `max_ratio` times what
    came over the wire. Text and JSON compress 3 to 30 times, repetitive logs up to about 100 times,
    while a bomb is made to reach the format's own bound (gzip about 1,000, brotli and zstd far
    more); 200 lies clear of both. Below 32 MiB a body can hurt nobody, so it may be all zeros.

    Attributes:
        max_layers: how many codings may be stacked, as in "gzip, br".
        max_ratio: decoded bytes per encoded byte.
        ratio_floor: decoded bytes below which the ratio is not looked at.
    """

    max_layers: int = 3
    max_ratio: float = 200.0
    ratio_floor: int = 32 * 1024 * 1024


DEFAULT_LIMITS = DecodeLimits()


class Decoder:
    """Undoes the codings of one body. Made by `make_decoder`; good for one body only.

    Memory: at most one piece (below 1 MiB) and one window (gzip 32 KiB, zstd 8 MiB, brotli 16 MiB,
    by their formats, and only as far as the body fills it) per coding, whatever the body expands
    to.
    """

    __slots__ = ("_encoded", "_layers", "_limits")

    def __init__(self, layers: list[_Layer], limits: DecodeLimits) -> None:
        self._layers = layers
        self._limits = limits
        self._encoded = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to, in non-empty pieces below 1 MiB, decoded as they are asked.

        All that can be decoded from the bytes so far is yielded: an event that the server flushed
        is never held back. Exhaust the iterator before the next `feed` or `finish`; a reader that
        stops early has done with this decoder.

        Raises:
            DecodeError: the data is corrupt, or fails its checksum; the library's exception is
                `__cause__`. The decoder is of no more use.
            DecompressionLimit: the body inflates beyond the `DecodeLimits`.
        """
        self._encoded += len(data)
        yield from self._run(0, data)

    def finish(self) -> None:
        """Check that the body was whole. Nothing is left to flush: `feed` holds nothing back.

        A body of no bytes at all is whole, as in a 204 that names a coding.

        Raises:
            DecodeError: the body ended inside the coded stream ("... truncated").
        """
        for layer in self._layers:
            if layer.started and not layer.ended:
                raise DecodeError(f"{layer.coding} content is truncated")

    def _run(self, depth: int, data: bytes) -> Iterator[bytes]:
        layer = self._layers[depth]
        for piece in layer.feed(data):
            # Inner layers count too: a layer may swallow a bomb's inside and yield nothing.
            layer.decoded += len(piece)
            self._refuse_bomb(layer.decoded)
            if depth + 1 < len(self._layers):
                yield from self._run(depth + 1, piece)
            else:
                yield piece

    def _refuse_bomb(self, decoded: int) -> None:
        limits = self._limits
        if decoded > limits.ratio_floor and decoded > limits.max_ratio * self._encoded:
            raise DecompressionLimit(
                f"{self._encoded} encoded bytes decode to more than {decoded - 1} bytes"
                f" (limit: {limits.max_ratio:g} times, above {limits.ratio_floor} bytes)"
            )


def make_decoder(
    content_encoding: str | None, *, limits: DecodeLimits = DEFAULT_LIMITS
) -> Decoder | None:
    """Return the decoder for a `Content-Encoding` value, or None when nothing is to be decoded.

    Understood: gzip, x-gzip, deflate (with the zlib wrapper the standard asks for, and the bare
    form that some servers send and browsers accept), br, zstd, identity; and stacks of them, which
    are undone in reverse order (RFC 9110 section 8.4). When any coding of the list is unknown the
    body is left as it is. Names are compared without case, empty list elements are skipped.

    After the end of a gzip stream another member may follow (RFC 1952 section 2.2), and is decoded;
    anything else that follows is ignored, also after a deflate stream, as browsers do (Chromium's
    `net/filter/gzip_source_stream.h` says that of itself and of the others; curl fails instead).
    After a zstd frame only another frame may follow (RFC 8878 section 3), after br nothing: no
    servers are known that need more patience there.

    Raises:
        DecodeError: more than `limits.max_layers` codings.
    """
    names = [name.strip(" \t").lower() for name in (content_encoding or "").split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings or not all(name in _CODINGS for name in codings):
        return None
    if len(codings) > limits.max_layers:
        raise DecodeError(f"{len(codings)} stacked content codings (limit: {limits.max_layers})")
    return Decoder([_CODINGS[name]() for name in reversed(codings)], limits)


class _Layer(ABC):
    """One coding. `_step` gives one bounded piece; `_more` says that it has not given all yet."""

    coding: ClassVar[str]

    def __init__(self, error: type[Exception]) -> None:
        self.started = False
        self.decoded = 0
        self._error = error
        self._more = False

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the coded stream is complete."""

    @abstractmethod
    def _step(self, data: bytes) -> bytes:
        """Decode one piece. `data` is empty when the last step said `_more`."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _SLICE):
            self.started = True
            part = data[start : start + _SLICE]
            while part or self._more:
                try:
                    piece = self._step(part)
                except self._error as exc:
                    raise DecodeError(f"{self.coding} content is corrupt") from exc
                part = b""
                if piece:
                    yield piece


class _Zlib(_Layer):
    """What gzip and deflate share: the inflating."""

    def __init__(self, wbits: int) -> None:
        super().__init__(zlib.error)
        self._inflate = zlib.decompressobj(wbits)
        self._held = b""

    @property
    def ended(self) -> bool:
        return self._inflate.eof

    @abstractmethod
    def _ready(self, data: bytes) -> bool:
        """Whether `data` goes into the stream; may begin a stream, or hold the data for later."""

    def _step(self, data: bytes) -> bytes:
        data = self._held + data
        self._held = b""
        self._more = False
        if not self._ready(data):
            return b""
        piece = self._inflate.decompress(data, _PIECE)
        self._held = self._inflate.unconsumed_tail or self._inflate.unused_data
        # A full piece may have left output inside zlib although all the input is used.
        self._more = bool(self._held) or len(piece) == _PIECE
        return piece


class _Gzip(_Zlib):
    coding = "gzip"

    def __init__(self) -> None:
        super().__init__(zlib.MAX_WBITS | 16)
        self._ignoring = False

    def _ready(self, data: bytes) -> bool:
        if not self._inflate.eof:
            return True
        if self._ignoring or not data:
            return False
        if data.startswith(_GZIP_MAGIC):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
            return True
        if _GZIP_MAGIC.startswith(data):
            self._held = data
        else:
            self._ignoring = True
        return False


class _Deflate(_Zlib):
    coding = "deflate"

    def __init__(self) -> None:
        super().__init__(zlib.MAX_WBITS)
        self._sniffed = False

    def _ready(self, data: bytes) -> bool:
        if not self._sniffed:
            if len(data) < 2:
                self._held = data
                return False
            self._sniffed = True
            if not _is_zlib_header(data):
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        return not self._inflate.eof


def _is_zlib_header(data: bytes) -> bool:
    # RFC 1950 section 2.2. A bare stream starts so only if its encoder left junk in padding bits.
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


class _BrotliStream(Protocol):
    """`brotli.Decompressor`, which ships no types; `output_buffer_limit` came with brotli 1.2."""

    def process(self, data: bytes, output_buffer_limit: int) -> bytes: ...
    def is_finished(self) -> bool: ...


class _Brotli(_Layer):
    coding = "br"

    def __init__(self) -> None:
        brotli = importlib.import_module("brotli")
        super().__init__(brotli.error)
        self._stream: _BrotliStream = brotli.Decompressor()

    @property
    def ended(self) -> bool:
        return self._stream.is_finished()

    def _step(self, data: bytes) -> bytes:
        piece = self._stream.process(data, output_buffer_limit=_PIECE)
        # An empty piece is the only sign that all is out (google/brotli pull request 1234).
        self._more = bool(piece) and not self._stream.is_finished()
        return piece


class _Zstd(_Layer):
    coding = "zstd"

    def __init__(self) -> None:
        from backports import zstd

        super().__init__(zstd.ZstdError)
        options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
        self._new_frame = partial(zstd.ZstdDecompressor, options=options)
        self._stream = self._new_frame()
        self._held = b""

    @property
    def ended(self) -> bool:
        return self._stream.eof

    def _step(self, data: bytes) -> bytes:
        data = self._held + data
        if self._stream.eof:
            self._stream = self._new_frame()
        piece = self._stream.decompress(data, _PIECE)
        self._held = self._stream.unused_data
        self._more = bool(self._held) or not (self._stream.eof or self._stream.needs_input)
        return piece


_CODINGS: dict[str, Callable[[], _Layer]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
