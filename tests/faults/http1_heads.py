"""HTTP/1.1 faults in the head: a status line or fields that are not HTTP, or too many."""

from __future__ import annotations

from tests.faults._lab import Answers, Group
from tests.faults._shorthand import (
    BAD_HEAD,
    CUT_HEAD,
    LARGE_HEAD,
    RIGHT,
    RIGHT_OR_BAD,
    fault,
    field,
    head,
)

from trunkline.testing._script import fin, flood, send

_FIELDS = b"\r\nContent-Length: 4\r\n\r\npage"
_START = b"HTTP/1.1 200 OK\r\n"

STATUS_LINES = Group(
    is_parsing=True,
    title="The status line",
    faults=(
        head("another protocol (SSH)", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        head("HTTP/0.9: a body without a head", b"<html>page</html>\r\n\r\n"),
        head("an empty first line, then no HTTP", b"\r\n\r\n\r\n<html>\r\n\r\n"),
        head("HTTP/2.0 as the version", b"HTTP/2.0 200 OK" + _FIELDS),
        head("HTTP/9.9 as the version", b"HTTP/9.9 200 OK" + _FIELDS),
        head("a version without a number", b"HTTP/ 200 OK" + _FIELDS),
        head("ICY instead of HTTP", b"ICY 200 OK" + _FIELDS),
        head("a status of letters", b"HTTP/1.1 abc OK" + _FIELDS),
        head("no status at all", b"HTTP/1.1" + _FIELDS),
        head("a status of two digits", b"HTTP/1.1 20 OK" + _FIELDS),
        head("a status of four digits", b"HTTP/1.1 1000 OK" + _FIELDS),
        head("status 099", b"HTTP/1.1 099 Low" + _FIELDS),
        head("status 000", b"HTTP/1.1 000 Zero" + _FIELDS),
        head("a negative status", b"HTTP/1.1 -20 OK" + _FIELDS),
        head("a status with a plus", b"HTTP/1.1 +20 OK" + _FIELDS),
        head("status 999", b"HTTP/1.1 999 High" + _FIELDS, Answers(status=999)),
        head("no reason phrase, no space", b"HTTP/1.1 200" + _FIELDS, RIGHT),
        head("NUL in the reason phrase", b"HTTP/1.1 200 O\x00K" + _FIELDS),
        head("a bare CR in the reason phrase", b"HTTP/1.1 200 O\rK" + _FIELDS),
        head("binary garbage", bytes(range(128, 256)) * 4 + b"\r\n\r\n"),
        fault(
            "binary garbage, then FIN",
            send(bytes(range(128, 256))),
            fin(),
            expect=(BAD_HEAD, CUT_HEAD),
        ),
        head("a TLS alert", b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n"),
        head("an HTTP/2 SETTINGS frame", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    ),
)

FIELDS = Group(
    is_parsing=True,
    title="The header fields",
    faults=(
        field("a line without a colon", b"nonsense"),
        field("an empty name", b": value"),
        field("a space in a name", b"X Y: 1"),
        field("a space before the colon", b"X-A : 1"),
        field("a tab before the colon", b"X-A\t: 1"),
        field("a name that is not ASCII", b"X-\xc3\xa4: 1"),
        field("a control character in a name", b"X-\x01: 1"),
        field("NUL in a value", b"X-A: a\x00b"),
        field("NUL in a name", b"X-\x00A: ab"),
        field("a bare CR in a value", b"X-A: a\rb"),
        field("a bare CR that hides a field", b"X-A: a\rContent-Length: 9"),
        field("a control character in a value", b"X-A: a\x01b", RIGHT_OR_BAD),
        field("a line that is continued (obs-fold)", b"X-A: a\r\n b", RIGHT),
        head("a first field that begins with a space", _START + b" X: 1" + _FIELDS, RIGHT_OR_BAD),
        head("lines that end with a bare LF", b"HTTP/1.1 200 OK\nContent-Length: 4\n\npage", RIGHT),
        field("a value that is not ASCII", b"X-A: \xff\xfe", RIGHT),
        field("an empty value", b"X-A:", RIGHT),
    ),
)

LARGE = Group(
    "Heads without measure",
    (
        fault(
            "one value of a megabyte",
            send(_START + b"X-Long: " + b"x" * 2**20 + _FIELDS),
            expect=LARGE_HEAD,
        ),
        fault(
            "a megabyte of fields",
            send(_START + (b"X-Some: " + b"x" * 1000 + b"\r\n") * 1049 + _FIELDS[2:]),
            expect=LARGE_HEAD,
        ),
        fault(
            "ten thousand fields",
            send(_START + b"X-A: 1\r\n" * 10_000 + _FIELDS[2:]),
            expect=LARGE_HEAD,
        ),
        fault("a status line without end", flood(b"HTTP/1.1 200 OK" * 4096), expect=LARGE_HEAD),
        fault("a value without end", send(_START + b"X: "), flood(b"x" * 65536), expect=LARGE_HEAD),
        fault("a name without end", send(_START), flood(b"x" * 65536), expect=LARGE_HEAD),
        fault(
            "fields without end",
            send(_START),
            flood(b"X-More: again\r\n" * 4096),
            expect=LARGE_HEAD,
        ),
        fault("empty lines without end", flood(b"\r\n" * 32768), expect=(BAD_HEAD, LARGE_HEAD)),
    ),
)

GROUPS = (STATUS_LINES, FIELDS, LARGE)
