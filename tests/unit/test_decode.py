"""Content decoding: every coding, whole, cut, stacked, corrupt, truncated, or made to explode."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import itertools
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings, strategies as st

from trunkline._errors import DecodeError, DecompressionLimit
from trunkline.decode import ACCEPT_ENCODING, DecodeLimits, Decoder, make_decoder

brotli: Any = importlib.import_module("brotli")

MIB = 1024 * 1024
TEXT = b'{"delta": "a little text, a little text"}\n' * 400
UNLIMITED = DecodeLimits(max_ratio=1e12)


def bare_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def brotli_encode(data: bytes) -> bytes:
    encoded: bytes = brotli.compress(data, quality=4)
    return encoded


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli_encode,
    "zstd": zstd.compress,
}
FORMATS = [*ENCODERS.items(), ("deflate", bare_deflate)]
every_format = pytest.mark.parametrize(
    ("coding", "encode"), FORMATS, ids=[*ENCODERS, "bare-deflate"]
)
every_coding = pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])


def decoder(content_encoding: str, limits: DecodeLimits = UNLIMITED) -> Decoder:
    made = make_decoder(content_encoding, limits=limits)
    assert made is not None
    return made


def decode(content_encoding: str, chunks: Iterable[bytes]) -> bytes:
    made = decoder(content_encoding)
    pieces = [piece for chunk in chunks for piece in made.feed(chunk)]
    made.finish()
    return b"".join(pieces)


def encode_stack(content_encoding: str, data: bytes) -> bytes:
    for coding in content_encoding.split(", "):
        data = ENCODERS[coding](data)
    return data


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def flushing_encoder(coding: str) -> Callable[[bytes], bytes]:
    """A server's encoder that flushes each message of one long body."""
    if coding == "br":
        stream = brotli.Compressor()
        return lambda data: bytes(stream.process(data) + stream.flush())
    if coding == "zstd":
        frame = zstd.ZstdCompressor()
        return lambda data: frame.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)
    deflate = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)


def zeros(coding: str, mebibytes: int) -> bytes:
    """What `mebibytes` of zeros encode to, made without ever holding them."""
    block = bytes(MIB)
    stream: Any
    if coding == "br":
        stream = brotli.Compressor(quality=5)
        return b"".join(stream.process(block) for _ in range(mebibytes)) + bytes(stream.finish())
    if coding == "zstd":
        stream = zstd.ZstdCompressor()
    else:
        stream = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return b"".join(stream.compress(block) for _ in range(mebibytes)) + bytes(stream.flush())


# --- what is decoded, and what is not


@pytest.mark.parametrize("value", [None, "", " ", ",", "identity", "Identity, identity"])
def test_nothing_to_decode_needs_no_decoder(value: str | None) -> None:
    assert make_decoder(value) is None


@pytest.mark.parametrize("value", ["compress", "gzip, rot13", "dcb, gzip", "gzip;q=1"])
def test_an_unknown_coding_leaves_the_whole_body_as_it_is(value: str) -> None:
    assert make_decoder(value) is None


def test_every_coding_asked_for_by_default_is_understood() -> None:
    for coding in ACCEPT_ENCODING.split(", "):
        assert decode(coding, [ENCODERS[coding](TEXT)]) == TEXT


@every_format
def test_a_body_decodes(coding: str, encode: Callable[[bytes], bytes]) -> None:
    assert decode(coding, [encode(TEXT)]) == TEXT


@every_format
def test_an_empty_content_that_was_encoded_decodes(
    coding: str, encode: Callable[[bytes], bytes]
) -> None:
    assert decode(coding, [encode(b"")]) == b""


@every_coding
def test_a_body_of_no_bytes_is_whole(coding: str) -> None:
    assert decode(coding, []) == b""
    assert decode(f"{coding}, gzip", [b"", b""]) == b""


def test_coding_names_have_no_case_and_empty_list_elements_are_skipped() -> None:
    assert decode("\tGZip , ,identity,", [gzip.compress(TEXT)]) == TEXT


@pytest.mark.parametrize("stack", ["gzip, br", "br, gzip", "zstd, deflate, x-gzip"])
def test_a_stack_is_undone_in_reverse_order(stack: str) -> None:
    encoded = encode_stack(stack, TEXT)
    assert decode(stack, [encoded]) == TEXT
    assert decode(stack, [bytes([byte]) for byte in encoded]) == TEXT


def test_more_layers_than_the_limit_are_refused_before_any_byte_is_decoded() -> None:
    assert make_decoder(", ".join(["gzip"] * 3)) is not None
    with pytest.raises(DecodeError, match="10 stacked content codings"):
        make_decoder(", ".join(["gzip"] * 10))
    with pytest.raises(DecodeError, match="2 stacked"):
        make_decoder("gzip, br", limits=DecodeLimits(max_layers=1))


