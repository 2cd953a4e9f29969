"""Secrets taken out of what is written down.

This module knows where secrets are: in header fields, cookies, queries, JSON, form fields,
userinfo, and in the text that repeats one of those, however it is written. It does not know what is
written or where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple, TypeVar, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus

T = TypeVar("T")

REDACTED = "REDACTED"
_SHORTEST_SECRET = 8  # a shorter one, repeated elsewhere, may well be a word

_DECODER = json.JSONDecoder(strict=False)
_USERINFO = re.compile(r"(?:(?<=://)|(?<=:\\/\\/))[^/\s\"'@\\?#<>]+(?=@)")
# Between a key and its value: JSON that is split over lines of an event goes on after "data:".
_GAP = r"(?:\s|(?<=[\r\n])data:)*"


class _Span(NamedTuple):
    start: int
    end: int
    replacement: str


@dataclass(frozen=True, kw_only=True)
class Redaction:
    """What is secret. Names are compared without regard to case.

    To add to the defaults: `Redaction(headers=Redaction.HEADERS | {"x-team"})`.

    Attributes:
        headers: of which the value is; `*` stands for anything.
        query: keys in URLs (also those in texts), in form bodies, and names of the parts of a
            multipart body; also percent-encoded.
        json: keys in JSON bodies and events, also in JSON inside a string, and names of the parts
            of a multipart body.
    """

    HEADERS: ClassVar[frozenset[str]] = frozenset(
        {"authorization", "*-authorization", "*api-key*", "*apikey*", "*-token", "*secret*",
         "*credential*", "*signature*", "*subscription-key*", "x-functions-key", "x-auth",
         "x-auth-key", "cookie", "set-cookie", "openai-organization", "openai-project"}
    )  # fmt: skip
    QUERY: ClassVar[frozenset[str]] = frozenset(
        {"key", "api_key", "api-key", "apikey", "token", "access_token", "refresh_token",
         "id_token", "auth_token", "client_secret", "client_assertion", "assertion", "code",
         "code_verifier", "password", "secret", "sig", "signature", "x-amz-signature",
         "x-amz-credential", "x-amz-security-token", "x-goog-signature", "x-goog-credential"}
    )  # fmt: skip
    JSON: ClassVar[frozenset[str]] = frozenset(
        {"api_key", "api-key", "apikey", "x-api-key", "access_token", "refresh_token", "id_token",
         "auth_token", "session_token", "client_secret", "client_assertion", "authorization",
         "password", "secret", "secret_key", "secret_access_key", "private_key",
         "accessToken", "refreshToken", "idToken", "clientSecret", "privateKey", "secretAccessKey",
         "sessionToken"}
    )  # fmt: skip

    headers: Collection[str] = HEADERS
    query: Collection[str] = QUERY
    json: Collection[str] = JSON


class Redactor:
    """Applies a `Redaction` to the parts of exchanges.

    A secret found in one part is taken out of the later ones too, wherever it is; see `settled`.

    Args:
        known: the secrets found so far, where others are to know them too.
    """

    def __init__(self, rules: Redaction, known: set[str] | None = None) -> None:
        self._headers = [pattern.lower() for pattern in rules.headers]
        keys = _any_of(rules.query, r"%{:02x}")
        self._query = re.compile(rf"(?<=[?&#])(?:{keys})=([^&#\s\"'\\<>]+)", re.IGNORECASE)
        self._form = re.compile(rf"(?:^|(?<=&))(?:{keys})=([^&]+)", re.IGNORECASE)
        keys = _any_of(rules.json, r"\\+u00{:02x}")
        self._json = re.compile(rf'(\\*)"(?:{keys})\1"{_GAP}:{_GAP}', re.IGNORECASE)
        keys = _any_of({*rules.query, *rules.json})
        self._part = re.compile(
            rf"^content-disposition:[^\r\n]*[;\s]name=\"?(?:{keys})\"?(?:[;\s][^\r\n]*)?\r?\n"
            r"(?:[^\r\n]+\r?\n)*\r?\n(.*?)(?=\r?\n--|\Z)",
            re.IGNORECASE | re.MULTILINE | re.DOTALL,
        )
        self._known: set[str] = set() if known is None else known

    @property
    def learned(self) -> int:
        """How many secrets are known: what was made when they were fewer may hold one."""
        return len(self._known)

    def settled(self, make: Callable[[], T]) -> T:
        """What `make` makes of parts with this, after all the secrets in them have been found."""
        while True:
            learned, made = self.learned, make()
            if self.learned == learned:
                return made

    def header(self, name: str, value: str) -> str:
        """The value as it may be shown."""
        if not any(fnmatchcase(name.lower(), pattern) for pattern in self._headers):
            return self.text(value)
        self._remember(value)
        self._remember(value.partition(" ")[2])  # without the scheme: "Bearer", say
        if name.lower() in ("cookie", "set-cookie"):
            for pair in value.split(";"):
                self._remember(pair.partition("=")[2].strip(' "'))
        return REDACTED

    def text(self, text: str) -> str:
        """A URL, or a text that may hold some."""
        (redacted,) = self.chunks([text.encode("utf-8", "surrogateescape")])
        return redacted.decode("utf-8", "surrogateescape")

    def chunks(self, chunks: Sequence[bytes], content_type: str = "") -> list[bytes]:
        """The pieces of a body. One that straddles a boundary is put before it."""
        # Latin-1 has a character for each byte: positions hold, and what is looked for is ASCII.
        text = b"".join(chunks).decode("latin-1")
        kind = content_type.lower()
        keyed = self._form if "x-www-form-urlencoded" in kind else self._query
        spans = [*self._in_json(text), *_groups(keyed, text)]
        if "multipart/" in kind:
            spans += _groups(self._part, text)
        spans += [_Span(*found.span(), REDACTED) for found in _USERINFO.finditer(text)]
        for span in spans:
            found = text[span.start : span.end].encode("latin-1")
            self._remember(found.decode("utf-8", "surrogateescape"))
        spans += self._repeated(text)
        return _replace(chunks, text, sorted(spans, key=lambda span: (span.start, -span.end)))

    def _remember(self, secret: str) -> None:
        if len(secret) >= _SHORTEST_SECRET and secret != REDACTED:
            self._known |= {form for form in _forms(secret) if len(form) >= _SHORTEST_SECRET}

    def _repeated(self, text: str) -> Iterable[_Span]:
        for secret in self._known:
            start = text.find(secret)
            while start >= 0:
                yield _Span(start, start + len(secret), REDACTED)
                start = text.find(secret, start + len(secret))

    def _in_json(self, text: str) -> Iterable[_Span]:
        for found in self._json.finditer(text):
            start = found.end()
            quote = f'{found[1]}"'
            if text.startswith(quote, start):
                start += len(quote)
                yield _Span(start, _end_of_string(text, start, found[1]), REDACTED)
            elif text[start : start + 1] in "[{":
                end, value = _value_at(text, start)
                for leaf in _leaves(value):
                    self._remember(leaf)
                yield _Span(start, end, json.dumps(REDACTED))
            elif (number := re.compile(r"[-+.0-9eE]+").match(text, start)) is not None:
                yield _Span(*number.span(), f"{quote}{REDACTED}{quote}")


def _any_of(names: Collection[str], escape: str = "") -> str:
    """A pattern for any of `names`. `escape` is how a character may be written besides."""
    written = {char: re.escape(char) for name in names for char in name}
    if escape:
        for char, plain in written.items():
            codes = {escape.format(ord(case)) for case in (char.lower(), char.upper())}
            written[char] = f"(?:{'|'.join([plain, *sorted(codes)])})"
    return "|".join("".join(map(written.__getitem__, name)) for name in sorted(names)) or r"(?!)"


def _forms(secret: str) -> set[str]:
    """How the same secret may stand elsewhere, as Latin-1: as it is, in JSON, in a URL."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    with suppress(ValueError):
        plain.add(json.loads(f'"{secret}"', strict=False))
    forms = set(plain)
    for one in plain:
        for is_ascii in (True, False):
            in_json = json.dumps(one, ensure_ascii=is_ascii)[1:-1]
            forms |= {in_json, in_json.replace("/", "\\/")}
        forms |= {quote(_bytes(one), safe=""), quote(_bytes(one)), quote_plus(_bytes(one))}
    return {_bytes(form).decode("latin-1") for form in forms}


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that was written in JSON
        return text.encode("utf-8", "surrogatepass")


