"""The sync adapters: many threads on one pool, and what ends them.

This module knows threads, forks, signals and a server that follows a script; those that need a
process of their own are scripts run in one. What a message looks like is `test_adapters`.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import trunkline
import trunkline.adapters.httpx
import trunkline.adapters.httpx2
from trunkline import Limits, TransportConfig
from trunkline.testing import MockTransport
from trunkline.testing._conversation import ClientGone, Conversation
from trunkline.testing._script import (
    chunk,
    expect_head,
    expect_request,
    response,
    send,
    serve,
    wait,
)
from trunkline.testing._servers import ScriptedServer, Step

FAMILIES: dict[str, tuple[Any, Any]] = {
    "httpx2": (httpx2, trunkline.adapters.httpx2),
    "httpx": (httpx, trunkline.adapters.httpx),
}
CHUNKED = response(framing="chunked").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


@pytest.fixture(params=FAMILIES)
def library(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param][0]


@pytest.fixture
def adapter(library: Any) -> Any:
    return FAMILIES[library.__name__][1]


@pytest.fixture(params=["aiohttp", "httpx"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(adapter: Any, backend: str) -> Iterator[Any]:
    config = TransportConfig(backend=backend, limits=Limits(max_connections=4))
    with adapter.Client(config, timeout=20) as opened:
        yield opened


def loop_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "trunkline"]


def tell(event: threading.Event) -> Step:
    """Set it when the script comes here."""
    return lambda conversation: event.set()


def tell_when_gone(event: threading.Event) -> Step:
    def step(conversation: Conversation) -> None:
        try:
            conversation.wait_gone()
        except ClientGone:
            event.set()
            raise
        event.set()

    return step


# -- messages --------------------------------------------------------------------------------------


def test_many_threads_share_one_pool(client: Any) -> None:
    def echo(request: Any) -> bytes:
        return response(200, request.target.encode())

    def call(number: int) -> bool:
        return bool(client.get(f"{server.url}/{number}").text == f"/{number}")

    with ScriptedServer(serve(echo)) as server, ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(200)))
        assert server.connections <= 4
        assert len(loop_threads()) == 1


def test_an_iterators_pieces_are_made_in_the_callers_thread_as_they_are_sent(client: Any) -> None:
    arrived, makers = threading.Event(), set[int]()

    def pieces() -> Iterator[bytes]:
        makers.add(threading.get_ident())
        yield b"one"
        assert arrived.wait(20)
        yield b"two"

    def first_piece(conversation: Conversation) -> None:
        conversation.read_until(b"one\r\n")
        arrived.set()
        conversation.read_until(b"0\r\n\r\n")

    with ScriptedServer([expect_head(), first_piece, send(response(200, b"ok"))]) as server:
        assert client.post(server.url, content=pieces()).text == "ok"

    assert makers == {threading.get_ident()}


def test_a_multipart_upload_arrives_whole(client: Any) -> None:
    content = bytes(range(256)) * 4000
    with ScriptedServer(serve()) as server:
        client.post(server.url, files={"file": ("data.bin", content)})

        assert content in server.requests[0].body


def test_what_the_callers_iterator_raises_is_raised(client: Any) -> None:
    class OwnError(Exception):
        pass

    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise OwnError

    gone = threading.Event()
    with ScriptedServer([expect_head(), tell_when_gone(gone)]) as server:
        with pytest.raises(OwnError):
            client.post(server.url, content=pieces())
        assert gone.wait(20)


def test_an_iterator_that_raises_the_end_of_another_kind_is_no_whole_body(client: Any) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise StopAsyncIteration

    with ScriptedServer(serve()) as server:
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            client.post(server.url, content=pieces())
        assert not any(request.complete for request in server.requests)


def test_a_response_is_streamed(client: Any) -> None:
    script = [
        expect_request(),
        send(CHUNKED + chunk(b"one")),
        wait("read"),
        send(chunk(b"two"), b"0\r\n\r\n"),
    ]
    with ScriptedServer(script) as server, client.stream("GET", server.url) as streamed:
        pieces = streamed.iter_bytes()
        assert next(pieces) == b"one"
        server.open("read")
        assert list(pieces) == [b"two"]
        assert client.transport.snapshot().idle == 1


def test_a_body_larger_than_what_is_read_ahead_comes_whole(client: Any) -> None:
    body = os.urandom(4_000_000)
    with (
        ScriptedServer(serve(response(200, body))) as server,
        client.stream("GET", server.url) as streamed,
    ):
        assert b"".join(streamed.iter_raw()) == body


def test_a_body_that_nobody_takes_is_not_read_on_and_on(adapter: Any) -> None:
    """Until the caller takes pieces, so many of a body without end are asked for and no more."""
    given, full = 0, threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            if given == 65536 * 6:
                full.set()
            yield bytes(65536)

    transport = MockTransport(lambda request: trunkline.Response(200, content=endless()))
    with adapter.Client(transport) as client, client.stream("GET", "http://api.test/") as streamed:
        # Four fit. The fifth is over, and the task waits for the caller.
        assert not full.wait(0.1)
        assert given == 65536 * 5
        pieces = streamed.iter_raw()
        for _ in range(4):
            next(pieces)
        assert full.wait(20)


def test_leaving_a_stream_half_way_closes_the_connection(client: Any) -> None:
    gone = threading.Event()
    with ScriptedServer(
        [expect_request(), send(CHUNKED + chunk(b"one")), tell_when_gone(gone)]
    ) as server:
        with client.stream("GET", server.url) as streamed:
            assert next(streamed.iter_bytes()) == b"one"
        assert gone.wait(20)


def test_a_response_that_is_dropped_is_told_and_closes_its_connection(
    client: Any, library: Any
) -> None:
    gone = threading.Event()

    def drop() -> None:
        held.clear()
        gc.collect()

    with ScriptedServer(
        [expect_request(), send(CHUNKED + chunk(b"one")), tell_when_gone(gone)]
    ) as server:
        held = [client.send(library.Request("GET", server.url + "/?key=secret"), stream=True)]
        with pytest.warns(ResourceWarning, match="unclosed response") as warned:
            drop()
        assert gone.wait(20)

    assert str(warned[0].message) == f"unclosed response to <Request GET {server.url}>"


def test_it_may_be_used_inside_an_event_loop(client: Any) -> None:
    async def inside(url: str) -> int:
        return int(client.get(url).status_code)

    with ScriptedServer(serve()) as server:
        assert anyio.run(inside, server.url) == 200


# -- ends ------------------------------------------------------------------------------------------


def test_closing_ends_the_thread_and_the_transport(adapter: Any) -> None:
    client = adapter.Client()
    with ScriptedServer(serve()) as server:
        client.get(server.url)
        client.close()

    assert loop_threads() == []
    with pytest.raises(trunkline.TransportClosed):
        anyio.run(client.transport.send, trunkline.Request("GET", "http://127.0.0.1:1/"))


def test_a_transport_that_was_given_stays_open(adapter: Any) -> None:
    transport = MockTransport(lambda request: (200, {}, b""))
    with adapter.Client(transport) as client:
        client.get("http://api.test/")
    with adapter.Client(transport) as client:
        assert client.get("http://api.test/").status_code == 200


def test_a_closed_transport_sends_nothing(adapter: Any, library: Any) -> None:
    sender = adapter.SyncTransport()
    sender.close()

    with pytest.raises(library.TransportError) as raised:
        sender.handle_request(library.Request("GET", "http://127.0.0.1:1/"))

    assert isinstance(raised.value.__cause__, trunkline.TransportClosed)


def test_closing_ends_the_calls_of_other_threads(adapter: Any, library: Any) -> None:
    client, arrived = adapter.Client(), threading.Event()
    with (
        ScriptedServer([expect_request(), tell(arrived)]) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        call = threads.submit(client.get, server.url)
        assert arrived.wait(20)
        client.close()
        error = call.exception(20)

    assert isinstance(error, library.TransportError)


def test_closing_ends_the_calls_on_a_transport_that_was_given(adapter: Any, library: Any) -> None:
    arrived = threading.Event()

    async def never(request: trunkline.Request) -> tuple[int, dict[str, str], bytes]:
        arrived.set()
        await anyio.sleep_forever()
        return 200, {}, b""

    client = adapter.Client(MockTransport(never))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.get, "http://api.test/")
        assert arrived.wait(20)
        client.close()
        error = call.exception(20)

    assert isinstance(error, library.TransportError)
    assert isinstance(getattr(error, "__cause__", None), trunkline.TransportClosed)


def test_a_client_that_is_dropped_ends_its_thread(adapter: Any) -> None:
    client = adapter.Client()
    with ScriptedServer(serve()) as server:
        client.get(server.url)
        (thread,) = loop_threads()
        del client
        gc.collect()
        thread.join(20)

    assert not thread.is_alive()


# -- in a process of their own ---------------------------------------------------------------------


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    # From 3.12 on every fork of a process with threads is warned of.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    return subprocess.Popen(
        [sys.executable, "-X", "dev", *warnings, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


OPEN = """
import logging, os, sys, threading
logging.getLogger("asyncio").setLevel(logging.ERROR)  # not of steps that a busy machine made slow
from importlib import import_module
from trunkline import TransportConfig
family, backend, url = sys.argv[1:]
client = import_module("trunkline.adapters." + family).Client(TransportConfig(backend=backend))
"""

EXITS = {
    "after a call": "client.get(url)",
    "inside a stream": "stream = client.stream('GET', url); answered = stream.__enter__()",
    "with a thread that waits": """
