"""The pytest plugin, each test in a run of pytest of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline import available_backends

pytest_plugins = ["pytester"]

PRELUDE = """
import anyio
import pytest
import trunkline
from trunkline.testing import Router

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=PRELUDE + test)
    # The names of trunkline's modules would be loaded twice in this process otherwise.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


# -- what it costs ---------------------------------------------------------------------------------


def test_it_is_installed_under_its_name(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--help")
    result.stdout.fnmatch_lines(["*--trunkline-record=*"])
    without = pytester.runpytest_subprocess("-p", "no:trunkline", "--help")
    without.stdout.no_fnmatch_line("*--trunkline-record*")


def test_loading_it_loads_nothing_else() -> None:
    script = (
        "import sys, pytest; before = set(sys.modules); import trunkline.testing.pytest_plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert {name for name in loaded.stdout.split() if not name.startswith("_")} == {
        "trunkline",
        "trunkline._version",
        "trunkline.testing",
        "trunkline.testing._leaks",
        "trunkline.testing.pytest_plugin",
    }


def test_a_suite_that_does_not_use_trunkline_does_not_load_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_loaded():
            assert "trunkline._messages" not in sys.modules
            assert "trunkline.pool" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


def test_a_suite_may_hold_what_does_not_compare(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        class Array:
            def __eq__(self, other):
                raise ValueError("the truth value of an array is ambiguous")

        ARRAY = Array()

        def test_it():
            pass
        """
    )
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


# -- fixtures --------------------------------------------------------------------------------------


def test_a_test_runs_once_for_each_installed_backend(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
async def test_it(trunkline_backends, llm_server):
    async with trunkline.Client(backend=trunkline_backends) as client:
        assert client.backend == trunkline_backends
        assert (await client.get(f"{llm_server.base_url}/models")).status_code == 200
    assert llm_server.requests == 1
""",
        "-v",
        "-W",
        "error",
    )
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) + outcomes.get("skipped", 0) == len(available_backends())
    result.stdout.fnmatch_lines(["*[[]aiohttp[]] PASSED*", "*[[]httpx[]] PASSED*"])