# --- chunks


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=3000),
    repeat=st.integers(1, 40),
    form=st.sampled_from(FORMATS),
    places=st.lists(st.integers(0, 1 << 20), max_size=8),
)
def test_any_content_in_any_chunks_round_trips(
    data: bytes, repeat: int, form: tuple[str, Callable[[bytes], bytes]], places: list[int]
) -> None:
    coding, encode = form
    assert decode(coding, cut(encode(data * repeat), places)) == data * repeat


@settings(max_examples=40, deadline=None)
@given(
    data=st.binary(max_size=500),
    stack=st.lists(st.sampled_from(sorted(ENCODERS)), min_size=2, max_size=3),
    places=st.lists(st.integers(0, 1 << 20), max_size=8),
)
def test_any_stack_in_any_chunks_round_trips(
    data: bytes, stack: list[str], places: list[int]
) -> None:
    value = ", ".join(stack)
    assert decode(value, cut(encode_stack(value, data), places)) == data


@every_coding
def test_content_larger_than_a_piece_comes_whole_whatever_its_size(coding: str) -> None:
    for size in (256 * 1024, 512 * 1024, MIB, 3 * MIB + 1):
        data = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
        assert decode(coding, [ENCODERS[coding](data)]) == data


@every_coding
def test_what_the_server_flushed_is_given_out_at_once(coding: str) -> None:
    encode = flushing_encoder(coding)
    made = decoder(coding)
    # The larger ones end exactly where a piece is full: nothing of them may wait either.
    for size in (10, 100, 256 * 1024, MIB, 10):
        message = bytes(size)
        assert b"".join(made.feed(encode(message))) == message


@pytest.mark.parametrize(("coding", "wbits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)])
def test_nothing_waits_for_more_input_wherever_a_piece_is_full(coding: str, wbits: int) -> None:
    stream = zlib.compressobj(wbits=wbits)
    encoded = stream.compress(bytes(300 * 1024)) + stream.flush()
    for end in range(2, len(encoded)):
        expected = zlib.decompressobj(wbits=wbits).decompress(encoded[:end])
        assert b"".join(decoder(coding).feed(encoded[:end])) == expected


# --- what follows the end


def test_gzip_members_that_follow_each_other_are_one_content() -> None:
    members = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    assert decode("gzip", [members]) == b"one two"
    assert decode("gzip", [members[i : i + 1] for i in range(len(members))]) == b"one two"


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 10, b"\r\n", b"\x1f", b"\x1fx", b"x" + gzip.compress(b"no", mtime=0), b"x" * 100_000],
    ids=["zeros", "crlf", "half-magic", "not-magic", "hidden-member", "long"],
)
def test_garbage_after_the_last_gzip_member_is_ignored(garbage: bytes) -> None:
    body = gzip.compress(TEXT) + garbage
    assert decode("gzip", [body]) == TEXT
    assert decode("gzip", [body[i : i + 1] for i in range(len(body))]) == TEXT


@pytest.mark.parametrize("encode", [zlib.compress, bare_deflate])
def test_garbage_after_a_deflate_stream_is_ignored(encode: Callable[[bytes], bytes]) -> None:
    body = encode(TEXT) + b"garbage" * 3
    assert decode("deflate", [body]) == TEXT
    assert decode("deflate", [body[i : i + 1] for i in range(len(body))]) == TEXT


def test_zstd_frames_that_follow_each_other_are_one_content() -> None:
    skippable = bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"abc"
    frames = skippable + zstd.compress(b"one ") + skippable + zstd.compress(b"two") + skippable
    assert decode("zstd", [frames]) == b"one two"
    assert decode("zstd", [frames[i : i + 1] for i in range(len(frames))]) == b"one two"


@pytest.mark.parametrize("coding", ["zstd", "br"])
def test_garbage_after_a_zstd_frame_or_a_br_stream_is_corrupt(coding: str) -> None:
    encoded = ENCODERS[coding](TEXT)
    for chunks in ([encoded + b"garbage"], [encoded, b"garbage"]):
        with pytest.raises(DecodeError, match=f"{coding} content is corrupt"):
            decode(coding, chunks)


# --- corrupt and truncated


@every_format
def test_a_body_cut_anywhere_is_truncated(coding: str, encode: Callable[[bytes], bytes]) -> None:
    encoded = encode(b"some words to encode")
    for end in range(1, len(encoded)):
        with pytest.raises(DecodeError, match="truncated"):
            decode(coding, [encoded[:end]])


def test_a_second_gzip_member_that_is_cut_is_truncated() -> None:
    body = gzip.compress(b"one") + gzip.compress(b"two")
    with pytest.raises(DecodeError, match="gzip content is truncated"):
        decode("gzip", [body[:-3]])


