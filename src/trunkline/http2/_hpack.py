"""HPACK (RFC 7541) on the tables and codes of the `hpack` library, one loop for each direction.

This module knows how a header block is laid out, and of the library what it has under its
`Decoder` and `Encoder`: the table, integers and the Huffman code. It does not know HTTP/2. A test
compares it with the library's own.

Why not those: the decoder takes up a third of the time that a small response costs, half of it for
strings that every response has again, which are remembered here. And all of them write the values
of header fields into the log at level DEBUG, credentials included.
"""

from __future__ import annotations

from typing import Any

from hpack import Decoder, Encoder, HeaderTuple, HPACKDecodingError, OversizedHeaderListError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable, table_entry_size

_INDEXED = b"\x40"  # a literal that both sides remember (RFC 7541 section 6.2.1)
_OVERHEAD = 32  # of a field in the size of the list (RFC 7541 section 4.1)
_MOST_KEPT = 256
_LONGEST_KEPT = 64


class _QuietTable(HeaderTable):
    def _shrink(self) -> None:
        while self._current_size > self._maxsize:
            name, value = self.dynamic_entries.pop()
            self._current_size -= table_entry_size(name, value)


class HeaderEncoder(Encoder):
    """Encodes the header blocks of one connection from pairs of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.header_table = _QuietTable()

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        table = self.header_table
        block: list[bytes] = []
        if table.resized:
            block.append(self._encode_table_size_change())
            table.resized = False
        for name, value in headers:
            block.append(self._encode_field(name, value, huffman=huffman))
        return b"".join(block)

    def _encode_field(self, name: bytes, value: bytes, *, huffman: bool) -> bytes:
        match = self.header_table.search(name, value)
        if match is not None and match[2]:
            return self._encode_indexed(match[0])
        if match is None:
            encoded = self._encode_literal(name, value, _INDEXED, huffman)
        else:
            encoded = self._encode_indexed_literal(match[0], value, _INDEXED, huffman)
        self.header_table.add(name, value)
        return encoded


class HeaderDecoder(Decoder):
    """Decodes the header blocks of one connection to pairs of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.header_table = _QuietTable()
        self._strings: dict[bytes, bytes] = {}

    def decode(self, data: bytes, raw: bool = True) -> list[HeaderTuple]:
        """The fields of a block.

        Raises:
            hpack.HPACKError: it is not valid, or longer than `max_header_list_size`.
        """
        fields: list[HeaderTuple] = []
        get_by_index, size, at, end = self.header_table.get_by_index, 0, 0, len(data)
        while at < end:
            first = data[at]
            if first & 0x80:
                index, at = _integer(data, at, 7)
                name, value = get_by_index(index)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HPACKDecodingError("a table size update after a field")
                table_size, at = _integer(data, at, 5)
                self._resize(table_size)
                continue
            else:
                index, at = _integer(data, at, 6 if first & 0x40 else 4)
                if index:
                    name = get_by_index(index)[0]
                else:
                    name, at = self._string(data, at)
                value, at = self._string(data, at)
                if first & 0x40:
                    self.header_table.add(name, value)
            fields.append(HeaderTuple(name, value))
            size += len(name) + len(value) + _OVERHEAD
            if size > self.max_header_list_size:
                raise OversizedHeaderListError("the header list is too long")
        if self.header_table_size > self.max_allowed_table_size:
            raise HPACKDecodingError("the table is larger than it may be")
        return fields

    def _resize(self, size: int) -> None:
        if size > self.max_allowed_table_size:
            raise HPACKDecodingError("the table is to be larger than it may be")
        self.header_table_size = size

    def _string(self, data: bytes, at: int) -> tuple[bytes, int]:
        if at >= len(data):
            raise HPACKDecodingError("a string is missing")
        is_huffman = data[at] & 0x80
        length, at = _integer(data, at, 7)
        end = at + length
        if end > len(data):
            raise HPACKDecodingError("a string is cut short")
        text = data[at:end]
        return (self._decode_huffman(text) if is_huffman else text), end

    def _decode_huffman(self, code: bytes) -> bytes:
        text = self._strings.get(code)
        if text is None:
            text = decode_huffman(code)
            if len(code) <= _LONGEST_KEPT:
                if len(self._strings) >= _MOST_KEPT:
                    self._strings.clear()
                self._strings[code] = text
        return text


def _integer(data: bytes, at: int, bits: int) -> tuple[int, int]:
    """An integer with a prefix of `bits`, and where it ends."""
    mask = (1 << bits) - 1
    number = data[at] & mask
    if number < mask:
        return number, at + 1
    number, consumed = decode_integer(data[at : at + 8], bits)
    return number, at + consumed
