"""Secrets taken out of what is written down.

This module knows where secrets are: in header fields, queries, JSON, form fields, userinfo, and in
the text that repeats one of those. It does not know what is written or where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

REDACTED = "REDACTED"
_SHORTEST_SECRET = 8  # a shorter one, repeated elsewhere, may well be a word

_DECODER = json.JSONDecoder(strict=False)
_USERINFO = re.compile(r"(?<=://)[^/\s\"'@\\?#<>]+(?=@)")


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
        query: keys in URLs (also those in texts) and in form bodies.
        json: keys in JSON bodies and events, also in JSON inside a string.
    """

    HEADERS: ClassVar[frozenset[str]] = frozenset(
        {"authorization", "*-authorization", "*api-key*", "*apikey*", "*-token", "*secret*",
         "*credential*", "*signature*", "cookie", "set-cookie", "openai-organization",
         "openai-project"}
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
    """Applies a `Redaction` to the parts of one exchange, in the order in which they are given.

    A secret found in one part is taken out of the later ones too, wherever it is.
    """

    def __init__(self, rules: Redaction) -> None:
        self._headers = [pattern.lower() for pattern in rules.headers]
        keys = _any_of(rules.query)
        self._query = re.compile(rf"(?<=[?&])(?:{keys})=([^&#\s\"'\\<>]+)", re.IGNORECASE)
        self._form = re.compile(rf"(?:^|(?<=&))(?:{keys})=([^&]+)", re.IGNORECASE)
        self._json = re.compile(rf'(\\*)"(?:{_any_of(rules.json)})\1"\s*:\s*', re.IGNORECASE)
        self._known: set[str] = set()

    def header(self, name: str, value: str) -> str:
        """The value as it may be shown."""
        if any(fnmatchcase(name.lower(), pattern) for pattern in self._headers):
            self._remember(value)
            self._remember(value.partition(" ")[2])  # without the scheme: "Bearer", say
            return REDACTED
        return self.text(value)

    def text(self, text: str) -> str:
        """A URL, or a text that may hold some."""
        (redacted,) = self.chunks([text.encode("utf-8", "surrogateescape")])
        return redacted.decode("utf-8", "surrogateescape")

    def chunks(self, chunks: Sequence[bytes], *, is_form: bool = False) -> list[bytes]:
        """The pieces of a body. One that straddles a boundary is put before it."""
        # Latin-1 has a character for each byte: positions hold, and what is looked for is ASCII.
        text = b"".join(chunks).decode("latin-1")
        spans = [*self._in_json(text), *_groups(self._form if is_form else self._query, text)]
        spans += [_Span(*found.span(), REDACTED) for found in _USERINFO.finditer(text)]
        for span in spans:
            self._remember(text[span.start : span.end])
        spans += self._repeated(text)
        return _replace(chunks, text, sorted(spans, key=lambda span: (span.start, -span.end)))

    def _remember(self, secret: str) -> None:
        if len(secret) >= _SHORTEST_SECRET and secret != REDACTED:
            self._known.add(secret)

    def _repeated(self, text: str) -> Iterable[_Span]:
        for secret in self._known:
            for found in re.finditer(re.escape(secret), text):
                yield _Span(*found.span(), REDACTED)

    def _in_json(self, text: str) -> Iterable[_Span]:
        for found in self._json.finditer(text):
            start = found.end()
            quote = f'{found[1]}"'
            if text.startswith(quote, start):
                start += len(quote)
                yield _Span(start, _end_of_string(text, start, found[1]), REDACTED)
            elif text[start : start + 1] in "[{":
                yield _Span(start, _end_of_value(text, start), json.dumps(REDACTED))
            elif (number := re.compile(r"[-+.0-9eE]+").match(text, start)) is not None:
                yield _Span(*number.span(), f"{quote}{REDACTED}{quote}")


def _any_of(names: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(names))) or r"(?!)"


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


def _end_of_value(text: str, start: int) -> int:
    try:
        return _DECODER.raw_decode(text, start)[1]
    except ValueError:
        return len(text)


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
