"""Header fields of a request: checked once, then carried as they go on the wire.

This module knows what a field may hold (RFC 9110 section 5) and which fields say how a message is
sent. It does not know what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

from multidict import CIMultiDict, MultiMapping

from trunkline._errors import InvalidRequest

HeaderTypes: TypeAlias = Mapping[str, str] | MultiMapping[str] | Iterable[tuple[str, str]] | None

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")  # RFC 9110 section 5.6.2
_BAD_IN_VALUE = re.compile("[\x00\r\n]")  # RFC 9110 section 5.5
_CONTROLS = frozenset(
    {"connection", "content-length", "expect", "host", "idempotency-key", "transfer-encoding"}
)
_NO_CONTROLS: dict[str, list[str]] = {}


class Fields:
    """Names and values that may be sent.

    Attributes:
        pairs: as they were given, in order, duplicates kept.
        controls: values of those that say how the message is sent, by lower-case name; often none.
    """

    __slots__ = ("controls", "pairs")

    def __init__(self, headers: HeaderTypes) -> None:
        """Check `headers`.

        Raises:
            InvalidRequest: a name that is no token, or a value with CR, LF or NUL.
        """
        self.controls = _NO_CONTROLS
        self.pairs: tuple[tuple[str, str], ...] = ()
        if headers is None:
            return
        try:
            if type(headers) is tuple:
                self.pairs = headers
            elif type(headers) is dict:  # what nearly every caller gives
                self.pairs = tuple(headers.items())  # pyright: ignore[reportUnknownArgumentType]
            else:
                self.pairs = tuple(CIMultiDict(headers).items())
            for name, value in self.pairs:
                lower = lower_name(name)
                if lower in _CONTROLS:
                    self._control(lower, value)
                if not (value.isascii() and value.isprintable()):
                    _check_value(name, value)
        except UnicodeEncodeError as error:
            raise InvalidRequest("headers: a value contains a lone surrogate") from error
        except (AttributeError, TypeError, ValueError) as error:
            message = "headers: give a mapping or pairs of str names and str values"
            raise InvalidRequest(message) from error

    def _control(self, lower: str, value: str) -> None:
        if self.controls is _NO_CONTROLS:
            self.controls = {}
        self.controls.setdefault(lower, []).append(value)

    def over(self, defaults: Fields) -> Fields:
        """These, behind those of `defaults` that have none of these names."""
        if not self.pairs:
            return defaults
        names = {lower_name(name) for name, _ in self.pairs}
        kept = [pair for pair in defaults.pairs if lower_name(pair[0]) not in names]
        merged = Fields(None)
        merged.pairs = (*kept, *self.pairs)
        merged.controls = self.controls
        if defaults.controls:
            left = {name: v for name, v in defaults.controls.items() if name not in names}
            merged.controls = {**left, **self.controls}
        return merged

    def __contains__(self, lower: str) -> bool:
        return any(lower_name(name) == lower for name, _ in self.pairs)

    def plus(self, name: str, value: str) -> Fields:
        """These and one more, which says nothing of how the message is sent."""
        more = Fields(None)
        more.pairs = (*self.pairs, (name, value))
        more.controls = self.controls
        return more


def _check_value(name: str, value: str) -> None:
    if _BAD_IN_VALUE.search(value):
        raise InvalidRequest(f"headers: the value of {name} contains CR, LF or NUL")
    value.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)
def lower_name(name: str) -> str:
    """The name of a field in lower case.

    Raises:
        InvalidRequest: it is no token.
    """
    if not TOKEN.match(name):
        raise InvalidRequest("headers: a name contains a character that no name may have")
    return name.lower()
