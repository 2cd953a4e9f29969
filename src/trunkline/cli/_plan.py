"""What `trunkline compare` was asked to do, checked before anything is sent.

Knows the options and what each may hold. Does not know how the calls are made. Every check names
its option and never shows a header's value, or a URL that may hold a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer

import trunkline
from trunkline._registry import available_backends

DEFAULT_RTT = 0.05
"""Seconds; a server on the same continent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison to make. Durations in seconds; `url` is None for the embedded server."""

    calls: int
    concurrency: int
    backends: tuple[str, ...]
    are_backends_chosen: bool
    """The user named them: then one that cannot run is an error."""
    rtt: float
    http2: bool
    model: str
    url: str | None
    headers: Mapping[str, str] = field(repr=False)
    ca_file: Path | None

    def as_json(self) -> dict[str, Any]:
        """The `config` of the JSON file: names of headers, never their values."""
        return {
            "url": self.url,
            "calls": self.calls,
            "concurrency": self.concurrency,
            "backends": list(self.backends),
            "rtt": self.rtt,
            "http2": self.http2,
            "model": self.model,
            "headers": sorted(self.headers),
        }


def refusal(option: str, reason: str) -> typer.BadParameter:
    """An error that names the option; the command ends with code 2."""
    return typer.BadParameter(reason, param_hint=f"'{option}'")


def check_url(url: str) -> str:
    """A base URL that may be shown: no userinfo, no query."""
    try:
        trunkline.Request("POST", url)
    except trunkline.InvalidRequest as error:
        raise refusal("--url", str(error)) from error
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise refusal("--url", "it has a query or a fragment; give the base URL alone")
    return url.rstrip("/")


def choose_rtt(milliseconds: float | None, url: str | None) -> float:
    """Seconds: what was asked for, else 50 ms to the embedded server and nothing elsewhere."""
    if milliseconds is None:
        return 0.0 if url else DEFAULT_RTT
    if not 0 <= milliseconds <= 60_000:
        raise refusal("--rtt", "give milliseconds from 0 to 60000")
    if url and milliseconds:
        reason = "a round trip is emulated to the embedded server only; leave it out with --url"
        raise refusal("--rtt", reason)
    return milliseconds / 1000


def parse_headers(lines: Sequence[str], url: str | None) -> dict[str, str]:
    """NAME:VALUE pairs."""
    if lines and url is None:
        raise refusal("--header", "it is sent to your own server only; add --url")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise refusal("--header", "one of them has no colon; write NAME:VALUE")
        headers[name.strip()] = value.strip()
    try:
        trunkline.Request("POST", "http://localhost/", headers=headers)
    except trunkline.InvalidRequest as error:
        raise refusal("--header", str(error)) from error
    return headers


def choose_backends(names: str | None) -> tuple[str, ...]:
    """Those that were named, once each, in that order; else every one that is registered."""
    registered = available_backends()
    if names is None:
        return registered
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen:
        raise refusal("--backends", f"it names none; there are: {', '.join(registered)}")
    for name in chosen:
        if name not in registered:
            known = ", ".join(registered)
            raise refusal("--backends", f"there is no backend {name!r}; there are: {known}")
    return chosen


def check_ca_file(ca_file: Path | None, url: str | None) -> None:
    if ca_file is not None and url is None:
        raise refusal("--ca-file", "the embedded server brings its own; add --url")


def check_writable(option: str, file: Path) -> None:
    """Fails now rather than after the measurement."""
    try:
        file.open("a").close()
    except OSError as error:
        raise refusal(option, f"cannot write {file}: {error.strerror}") from error


def check_plots(option: str) -> None:
    """Fails now rather than after the measurement."""
    if find_spec("matplotlib") is None:
        raise refusal(option, "the plots need matplotlib: pip install 'trunkline[plots]'")
