"""What a report card says, and how it looks: as text for a terminal, as Markdown for a page.

This module knows behaviours, their outcomes and the numbered promises. It does not know how a
behaviour is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Literal, TypeAlias

from trunkline._contract import Capabilities
from trunkline.testing._promises import PROMISES

Outcome: TypeAlias = Literal["passed", "failed", "skipped"]

_SHOWN = 3
"""Of the runs of one behaviour that failed, so many are told of."""

_RANK: dict[Outcome, int] = {"skipped": 0, "passed": 1, "failed": 2}


@dataclass(slots=True)
class Behaviour:
    """What came of one behaviour on all event loops and with all parameters.

    It has failed when one of its runs has, and is skipped when all are.

    Attributes:
        name: of the test.
        promise: number of the promise of `trunkline.Transport` that it is a part of.
        runs: how many there were.
        troubles: for each run that failed, its parameters and the last line of its error.
        reason: why it was skipped.
    """

    name: str
    promise: int
    outcome: Outcome = "skipped"
    runs: int = 0
    troubles: dict[str, str] = field(default_factory=dict[str, str])
    reason: str = ""

    def add(self, outcome: Outcome, run: str, text: str) -> None:
        self.outcome = max(self.outcome, outcome, key=_RANK.__getitem__)
        self.runs += 1
        if outcome == "failed":
            self.troubles[run] = text
        elif outcome == "skipped":
            self.reason = text


@dataclass(frozen=True, slots=True)
class Card:
    """What the suite says of one backend."""

    capabilities: Capabilities
    behaviours: tuple[Behaviour, ...]

    def of(self, outcome: Outcome) -> list[Behaviour]:
        return [each for each in self.behaviours if each.outcome == outcome]

    def counts(self, promise: int | None = None) -> tuple[int, int, int]:
        """How many passed, failed and were skipped; of one promise, or of all."""
        outcomes = [each.outcome for each in self.behaviours if promise in (None, each.promise)]
        return outcomes.count("passed"), outcomes.count("failed"), outcomes.count("skipped")

    @property
    def name(self) -> str:
        return self.capabilities.name

    @property
    def summary(self) -> str:
        """The numbers in a sentence, without its full stop."""
        passed, failed, skipped = self.counts()
        runs = sum(each.runs for each in self.behaviours)
        return (
            f"{len(self.behaviours)} behaviours in {runs} runs: "
            f"{passed} passed, {failed} failed, {skipped} skipped"
        )


# -- on a terminal ---------------------------------------------------------------------------------


def as_text(card: Card) -> str:
    """The card in lines of about a hundred characters."""
    lines = [f"{card.name}: {card.summary}", ""]
    lines.append(f"{'passed':>8}{'failed':>8}{'skipped':>9}  promise")
    for number, promise in PROMISES.items():
        passed, failed, skipped = card.counts(number)
        text = shorten(promise, 70, placeholder=" ...")
        lines.append(f"{passed:>8}{failed:>8}{skipped:>9}  {number:>2}. {text}")
    for each in card.of("failed"):
        broken = shorten(PROMISES[each.promise], 78, placeholder=" ...")
        lines += ["", f"FAILED {each.name}", f"  breaks promise {each.promise}: {broken}"]
        troubles = [f"  {run} {shorten(text, 90)}" for run, text in each.troubles.items()]
        lines += troubles[:_SHOWN]
        lines += [f"  and {len(troubles) - _SHOWN} more"] if len(troubles) > _SHOWN else []
    if card.of("skipped"):
        lines += ["", "skipped:", *(f"  {line}" for line in _reasons(card))]
    return "\n".join([*lines, ""])


def _reasons(card: Card) -> Iterator[str]:
    """Why behaviours were skipped, and how many for each reason."""
    reasons = [each.reason for each in card.of("skipped")]
    for reason in sorted(set(reasons), key=lambda one: (-reasons.count(one), one)):
        yield f"{reasons.count(reason)} {reason}"


# -- on a page -------------------------------------------------------------------------------------

_PAGE = """\
# Report cards

What each backend keeps of the contract, [`trunkline.Transport`](../src/trunkline/_contract.py), and
what it was not asked for want of a capability. This page is generated: `make conformance-cards`.
For one backend, also a backend of your own: `python -m trunkline.testing.conformance NAME`.

A cell says how many behaviours of that promise pass. Each is run on {loops}, and
fails if it fails on one.
"""


def as_markdown(cards: Sequence[Card], loops: Sequence[str] = ()) -> str:
    """A page with a table of all the cards, and what each fails and skips.

    Args:
        loops: those that the cards were made on; every one of the backend's if empty.
    """
    where = ", ".join(loops) or "every event loop the backend runs on"
    names = "".join(f" {card.name} |" for card in cards)
    lines = [_PAGE.format(loops=where), f"| Promise |{names}"]
    lines.append("|---|" + "---|" * len(cards))
    for number, promise in PROMISES.items():
        cells = "".join(f" {_cell(*card.counts(number))} |" for card in cards)
        lines.append(f"| {number}. {promise} |{cells}")
    lines.append("| **All** |" + "".join(f" **{_cell(*card.counts())}** |" for card in cards))
    for card in cards:
        lines += ["", f"## {card.name}", "", f"{card.summary[:1].upper()}{card.summary[1:]}."]
        lines += _failures(card)
        if card.of("skipped"):
            lines += ["", "Skipped:", "", *(f"- {line}" for line in _reasons(card))]
    return "\n".join([*lines, ""])


def _cell(passed: int, failed: int, skipped: int) -> str:
    others = [f"{failed} failed"] if failed else []
    others += [f"{skipped} skipped"] if skipped else []
    return f"{passed} ({', '.join(others)})" if others else f"{passed}"


def _failures(card: Card) -> Iterator[str]:
    failed = card.of("failed")
    if failed:
        yield from ("", "Failed:", "")
    for each in failed:
        yield f"- promise {each.promise}: `{each.name}`"