client.get(url)
threading.Thread(target=client.get, args=(url + "/hold",), daemon=True).start()
""",
    "without a call": "",
    "kept by another module": """
client.get(url)
import json
json.client = client
""",
    "closed and kept by another": """
client.get(url)
import json
json.client = client
client.close()
""",
}


@pytest.mark.parametrize("case", EXITS)
def test_the_interpreter_exits_without_noise(library: Any, backend: str, case: str) -> None:
    def reply(request: Any) -> bytes:
        return b"" if request.target == "/hold" else response(200, b"x" * 1_000_000)

    with ScriptedServer(serve(reply)) as server:
        process = start(OPEN + EXITS[case], library.__name__, backend, server.url)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, out, err) == (0, "", "")


CLOSED_AT_EXIT = """
class Observer:
    def on_event(self, event):
        if event.step == "connection" and event.is_end:
            print(event.reason)
client.transport.observe(Observer())
client.get(url)
"""


def test_the_interpreters_exit_closes_the_connections(library: Any, backend: str) -> None:
    with ScriptedServer(serve()) as server:
        process = start(OPEN + CLOSED_AT_EXIT, library.__name__, backend, server.url)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, out, err) == (0, "shutdown\n", "")


INTERRUPTED = """
import signal
# A shell has it ignored in what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    client.get(url)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
print(client.get(url).text)
"""


def test_an_interrupted_call_closes_its_connection(library: Any, backend: str) -> None:
    asked, gone = threading.Event(), threading.Event()
    first = [expect_request(), tell(asked), tell_when_gone(gone)]
    with ScriptedServer(first, serve(response(200, b"again"))) as server:
        process = start(OPEN + INTERRUPTED, library.__name__, backend, server.url)
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        assert gone.wait(20)
        out, err = process.communicate("go on\n", timeout=30)

    assert (process.returncode, out, err) == (0, "again\n", "")


class InterruptAt:
    """A trace function: KeyboardInterrupt at the n-th line that a call runs in the adapters."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        is_ours = "trunkline/adapters" in Path(frame.f_code.co_filename).as_posix()
        return self.count if is_ours and not is_spared(frame) else None

    def count(self, frame: FrameType, event: str, argument: object) -> Any:
        self.left -= event == "line"
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        return self.count


