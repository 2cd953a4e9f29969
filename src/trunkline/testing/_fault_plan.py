"""A plan of faults, as data: it can be written down, kept, and run again.

This module knows what may go wrong, for which requests and how often. It does not know transports.
"""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

import trunkline
from trunkline import (
    BodyTruncated,
    HTTPStatusError,
    Phase,
    StreamReset,
    TransportError,
    UnsupportedOption,
)
from trunkline.testing._facts import phases_of

_NOT_IN_FLIGHT = (HTTPStatusError, UnsupportedOption)


def find_error(name: object) -> object:
    """The class of Trunkline's own error `name`; anything else as it is.

    Raises:
        ValueError: there is no such error.
    """
    if not isinstance(name, str):
        return name
    found = getattr(trunkline, name, None)
    if not (isinstance(found, type) and issubclass(found, TransportError)):
        raise ValueError(f"there is no trunkline.{name} that is an error")
    return found


def _name(kind: type[TransportError] | None) -> str | None:
    return None if kind is None else kind.__name__


ErrorClass: TypeAlias = Annotated[
    type[TransportError],
    BeforeValidator(find_error),
    PlainSerializer(_name, return_type=str),
]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Model):
    """One thing that goes wrong, and for which requests. A range is (least, most), drawn anew.

    Attributes:
        error: a class of Trunkline's errors, or its name: raised with the facts of a real one.
        phase: where it happens; None for the usual one of the class. Up to "write" the transport
            inside is not asked at all; at "headers" it is, so the request is processed and the
            answer lost; at "body" the answer has begun. An error that says `replay == "safe"` never
            comes of a request that was processed: for a `StreamRefused` the transport inside is
            not asked, nor for a `GoAway`, unless its phase is "headers": the server had begun.
        code: of a `StreamReset`, the error code (RFC 9113 section 7); None for INTERNAL_ERROR.
        status: answer with this status instead of asking the transport inside, e.g. 429.
        retry_after: seconds, in the `Retry-After` header of that answer.
        delay: seconds before anything else. The deadlines of the request hold meanwhile.
        cut_after: bytes of the body, as on the wire, after which it fails, with `error` or else
            `BodyTruncated`. A body that is not longer than that arrives whole.
        drip_size: hand out the body in pieces of at most so many bytes; None for those it has,
        drip_pause: with so many seconds before each.
        method: only requests with this method.
        path: only requests to this path, where `*` stands for anything but a slash.
        skip: leave the first so many of them alone.
        times: how often at most; None for every time.
        probability: of each of those left.
    """

    error: ErrorClass | None = None
    phase: Phase | None = None
    code: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    retry_after: _Seconds | None = None
    delay: _Seconds | tuple[_Seconds, _Seconds] = 0.0
    cut_after: _Count | tuple[_Count, _Count] | None = None
    drip_size: Annotated[int, Field(ge=1)] | None = None
    drip_pause: _Seconds = 0.0
    method: str | None = None
    path: str | None = None
    skip: _Count = 0
    times: Annotated[int, Field(ge=1)] | None = None
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.error is not None and issubclass(self.error, _NOT_IN_FLIGHT):
            raise ValueError(f"error: {self.error.__name__} does not happen to a request under way")
        if self.status is not None and (self.error is not None or self.has_body_fault):
            raise ValueError("status: an answer of its own has no error, cut_after or drip_size")
        if self.retry_after is not None and self.status is None:
            raise ValueError("retry_after: it goes into an answer of its own; give status too")
        if self.code is not None and not (self.error and issubclass(self.error, StreamReset)):
            raise ValueError("code: only a StreamReset has one; give error='StreamReset'")
        self._check_phase()
        return self

    def _check_phase(self) -> None:
        if self.failure is None:
            if self.phase is not None:
                raise ValueError("phase: it is that of an error; give error too")
            return
        possible = phases_of(self.failure)
        if self.failure_phase not in possible:
            name, phases = self.failure.__name__, " or ".join(possible)
            raise ValueError(f"phase: {name} does not happen at {self.phase!r}; give {phases}")
        if self.cut_after is not None and self.failure_phase != "body":
            raise ValueError("cut_after: the error happens before the body; give phase='body'")

    @property
    def has_body_fault(self) -> bool:
        return (
            self.cut_after is not None
            or self.drip_size is not None
            or self.drip_pause > 0
            or (self.error is not None and self.failure_phase == "body")
        )

    @property
    def failure(self) -> type[TransportError] | None:
        """The class of the error that this fault ends in."""
        return BodyTruncated if self.error is None and self.cut_after is not None else self.error

    @property
    def failure_phase(self) -> Phase | None:
        if self.failure is None:
            return None
        return self.phase or phases_of(self.failure)[0]


class FaultPlan(_Model):
    """Faults in order: of those that are for a request the first that is due happens to it.

    It is made of data as well, `FaultPlan.model_validate_json(text)`, and `model_dump_json()` is
    that text again.

    Attributes:
        seed: of all that is left to chance; None takes a new one.
    """

    faults: tuple[Fault, ...] = ()
    seed: int | None = None
