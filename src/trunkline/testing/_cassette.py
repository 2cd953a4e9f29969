"""Cassettes: exchanges written down, as JSON that people read, in one file.

This module knows the form of the file and of each exchange in it. It does not know transports, when
something is recorded, or what is secret.

    {"trunkline_cassette": 1,
     "interactions": [
       {"request": {"method": "POST", "url": "...", "headers": ["name: value", ...], "body": BODY},
        "response": {"status": 200, "headers": [...], "body": BODY}},
       {"request": {...}, "error": {"type": "ConnectError", "phase": "connect", ...}}]}

A BODY is one of {"json": ...}, {"text": "..."}, {"base64": "..."}, {"chunks": [...]}. A chunk is
text, or {"base64": "..."} where it is none. Of a response it may have "pauses", seconds before each
chunk; "error", in which it ended; and "is_whole": false, when nobody read on. That a request's has
where it was a stream that was not sent to its end: then it is the beginning of those it stands for.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

from trunkline import InvalidRequest, Request, Response, TransportError
from trunkline.testing._fault_plan import find_error
from trunkline.testing._received import PartialRequest, ReceivedRequest

VERSION = 1
# What a header value outside UTF-8 is in text: JSON has a form for it, UTF-8 has not.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_FACTS = (
    "phase", "request_sent", "bytes_sent", "response_started", "connection_reused", "replay",
    "http_version", "attempts", "code",
)  # fmt: skip
# How JSON is usually written: a text that is one of these is kept as what it says.
_STYLES: dict[str, Callable[[Any], str]] = {
    "compact": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "spaced": lambda value: json.dumps(value, ensure_ascii=False),
    "indented": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
}

Entry: TypeAlias = dict[str, Any]
"""One exchange, in the form of the file."""


class Take(Protocol):
    """An exchange while it is recorded; `entry` is None until it is over."""

    @property
    def entry(self) -> Entry | None: ...


class Cassette:
    """The file `path`, and what is in it. Transports that share it share what it knows.

    Attributes:
        is_new: nothing is replayed: there was no file, or it is to be recorded anew.
        played: the numbers of the entries that were replayed already.
        takes: what was recorded since, in the order of the calls.
        secrets: those found in any of it.

    Raises:
        ValueError: there is something else in it.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_blank: bool = False) -> None:
        self.path = Path(path)
        self._state = self._state_of_file()
        self.is_new = is_blank or not self.path.exists()
        self.entries: list[Entry] = [] if self.is_new else _load(self.path)
        self.requests = [
            _load_entry(self.path, number, entry) for number, entry in enumerate(self.entries, 1)
        ]
        self.played: set[int] = set()
        self.takes: list[Take] = []
        self.secrets: set[str] = set()

    def _state_of_file(self) -> tuple[int, ...] | None:
        with suppress(FileNotFoundError):
            found = self.path.stat()
            return found.st_ino, found.st_mtime_ns, found.st_size
        return None

    def _mode(self) -> int:
        """That of the old file, or what any new one would have; a temporary one is private."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_mode & 0o777
        mask = os.umask(0o077)
        os.umask(mask)
        return 0o666 & ~mask

    def check_unchanged(self) -> None:
        """Raise RuntimeError: somebody else has written to the file, and would lose that."""
        if self._state_of_file() != self._state:
            raise RuntimeError(
                f"{self.path}: something else has written to it meanwhile; "
                "give each transport a file of its own, or all of a test trunkline_cassette()"
            )

    def save(self) -> None:
        """Put all entries and takes in the place of what the file holds, all at once.

        Raises:
            RuntimeError: see `check_unchanged`.
        """
        self.check_unchanged()
        taken = [entry for take in self.takes if (entry := take.entry) is not None]
        entries = [*self.entries, *taken]
        text = json.dumps(
            {"trunkline_cassette": VERSION, "interactions": entries}, ensure_ascii=False, indent=2
        )
        text = _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(f"{text}\n")
            os.chmod(name, self._mode())
            os.replace(name, self.path)
            self._state = self._state_of_file()
        except BaseException:
            os.unlink(name)
            raise


def open_cassette(path: str | os.PathLike[str] | Cassette, *, is_blank: bool = False) -> Cassette:
    """`path` itself where it is one that is shared."""
    return path if isinstance(path, Cassette) else Cassette(path, is_blank=is_blank)


def _load(path: Path) -> list[Entry]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, entries = data["trunkline_cassette"], data["interactions"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: it is not a cassette") from error
    if version != VERSION:
        raise ValueError(f"{path}: a cassette of version {version}, and only {VERSION} is known")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: it is not a cassette: interactions is no list")
    return cast("list[Entry]", entries)


def _load_entry(path: Path, number: int, entry: Entry) -> ReceivedRequest:
    """Its request. Raises ValueError: something about the entry could not be played."""
    try:
        request = _load_request(entry["request"])
        if "error" in entry:
            load_error(entry["error"], request, "")
        else:
            _check_response(request, entry["response"])
    except (LookupError, TypeError, ValueError, AttributeError, InvalidRequest) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: interaction no. {number} is garbled: {why}") from error
    return request


def _check_response(request: Request, response: Entry) -> None:
    Response(response["status"], headers=load_headers(response["headers"]))
    for name, kind in (("status", int), ("http_version", str)):
        if not isinstance(response[name], kind):
            raise TypeError(f"{name}: {response[name]!r} is no {kind.__name__}")
    body = response.get("body", {"text": ""})
    chunks, pauses = load_body(body), body.get("pauses")
    if pauses is not None and len(pauses) != len(chunks):
        raise ValueError(f"{len(chunks)} chunks with {len(pauses)} pauses")
    if "error" in body:
        load_error(body["error"], request, "")


# -- requests --------------------------------------------------------------------------------------


def write_request(request: ReceivedRequest, *, is_whole: bool) -> Entry:
    written: Entry = {
        "method": request.method,
        "url": request.url,
        "headers": write_headers(request.headers.items()),
    }
    if not is_whole:
        written["body"] = {**_write_piece(request.body), "is_whole": False}
    elif request.body:
        written["body"] = _write_json(request.body) or _write_piece(request.body)
    return written


def _write_json(content: bytes) -> Entry | None:
    try:
        return {"json": json.loads(content)}
    except ValueError:
        return None


def _load_request(data: Entry) -> ReceivedRequest:
    content = None
    if "body" in data:
        body = data["body"]
        content = json.dumps(body["json"]).encode() if "json" in body else _load_piece(body)
    names = {"content-length", "transfer-encoding"}
    fields = [pair for pair in load_headers(data["headers"]) if pair[0].lower() not in names]
    is_whole = data.get("body", {}).get("is_whole", True)
    kind = ReceivedRequest if is_whole else PartialRequest
    return kind(data["method"], data["url"], headers=fields, content=content)


def write_headers(fields: Any) -> list[str]:
    return [f"{name}: {value}" for name, value in fields]


def load_headers(lines: Sequence[str]) -> list[tuple[str, str]]:
    parted = (line.partition(":") for line in lines)  # an editor may strip the space of "name: "
    return [(name, value.removeprefix(" ")) for name, _, value in parted]


# -- bodies ----------------------------------------------------------------------------------------


def write_body(chunks: Sequence[bytes], *, is_stream: bool) -> Entry:
    """As JSON or text where it is that.

    Args:
        is_stream: the boundaries of the chunks mean something.
    """
    if is_stream:
        return {"chunks": [_write_chunk(chunk) for chunk in chunks]}
    content = b"".join(chunks)
    return _write_exact_json(content) or _write_piece(content)


def _write_exact_json(content: bytes) -> Entry | None:
    """Only where the bytes can be made again: who replays them may count or sign them."""
    try:
        text = content.decode()
        value = json.loads(text)
    except ValueError:
        return None
    for style, dump in _STYLES.items():
        if isinstance(value, (dict, list)) and dump(value) == text:
            return {"json": value, "style": style}
    return None


def _write_piece(content: bytes) -> Entry:
    chunk = _write_chunk(content)
    return {"text": chunk} if isinstance(chunk, str) else chunk


def _write_chunk(content: bytes) -> str | Entry:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"base64": base64.b64encode(content).decode()} if "\0" in text else text


def load_body(body: Entry) -> list[bytes]:
    """The chunks. Raises ValueError: it is none of the known forms."""
    if "chunks" in body:
        chunks = cast("list[Any]", body["chunks"])
        return [one.encode() if isinstance(one, str) else _load_piece(one) for one in chunks]
    if "json" in body:
        return [_STYLES[body.get("style", "compact")](body["json"]).encode()]
    return [_load_piece(body)]


def _load_piece(data: Mapping[str, str]) -> bytes:
    if "text" in data:
        return data["text"].encode()
    try:
        return base64.b64decode(data["base64"], validate=True)
    except (KeyError, binascii.Error) as error:
        raise ValueError("a body in the cassette has no known form") from error


# -- errors ----------------------------------------------------------------------------------------


def write_error(error: TransportError) -> Entry:
    facts = {name: getattr(error, name, None) for name in _FACTS}
    written: Entry = {"type": type(error).__name__, "message": str(error)}
    return written | {name: value for name, value in facts.items() if value is not None}


def load_error(data: Entry, request: Request, backend: str) -> TransportError:
    """The error again, about `request`."""
    kind = cast("type[TransportError]", find_error(data["type"]))
    error = kind(data["message"])
    error.request_sent = None  # left out where it was None
    for name in _FACTS:
        if name in data:
            setattr(error, name, data[name])
    error.host, error.port = request.origin.host, request.origin.port
    error.backend, error.elapsed = backend, 0.0
    return error
