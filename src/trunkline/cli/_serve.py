"""`trunkline serve`: the echoing LLM server of `trunkline.testing`, until Ctrl-C.

This module knows the terminal and `LLMServer`. It does not know how the server works.
"""

from __future__ import annotations

import errno
import math
import shlex
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trunkline.testing._llm_app import DEFAULT_MODEL, Counts
from trunkline.testing._llm_server import LLMServer


def _seconds(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is not a finite number of seconds, zero or more")
    return value


def serve(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 8000,
    tls: Annotated[
        bool, typer.Option("--tls", help="Serve https, with a certificate made for this run.")
    ] = False,
    http2: Annotated[bool, typer.Option("--http2", help="Offer HTTP/2. Needs --tls.")] = False,
    token_delay: Annotated[
        float, typer.Option(callback=_seconds, help="Seconds of silence before each token.")
    ] = 0.02,
) -> None:
    """Serve an OpenAI-compatible API that echoes, to try clients on. Ctrl-C stops it."""
    if http2 and not tls:
        raise typer.BadParameter(
            "HTTP/2 is agreed on during the TLS handshake: add --tls", param_hint="--http2"
        )
    console = Console()
    server = LLMServer(tls=tls, http2=http2, port=port, token_delay=token_delay)
    with _until_signalled() as signalled:
        try:
            server.start()
        except OSError as error:
            raise typer.BadParameter(_why(error, port), param_hint="--port") from error
        try:
            _greet(console, server)
            signalled.wait()
        finally:
            server.stop()
    console.print(_tally(server.counts))


@contextmanager
def _until_signalled() -> Generator[threading.Event, None, None]:
    """An event that Ctrl-C and SIGTERM set, instead of ending the program where it stands."""
    event = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        event.set()

    ours = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in ours]
    try:
        yield event
    finally:
        for number, handler in zip(ours, before, strict=True):
            signal.signal(number, handler)


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; --port 0 takes a free one"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; take one above 1023"
    return f"cannot listen on port {port}: {error.strerror}"


def _greet(console: Console, server: LLMServer) -> None:
    # soft_wrap: these are lines to copy, so the terminal may break them but we may not.
    console.print(f"[bold]URL[/]       {server.url}", soft_wrap=True)
    console.print(f"[bold]base_url[/]  {server.base_url}", soft_wrap=True)
    if server.ca_file is not None:
        console.print("[bold]CA file[/]   ", end="")
        console.print(server.ca_file, soft_wrap=True, markup=False)
    console.print()
    console.print(_curl(server), soft_wrap=True, markup=False, highlight=False)
    console.print("\nCtrl-C stops it.")


def _curl(server: LLMServer) -> str:
    body = (
        f'{{"model": "{DEFAULT_MODEL}", "stream": true, '
        '"messages": [{"role": "user", "content": "One two three"}]}'
    )
    trust = ["--cacert", server.ca_file] if server.ca_file is not None else []
    url = f"{server.base_url}/chat/completions"
    return shlex.join(
        ["curl", "-N", *trust, url, "-H", "content-type: application/json", "-d", body]
    )


def _tally(counts: Counts) -> Table:
    table = Table(title="What it saw")
    for field in fields(counts):
        table.add_column(field.name.replace("_", " "), justify="right")
    table.add_row(*(str(getattr(counts, field.name)) for field in fields(counts)))
    return table
