"""Which promise of `trunkline.Transport` a behaviour is a part of.

This module knows the contract's text and its numbers. It does not know the behaviours: each part of
the suite names the promise that most of its behaviours belong to, and `keeps` the others'.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from trunkline._contract import Transport

Test = TypeVar("Test", bound=Callable[..., object])

_NUMBERED = re.compile(r"^ {0,2}(\d+)\. +(.*(?:\n {4}.*)*)", re.MULTILINE)


def _read(contract: str) -> Mapping[int, str]:
    found = _NUMBERED.finditer(inspect.cleandoc(contract))
    return MappingProxyType({int(each[1]): " ".join(each[2].split()) for each in found})


PROMISES = _read(Transport.__doc__ or "")
"""The promises of the contract by their numbers."""


def keeps(number: int) -> Callable[[Test], Test]:
    """Say that a behaviour is a part of this promise, not of the one its class names."""

    def decorate(test: Test) -> Test:
        test.__dict__["promise"] = number
        return test

    return decorate


def promise_of(suite: type, behaviour: str) -> int:
    """The number of the promise that fails when this behaviour of `suite` does."""
    own: int | None = getattr(getattr(suite, behaviour), "promise", None)
    if own is not None:
        return own
    parts = [part for part in inspect.getmro(suite) if behaviour in vars(part)]
    numbers: list[int] = [vars(part)["promise"] for part in parts if "promise" in vars(part)]
    return numbers[0]
