"""`trunkline compare`: what a pool saves an agent, measured on every installed backend.

Knows the command, the link the calls go over, and the order of the runs. Does not know how options
are checked (`_plan`), a call is timed (`_workload`), what the numbers come to (`_runs`) or look
like (`_report`).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Protocol

import anyio
import typer
from rich.console import Console
from yarl import URL

import trunkline
from trunkline.cli import _plan
from trunkline.cli._plan import Plan
from trunkline.cli._relay import Relay
from trunkline.cli._report import introduce, introduction, progress, show
from trunkline.cli._runs import MODES, Mode, Results, Run, as_json
from trunkline.cli._workload import Workload, error_name, measure, warm_up


class _Counter(Protocol):
    """What counts the connections that are opened: the embedded server, or the relay before it."""

    @property
    def connections(self) -> int: ...

    def reset(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """Where the calls go, and who counts connections there; None when only the client can."""

    base_url: str
    tls: trunkline.Tls
    counter: _Counter | None


_OWN_SERVER = "A server of your own"


def compare(
    calls: Annotated[
        int, typer.Option(min=1, metavar="N", help="Calls of the agent, in each mode.")
    ] = 20,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Calls at a time.")] = 1,
    backends: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Instead of every installed backend.")
    ] = None,
    rtt: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="Emulated round trip to the embedded server; 0: none. Default: 50."
        ),
    ] = None,
    http2: Annotated[bool, typer.Option("--http2", help="Offer HTTP/2.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results there too.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report with plots there.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Call the chat-completions API there (https://api.example.com/v1) instead of the "
            "embedded server. These calls are real ones.",
            rich_help_panel=_OWN_SERVER,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:VALUE",
            help="Send it with each call to --url. Repeatable.",
            rich_help_panel=_OWN_SERVER,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Trust these certificates (PEM) at --url.",
            rich_help_panel=_OWN_SERVER,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="The model to ask for.", rich_help_panel=_OWN_SERVER),
    ] = "trunkline-echo",
) -> None:
    """Measure what a connection pool saves an LLM agent.

    Makes the agent's calls on each backend, once with a client per call (cold) and once with one
    client for all of them (pooled), over TLS and an emulated round trip, and shows where the time
    went. Ends with code 1 if any call failed.
    """
    url = None if url is None else _plan.check_url(url)
    _plan.check_ca_file(ca_file, url)
    plan = Plan(
        calls=calls,
        concurrency=concurrency,
        backends=_plan.choose_backends(backends),
        are_backends_chosen=backends is not None,
        rtt=_plan.choose_rtt(rtt, url),
        http2=http2,
        model=model,
        url=url,
        headers=_plan.parse_headers(header or [], url),
        ca_file=ca_file,
    )
    if html_file is not None:
        _plan.check_plots("--html")
    for option, file in (("--json", json_file), ("--html", html_file)):
        if file is not None:
            _plan.check_writable(option, file)
    console = Console()
    results = _carry_out(plan, console)
    show(results, console)
    _write(plan, results, json_file, html_file)
    if not results.is_clean:
        raise typer.Exit(1)


def _write(plan: Plan, results: Results, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        document = json.dumps(as_json(plan.as_json(), _versions(), results), indent=2)
        json_file.write_text(f"{document}\n", encoding="utf-8")
    if html_file is not None:
        from trunkline.cli._html import report

        lines = introduction(plan, len({run.backend for run in results.runs}))
        html_file.write_text(report(results, lines, _versions()), encoding="utf-8")


def _carry_out(plan: Plan, console: Console) -> Results:
    with _open_link(plan) as link:
        workload = Workload(
            base_url=link.base_url,
            calls=plan.calls,
            concurrency=plan.concurrency,
            model=plan.model,
            http2=plan.http2,
            tls=link.tls,
            headers=plan.headers,
        )
        return anyio.run(_run_all, plan, workload, link.counter, console)


@contextmanager
def _open_link(plan: Plan) -> Generator[_Link]:
    if plan.url is not None:
        tls = trunkline.Tls(ca_file=plan.ca_file)
        yield _Link(base_url=plan.url, tls=tls, counter=None)
        return
    from trunkline.testing import LLMServer

    with LLMServer(tls=True, http2=plan.http2) as server:
        tls = trunkline.Tls(ca_file=Path(server.ca_file or ""))
        if plan.rtt == 0:
            yield _Link(base_url=server.base_url, tls=tls, counter=server)
            return
        url = URL(server.base_url)
        with Relay(url.host or "", url.port or 0, rtt=plan.rtt) as relay:
            yield _Link(base_url=str(url.with_port(relay.port)), tls=tls, counter=relay)


async def _run_all(
    plan: Plan, workload: Workload, counter: _Counter | None, console: Console
) -> Results:
    results = Results()
    backends = await _usable(plan, workload, results)
    introduce(introduction(plan, len(backends)), console)
    with progress(len(backends) * len(MODES) * plan.calls) as begin:
        for backend in backends:
            try:
                await warm_up(workload, backend)
            except Exception as error:  # noqa: BLE001 - a stranger's backend may raise anything
                results.broken[backend] = f"not measured: its first call failed: {_told(error)}"
                continue
            for mode in MODES:
                results.runs.append(
                    await _run(workload, backend, mode, counter, begin(f"{backend}, {mode}"))
                )
    return results


async def _run(
    workload: Workload,
    backend: str,
    mode: Mode,
    counter: _Counter | None,
    answered: Callable[[], None],
) -> Run:
    if counter is None:
        return await measure(workload, backend, mode, answered)
    counter.reset()
    run = await measure(workload, backend, mode, answered)
    return replace(run, connections=counter.connections)


async def _usable(plan: Plan, workload: Workload, results: Results) -> list[str]:
    """The backends that can do what is asked, found without sending anything."""
    usable: list[str] = []
    for backend in plan.backends:
        try:
            await workload.client(backend).aclose()
        except trunkline.UnsupportedOption as error:
            results.unusable[backend] = f"not measured: {error}"
        except Exception as error:  # noqa: BLE001 - a stranger's backend may raise anything
            results.broken[backend] = f"not measured: it cannot be opened: {_told(error)}"
        else:
            usable.append(backend)
    if results.unusable and (plan.are_backends_chosen or not (usable or results.broken)):
        reasons = "; ".join(f"{name}: {why}" for name, why in results.unusable.items())
        raise _plan.refusal("--backends", reasons)
    return usable


def _told(error: Exception) -> str:
    """What may be said about an error: only ours promise that no secret is in their text."""
    name = error_name(error)
    return f"{name}: {error}" if isinstance(error, trunkline.TransportError) else name


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("trunkline", "aiohttp", "httpx"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
