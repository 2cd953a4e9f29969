"""Which recorded request a sent one is, and how the others differ.

This module knows how two requests are compared. It does not know cassettes or transports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import parse_qsl

from trunkline.testing._received import PartialRequest, ReceivedRequest
from trunkline.testing._redaction import REDACTED

Aspect: TypeAlias = Literal["method", "url", "host", "path", "query", "body"]
Matcher: TypeAlias = Callable[[ReceivedRequest, ReceivedRequest], bool]

_MOST_SHOWN = 8
_BOUNDARY = re.compile(r'multipart/.*;\s*boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)


class Matching:
    """Compares requests: the recorded one is the first argument, the sent one the second.

    Args:
        match: the aspects that have to be the same, or a function that says whether they are. In a
            URL the order of the query is no difference, in a body of JSON that of the keys.
    """

    def __init__(self, match: Collection[Aspect] | Matcher) -> None:
        self._matcher = match if callable(match) else None
        self._aspects = tuple(_ASPECTS) if callable(match) else tuple(match)
        unknown = set(self._aspects) - set(_ASPECTS)
        if unknown:
            raise ValueError(
                f"match: {', '.join(sorted(unknown))} is none of {', '.join(_ASPECTS)}"
            )

    def fits(self, recorded: ReceivedRequest, sent: ReceivedRequest) -> bool:
        if self._matcher is not None:
            return self._matcher(recorded, sent)
        return not self.differences(recorded, sent)

    def differences(self, recorded: ReceivedRequest, sent: ReceivedRequest) -> list[str]:
        return [
            difference
            for aspect in self._aspects
            for difference in _ASPECTS[aspect](recorded, sent)
        ]

    def nearest(self, recorded: Sequence[ReceivedRequest], sent: ReceivedRequest) -> int:
        """The number of the one that differs least."""
        return min(
            range(len(recorded)), key=lambda number: len(self.differences(recorded[number], sent))
        )


def _compare(name: str, recorded: str, sent: str) -> list[str]:
    return [] if _same(recorded, sent) else [f"{name}: recorded {recorded}, sent {sent}"]


def _same(recorded: str, sent: str) -> bool:
    """Whether they are. What was taken out of the recorded text may be anything in the sent one."""
    if recorded == sent:
        return True
    parts = recorded.split(REDACTED)
    pattern = ".+".join(map(re.escape, parts))
    return len(parts) > 1 and re.fullmatch(pattern, sent, re.DOTALL) is not None


def _compare_urls(recorded: ReceivedRequest, sent: ReceivedRequest) -> list[str]:
    left, right = (f"{one.origin}{_path(one)}" for one in (recorded, sent))
    if _same(left, right) and not _compare_queries(recorded, sent):
        return []
    return [f"url: recorded {recorded.url}, sent {sent.url}"]


def _path(request: ReceivedRequest) -> str:
    return request.path.partition("?")[0]


def _compare_queries(recorded: ReceivedRequest, sent: ReceivedRequest) -> list[str]:
    left, right = _pairs(recorded), _pairs(sent)
    if len(left) == len(right) and all(map(_same, left, right)):
        return []
    return [f"query: recorded {recorded.params}, sent {sent.params}"]


def _pairs(request: ReceivedRequest) -> list[str]:
    query = request.path.partition("?")[2]
    return sorted(f"{name}={value}" for name, value in parse_qsl(query, keep_blank_values=True))


def _compare_bodies(recorded: ReceivedRequest, sent: ReceivedRequest) -> list[str]:
    left, right = _text(recorded), _text(sent)
    if _same(left, right):
        return []
    if isinstance(recorded, PartialRequest):
        is_beginning = _same(left + REDACTED, right)
        return [] if is_beginning else ["body: it does not begin as what was recorded of it"]
    try:
        found = list(_json_differences(recorded.json(), sent.json(), "body"))
    except ValueError:
        sizes = f"{len(recorded.body)} bytes recorded, {len(sent.body)} sent"
        return [f"body: it is not the same ({sizes})"]
    more = len(found) - _MOST_SHOWN
    return found[:_MOST_SHOWN] + ([f"body: {more} differences more"] if more > 0 else [])


def _text(request: ReceivedRequest) -> str:
    """The body, with a character for each byte; of multipart, whose boundary is random, with one
    that is not."""
    text = request.body.decode("latin-1")
    found = _BOUNDARY.match(request.headers.get("Content-Type", ""))
    if found is None:
        return text
    delimiter = rf"^--{re.escape(found[1] or found[2])}(?=(?:--)?\s*$)"
    return re.sub(delimiter, "--boundary", text, flags=re.MULTILINE)


_ASPECTS: dict[str, Callable[[ReceivedRequest, ReceivedRequest], list[str]]] = {
    "method": lambda recorded, sent: _compare("method", recorded.method, sent.method),
    "url": _compare_urls,
    "host": lambda recorded, sent: _compare("host", recorded.origin.host, sent.origin.host),
    "path": lambda recorded, sent: _compare("path", _path(recorded), _path(sent)),
    "query": _compare_queries,
    "body": _compare_bodies,
}


def _json_differences(recorded: Any, sent: Any, where: str) -> Iterator[str]:
    if isinstance(recorded, dict) and isinstance(sent, dict):
        left, right = cast("dict[str, Any]", recorded), cast("dict[str, Any]", sent)
        for key in {**left, **right}:
            if key in left and key in right:
                yield from _json_differences(left[key], right[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: only {'recorded' if key in left else 'sent'}"
    elif isinstance(recorded, list) and isinstance(sent, list):
        yield from _list_differences(cast("Any", recorded), cast("Any", sent), where)
    elif isinstance(recorded, str) and isinstance(sent, str) and _same(recorded, sent):
        return
    elif recorded != sent:
        yield f"{where}: recorded {_show(recorded)}, sent {_show(sent)}"


def _list_differences(recorded: list[Any], sent: list[Any], where: str) -> Iterator[str]:
    if len(recorded) != len(sent):
        yield f"{where}: {len(recorded)} recorded, {len(sent)} sent"
    for number, pair in enumerate(zip(recorded, sent, strict=False)):
        yield from _json_differences(*pair, f"{where}[{number}]")


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
