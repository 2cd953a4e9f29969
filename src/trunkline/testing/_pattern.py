"""What a route wants of a request, and in what a request differs from it.

This module knows methods, URLs, header fields and JSON. It does not know answers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qs

from trunkline._urls import parse_url
from trunkline.testing._received import ReceivedRequest
from trunkline.testing._redaction import REDACTED

Text: TypeAlias = "str | re.Pattern[str]"
Patterns: TypeAlias = Mapping[str, "Text | Sequence[str]"]
URLPattern: TypeAlias = "str | re.Pattern[str] | None"
Predicate: TypeAlias = Callable[[ReceivedRequest], bool]
JSON: TypeAlias = Any

_ABSOLUTE = re.compile(r"https?://", re.IGNORECASE)


class Pattern:
    """Conditions on a request; see `Router.route`. None is no condition."""

    def __init__(
        self,
        method: str | None,
        url: URLPattern,
        host: str | None,
        params: Patterns | None,
        headers: Patterns | None,
        json: JSON,
        where: Predicate | None,
    ) -> None:
        if inspect.iscoroutinefunction(where):
            raise TypeError("where: it has to be a plain function; the body has been read already")
        self._method = None if method is None else method.upper()
        self._host = None if host is None else host.lower()
        self._origin: str | None = None
        self._path: str | None = None
        self._search: re.Pattern[str] | None = None
        self._params = _checked("params", params)
        self._headers = _checked("headers", headers)
        self._json = json
        self._where = where
        if isinstance(url, str):
            self._set_url(url)
        else:
            self._search = url

    def _set_url(self, url: str) -> None:
        if _ABSOLUTE.match(url):
            self._origin = str(parse_url(url).origin)
        elif not url.startswith("/"):
            raise ValueError("url: give a path that starts with /, or a whole URL")
        path = parse_url(url if self._origin else f"http://host{url}").path
        self._path, _, query = path.partition("?")
        self._params = {**parse_qs(query, keep_blank_values=True), **self._params}

    def differences(
        self, request: ReceivedRequest, shown: ReceivedRequest | None = None
    ) -> list[str]:
        """In a few words each; empty if there are none.

        Args:
            shown: the same request as it may be shown; None for as it is.
        """
        shown = shown or request
        found = [*self._in_target(request, shown)]
        found += _in_query(self._params, request.params, shown.params)
        found += _in_headers(self._headers, request, shown)
        if self._json is not None:
            found += self._in_json(request, shown)
        if self._where is not None and not found and not self._where(request):
            found.append(f"{_name(self._where)} says no")
        return found

    def _in_target(self, request: ReceivedRequest, shown: ReceivedRequest) -> list[str]:
        path, origin, found = request.path.partition("?")[0], request.origin, list[str]()
        if self._method not in (None, request.method):
            found.append(f"the method is {request.method}")
        if self._origin not in (None, str(origin)):
            found.append(f"the origin is {origin}")
        if self._host is not None and not matches_glob(self._host, origin.host):
            found.append(f"the host is {origin.host}")
        if self._path is not None and not matches_glob(self._path, path):
            found.append(f"the path is {shown.path.partition('?')[0]}")
        if self._search is not None and not self._search.search(request.url):
            found.append(f"the URL is {shown.url}")
        return found

    def _in_json(self, request: ReceivedRequest, shown: ReceivedRequest) -> list[str]:
        try:
            body = request.json()
        except ValueError:
            return ["the body is not JSON"]
        return list(_missing(self._json, body, shown.json(), "body"))

    def __str__(self) -> str:
        url = self._search.pattern if self._search else f"{self._origin or ''}{self._path or '*'}"
        parts = [self._method or "*", url]
        if self._host is not None:
            parts.append(f"host={self._host!r}")
        parts += [f"{name}={_show(value)}" for name, value in self._params.items()]
        parts += [f"{name}: {_show(value)}" for name, value in self._headers.items()]
        if self._json is not None:
            parts.append(f"json={self._json!r}")
        if self._where is not None:
            parts.append(f"where={_name(self._where)}")
        return " ".join(parts)


def _checked(kind: str, wanted: Patterns | None) -> dict[str, Text | Sequence[str]]:
    """Refuse what no text of a request could be."""
    checked = dict(wanted or {})
    for name, pattern in checked.items():
        is_one, is_list = isinstance(pattern, (str, re.Pattern)), isinstance(pattern, (list, tuple))
        texts: list[Any] = list(cast("Any", pattern)) if is_list else []
        if not is_one and (not is_list or not all(isinstance(one, str) for one in texts)):
            raise TypeError(
                f"{kind}: of {name!r} give text, a compiled pattern or a list of texts, "
                f"not {pattern!r}"
            )
    return checked


def matches_glob(pattern: str, text: str) -> bool:
    expression = "[^/]*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(expression, text) is not None


def _in_query(
    wanted: Patterns, got: Mapping[str, list[str]], shown: Mapping[str, list[str]]
) -> list[str]:
    found: list[str] = []
    for name, pattern in wanted.items():
        if name not in got:
            found.append(f"the query has no {name}")
        elif not _matches(pattern, got[name]):
            found.append(f"the query {name} is {', '.join(shown.get(name, [REDACTED]))}")
    return found


def _in_headers(wanted: Patterns, got: ReceivedRequest, shown: ReceivedRequest) -> list[str]:
    found: list[str] = []
    for name, pattern in wanted.items():
        if name not in got.headers:
            found.append(f"no header {name}")
        elif not _matches(pattern, got.headers.getall(name)):
            found.append(f"the header {name} is {', '.join(shown.headers.getall(name))}")
    return found


def _matches(pattern: Text | Sequence[str], values: list[str]) -> bool:
    if isinstance(pattern, str):
        return pattern in values
    if isinstance(pattern, re.Pattern):
        return any(pattern.search(value) for value in values)
    return list(pattern) == values


def _missing(wanted: Any, got: Any, shown: Any, where: str) -> list[str]:
    """What of `wanted` is not in `got`: keys of objects at any depth, also in lists of the same
    length, all else in full."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        found: list[str] = []
        present = cast("Mapping[str, Any]", got)
        visible = cast("Mapping[str, Any]", shown if isinstance(shown, Mapping) else {})
        for key, value in cast("Mapping[str, Any]", wanted).items():
            if key in present:
                shown_value = visible.get(key, REDACTED)
                found += _missing(value, present[key], shown_value, f"{where}.{key}")
            else:
                found.append(f"{where} has no {key}")
        return found
    if isinstance(wanted, list) and isinstance(got, list):
        return _missing_in_list(cast("Any", wanted), cast("Any", got), shown, where)
    return [] if wanted == got else [f"{where} is {shown!r}"]


def _missing_in_list(wanted: list[Any], got: list[Any], shown: Any, where: str) -> list[str]:
    if len(wanted) != len(got):
        return [f"{where} has {len(got)} items"]
    visible: list[Any] = [REDACTED] * len(got)
    if isinstance(shown, list):
        visible = cast("Any", shown)
    found: list[str] = []
    for number, each in enumerate(zip(wanted, got, visible, strict=True)):
        found += _missing(*each, f"{where}[{number}]")
    return found


def _show(pattern: Text | Sequence[str]) -> str:
    if isinstance(pattern, str):
        return pattern
    if isinstance(pattern, re.Pattern):
        return f"/{pattern.pattern}/"
    return ",".join(pattern)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
