"""Faults of content codings: corrupt, cut short, stacked, and bombs (RFC 9110, section 8.4)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from backports import zstd
from tests.faults._lab import GOOD, Answers, Fails, Fault, Group
from tests.faults._shorthand import CORRUPT, RIGHT, fault

from trunkline import DecompressionLimit
from trunkline.testing._script import response, send

_BROTLI: Any = import_module("brotli")  # it has no types
_TEXT = b"".join(b"line %d of a page\n" % number for number in range(2000))
_MIB = 2**20

Encode = Callable[[bytes], bytes]


def _raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


_ENCODERS: dict[str, Encode] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": partial(_BROTLI.compress, quality=5),
    "zstd": partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1}),
}


def _coded(name: str, coding: str, body: bytes, *expect: Fails | Answers) -> Fault:
    raw = response(200, body, ("Content-Encoding", coding))
    # The framing is good: the connection may go on.
    return fault(name, send(raw), *GOOD, expect=expect or (CORRUPT,))


def _each(coding: str, encode: Encode) -> tuple[Fault, ...]:
    whole = encode(_TEXT)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(byte ^ 0x55 for byte in whole[middle : middle + 20])
    right = Answers(body=_TEXT)
    return (
        _coded(f"{coding}: no {coding} at all", coding, b"plain text, which is not coded"),
        _coded(f"{coding}: corrupt in the middle", coding, flipped + whole[middle + 20 :]),
        _coded(f"{coding}: cut short, in the middle", coding, whole[:middle]),
        _coded(f"{coding}: cut short by one byte", coding, whole[:-1]),
        _coded(f"{coding}: only its first byte", coding, whole[:1]),
        _coded(f"{coding}: an empty body", coding, b"", Answers(body=b"")),
        _coded(f"{coding}: whole", coding, whole, right),
    )


_GZIP = gzip.compress(_TEXT)

BROKEN = Group(
    is_parsing=True,
    title="Content that does not decode",
    faults=(
        *(each for coding, encode in _ENCODERS.items() for each in _each(coding, encode)),
        _coded("gzip: a wrong checksum", "gzip", _GZIP[:-8] + bytes(4) + _GZIP[-4:]),
        _coded("gzip: a wrong length", "gzip", _GZIP[:-4] + bytes(4)),
        _coded("gzip: an unknown method", "gzip", _GZIP[:2] + b"\x07" + _GZIP[3:]),
        _coded("gzip: a second member that is cut short", "gzip", _GZIP + _GZIP[:-4]),
        _coded("gzip: two members", "gzip", _GZIP * 2, Answers(body=_TEXT * 2)),
        _coded("gzip: bytes after its end", "gzip", _GZIP + b"surplus", Answers(body=_TEXT)),
        _coded("deflate without its wrapper", "deflate", _raw_deflate(_TEXT), Answers(body=_TEXT)),
        _coded("deflate: a wrong checksum", "deflate", zlib.compress(_TEXT)[:-4] + bytes(4)),
        _coded("an unknown content coding", "x-own", b"page", RIGHT),
        _coded("ten layers of gzip", ", ".join(["gzip"] * 10), b"page"),
        _coded("a thousand layers of gzip", ", ".join(["gzip"] * 1000), b"page"),
        _coded("gzip in deflate", "gzip, deflate", zlib.compress(_GZIP), Answers(body=_TEXT)),
        _coded("gzip that says it is br", "br", _GZIP),
    ),
)


def _bomb(coding: str) -> bytes:
    """1 GiB of zeros."""
    if coding == "zstd":
        return zstd.compress(bytes(64 * _MIB), level=1) * 16
    if coding == "br":
        encoder = _BROTLI.Compressor(quality=1)
        pieces: list[bytes] = [encoder.process(bytes(_MIB)) for _ in range(1024)]
        return b"".join([*pieces, encoder.finish()])
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
    start = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the same input gives the same bytes again (zlib's manual).
    return start + (packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)) * 1023


_TOO_MUCH = Fails(error=DecompressionLimit, phase="body")

BOMBS = Group(
    "Decompression bombs",
    (
        *(_coded(f"{each}: 1 GiB of zeros", each, _bomb(each), _TOO_MUCH) for each in _ENCODERS),
        _coded("gzip in gzip: 1 GiB of zeros", "gzip, gzip", gzip.compress(_bomb("gzip")),
               _TOO_MUCH),
        _coded("br in gzip: 1 GiB of zeros", "br, gzip", gzip.compress(_bomb("br")), _TOO_MUCH),
    ),
)  # fmt: skip

GROUPS = (BROKEN, BOMBS)
