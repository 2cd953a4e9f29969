"""The order in which those who wait are served, whoever leaves in between."""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakSet

from hypothesis import example, given, strategies as st

from trunkline.pool._queue import Queue, Ticket


class Waiter:
    is_set = False

    def set(self) -> None:
        self.is_set = True


def ticket(number: int, priority: int = 0) -> Ticket:
    return Ticket(cast("Any", None), number, priority, cast("Any", Waiter()), None, fresh=False)


a_step = st.tuples(
    st.sampled_from(["call", "call", "call", "serve", "leave"]),
    st.sampled_from([0, 0, 0, 1, -1]),
    st.floats(0, 0.99),
)


CALL, SERVE = ("call", 0, 0.0), ("serve", 0, 0.0)


@example([CALL, CALL, CALL, CALL, ("leave", 0, 0.3), ("leave", 0, 0.4), SERVE, SERVE])
@given(st.lists(a_step, min_size=10, max_size=60))
def test_it_serves_by_priority_then_in_order_whoever_left(
    steps: list[tuple[str, int, float]],
) -> None:
    queue, model = Queue(), list[Ticket]()

    for number, (step, priority, place) in enumerate(steps):
        if step == "call":
            model.append(ticket(number, priority))
            queue.push(model[-1])
        elif model and step == "serve":
            due = min(model, key=lambda one: (-one.priority, one.number))
            assert queue.first() is due
            model.remove(due)
            queue.remove(due)
            queue.remove(due)  # it is not there any more
        elif model:
            leaves = model.pop(int(place * len(model)))
            queue.remove(leaves)
            queue.remove(leaves)
        assert queue.size == len(model)


def test_those_who_left_are_forgotten_although_nobody_is_served() -> None:
    queue, waiters = Queue(), WeakSet[Any]()
    queue.push(ticket(0))

    for number in range(1, 1000):
        leaves = ticket(number)
        waiters.add(leaves.waiter)
        queue.push(leaves)
        queue.remove(leaves)

    assert queue.size == 1
    assert len(waiters) < 5


def test_everybody_is_woken_but_those_who_left() -> None:
    queue, tickets = Queue(), [ticket(number, number % 2) for number in range(6)]
    for one in tickets:
        queue.push(one)
    queue.remove(tickets[2])

    queue.wake_all()

    woken = [cast("Any", one.waiter).is_set for one in tickets]
    assert woken == [True, True, False, True, True, True]