def test_a_backend_that_does_not_run_on_the_loop_is_skipped(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_it(trunkline_backends):
    trunkline.open_transport(trunkline.TransportConfig(backend=trunkline_backends))
""",
        "-rs",
    )
    result.stdout.fnmatch_lines(["*aiohttp does not run on trio*"])
    assert "failed" not in result.parseoutcomes()


def test_an_unexpected_request_fails_the_test_that_caught_its_error(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
async def test_it(trunkline_router):
    trunkline_router.get("/x").respond(text="fine")
    async with trunkline.Client(transport=trunkline_router.transport) as client:
        assert (await client.get("https://h/x")).text == "fine"
        with pytest.raises(AssertionError):
            await client.get("https://h/y")
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no route matches GET https://h/y*"])


CASSETTE = """
@pytest.mark.parametrize("question", ["How many?/"])
async def test_it(trunkline_cassette, question):
    router = Router()
    router.post().respond(json={"answer": 42})
    inner = None if trunkline_cassette.mode == "none" else router.transport
    async with trunkline.Client(transport=trunkline_cassette(inner)) as client:
        response = await client.post("https://h/ask", json={"question": question})
        assert response.json() == {"answer": 42}
"""


def test_a_cassette_is_named_after_the_test_and_replayed_by_default(
    pytester: pytest.Pytester,
) -> None:
    run(pytester, CASSETTE, "--trunkline-record=once").assert_outcomes(passed=1)

    (file,) = (pytester.path / "cassettes" / "test_it").iterdir()
    assert re.fullmatch(r"test_it-How-many-[0-9a-f]{8}\.json", file.name)
    assert len(json.loads(file.read_text(encoding="utf-8"))["interactions"]) == 1
    run(pytester, CASSETTE).assert_outcomes(passed=1)


def test_names_that_differ_only_in_what_no_file_may_have_are_different_files(
    pytester: pytest.Pytester,
) -> None:
    test = CASSETTE.replace('["How many?/"]', '["a b", "a+b", "a/b", "x" * 300]')
    run(pytester, test, "--trunkline-record=once").assert_outcomes(passed=4)

    assert len(list((pytester.path / "cassettes" / "test_it").iterdir())) == 4
    run(pytester, test).assert_outcomes(passed=4)


@pytest.mark.parametrize("mode", ["once", "new", "all"])
def test_the_transports_of_a_test_share_its_cassette(pytester: pytest.Pytester, mode: str) -> None:
    test = """
async def test_it(trunkline_cassette):
    router = Router()
    router.get().respond(text="1").respond(text="2").respond(text="3")
    is_replayed = trunkline_cassette.mode == "none"

    def client():
        inner = None if is_replayed else router.transport
        return trunkline.Client(transport=trunkline_cassette(inner))

    async with client() as first, client() as second:
        assert [(await one.get("https://h/")).text for one in (first, second)] == ["1", "2"]
    async with client() as third:
        assert (await third.get("https://h/")).text == "3"
"""
    for _ in range(2 if mode == "all" else 1):
        run(pytester, test, f"--trunkline-record={mode}").assert_outcomes(passed=1)
    (file,) = (pytester.path / "cassettes" / "test_it").iterdir()
    assert file.name == "test_it.json"
    assert len(json.loads(file.read_text(encoding="utf-8"))["interactions"]) == 3
    run(pytester, test).assert_outcomes(passed=1)


def test_what_has_no_cassette_is_refused_by_default(pytester: pytest.Pytester) -> None:
    result = run(pytester, CASSETTE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing is recorded there*", "*--trunkline-record=new*"])


# -- leaks -----------------------------------------------------------------------------------------

LEAKS = """
from trunkline.testing import ASGITransport, Fault, FaultTransport

HELD = []

async def ask(llm_server, transport=None):
    async with trunkline.Client(base_url=llm_server.base_url, transport=transport) as client:
        return await client.send(client.build_request("GET", "/models"))

async def test_dropped(llm_server):
    await ask(llm_server)

async def test_after_dropped(llm_server):
    await (await ask(llm_server)).aclose()

async def test_held(llm_server):
    HELD.append(await ask(llm_server))

async def test_after_held(llm_server):
    await (await ask(llm_server)).aclose()

async def test_in_a_cycle(llm_server):
    cycle = [await ask(llm_server)]
    cycle.append(cycle)

async def test_behind_another_transport(llm_server):
    transport = FaultTransport(trunkline.HttpxTransport(), [Fault(drip_size=1)])
    HELD.append(await ask(llm_server, transport))

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
    await receive()
    await receive()

async def test_of_an_application():
    transport = ASGITransport(app, lifespan=False)
    HELD.append(await transport.send(trunkline.Request("GET", "http://h/")))

async def test_of_no_connection():
    router = Router()
    router.get()
    HELD.append(await router.transport.send(trunkline.Request("GET", "http://h/")))
"""
LEAKING = {
    "test_dropped", "test_held", "test_in_a_cycle", "test_behind_another_transport",
    "test_of_an_application",
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-W", "error"),
        ("-W", "ignore::ResourceWarning"),
        ("-p", "no:warnings"),
        ("-p", "no:unraisableexception"),
    ],
    ids=" ".join,
)
def test_a_leaked_response_fails_the_test_that_leaked_it(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    result = run(pytester, LEAKS, "-rfE", *options)

    told = re.findall(r"^(?:FAILED|ERROR) test_it\.py::(\w+)", str(result.stdout), re.MULTILINE)
    assert sorted(told) == sorted(LEAKING)
    result.stdout.fnmatch_lines(["*unclosed response*"])


def test_a_leak_is_told_of_with_the_line_that_made_it(pytester: pytest.Pytester) -> None:
    result = run(pytester, LEAKS, "-k", "test_held")
    line = (
        (PRELUDE + LEAKS)
        .strip()
        .splitlines()
        .index('        return await client.send(client.build_request("GET", "/models"))')
    )
    result.stdout.fnmatch_lines(
        [
            "the test leaks:",
            f"  <Response * (test_it.py:{line + 1}) is neither read to its end nor closed",
        ]
    )


SHARED_LOOP = """
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module", autouse=True)
async def loop_of_the_module():
    yield
"""


def test_a_leaked_connection_fails_the_test_that_leaked_it(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        SHARED_LOOP
        + """
CLIENTS = []
async def test_it(llm_server):
    CLIENTS.append(trunkline.Client(base_url=llm_server.base_url))
    await CLIENTS[0].get("/models")

async def test_innocent():
    await CLIENTS[0].aclose()
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*is not closed, with 1 connections open: http://127.0.0.1:*"])


ENDING_LOOPS = """
import asyncio

CLIENTS = []

async def ask(llm_server):
    client = trunkline.Client(base_url=llm_server.base_url)
    await client.get("/models")
    return client

async def test_held_in_the_loop_of_the_test(llm_server):
    CLIENTS.append(await ask(llm_server))

async def test_dropped_in_the_loop_of_the_test(llm_server):
    client = await ask(llm_server)

@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_held_on_trio(llm_server):
    CLIENTS.append(await ask(llm_server))

def test_held_in_a_loop_of_its_own(llm_server):
    CLIENTS.append(asyncio.run(ask(llm_server)))

def test_closed_in_another_loop(llm_server):
    client = asyncio.run(ask(llm_server))
    asyncio.run(client.aclose())

async def test_closed(llm_server):
    await (await ask(llm_server)).aclose()
"""


def test_connections_that_end_with_their_loop_fail_the_test_too(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, ENDING_LOOPS, "-rE")

    told = re.findall(r"^ERROR test_it\.py::(\w+)", str(result.stdout), re.MULTILINE)
    assert sorted(told) == [
        "test_dropped_in_the_loop_of_the_test",
        "test_held_in_a_loop_of_its_own",
        "test_held_in_the_loop_of_the_test",
        "test_held_on_trio",
    ]
    result.stdout.fnmatch_lines(["*closed before its loop, with 1 connections open: http://127*"])


def test_the_first_test_to_load_trunkline_is_watched_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        application="""
        def ask(url):
            import asyncio
            import trunkline

            async def main():
                client = trunkline.Client(base_url=url)
                await client.get("/")
                return client

            return asyncio.run(main())
        """,
        test_it="""
        import sys
        import threading
        from http.server import BaseHTTPRequestHandler, HTTPServer
        import application

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send_response(204)
                self.end_headers()

        HELD = []

        def test_lazy():
            assert "trunkline._messages" not in sys.modules
            with HTTPServer(("127.0.0.1", 0), Handler) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                HELD.append(application.ask(f"http://127.0.0.1:{server.server_port}"))
                server.shutdown()
        """,
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*closed before its loop, with 1 connections open*"])


def test_a_teardown_that_fails_leaves_no_leak_to_the_next_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        LEAKS
        + """
async def test_failing_teardown(llm_server, request):
    HELD.append(await ask(llm_server))
    def fail():
        raise RuntimeError("in the teardown")
    request.addfinalizer(fail)

async def test_innocent_next():
    HELD.clear()
""",
        "-k",
        "failing_teardown or innocent_next",
        "-rE",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=2, errors=1, deselected=8)
    result.stdout.fnmatch_lines(["*RuntimeError: in the teardown*"])
    result.stdout.no_fnmatch_line("*unclosed response*")


