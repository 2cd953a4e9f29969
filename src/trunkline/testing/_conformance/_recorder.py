"""An observer that keeps what it is told, and a way to state it: a tree on one line.

`request(connect() headers()!ReadError)!ReadError`: what is inside a step in its parentheses, the
error behind a step that failed. This module knows the events and states no behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import pytest

from trunkline._contract import Transport
from trunkline._events import Event, Observer, Step


class Recorder:
    """Keeps the events in their order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    @property
    def request_ids(self) -> list[int | None]:
        """Those of the requests that began, in order."""
        return [e.request_id for e in self.events if e.step == "request" and not e.is_end]

    def of_request(self, place: int = 0) -> list[Event]:
        """The events of the request that began at this place."""
        wanted = self.request_ids[place]
        return [e for e in self.events if e.request_id == wanted]

    @property
    def ahead(self) -> list[Event]:
        """Those of the steps that open connections ahead of any request."""
        return [e for e in self.events if e.request_id is None and e.step != "connection"]

    def connections(self, *, is_end: bool) -> list[Event]:
        return [e for e in self.events if e.step == "connection" and e.is_end == is_end]

    def has_begun(self, step: Step) -> bool:
        return any(e.step == step for e in self.events)

    def tree(self, place: int = 0) -> str:
        return tree(self.of_request(place))


def tree(events: Iterable[Event]) -> str:
    """One line; see the module. Fails unless the steps are paired and properly nested."""
    open_steps: list[Step] = []
    inside: list[list[str]] = [[]]
    for event in events:
        if not event.is_end:
            open_steps.append(event.step)
            inside.append([])
            continue
        assert open_steps, f"{event.step} ended and had not begun"
        assert open_steps.pop() == event.step, f"{event.step} ended before what is inside it"
        error = "" if event.error is None else f"!{event.error}"
        parts = " ".join(inside.pop())
        inside[-1].append(f"{event.step}({parts}){error}")
    assert not open_steps, f"they have not ended: {open_steps}"
    return " ".join(inside[0])


def without_names(line: str) -> str:
    """A tree without the names of its errors: each loop has its own for a cancellation."""
    return re.sub(r"!\w+", "!", line)


def observe(transport: Transport, observer: Observer) -> Callable[[], None]:
    """Have `observer` told; the function that is returned ends it."""
    method = getattr(transport, "observe", None)
    if method is None:
        pytest.skip("the transport has no events")
    stop: Callable[[], None] = method(observer)
    return stop


@contextmanager
def observed(transport: Transport) -> Generator[Recorder]:
    """Record the events within a block."""
    recorder = Recorder()
    stop = observe(transport, recorder)
    yield recorder
    stop()