def _leaves(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        value = list(cast("dict[str, Any]", value).values())
    if isinstance(value, list):
        for one in cast("Iterable[Any]", value):
            yield from _leaves(one)
    elif isinstance(value, str):
        yield value


def _groups(pattern: re.Pattern[str], text: str) -> Iterable[_Span]:
    return [_Span(*found.span(1), REDACTED) for found in pattern.finditer(text)]


def _end_of_string(text: str, start: int, escape: str) -> int:
    """Where the string ends whose quotes have `escape` before them; it may be cut off."""
    if escape:
        end = re.compile(rf'(?<!\\){re.escape(escape)}"').search(text, start)
    else:
        end = re.compile(r'(?<!\\)(?:\\\\)*(")').search(text, start)
        return len(text) if end is None else end.start(1)
    return len(text) if end is None else end.start()


def _value_at(text: str, start: int) -> tuple[int, Any]:
    """Where the array or object ends, and what it says as far as it is JSON."""
    try:
        end = _DECODER.raw_decode(text, start)[1]
        return end, _DECODER.decode(text[start:end].encode("latin-1").decode("utf-8", "replace"))
    except ValueError:
        return len(text), None


def _replace(chunks: Sequence[bytes], text: str, spans: list[_Span]) -> list[bytes]:
    """`spans` are sorted; one that lies in another is that other's."""
    apart: list[_Span] = []
    for span in spans:
        if span.end > span.start >= (apart[-1].end if apart else 0):
            apart.append(span)
    result: list[bytes] = []
    begin = 0
    for chunk in chunks:
        end, cursor, made = begin + len(chunk), begin, ""
        for span in apart:
            if begin < span.end and span.start < end:
                is_first = span.start >= begin
                made += text[cursor : span.start] + span.replacement if is_first else ""
                cursor = min(span.end, end)
        result.append((made + text[cursor:end]).encode("latin-1"))
        begin = end
    return result