def test_an_inner_layer_that_is_cut_is_truncated() -> None:
    with pytest.raises(DecodeError, match="br content is truncated"):
        decode("br, gzip", [gzip.compress(brotli_encode(TEXT)[:-2])])


@pytest.mark.parametrize(
    ("coding", "error"),
    [("gzip", zlib.error), ("deflate", zlib.error), ("br", brotli.error), ("zstd", zstd.ZstdError)],
)
def test_corrupt_content_names_the_coding_and_keeps_the_cause_but_shows_no_byte_of_the_body(
    coding: str, error: type[Exception]
) -> None:
    secret = b"\xff\xfesecret secret secret"
    with pytest.raises(DecodeError, match=f"^{coding} content is corrupt$") as caught:
        decode(coding, [secret])
    assert isinstance(caught.value.__cause__, error)
    assert "secret" not in repr(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("place", [-8, -1], ids=["crc", "length"])
def test_a_wrong_gzip_checksum_or_length_is_corrupt(place: int) -> None:
    body = bytearray(gzip.compress(TEXT))
    body[place] ^= 0xFF
    with pytest.raises(DecodeError, match="gzip content is corrupt"):
        decode("gzip", [bytes(body)])


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), coding=st.sampled_from(["gzip", "deflate", "br", "zstd"]))
def test_any_garbage_decodes_or_is_a_decode_error(data: bytes, coding: str) -> None:
    with contextlib.suppress(DecodeError):  # any other exception fails the test
        decode(coding, [data])


def test_a_zstd_window_above_the_8_mib_that_http_allows_is_refused() -> None:
    options = {int(zstd.CompressionParameter.window_log): 24}
    stream = zstd.ZstdCompressor(options=options)
    body = stream.compress(TEXT) + stream.flush()
    with pytest.raises(DecodeError, match="zstd"):
        decode("zstd", [body])


# --- bombs


@every_coding
def test_a_bomb_is_refused_soon_after_the_floor(coding: str) -> None:
    bomb = zeros(coding, 64)
    pieces = decoder(coding, DecodeLimits(ratio_floor=4 * MIB)).feed(bomb)
    sizes: list[int] = []
    with pytest.raises(DecompressionLimit, match=f"{len(bomb)} encoded bytes"):
        sizes.extend(map(len, pieces))
    assert sum(sizes) <= max(4 * MIB, 200 * len(bomb))


def test_a_body_within_the_ratio_or_below_the_floor_is_no_bomb() -> None:
    body = zeros("gzip", 8)
    below_the_floor = DecodeLimits(max_ratio=1, ratio_floor=8 * MIB)
    within_the_ratio = DecodeLimits(max_ratio=8 * MIB / len(body), ratio_floor=0)
    for limits in (below_the_floor, within_the_ratio):
        assert sum(map(len, decoder("gzip", limits).feed(body))) == 8 * MIB


def test_a_bomb_inside_a_layer_counts_although_the_next_layer_yields_nothing() -> None:
    inside = gzip.compress(b"") + bytes(64 * MIB)  # a whole gzip stream, then ignored garbage
    bomb = gzip.compress(inside)
    with pytest.raises(DecompressionLimit):
        list(decoder("gzip, gzip", DecodeLimits(ratio_floor=4 * MIB)).feed(bomb))


@every_coding
def test_pieces_of_a_bomb_are_bounded_and_made_only_when_asked_for(coding: str) -> None:
    bomb = zeros(coding, 64)
    made = decoder(coding)
    tracemalloc.start()
    try:
        pieces = made.feed(bomb)
        assert len(next(pieces)) < MIB
        held_after_one = tracemalloc.get_traced_memory()[1]
        assert all(len(piece) < MIB for piece in pieces)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    made.finish()
    assert held_after_one < 2 * MIB
    assert held < 2 * MIB


MEASURE = """
import sys
from trunkline.decode import DecodeLimits, make_decoder

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

coding, bomb = sys.argv[1], sys.stdin.buffer.read()
decoder = make_decoder(coding, limits=DecodeLimits(max_ratio=1e12))
before = kib("VmRSS")
decoded = sum(len(piece) for piece in decoder.feed(bomb))
decoder.finish()
print(decoded, kib("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@every_coding
def test_a_bomb_in_one_chunk_takes_the_process_no_more_than_a_window_and_a_piece(
    coding: str,
) -> None:
    # In a process of its own: the libraries' own memory is seen by the kernel only.
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, coding],
        input=zeros(coding, 256),
        capture_output=True,
        check=True,
    )
    decoded, grown_kib = map(int, run.stdout.split())
    assert decoded == 256 * MIB
    assert grown_kib < 12 * 1024