def is_spared(frame: FrameType | None) -> bool:
    """Where no interrupt arrives: between `with lock` and the lock, and out of a finalizer."""
    while frame is not None:
        if frame.f_code.co_name in ("_running", "__del__"):
            return True
        frame = frame.f_back
    return False


INTERRUPTIBLE: dict[str, dict[str, Any]] = {
    "a large response": {"method": "GET"},
    "an iterator's body": {"method": "POST", "content": [b"one", b"two"]},
}


@pytest.mark.filterwarnings("ignore:unclosed response:ResourceWarning")  # whoever drops it is told
@pytest.mark.parametrize("case", INTERRUPTIBLE)
def test_an_interrupt_at_any_line_of_a_call_gives_its_connection_back(
    adapter: Any, case: str
) -> None:
    body = bytes(1_000_000)  # more than is read ahead
    options = TransportConfig(limits=Limits(max_connections=1), warn_utilization=None)
    interrupted = -1
    with (
        ScriptedServer(*[serve(response(200, body))] * 500) as server,
        adapter.Client(options) as client,
    ):
        client.get(server.url)
        while True:
            interrupted += 1
            trace = InterruptAt(interrupted + 1)
            sys.settrace(trace)
            try:
                client.request(url=server.url, **INTERRUPTIBLE[case])
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            assert client.get(server.url, timeout=20).content == body
            if trace.left > 0:
                break

    assert interrupted > 30


FORKED = """
before = client.get(url).text
child = os.fork()
if not child:
    pool = client.transport.snapshot
    print(pool().created, pool().open, len(pool().origins))
    print("child", client.get(url).text, client.get(url).text, flush=True)
    print(pool().created, pool().open, pool().reused)
    client.close()
    print(pool().open, pool().closed)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
print("parent", before, client.get(url).text, client.transport.snapshot().reused)
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_connections_of_its_own(library: Any, backend: str) -> None:
    """The bodies are the numbers of the connections."""
    scripts = [serve(response(200, str(number).encode())) for number in range(3)]
    with ScriptedServer(*scripts) as server:
        process = start(OPEN + FORKED, library.__name__, backend, server.url)
        out, err = process.communicate(timeout=30)

        assert server.connections == 2

    assert (process.returncode, err) == (0, "")
    assert out == "0 0 0\nchild 1 1\n1 1 1\n0 {'shutdown': 1}\nparent 0 0 1\n"