def test_what_a_fixture_shares_among_tests_is_no_leak(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        SHARED_LOOP
        + """
from trunkline.testing import LLMServer

@pytest.fixture(scope="module")
async def client(anyio_backend):
    with LLMServer() as server:
        async with trunkline.Client(base_url=server.base_url) as client:
            await client.get("/models")
            yield client

async def test_one(client):
    await client.get("/models")

async def test_two(client):
    assert client.snapshot().open == 1
""",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=2)


def test_what_a_fixture_closes_is_no_leak(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
async def response(llm_server):
    async with (
        trunkline.Client(base_url=llm_server.base_url) as client,
        client.stream("GET", "/models") as response,
    ):
        yield response

async def test_it(response):
    assert response.status_code == 200
""",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1)


def test_one_that_may_leak_and_one_that_failed_are_left_alone(pytester: pytest.Pytester) -> None:
    test = (
        LEAKS
        + """
@pytest.mark.trunkline_may_leak
async def test_allowed(llm_server):
    HELD.append(await ask(llm_server))

async def test_failed(llm_server):
    HELD.append(await ask(llm_server))
    raise KeyError("its own")
"""
    )
    result = run(pytester, test, "-k", "allowed or failed", "--strict-markers")
    result.assert_outcomes(passed=1, failed=1, deselected=8)
    result.stdout.no_fnmatch_line("*the test leaks*")


def test_nothing_stays_watched_after_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import trunkline

        def test_it():
            assert hasattr(trunkline.Response.__init__, "__wrapped__")
        """,
        script="""
        import sys, pytest, trunkline
        before = trunkline.Response.__init__, trunkline.Response.__del__
        assert pytest.main(["-p", "no:cacheprovider", "test_it.py"]) == 0
        assert (trunkline.Response.__init__, trunkline.Response.__del__) == before
        assert not [one for one in sys.meta_path if "trunkline" in type(one).__module__]
        """,
    )
    assert pytester.runpython(pytester.path / "script.py").ret == 0


# -- the guide -------------------------------------------------------------------------------------

GUIDE = Path(__file__).parents[2] / "docs" / "testing.md"


def test_every_example_of_the_guide_passes(pytester: pytest.Pytester) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        pytester.makepyfile(**{f"test_{number}": block})
    pytester.makeconftest(
        "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    )

    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")

    outcomes = result.parseoutcomes()
    assert not {"failed", "errors"} & set(outcomes), outcomes
    assert outcomes["passed"] >= len(blocks)


def test_the_guide_names_the_fixtures_there_are(pytester: pytest.Pytester) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    listed = pytester.runpytest_subprocess("--fixtures", "-p", "no:cacheprovider")
    for name in ("trunkline_backends", "llm_server", "trunkline_router", "trunkline_cassette"):
        assert f"| `{name}` |" in text
        listed.stdout.fnmatch_lines([f"{name} *"])
