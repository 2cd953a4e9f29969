"""Says whether what came of a fault is what a caller must see.

This module knows the facts of `TransportError` and what must not be left behind. It does not know
how a fault is played.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults._lab import ALLOWANCE, DEADLINE, Answers, Ask, Fails, Fault, Reply
from tests.faults._play import Outcome

from trunkline import TransportError


def faults_found(fault: Fault, outcome: Outcome) -> list[str]:
    """What of `outcome` is not as a caller must see it; of Trunkline, where facts are checked."""
    found = [*_wrong_end(fault, outcome), *_wrong_aftermath(fault, outcome)]
    limit = (0.0 if fault.bounded_by is None else DEADLINE * 1.5) + ALLOWANCE
    if fault.bounded_by is not None and outcome.elapsed > limit:
        found.append(f"took {outcome.elapsed:.2f} s, more than {limit:.2f} s")
    return found


def _wrong_end(fault: Fault, outcome: Outcome) -> list[str]:
    if outcome.hung:
        return ["it hung"]
    wrong = [
        list(
            _wrong_answer(expected, outcome)
            if isinstance(expected, Answers)
            else _wrong_error(expected, outcome)
        )
        for expected in fault.allowed
    ]
    return [] if [] in wrong else [each for those in wrong for each in those]


def _wrong_answer(expected: Answers, outcome: Outcome) -> Iterator[str]:
    if outcome.reply is None:
        yield f"expected an answer, not {_name(outcome.error)}: {outcome.error}"
    elif not is_right(expected, outcome.reply):
        yield f"expected {expected}, not {_short(outcome.reply)}"


def _wrong_error(expected: Fails, outcome: Outcome) -> Iterator[str]:
    if outcome.reply is not None:
        yield f"expected {expected.error}, not an answer: {_short(outcome.reply)}"
    elif outcome.error is not None:
        yield from _wrong_facts(expected, outcome.error)


def is_right(expected: Answers, reply: Reply) -> bool:
    return reply.status == expected.status and expected.body in (None, reply.body)


def _wrong_facts(expected: Fails, error: Exception) -> Iterator[str]:
    kinds = expected.error if isinstance(expected.error, tuple) else (expected.error,)
    if type(error) not in kinds or not isinstance(error, TransportError):
        yield f"expected {[kind.__name__ for kind in kinds]}, not {_name(error)}: {error}"
        return
    phases = expected.phase if isinstance(expected.phase, tuple) else (expected.phase,)
    if expected.phase is not None and error.phase not in phases:
        yield f"expected phase {expected.phase}, not {error.phase}"
    sent = "partly" if error.request_sent is None else error.request_sent
    facts = (
        ("replay", expected.replay, error.replay),
        ("request_sent", expected.sent, sent),
        ("response_started", expected.started, error.response_started),
        ("connection_reused", expected.reused, error.connection_reused),
        ("attempts", expected.attempts, error.attempts),
    )
    for name, wanted, got in facts:
        if wanted is not None and wanted != got:
            yield f"expected {name} {wanted!r}, not {got!r}"
    if (expected.sent is False) == bool(error.bytes_sent) and expected.sent is not None:
        yield f"bytes_sent is {error.bytes_sent}"


def _wrong_aftermath(fault: Fault, outcome: Outcome) -> Iterator[str]:
    yield from (f"a good request after it: {each}" for each in outcome.after if each)
    yield from (f"left behind: {each}" for each in outcome.left)
    if outcome.growth > fault.memory:
        yield f"memory grew by {outcome.growth >> 20} MiB"
    if fault.ends_connection and outcome.used_again:
        yield "its connection was used again"
    if outcome.seen is not None and outcome.seen > (most := _most_sendings(fault.ask, outcome)):
        yield f"the server got the call {outcome.seen} times, and not {most} at most"


def _most_sendings(ask: Ask, outcome: Outcome) -> int:
    if isinstance(outcome.error, TransportError):
        return outcome.error.attempts
    is_idempotent = ask.method != "POST" or "Idempotency-Key" in dict(ask.headers)
    return 2 if is_idempotent else 1


def _name(error: object) -> str:
    return type(error).__name__


def _short(reply: Reply) -> str:
    return f"{reply.status} with {len(reply.body)} bytes, {reply.body[:60]!r}"
